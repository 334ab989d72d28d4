"""The whole broker under random faults: every request gets exactly one answer, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.batching import Policy
from engine.core.idempotency import HEADER
from engine.core.messages import KEY_SIZE, Revoke
from engine.core.routing import Route, Topology
from engine.core.stage import StageSpec
from engine.errors import Unavailable
from tests.core.twin import FakeFrontend, FakeWorker, Twin, ids_of, topology

pytestmark = pytest.mark.unmeasured

SPEC = StageSpec("s0", 2, Policy(3, 1 << 20, 0.010), timeout_s=2.0, kill_after_s=1.0, max_queue_bytes=1 << 20)
STEPS = (
    "submit",
    "submit",
    "finish",
    "finish",
    "finish",
    "lost",
    "twice",
    "late",
    "arrive",
    "kill",
    "start",
    "wait",
    "long",
    "cancel",
    "leave",
    "error",
)


def happen(twin: Twin, data: st.DataObject, step: str, *, stages: int, error: int, dies_late: bool = False) -> None:
    """What may become of workers, connections to them and time, whoever it is that asks."""
    workers = list(twin.workers.values())
    busy = [worker for worker in workers if worker.lane]
    if step in ("finish", "lost", "twice", "late", "error") and busy:
        worker = data.draw(st.sampled_from(busy))
        # A worker takes its lane in order.
        guilty = {ids_of(worker.lane[0][0])[0]: error} if step == "error" else None
        if step == "lost":
            twin.finish(worker, lost=True)
            twin.kill(worker)  # only a death loses results
        else:
            twin.finish(worker, twice=step == "twice", late=step == "late", statuses=guilty)
            if dies_late and step == "late" and data.draw(st.booleans()):
                twin.kill(worker)  # with its results in the kernel
    elif step == "arrive":
        twin.arrive()
    elif step == "kill" and workers:
        twin.kill(data.draw(st.sampled_from(workers)))
    elif step == "start":
        twin.worker(data.draw(st.integers(0, stages - 1)), slot=data.draw(st.integers(1, 2)))
    elif step == "leave" and workers:
        worker = data.draw(st.sampled_from(workers))
        twin.stages[worker.stage].leave(worker.key, twin.now)
        twin.run()
    elif step == "wait":
        twin.pass_time(0.02)
    elif step == "long":
        twin.pass_time(data.draw(st.sampled_from([0.6, 2.1, 3.2])))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_exactly_one_answer_whatever_happens(data: st.DataObject) -> None:
    idempotent = data.draw(st.booleans())
    twin = Twin(
        topology((0, 1), (1,), (0, 1, 2), stages=3),
        [replace(SPEC, name=f"s{index}", idempotent=idempotent or index != 1) for index in range(3)],
        shared=data.draw(st.booleans()),
    )
    for stage in (0, 1, 2):
        twin.worker(stage)
    submitted, cancelled = history(twin, data, routes=3, stages=3)
    # The faults end: every stage has a worker, and all that is under way is finished.
    for _ in range(200):
        bury(twin)
        twin.arrive()
        if not twin.go_on() and twin.is_empty():
            break
    assert twin.is_empty()
    for seq, route in submitted.items():
        if seq in cancelled:
            assert (b"f", seq) not in twin.answers
            continue
        status, body = twin.answer(seq)  # exactly one
        assert status in (200, 408, 422, 429, 500, 503)
        if status == 200:
            stages = twin.topology.routes[route].stages
            assert body == b"body%d" % seq + b"".join(b"+%d" % stage for stage in stages)


LINK_STEPS = (
    *(
        "submit",
        "submit",
        "finish",
        "finish",
        "finish",
        "lost",
        "twice",
        "late",
        "arrive",
        "kill",
        "start",
        "wait",
        "long",
    ),
    *("cancel", "leave", "error", "cut", "heal", "beat", "broker dies"),
)
LINK_TOPOLOGY = topology((0, 1), (1,), (0,), stages=2)
ONCE_ONLY = (True, True, False)  # stage 1 is not idempotent


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_exactly_one_answer_over_real_links_whatever_becomes_of_broker_and_connections(data: st.DataObject) -> None:
    twin = Twin(
        LINK_TOPOLOGY,
        [replace(SPEC, name="s0"), replace(SPEC, name="s1", idempotent=False)],
        shared=data.draw(st.booleans()),
    )
    for stage in (0, 1):
        twin.worker(stage)
    # One of them reads its file the other way round.
    other = Topology(("s1", "s0"), (Route("/r2", (1,)), Route("/r1", (0,)), Route("/r0", (1, 0))))
    frontends = {
        "a": (twin.frontend("a", once_only=ONCE_ONLY), {0: 0, 1: 1, 2: 2}),
        "b": (twin.frontend("b", once_only=ONCE_ONLY[::-1], topology=other), {0: 2, 1: 1, 2: 0}),
    }
    submitted: dict[int, tuple[FakeFrontend, int]] = {}
    tries: dict[int, list[int]] = {}  # with the same key as this one
    alike: dict[bytes, list[int]] = {}
    withdrawn: set[int] = set()
    for _ in range(data.draw(st.integers(1, 60))):
        step = data.draw(st.sampled_from(LINK_STEPS))
        frontend, numbers = frontends[data.draw(st.sampled_from("ab"))]
        if step == "submit":
            for _ in range(data.draw(st.integers(1, 5))):
                number, route = len(submitted) + 1, data.draw(st.integers(0, 2))
                budget_s = data.draw(st.sampled_from([0.5, 5.0, 50.0]))
                key = data.draw(st.sampled_from([b"", b"", b"one", b"other"]))
                key = (b"%b of %d" % (key, route)).ljust(KEY_SIZE) if key else b""
                try:
                    frontend.submit(number, route=numbers[route], budget_s=budget_s, key=key)
                except Unavailable:
                    break  # refused, and told so
                submitted[number] = frontend, route
                tries[number] = alike.setdefault(key, []) if key else []
                tries[number].append(number)
        elif step == "cancel" and submitted:
            number = data.draw(st.sampled_from(sorted(submitted)))
            if submitted[number][0].withdraw(number):
                withdrawn.add(number)
        elif step == "cut":
            frontend.cut()
        elif step == "heal" and frontend.is_cut:
            frontend.heal()
        elif step == "beat":
            frontend.beat()
        elif step == "broker dies":
            twin.broker_dies()
        else:
            happen(twin, data, step, stages=2, error=429)
        bury(twin)
    # The faults end: connections are whole, every stage has a worker, and all that is under way is finished.
    for frontend, _ in frontends.values():
        frontend.heal()
    for _ in range(200):
        bury(twin)
        twin.arrive()
        for frontend, _ in frontends.values():
            frontend.beat()
        twin.go_on()
        if twin.is_empty() and not any(frontend.link.waiting for frontend, _ in frontends.values()):
            break
    for frontend, _ in frontends.values():
        for peer in list(twin.front.frontends):
            if frontend.knows(peer) and peer != frontend.peer:
                twin.front.gone(peer)  # what its silence would tell, later
    twin.run()
    assert twin.is_empty()
    for number, (frontend, route) in submitted.items():
        got = frontend.answers.get(number, [])
        if number in withdrawn:
            assert not got
            continue
        (answer,) = got  # exactly one
        assert answer is not None
        assert answer.status in (200, 408, 422, 429, 500, 503)
        if answer.status == 200:
            way = b"".join(b"+%d" % at for at in LINK_TOPOLOGY.routes[route].stages)
            assert bytes(answer.body) in [b"body%d" % one + way for one in tries[number]]
            if bytes(answer.body) != b"body%d" % number + way:
                assert answer.headers == {HEADER: "true"}
        if ONCE_ONLY[route]:
            assert twin.given.get((1, f"r{number}"), 0) <= 1, "a once-only stage was given it twice"


def history(twin: Twin, data: st.DataObject, *, routes: int, stages: int) -> tuple[dict[int, int], set[int]]:
    """Requests by ``routes``, some of them called off, among faults of all kinds; of each request its route, and those
    that were called off."""
    submitted: dict[int, int] = {}
    cancelled: set[int] = set()
    for _ in range(data.draw(st.integers(1, 60))):
        step = data.draw(st.sampled_from(STEPS))
        if step == "submit":
            n, route = data.draw(st.integers(1, 7)), data.draw(st.integers(0, routes - 1))
            first = len(submitted) + 1
            twin.submit(n, first=first, route=route, budget_s=data.draw(st.sampled_from([0.5, 5.0, 50.0])))
            submitted.update(dict.fromkeys(range(first, first + n), route))
        elif step == "cancel" and submitted:
            seq = data.draw(st.sampled_from(sorted(submitted)))
            if (b"f", seq) not in twin.answers:
                cancelled.add(seq)
                twin.front.cancel(b"f", [seq])
                twin.run()
        else:
            happen(twin, data, step, stages=stages, error=422, dies_late=True)
        bury(twin)
    return submitted, cancelled


def bury(twin: Twin) -> None:
    """Workers that were killed for being stuck do end."""
    for worker in list(twin.workers.values()):
        if worker.killed or _is_dismissed(worker):
            twin.kill(worker)


def _is_dismissed(worker: FakeWorker) -> bool:
    return any(type(message).__name__ == "Dismiss" for message in worker.told)


@settings(max_examples=100, deadline=None)
@given(poison=st.sets(st.integers(1, 20), max_size=3), workers=st.integers(1, 3))
def test_items_that_kill_their_worker_fail_alone(poison: set[int], workers: int) -> None:
    twin = Twin(topology(), [SPEC])
    for slot in range(workers):
        twin.worker(slot=slot + 1)
    twin.submit(20)
    deadly = {f"r{seq}" for seq in poison}
    for _ in range(500):
        busy = [worker for worker in twin.workers.values() if worker.lane]
        if not busy:
            break
        for worker in busy:
            if not worker.lane or (worker.stage, worker.key) not in twin.workers:
                continue
            if deadly & set(ids_of(worker.lane[0][0])):
                twin.kill(worker)
                twin.worker(slot=1)
            else:
                twin.finish(worker)
    assert twin.is_empty()
    for seq in range(1, 21):
        assert twin.answer(seq)[0] == (422 if seq in poison else 200)


@pytest.mark.parametrize("first", ["skipped", "killed", "computed", "the other finishes", "the other is killed"])
def test_a_batch_taken_back_from_a_stuck_worker_stays_readable_for_both(first: str) -> None:
    twin = Twin(topology((0, 1), stages=2), [replace(SPEC, policy=Policy(1)), replace(SPEC, name="s1")], shared=True)
    stuck = twin.worker(0)
    twin.worker(1)
    twin.submit(2)
    assert len(stuck.lane) == 2  # one in advance
    twin.pass_time(2.1)
    assert any(isinstance(message, Revoke) for message in stuck.told)
    other = twin.worker(0, slot=2)
    assert other.lane[0][0].uids == stuck.lane[1][0].uids
    if first == "skipped":
        twin.skip(stuck, 1)
    elif first == "killed":
        twin.kill(stuck)
    elif first == "computed":
        twin.finish(stuck, position=1)
    elif first == "the other finishes":
        twin.finish(other)
    else:
        twin.kill(other)
    while busy := [worker for worker in twin.workers.values() if worker.lane]:
        twin.finish(busy[-1])
        if not twin.answers.get((b"f", 2)):
            twin.worker(0, slot=3)
    assert twin.answer(1) == (408, b"inference timeout")
    assert twin.answer(2) == (200, b"body2+0+1")
    assert twin.is_empty()
