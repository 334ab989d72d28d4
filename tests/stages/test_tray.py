"""What comes as one batch and is several: ``forward`` gets them one after the other, and nobody's result waits for one
that takes long."""

from __future__ import annotations

import time
from typing import Any

import pytest

from engine.core.messages import Batch, CancelItems, Results, Status, WorkerBeat
from engine.core.routing import Route, Topology
from engine.core.wire import decode, unpack_trail
from engine.exitcodes import ExitCode
from stages.compute import OK, Outcome
from stages.runtime import tray as tray_module
from stages.runtime.parcels import Origin, Plan
from stages.runtime.tray import Tray, part_of
from stages.shm import SharedMemory
from tests.stages.test_runtime import one, start

__all__ = ["start"]

ECHO = {"do": "echo", "x": 1}
COUNT = {"do": "memory", "fits": 100}  # how many forward has got


def test_forward_never_gets_more_than_its_stage_says(start: Any) -> None:
    broker, _ = start(one(max_batch_size=2))
    first = broker.settled(broker.give(1, [COUNT] * 7))
    assert [item.value for item in first] == [2, 2, 2, 2, 2, 2, 1]
    assert [item.value for item in broker.settled(broker.give(2, [COUNT]))] == [1]
    assert sum(results.compute_us > 0 for results in broker.results) == len(broker.results)


def test_a_value_alone_is_given_as_it_is(start: Any) -> None:
    broker, _ = start(one(worker="service:Alone", max_batch_size=1))
    items = broker.settled(broker.give(1, [{"x": n} for n in range(5)]))
    assert [item.value for item in items] == [{"x": n} for n in range(5)]


def test_what_is_done_is_sent_while_another_one_is_computed(bench: Any, start: Any, let_go: Any) -> None:
    broker, _ = start(one(max_batch_size=2))
    gate = bench.fifo()
    uids = broker.give(1, [ECHO, ECHO, {"do": "gate", "path": str(gate)}, ECHO, ECHO, ECHO])
    assert [item.value for item in broker.settled(uids[:2])] == [1, 1]
    assert uids[2] not in broker.items
    let_go(gate, broker)
    assert [item.value for item in broker.settled(uids)[2:]] == ["through", 1, 1, 1]
    assert {item.batch for item in broker.items.values()} == {1}


def test_who_leaves_meanwhile_is_not_computed(bench: Any, start: Any, let_go: Any) -> None:
    broker, _ = start(one(max_batch_size=2))
    gate = bench.fifo()
    uids = broker.give(1, [{"do": "gate", "path": str(gate)}, ECHO, ECHO, ECHO])
    broker.tell(CancelItems([uids[3]]))
    for _ in range(2):  # the second beat from here on was sent after the message was read
        broker.expect(WorkerBeat)
    let_go(gate, broker)
    assert [item.status for item in broker.settled(uids)] == [OK, OK, OK, Status.SKIPPED]


def test_only_the_one_that_reaches_the_time_limit_is_given_back(start: Any) -> None:
    """Each of them has all of the time, and they have not been in its call."""
    broker, _ = start(one(timeout=0.5, kill_after=60, max_batch_size=2))
    nap = {"do": "sleep", "s": 0.3}
    uids = broker.give(1, [nap, ECHO, nap, ECHO, {"do": "sleep", "s": 30}, ECHO, ECHO, ECHO])
    statuses = [item.status for item in broker.settled(uids)]
    assert statuses == [OK] * 4 + [Status.SKIPPED] * 2 + [OK] * 2


def test_what_was_done_before_a_process_is_of_no_more_use_is_sent(start: Any) -> None:
    broker, worker = start(one(max_batch_size=2))
    uids = broker.give(1, [ECHO, ECHO, {"do": "broken", "why": "lost"}, ECHO, ECHO, ECHO])
    assert worker.wait(broker) == ExitCode.FAILED
    assert [item.status for item in broker.settled(uids[:2])] == [OK, OK]
    assert not set(uids[2:]) & broker.items.keys()


def test_one_that_fails_fails_alone(start: Any) -> None:
    broker, _ = start(one(max_batch_size=2))
    uids = broker.give(1, [ECHO, {"do": "bug"}, ECHO, b"{", {"do": "refuse", "x": 1}, ECHO])
    assert [item.status for item in broker.settled(uids)] == [200, 500, 200, 400, 422, 200]


def test_each_is_told_its_own_times(start: Any) -> None:
    broker, _ = start(one(max_batch_size=2))
    uids = broker.give(1, [ECHO, ECHO, {"do": "sleep", "s": 0.2}, ECHO, ECHO, ECHO])
    steps = [item.step for item in broker.settled(uids)]
    computed = [step[2] for step in steps]
    assert computed[0] == computed[1] < 200_000 <= computed[2] == computed[3]
    assert computed[4] == computed[5] < 200_000
    assert steps[0][1] < 200_000 <= steps[4][1]  # which it has waited for
    told = sum(results.compute_us for results in broker.results)
    assert told == computed[0] + computed[2] + computed[4]


# --- the tray itself -------------------------------------------------------------------------------------------------


class Sent:
    """In the place of outlets."""

    def __init__(self) -> None:
        self.results: list[Results] = []

    def send(self, _target: int, frames: Any) -> None:
        message, _ = decode([bytes(frame) for frame in frames])
        assert isinstance(message, Results)
        self.results.append(message)


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Results of four batches of two, with what is late after so many seconds."""

    def filled(late_s: float) -> list[Results]:
        monkeypatch.setattr(tray_module, "LATE_S", late_s)
        sent = Sent()
        tray = Tray(sent, SharedMemory(), "text/x")  # type: ignore[arg-type]  # as far as it is used
        tray.plan = Plan(Topology(("a",), (Route("/x", (0,)),)), 0)
        uids = [*range(8)]
        batch = Batch(5, 0, "full", uids, [0] * 8, [1] * 8, [1] * 8, [b""] * 8, [n << 3 for n in uids], [b""] * 8)
        tray.begin(batch, Origin(0, 7))
        for n in range(4):
            tray.add([Outcome(OK, b"%d" % (2 * n)), Outcome(OK, b"%d" % (2 * n + 1))], n, 10 * n + 1, {}, {})
        tray.end()
        tray.stop()
        return sent.results

    return filled


@pytest.mark.parametrize(("late_s", "parcels"), [(3600.0, 1), (0.0, 4)])
def test_results_leave_together_unless_they_are_late(filled: Any, late_s: float, parcels: int) -> None:
    results = filled(late_s)
    assert len(results) == parcels
    assert [uid for one in results for uid in one.uids] == [*range(8)]
    assert {(one.stage, one.worker, one.batch) for one in results} == {(0, 7, 5)}
    steps = [unpack_trail(trail)[0] for one in results for trail in one.trails]
    assert steps == [(n << 3, n // 2, 10 * (n // 2) + 1) for n in range(8)]
    assert sum(one.compute_us for one in results) == 1 + 11 + 21 + 31


def test_its_thread_sends_what_lies_there(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Sent()
    tray = Tray(sent, SharedMemory(), "text/x")  # type: ignore[arg-type]  # as far as it is used
    tray.plan = Plan(Topology(("a",), (Route("/x", (0,)),)), 0)
    batch = Batch(5, 0, "full", [1, 2], [0, 0], [1, 1], [1, 1], [b""] * 2, [0, 0], [b""] * 2)
    for number in range(3):  # after it has parked as well
        if number:
            until(lambda: tray._parked)
        wanted = len(sent.results) + 1
        tray.begin(batch, Origin(0, 7))
        tray.add([Outcome(OK)], 0, 0, {}, {})
        until(lambda wanted=wanted: len(sent.results) == wanted)
        tray.add([Outcome(OK)], 0, 0, {}, {})
        tray.end()
        assert [one.uids for one in sent.results[-2:]] == [[1], [2]]
    tray.stop()


def test_a_part_of_a_batch_has_all_its_columns() -> None:
    batch = Batch(5, 3, "full", [1, 2], [3, 4], [5, 6], [7, 8], [b"a", b"b"], [9, 10], [b"c", b"d"])
    assert part_of(batch, 1, 1) == Batch(5, 3, "full", [2], [4], [6], [8], [b"b"], [10], [b"d"])
    assert part_of(batch, 0, 2) == batch


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
