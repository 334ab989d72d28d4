"""The worker process over real sockets; the test plays the broker."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import transport
from engine.core import meta, wire
from engine.core.introduction import Introduction, Refusal, Stranger
from engine.core.messages import (
    Bye,
    CancelItems,
    Dismiss,
    Leave,
    Pulse,
    Ready,
    Revoke,
    Status,
    WorkerBeat,
)
from engine.exitcodes import ExitCode
from engine.metrics import unpack

ONE = """
[[stage]]
name = "obey"
worker = "service:Obey"
num = 2
max_batch_size = 8
timeout = 20
cpus = "all"
device = "cpu"
"""


def one(**changes: object) -> str:
    lines = {line.split(" = ")[0]: line for line in ONE.strip().splitlines()}
    lines |= {name: f"{name} = {json.dumps(value)}" for name, value in changes.items() if name != "env"}
    if "env" in changes:
        lines["env"] = f"env = {changes['env']}"
    return "\n".join(lines.values()) + "\n"


@pytest.fixture
def start(bench: Any) -> Callable[..., tuple[Any, Any]]:
    """A worker that is welcomed and ready, and its broker."""

    def start(text: str = ONE, stage: int = 0, **env: str) -> tuple[Any, Any]:
        deployment = bench.deployment(text)
        broker = bench.broker(deployment, stage)
        worker = bench.worker(deployment, deployment.stages[stage].name, **env)
        broker.welcome()
        broker.expect(Ready)
        return broker, worker

    return start


# --- joining ---------------------------------------------------------------------------------------------------------


def test_worker_introduces_itself_warms_up_and_is_ready(bench: Any) -> None:
    deployment = bench.deployment(one(worker="service:Warm"))
    broker = bench.broker(deployment)
    worker = bench.worker(deployment, "obey", 2)
    who = broker.welcome()
    assert (who.deployment, who.routes) == (deployment.engine.name, deployment.topology.by_name())
    assert (who.stage, who.slot, who.pid) == ("obey", 2, worker.popen.pid)
    ready = broker.expect(Ready)
    assert isinstance(ready, Ready)
    assert (ready.worker, ready.mime) == (1, "text/x-warm")
    assert not ready.may_rest
    (item,) = broker.settled(broker.give(1, [{"do": "about"}]))
    assert item.value["worker_id"] == 2
    broker.until(lambda: worker.names()[-1] == "ready", "its word")
    assert worker.names() == ["loading", "warming", "warming", "warming", "ready"]
    assert worker.events[3] == {"event": "warming", "done": 2, "of": 2}


def test_a_worker_says_what_its_values_cost_where_a_batch_has_a_limit(bench: Any) -> None:
    deployment = bench.deployment(one(worker="service:Priced", max_batch_cost=1000))
    broker = bench.broker(deployment)
    bench.worker(deployment)
    broker.welcome()
    ready = broker.expect(Ready)
    assert ready.tells_cost
    assert {30, 100, 200, 400} <= ready.times_us.keys()  # of 1, 2, 4 and 8 values, as long as the longest
    values = [{"do": "echo", "x": 3}, b"{", {"do": "echo", "x": "much"}, {"do": "refuse", "x": 5}]
    uids = broker.give(1, values)
    told = broker.settled(uids)
    assert [item.status for item in told] == [200, 400, 200, 422]
    costs = {results.uids[at]: cost for results in broker.results for at, cost in results.costs.items()}
    assert costs == {uids[0]: 3.0, uids[3]: 5.0}


def test_a_worker_says_that_it_may_be_a_spare_where_there_are_some(bench: Any) -> None:
    deployment = bench.deployment(one(worker="service:Priced", spare=1))
    broker = bench.broker(deployment)
    bench.worker(deployment)
    broker.welcome()
    assert broker.expect(Ready).may_rest


def test_without_a_limit_nobody_is_asked_what_values_cost(bench: Any) -> None:
    deployment = bench.deployment(one(worker="service:Priced"))
    broker = bench.broker(deployment)
    bench.worker(deployment)
    broker.welcome()
    ready = broker.expect(Ready)
    assert not ready.tells_cost
    assert {1, 2, 4, 8} <= ready.times_us.keys()
    broker.settled(broker.give(1, [{"do": "echo", "x": 3}]))
    assert not broker.results[-1].costs


def test_a_broker_without_unix_sockets_is_served_by_those_it_has(bench: Any) -> None:
    deployment = bench.deployment(ONE)
    broker = bench.broker(deployment, way=-1)
    bench.worker(deployment)
    broker.welcome()
    broker.expect(Ready)
    (item,) = broker.settled(broker.give(1, [{"do": "echo", "x": 3}]))
    assert item.value == 3


def test_results_do_not_wait_for_the_next_batch_to_be_computed(start: Any, tmp_path: Path) -> None:
    """More of them than the system holds for a connection, of a broker that does not read for a while."""
    broker, _ = start()
    begun = tmp_path / "begun"
    uids = broker.give(1, [{"do": "large", "size": 60_000}] * 8 * 8)
    next_ones = broker.give(2, [{"do": "until_cancelled", "path": str(begun)}])
    while not begun.exists():  # nothing is read until then
        time.sleep(0.005)
    broker.settled(uids)
    assert not any(results.batch == 2 for results in broker.results)
    broker.tell(CancelItems(next_ones))
    broker.settled(next_ones)


def test_the_introduction_comes_before_the_model_is_loaded(bench: Any, let_go: Any) -> None:
    gate = bench.fifo()
    deployment = bench.deployment(one(worker="service:SlowInit") + f'args = {{ gate = "{gate}" }}\n')
    broker = bench.broker(deployment)
    bench.worker(deployment)
    broker.welcome()
    assert isinstance(broker.expect(WorkerBeat), WorkerBeat)
    let_go(gate, broker)
    broker.expect(Ready)


def test_worker_waits_for_a_broker_that_is_not_there_yet(bench: Any) -> None:
    deployment = bench.deployment(ONE)
    worker = bench.worker(deployment)
    while "ready" not in worker.names():
        assert worker.popen.poll() is None, worker.stderr
    broker = bench.broker(deployment)
    broker.welcome()
    broker.expect(Ready)


def test_a_worker_is_called_ready_when_the_broker_knows_that_it_is(bench: Any) -> None:
    deployment = bench.deployment(ONE)
    broker = bench.broker(deployment)
    broker.mute = True
    worker = bench.worker(deployment)
    broker.welcome()
    for _ in range(2):  # the first may have been lost with a connection
        broker.expect(Ready)
        broker.expect(WorkerBeat)
        assert worker.names() == ["loading"]
        broker.tell(Pulse(1, True, is_loading=True))
    broker.expect(Ready)
    broker.tell(Pulse(1, True))
    broker.until(lambda: worker.names() == ["loading", "ready"], "its word")


def test_refused_worker_exits_with_the_reason(bench: Any) -> None:
    deployment = bench.deployment(ONE)
    broker = bench.broker(deployment)
    worker = bench.worker(deployment)
    broker.expect(Introduction)
    broker.tell(Refusal("other stages"))
    assert worker.wait(broker) == ExitCode.START
    assert "other stages" in worker.stderr
    assert "failed" in worker.names()


def test_a_worker_goes_to_the_socket_that_is_its_stages_at_the_broker(bench: Any) -> None:
    deployment = bench.deployment(ONE)
    broker = bench.broker(deployment)
    bench.worker(deployment)
    broker.expect(Introduction)
    elsewhere = transport.router(broker.ctx, broker.endpoints.control(1))
    try:
        broker.tell(Stranger(stage=1))
        broker.until(lambda: elsewhere.poll(0), "the worker at the other socket")
        frames = transport.recv(elsewhere)
        assert frames is not None
        assert isinstance(wire.decode(frames[1:])[0], Introduction)
    finally:
        elsewhere.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("service:BadInit", "no such model"),
        ("service:BadExample", "no example (service.py, line "),
        ("service:BadExample", ") while computing its example"),
        ("service:BadAtThree", "no three (service.py, line "),
        ("service:BadAtThree", ") while computing a batch of 3 made of its example (see warm_up)"),
        ("service:Coroutine", 'is "async def", which nobody would await'),
        ("service:BadQuits", "sys.exit('no licence')"),
        ("service:BadText", "its text cannot be shown (SystemExit in Panic.__str__)"),
        ("service:NoForward", "must define forward"),
        ("service:NotAWorker", "not derived from"),
        ("service:Missing", "Missing"),
        ("nowhere:Missing", "nowhere"),
    ],
)
def test_worker_that_cannot_start_says_why(bench: Any, name: str, reason: str) -> None:
    deployment = bench.deployment(one(worker=name))
    worker = bench.worker(deployment)
    assert worker.wait() == ExitCode.START
    assert worker.names()[-1] == "failed"
    assert reason in str(worker.events[-1]["reason"])
    assert "\n" not in str(worker.events[-1]["reason"])
    assert reason not in worker.stderr  # whoever listens tells it, once for all workers that meet it
    trace = str(worker.events[-1]["trace"])
    assert ("service.py" in trace) == ("Bad" in name)  # the user's own, and nobody else's
    assert "runtime" not in trace


def test_worker_knows_itself_and_its_request(start: Any) -> None:
    broker, _ = start(one(env='{ COLOUR = "green" }'), COLOUR="green", OMP_NUM_THREADS="3")
    head = meta.pack_head(b"q=a%20b&q=c", [(b"x-tenant", b"acme")])
    (item,) = broker.settled(broker.give(1, [{"do": "about", "env": "COLOUR"}], head=head))
    about = item.value
    about.pop("pid")
    assert about == {
        "worker_id": 1,
        "stage": "obey",
        "max_batch_size": 8,
        "device": "cpu",
        "env": "green",
        "threads": "3",
        "heavy": [],
        "request_id": "r100",
        "tenant": "acme",
        "q": "c",
        "in_time": True,
    }


# --- batches ---------------------------------------------------------------------------------------------------------


def test_each_item_gets_its_own_outcome(start: Any) -> None:
    broker, _ = start()
    uids = broker.give(1, [{"do": "echo", "x": 1}, b"{bad", {"do": "refuse", "x": "way"}, {"do": "oops"}, b""])
    good, malformed, invalid, broken, empty = broker.settled(uids)
    assert (good.status, good.value, good.mime) == (Status.OK, 1, "application/json")
    assert malformed.status == Status.BAD_REQUEST
    assert bytes(malformed.payload).startswith(b"decoding error: ")
    assert (invalid.status, invalid.payload) == (422, b"request validation error: no way")
    assert (broken.status, broken.payload) == (500, b"inference internal error")
    assert empty.status == Status.BAD_REQUEST
    assert good.step[0] == 7  # the broker's queue time stays
    assert sum(results.compute_us > 0 for results in broker.results) <= 1


def test_times_are_told_in_the_trail(start: Any) -> None:
    broker, _ = start()
    (item,) = broker.settled(broker.give(1, [{"do": "sleep", "s": 0.02}]))
    _, batch_us, compute_us = item.step
    assert 0 < batch_us < 10_000_000
    assert 20_000 <= compute_us < 10_000_000
    assert [results.compute_us for results in broker.results] == [compute_us]


def test_results_go_to_the_next_stage_of_their_route(bench: Any) -> None:
    text = ONE + '[[stage]]\nname = "after"\nworker = "service:Obey"\n'
    text += '[[route]]\npath = "/short"\nstages = ["obey"]\n[[route]]\npath = "/long"\nstages = ["obey", "after"]\n'
    deployment = bench.deployment(text)
    broker = bench.broker(deployment)
    bench.worker(deployment)
    broker.welcome()
    broker.expect(Ready)
    values = [{"do": "echo", "x": 1}, {"do": "echo", "x": [2]}, {"do": "refuse", "x": 3}]
    final, onward, failed = broker.settled(broker.give(1, values, routes=[0, 1, 1]))
    assert (final.hop, final.value, final.mime) == (-1, 1, "application/json")
    assert (onward.hop, onward.mime) == (1, "")
    from stages import ipc

    assert ipc.unpack(onward.payload) == [2]
    assert (failed.hop, failed.status) == (-1, 422)


def test_later_stage_reads_what_the_former_wrote(bench: Any) -> None:
    from stages import ipc

    text = '[[stage]]\nname = "before"\nworker = "service:Obey"\n' + ONE
    deployment = bench.deployment(text)
    broker = bench.broker(deployment, 1)
    bench.worker(deployment, "obey")
    broker.welcome()
    broker.expect(Ready)
    payload = ipc.pack({"do": "echo", "x": "é" * 100_000})
    assert isinstance(payload, bytes)
    (item,) = broker.settled(broker.give(1, [payload]))
    assert item.value == "é" * 100_000


def test_late_items_are_skipped(start: Any) -> None:
    broker, _ = start()
    late, good = broker.settled(broker.give(1, [{"do": "echo", "x": 1}] * 2, budgets_s=[0.0, 60.0]))
    assert (late.status, late.payload) == (Status.SKIPPED, b"")
    assert good.status == Status.OK


def test_malformed_parcels_are_dropped_and_the_worker_goes_on(start: Any) -> None:
    broker, worker = start()
    broker.send_down([b"\xff\xff"])
    broker.send_down(wire.encode(Pulse(1, True)))
    broker.give(1, [{"do": "echo", "x": 1}], routes=[9])
    (item,) = broker.settled(broker.give(2, [{"do": "echo", "x": 1}]))
    assert item.status == Status.OK
    assert worker.stderr.count("a batch that cannot be read was dropped") == 3


# --- time limits -----------------------------------------------------------------------------------------------------


def test_python_code_is_interrupted_and_the_worker_lives(start: Any) -> None:
    broker, worker = start(one(timeout=0.3, kill_after=60))
    first, second = broker.settled(broker.give(1, [{"do": "sleep", "s": 600}, {"do": "echo", "x": 1}]))
    assert first.status == second.status == Status.SKIPPED  # the broker finds the guilty one
    (item,) = broker.settled(broker.give(2, [{"do": "about"}]))
    assert item.value["pid"] == worker.popen.pid


def test_an_interruption_that_user_code_swallows_is_its_result(start: Any) -> None:
    broker, _ = start(one(timeout=0.2, kill_after=60))
    (item,) = broker.settled(broker.give(1, [{"do": "swallow", "s": 600}]))
    assert (item.status, item.value) == (200, "swallowed")


def test_many_short_batches_are_never_interrupted(start: Any) -> None:
    broker, _ = start(one(timeout=0.05, kill_after=60))
    for batch in range(1, 400):  # far longer than the limit, in all
        (item,) = broker.settled(broker.give(batch, [{"do": "echo", "x": batch}]))
        assert (item.status, item.value) == (200, batch)


def test_code_that_holds_the_interpreter_is_killed_with_a_traceback(start: Any) -> None:
    broker, worker = start(one(timeout=0.2, kill_after=0.3))
    broker.give(1, [{"do": "hold_interpreter"}])
    assert worker.wait(broker) == -signal.SIGALRM
    assert "hold_interpreter" in worker.stderr


# --- beside forward --------------------------------------------------------------------------------------------------


def many(bench: Any, broker: Any, let_go: Any, count: int) -> list[int]:
    """The uids of so many batches of two, all of which have come before the first of them is computed."""
    gate = bench.fifo()
    broker.give(1, [{"do": "gate", "path": str(gate)}])
    uids = [uid for n in range(count) for uid in broker.give(2 + n, [{"do": "echo", "x": n}] * 2)]
    let_go(gate, broker)
    return uids


@pytest.mark.parametrize("name", ["Steady", "Own"])
def test_what_is_fetched_and_sent_beside_forward_is_as_it_was(bench: Any, start: Any, let_go: Any, name: str) -> None:
    broker, _ = start(one(worker=f"service:{name}"))
    results = broker.settled(many(bench, broker, let_go, 30))
    assert [item.status for item in results] == [Status.OK] * 60
    assert [item.value["x"] for item in results] == [n for n in range(30) for _ in range(2)]
    assert "aside" in results[-1].value["threads"]


def test_results_leave_before_the_next_batch_hangs(bench: Any, start: Any, let_go: Any) -> None:
    broker, worker = start(one(worker="service:Steady", timeout=0.5, kill_after=0.2))
    uids = many(bench, broker, let_go, 10)
    broker.give(50, [{"do": "hold_interpreter"}])
    assert [item.status for item in broker.settled(uids)] == [Status.OK] * 20
    assert worker.wait(broker) == -signal.SIGALRM


def test_methods_of_no_class_are_the_users_own(start: Any) -> None:
    broker, _ = start(one(worker="service:Decoder"))
    (item,) = broker.settled(broker.give(1, [{"do": "echo", "x": 1}]))
    assert (item.status, item.value) == (Status.OK, 1)


def test_a_late_batch_that_was_fetched_ahead_is_skipped(bench: Any, start: Any, let_go: Any) -> None:
    broker, _ = start(one(worker="service:Steady"))
    gate = bench.fifo()
    uids = many(bench, broker, let_go, 10)
    waits = broker.give(50, [{"do": "gate", "path": str(gate)}])
    late = broker.give(51, [{"do": "echo", "x": 1}] * 2)
    broker.tell(CancelItems([late[0]]))
    assert len(broker.settled(uids)) == 20
    for _ in range(2):  # the second beat from here on was sent after the message was read
        broker.expect(WorkerBeat)
    let_go(gate, broker)
    assert [item.value for item in broker.settled(waits)] == ["through"]
    assert [item.status for item in broker.settled(late)] == [Status.SKIPPED, Status.OK]


def test_beats_name_the_batches_that_are_held(bench: Any, start: Any, let_go: Any) -> None:
    broker, _ = start()
    gate = bench.fifo()
    broker.settled(broker.give(7, [{"do": "echo", "x": 1}]))
    waits = broker.give(8, [{"do": "gate", "path": str(gate)}])

    def named() -> tuple[int, list[int]]:
        beat = broker.expect(WorkerBeat)
        return beat.newest, beat.held

    broker.until(lambda: named() == (8, [8]), "a beat that names it")
    let_go(gate, broker)
    broker.settled(waits)
    broker.until(lambda: named() == (8, []), "a beat that names none")


def test_what_would_end_a_process_fails_its_item_alone(start: Any) -> None:
    broker, worker = start()
    bad, good = broker.settled(broker.give(1, [{"do": "quit", "code": 7}, {"do": "echo", "x": 1}]))
    assert (bad.status, bytes(bad.payload)) == (Status.FAILED, b"inference internal error")
    assert (good.status, good.value) == (Status.OK, 1)
    assert "sys.exit" in worker.stderr  # the traceback's line
    assert worker.popen.poll() is None


# --- of no more use --------------------------------------------------------------------------------------------------


def test_a_broken_worker_says_why_and_ends_without_answering(bench: Any, start: Any, let_go: Any) -> None:
    broker, worker = start(one(worker="service:Steady"))
    uids = many(bench, broker, let_go, 10)  # its sockets are lent when it ends
    lost = broker.give(50, [{"do": "broken", "why": "the device is gone"}, {"do": "echo", "x": 1}])
    ahead = broker.give(51, [{"do": "echo", "x": 1}])
    assert len(broker.settled(uids)) == 20
    broker.expect(Bye)
    assert worker.wait(broker) == ExitCode.FAILED
    assert not broker.items.keys() & {*lost, *ahead}  # the broker gives them to others
    (line,) = [line for line in worker.stderr.splitlines() if "the device is gone" in line]
    assert json.loads(line)["message"] == "this worker can compute no more and is replaced: the device is gone"
    assert "in broken" in json.loads(line)["exception"]
    assert "torn down" in worker.stderr


LAZY = """
import time
open({begun!r}, "w").close()
time.sleep(0.5)
assert not made
made.append(1)
VALUE = 7
"""


def test_an_import_is_not_torn_by_the_time_limit(start: Any, tmp_path: Path) -> None:
    code = "import builtins\nmade = builtins.__dict__.setdefault('made', [])\n" + LAZY.format(begun=str(tmp_path / "b"))
    (tmp_path / "lazily_imported.py").write_text(code)
    broker, worker = start(one(timeout=0.2, kill_after=20))
    first = broker.give(1, [{"do": "lazy", "folder": str(tmp_path), "then_s": 600}])
    assert [item.status for item in broker.settled(first)] == [Status.SKIPPED]
    again = broker.give(2, [{"do": "lazy", "folder": str(tmp_path), "then_s": 0}])
    assert [(item.status, item.value) for item in broker.settled(again)] == [(Status.OK, 7)]
    assert worker.popen.poll() is None


def test_after_an_interrupt_a_worker_shows_itself_with_its_example(start: Any, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    text = (
        one(worker="service:Shown", timeout=0.2, kill_after=20, warm_up="examples") + f'args = {{ path = "{shown}" }}\n'
    )
    broker, worker = start(text)
    assert shown.read_text() == "+"  # the warm-up
    slow = broker.give(1, [{"do": "sleep", "s": 600}])
    next_one = broker.give(2, [{"do": "echo", "x": 1}])
    assert [item.status for item in broker.settled(slow + next_one)] == [Status.SKIPPED, Status.OK]
    assert shown.read_text() == "++"
    shown.write_text("-")
    slow = broker.give(3, [{"do": "sleep", "s": 600}])
    next_one = broker.give(4, [{"do": "echo", "x": 1}])
    assert [item.status for item in broker.settled(slow)] == [Status.SKIPPED]
    assert worker.wait(broker) == ExitCode.FAILED
    assert not broker.items.keys() & {*next_one}
    assert "fails on its example since: ValueError: torn" in worker.stderr


def test_of_an_example_that_memory_does_not_take_a_part_is_shown(start: Any) -> None:
    broker, worker = start(one(worker="service:Roomy", timeout=0.3, kill_after=20))
    (item,) = broker.settled(broker.give(1, [{"do": "sleep", "s": 600}]))
    assert item.status == Status.SKIPPED
    (item,) = broker.settled(broker.give(2, [{"do": "count"}]))
    assert item.value == 1
    assert worker.popen.poll() is None


def test_without_an_example_the_next_batch_is_the_proof(start: Any) -> None:
    broker, worker = start(one(timeout=0.2, kill_after=20))
    for batch in (1, 3):  # a success clears it
        slow = broker.give(batch, [{"do": "sleep", "s": 600}])
        good = broker.give(batch + 1, [{"do": "echo", "x": 1}])
        assert [item.status for item in broker.settled(slow + good)] == [Status.SKIPPED, Status.OK]
    slow = broker.give(5, [{"do": "sleep", "s": 600}])
    bad = broker.give(6, [{"do": "bug"}])
    assert [item.status for item in broker.settled(slow)] == [Status.SKIPPED]
    assert worker.wait(broker) == ExitCode.FAILED
    assert not broker.items.keys() & {*bad}
    assert "has failed since" in worker.stderr


def test_what_may_be_computed_once_only_is_answered_by_a_worker_in_doubt(start: Any) -> None:
    broker, worker = start(one(timeout=0.2, kill_after=20, idempotent=False))
    given = broker.give(1, [{"do": "sleep", "s": 600}]) + broker.give(2, [{"do": "bug"}])
    assert [item.status for item in broker.settled(given)] == [Status.TIMEOUT, Status.FAILED]
    assert worker.wait(broker) == ExitCode.FAILED


# --- memory ----------------------------------------------------------------------------------------------------------


def told_metrics(broker: Any, of: str) -> dict[str, float]:
    """What the worker's beats tell, once ``of`` is among it."""
    found: dict[str, float] = {}

    def told() -> bool:
        for beat in [message for message in broker.heard if isinstance(message, WorkerBeat)]:
            found.update({s.name: s.value for family in unpack(beat.families) for s in family.samples})
        return of in found

    broker.until(told, f"a beat with {of}")
    return found


def test_out_of_memory_is_no_death_and_what_fits_is_remembered(start: Any) -> None:
    broker, worker = start()
    first = broker.settled(broker.give(1, [{"do": "memory", "fits": 3}] * 8))
    assert [item.value for item in first] == [2] * 8
    second = broker.settled(broker.give(2, [{"do": "memory", "fits": 8}] * 5))
    assert [item.value for item in second] == [2, 2, 2, 2, 1]  # cut at once
    found = told_metrics(broker, "engine_batch_fits")
    assert found == {"engine_out_of_memory_total": 1.0, "engine_batch_fits": 2.0}
    (line,) = [json.loads(line) for line in worker.stderr.splitlines() if "ran out of memory" in line]
    assert (line["values"], line["fitted"], line["from_now_on"]) == (8, 2, 2)


@pytest.mark.parametrize(("warm_up", "fresh"), [("auto", []), ("examples", [2, 3, 4, 5, 6, 7, 8])])
def test_when_it_is_ready_no_size_is_new_to_it(start: Any, warm_up: str, fresh: list[int]) -> None:
    broker, worker = start(one(worker="service:Fresh", warm_up=warm_up))
    found = {n: broker.settled(broker.give(n, [{"do": "fresh"}] * n))[0].value for n in range(1, 9)}
    assert [n for n, is_fresh in found.items() if is_fresh] == fresh
    (line,) = [json.loads(line) for line in worker.stderr.splitlines() if "worker is warm" in line]
    assert line["sizes"] == ("1" if fresh else "1-8")


def test_what_does_not_fit_while_it_warms_up_is_not_tried_by_requests(bench: Any) -> None:
    deployment = bench.deployment(one(worker="service:Roomy"))
    broker = bench.broker(deployment)
    worker = bench.worker(deployment)
    broker.welcome()
    ready = broker.expect(Ready)
    assert sorted(ready.times_us) == [1, 2]
    given = broker.settled(broker.give(1, [{"do": "count"}] * 5))
    assert [item.value for item in given] == [2, 2, 2, 2, 1]
    (line,) = [json.loads(line) for line in worker.stderr.splitlines() if "ran out of memory" in line]
    assert (line["values"], line["fitted"], line["from_now_on"]) == (4, 2, 2)
    (line,) = [json.loads(line) for line in worker.stderr.splitlines() if "worker is warm" in line]
    assert line["sizes"] == "1-2"


def test_sizes_that_cannot_be_warmed_up_are_warned_of(start: Any) -> None:
    broker, worker = start(one(batch_sizes=[4, 8]))
    (item,) = broker.settled(broker.give(1, [{"do": "memory", "fits": 8}]))
    assert item.value == 4
    assert "service:Obey has no example: none of its batch_sizes is computed before requests" in worker.stderr


def test_a_batch_is_padded_to_a_size_that_is_allowed_which_a_metric_tells(bench: Any) -> None:
    deployment = bench.deployment(one(worker="service:Sized", batch_sizes=[2, 8]))
    broker = bench.broker(deployment)
    worker = bench.worker(deployment)
    broker.welcome()
    assert sorted(broker.expect(Ready).times_us) == [1, 2, 3, 8]
    assert "has no example" not in worker.stderr
    assert [item.value for item in broker.settled(broker.give(1, [{"do": "count"}] * 2))] == [2, 2]
    assert [item.value for item in broker.settled(broker.give(2, [{"do": "count"}] * 5))] == [8] * 5
    assert told_metrics(broker, "engine_padding_items_total") == {"engine_padding_items_total": 3.0}


# --- revoking, cancelling --------------------------------------------------------------------------------------------


def test_revoked_batch_is_skipped(bench: Any, start: Any, let_go: Any) -> None:
    gate = bench.fifo()
    broker, _ = start()
    first = broker.give(1, [{"do": "gate", "path": str(gate)}])
    second = broker.give(2, [{"do": "echo", "x": 1}] * 2)
    broker.tell(Revoke([2]))
    for _ in range(2):  # the second beat from here on was sent after the message was read
        broker.expect(WorkerBeat)
    let_go(gate, broker)
    assert [item.value for item in broker.settled(first)] == ["through"]
    assert [item.status for item in broker.settled(second)] == [Status.SKIPPED] * 2


def test_cancelled_items_stop_and_are_not_begun(start: Any, tmp_path: Path) -> None:
    broker, _ = start()
    begun = tmp_path / "begun"
    running = broker.give(1, [{"do": "until_cancelled", "path": str(begun)}])
    broker.until(begun.exists, "the first batch to begin")
    waiting = broker.give(2, [{"do": "echo", "x": 1}] * 2)
    broker.tell(CancelItems([waiting[0]]))
    broker.tell(CancelItems(running))
    assert [item.value for item in broker.settled(running)] == ["cancelled"]
    assert [item.status for item in broker.settled(waiting)] == [Status.SKIPPED, Status.OK]


# --- the broker goes and comes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pulse", [Pulse(1, False), Pulse(2, True)])
def test_worker_joins_again_when_it_is_not_known(start: Any, pulse: Pulse) -> None:
    broker, _ = start()
    broker.settled(broker.give(1, [{"do": "echo", "x": 1}]))
    broker.epoch = 2
    broker.mute = True
    broker.expect(WorkerBeat)
    broker.tell(pulse)
    broker.welcome()
    broker.mute = False
    ready = broker.expect(Ready)
    assert isinstance(ready, Ready)
    assert ready.worker == 2
    (item,) = broker.settled(broker.give(2, [{"do": "echo", "x": 1}]))
    assert item.worker == 2


def test_worker_finds_a_restarted_broker(bench: Any, start: Any) -> None:
    broker, worker = start()
    bench.close_broker(broker)
    again = bench.broker(bench.deployment(ONE), epoch=2)
    again.mute = True
    again.expect(WorkerBeat)
    again.tell(Pulse(2, False))
    again.mute = False
    assert again.welcome().pid == worker.popen.pid
    again.expect(Ready)
    (item,) = again.settled(again.give(1, [{"do": "echo", "x": 1}]))
    assert item.status == Status.OK


def test_silent_broker_is_looked_for_on_a_new_socket(start: Any) -> None:
    broker, _ = start()
    broker.expect(WorkerBeat)
    former = broker.peer
    broker.mute = True

    def reached_anew() -> bool:
        broker.expect(WorkerBeat)
        return bool(broker.peer != former)

    while not reached_anew():
        pass
    broker.mute = False
    (item,) = broker.settled(broker.give(1, [{"do": "echo", "x": 1}]))  # nothing was given up meanwhile
    assert (item.status, item.worker) == (Status.OK, 1)


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_finishes_what_it_has_before_it_goes(bench: Any, start: Any, let_go: Any, number: Any) -> None:
    gate = bench.fifo()
    broker, worker = start()
    uids = broker.give(1, [{"do": "gate", "path": str(gate)}])
    uids += broker.give(2, [{"do": "echo", "x": 1}])
    worker.signal(number)
    broker.expect(Leave)  # while forward runs
    let_go(gate, broker)
    assert [item.status for item in broker.settled(uids)] == [200, 200]
    broker.tell(Dismiss())
    broker.expect(Bye)
    assert worker.wait(broker) == ExitCode.OK
    assert "torn down" in worker.stderr


def test_signals_of_processes_that_user_code_starts_are_their_own(start: Any) -> None:
    broker, worker = start()
    (item,) = broker.settled(broker.give(1, [{"do": "fork", "n": 5}]))
    assert item.value == [-signal.SIGTERM] * 5
    assert broker.settled(broker.give(2, [{"do": "echo", "x": 1}]))[0].value == 1  # nothing of it was for the worker
    worker.signal(signal.SIGTERM)
    broker.expect(Leave)
    broker.tell(Dismiss())
    assert worker.wait(broker) == ExitCode.OK


def test_a_stop_is_heard_after_user_code_has_watched_signals_itself(start: Any) -> None:
    broker, worker = start()
    assert broker.settled(broker.give(1, [{"do": "watch_signals"}]))[0].value == "watched"
    worker.signal(signal.SIGTERM)
    broker.expect(Leave)
    broker.tell(Dismiss())
    assert worker.wait(broker) == ExitCode.OK


def test_worker_leaves_without_a_broker(bench: Any) -> None:
    deployment = bench.deployment(ONE)
    worker = bench.worker(deployment)
    while "ready" not in worker.names():
        assert worker.popen.poll() is None, worker.stderr
    worker.signal(signal.SIGTERM)
    assert worker.wait() == ExitCode.OK


def test_grace_bounds_the_wait_for_dismissal(start: Any) -> None:
    broker, worker = start('[engine]\nname = "test"\nrun_dir = "RUN_DIR"\ngrace = 0.5\n' + ONE)
    worker.signal(signal.SIGTERM)
    broker.expect(Leave)
    assert worker.wait(broker) == ExitCode.OK
    assert "not dismissed within the grace" in worker.stderr


OWN_LOOP = """
async def main():
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, print)
asyncio.run(main())  # which leaves the default handlers behind
"""

MISCHIEF = [
    OWN_LOOP,
    "for number in (15, 2, 10, 12, 14): signal.signal(number, signal.SIG_IGN)",
    "signal.signal(signal.SIGALRM, print); signal.signal(signal.SIGUSR2, print); signal.signal(signal.SIGTERM, print)",
    "signal.set_wakeup_fd(-1)",
    "import logging.config; logging.config.dictConfig({'version': 1}); logging.disable(60); logging.shutdown()",
    "os.environ.clear(); os.chdir('/'); os.umask(0o777)",
    "sys.setswitchinterval(1000)",
    "sys.setrecursionlimit(10_000)",
    "import faulthandler, gc, warnings; faulthandler.disable(); gc.disable(); warnings.simplefilter('error')",
    "threading.setprofile(print); threading.settrace(print)",
    "import socket; socket.setdefaulttimeout(0.001)",
    "sys.stdout = None; sys.stderr.close(); sys.stderr = None; os.close(2)",
]


def test_what_user_code_does_to_its_process_keeps_nothing_of_ours_from_working(start: Any) -> None:
    broker, worker = start(one(timeout=0.5, kill_after=20))
    for batch, code in enumerate(MISCHIEF, 1):
        (item,) = broker.settled(broker.give(10 * batch, [{"do": "mischief", "code": code}]))
        assert item.value == "managed", code
        given = broker.give(10 * batch + 1, [{"do": "sleep", "s": 600}])
        given += broker.give(10 * batch + 2, [{"do": "echo", "x": 1}])
        assert [item.status for item in broker.settled(given)] == [Status.SKIPPED, Status.OK], code
    broker.settled(broker.give(1, [{"do": "bug"}]))
    broker.epoch = 2  # new sockets, in new folders
    broker.expect(WorkerBeat)
    broker.tell(Pulse(2, True))
    broker.welcome()
    broker.expect(Ready)
    broker.settled(broker.give(2, [{"do": "echo", "x": 1}]))
    worker.signal(signal.SIGTERM)
    broker.expect(Leave)
    broker.tell(Dismiss())
    assert worker.wait(broker) == ExitCode.OK
    assert "ZeroDivisionError: a bug" in worker.stderr


def test_second_signal_ends_at_once(bench: Any, start: Any, let_go: Any) -> None:
    gate = bench.fifo()
    broker, worker = start()
    broker.give(1, [{"do": "gate", "path": str(gate)}])
    worker.signal(signal.SIGTERM)
    broker.expect(Leave)
    worker.signal(signal.SIGTERM)
    assert worker.wait(broker) == ExitCode.FAILED


@pytest.mark.parametrize("name", ["SlowInit", "StuckInit"])
def test_stop_while_loading(bench: Any, name: str) -> None:
    gate = bench.fifo()
    args = f'args = {{ gate = "{gate}" }}\n' if name == "SlowInit" else ""
    deployment = bench.deployment(one(worker=f"service:{name}") + args)
    broker = bench.broker(deployment)
    worker = bench.worker(deployment)
    broker.welcome()
    while "loading" not in worker.names():
        broker.pump()
    worker.signal(signal.SIGTERM)
    assert worker.wait(broker) == ExitCode.OK


def test_stop_while_warming_up(bench: Any) -> None:
    deployment = bench.deployment(one(worker="service:StuckWarm"))
    broker = bench.broker(deployment)
    worker = bench.worker(deployment)
    broker.welcome()
    broker.until(lambda: "computing two" in worker.stderr, "the second size")
    worker.signal(signal.SIGTERM)
    assert worker.wait(broker) == ExitCode.OK
    assert not any(isinstance(message, Ready) for message in broker.heard)
    assert "failed" not in worker.names()


def test_failure_in_teardown_is_logged(start: Any) -> None:
    broker, worker = start(one(worker="service:BadTeardown"))
    worker.signal(signal.SIGTERM)
    broker.expect(Leave)
    broker.tell(Dismiss())
    assert worker.wait(broker) == ExitCode.OK
    assert "cannot tear down" in worker.stderr


# --- metrics, streams ------------------------------------------------------------------------------------------------


def test_users_metrics_come_with_the_beats_when_they_change(start: Any) -> None:
    broker, _ = start(one(worker="service:Counting"))
    broker.settled(broker.give(1, [{"do": "echo", "x": 1}] * 3))
    values: list[float] = []
    while 3.0 not in values:
        beat = broker.expect(WorkerBeat)
        assert isinstance(beat, WorkerBeat)
        families = unpack(beat.families)
        values += [s.value for f in families for s in f.samples if f.name.startswith("seen_items")]
    unchanged = broker.expect(WorkerBeat)
    assert isinstance(unchanged, WorkerBeat)
    assert unchanged.families == b""


def test_stream_events_leave_while_forward_runs(bench: Any, start: Any, let_go: Any) -> None:
    gate: Path = bench.fifo()
    broker, _ = start(one(worker="service:Stream"))
    uids = broker.give(1, [{"events": ["a", "b\nc"], "gate": str(gate)}, {"events": ["d"]}])
    while len(broker.events) < 3:
        assert uids[0] not in broker.items
        broker.pump()
    assert broker.events == [(uids[0], b"a"), (uids[0], b"b\nc"), (uids[1], b"d")]
    let_go(gate, broker)
    assert [item.mime for item in broker.settled(uids)] == ["text/event-stream"] * 2
