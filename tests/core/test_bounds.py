"""Nothing that the broker keeps grows with what it has done: only with what is under way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from engine.core.batching import Policy
from engine.core.demand import Demand
from engine.core.failures import Failures
from engine.core.front import DEADLINES_SLACK
from engine.core.liveness import FRONTEND_SILENCE_S
from engine.core.messages import FrontendBeat, StreamEvents, WorkerBeat
from engine.core.stage import StageSpec
from engine.core.trace import Refusals, Releases
from engine.core.window import Marks
from tests.core.twin import Twin, topology

HOURS_S = 10_000.0
SPEC = StageSpec("s0", 4, Policy(64, 1 << 20, 0.010), timeout_s=HOURS_S, kill_after_s=1.0, max_queue_bytes=1 << 20)


def entries(root: object) -> int:
    """How many values all containers hold that can be reached from here by way of objects of ours."""
    seen: set[int] = set()
    waiting: list[Any] = [root]
    count = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | None | type):
            continue
        if isinstance(one, Releases | Refusals | Demand | Marks | Failures):
            continue  # rings, which are full sooner or later; how much they hold is tested with them
        seen.add(id(one))
        if isinstance(one, Mapping):
            count += len(one)
            waiting += one.values()
        elif isinstance(one, Iterable):
            inside = list(one)
            count += len(inside)
            waiting += inside
        elif type(one).__module__.startswith("engine."):
            names = {*getattr(one, "__dict__", ()), *getattr(one, "__struct_fields__", ())}
            for kind in type(one).__mro__:
                names |= set(kind.__dict__.get("__slots__", ()))
            waiting += [getattr(one, name, None) for name in names]
    return count


def kept(twin: Twin) -> int:
    return entries([twin.front, *twin.stages])


def test_a_container_of_ours_is_found_wherever_it_is() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    few = kept(twin)
    twin.submit(100)
    assert kept(twin) > few + 3 * 100  # the ledger, the frontend's, the heap, and a queue or a batch
    while worker.lane:
        twin.finish(worker)
    assert kept(twin) <= few + DEADLINES_SLACK


@pytest.mark.unmeasured
def test_the_heap_of_deadlines_is_no_longer_than_it_must_be() -> None:
    twin = Twin(topology(), [replace(SPEC, policy=Policy(1000, 1 << 30, 0.0))])
    worker = twin.worker()
    twin.submit(500, budget_s=HOURS_S)  # these stay
    for turn in range(100):
        twin.submit(1000, first=1000 * (turn + 1), budget_s=HOURS_S)
        for batch, _ in list(worker.lane[1:]):
            assert batch
        while len(twin.front.ledger) > 500 and len(worker.lane) > 1:
            twin.finish(worker, position=1)
        assert len(twin.front._deadlines) <= 2 * len(twin.front.ledger) + DEADLINES_SLACK
    assert len(twin.front.ledger) >= 500
    twin.pass_time(HOURS_S + 1)  # and every one of them is still answered in time
    assert not twin.front.ledger
    assert not twin.front._deadlines
    assert twin.answer(1) == (408, b"inference timeout")


@pytest.mark.unmeasured
def test_a_hundred_thousand_requests_with_long_deadlines_leave_nothing() -> None:
    """Through two stages, by frontends and workers that come and go, some of them cancelled, failed, streamed or
    computed again."""
    twin = Twin(topology((0, 1), (1,), stages=2), [replace(SPEC, name=f"s{index}") for index in range(2)])
    requests = early = 0
    for turn in range(1600):
        peer = b"frontend-%d" % turn
        twin.introduce(peer)
        twin.front.beat(peer, FrontendBeat(b"families"), twin.now)
        first, second = twin.worker(0, slot=1 + turn % 4), twin.worker(1, slot=1 + turn % 4)
        for stage, worker in enumerate((first, second)):
            twin.stages[stage].beat(WorkerBeat(worker.key, b"families"), twin.now)
        twin.submit(64, first=requests + 1, budget_s=HOURS_S, peer=peer, route=turn % 2)
        start = (second if turn % 2 else first).lane[0][0]
        requests += 64
        twin.front.cancel(peer, [requests, requests - 1])
        if turn % 2:
            events = StreamEvents(1, second.key, start.uids[:3], batch=start.batch)
            twin.front.events(events, [b"event"] * 3, twin.now)
            twin.front.consumed(peer, {requests - 63: 5})
        if turn % 5 == 0:
            twin.kill(first)
            first = twin.worker(0, slot=1)
        while first.lane:
            twin.finish(first, statuses={f"r{requests - 10}": 422})
        while second.lane:
            twin.finish(second)
        if turn % 7 == 0:
            twin.pass_seconds(int(FRONTEND_SILENCE_S) + 2)
            for silent in twin.front.silent(twin.now):
                twin.front.gone(silent)
        elif turn % 3 == 0:
            twin.front.gone(peer)
        for worker in list(twin.workers.values()):
            twin.stages[worker.stage].leave(worker.key, twin.now)
            twin.run()
            twin.kill(worker)
        if turn == 100:
            early = kept(twin)
        assert not twin.front.ledger or turn % 7
    for silent in list(twin.front.frontends):
        twin.front.gone(silent)
    twin.run()
    assert requests > 100_000
    assert twin.is_empty()
    assert kept(twin) <= early + DEADLINES_SLACK


@pytest.mark.parametrize("where", ["queue", "last attempt"])
def test_what_nobody_waits_for_is_not_kept_until_a_worker_comes(where: str) -> None:
    twin = Twin(topology(), [SPEC], shared=True)
    worker = twin.worker()
    twin.submit(1, budget_s=HOURS_S)
    for _ in range(2 if where == "last attempt" else 1):
        twin.kill(worker)
        if where == "last attempt" and not twin.stages[0].fate.apart:
            worker = twin.worker()
    assert len(twin.stages[0].queue) + len(twin.stages[0].fate.apart) == 1
    assert bool(twin.stages[0].fate.apart) is (where == "last attempt")
    twin.front.cancel(b"f", [1])
    twin.run()
    assert twin.is_empty()


def test_a_request_is_dropped_where_it_is_and_where_it_may_be_going() -> None:
    """On another thread a later stage may have found it open, and not have advanced its hop yet: the next one, or one
    to which it was sent past that."""
    twin = Twin(topology((0, 1, 2), stages=3), [replace(SPEC, name=f"s{index}") for index in range(3)])
    for stage in range(3):
        twin.worker(stage)
    twin.submit(1)
    twin.front.cancel(b"f", [1])
    assert [action.stage for action in twin.front.actions] == [0, 1, 2]
