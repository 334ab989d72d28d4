"""Short batches that are handed to a worker as one: when, how many, and that nothing else is different for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.batching import AHEAD_S, Policy
from engine.core.member import BUNDLE_MOST, BUNDLE_S, CREDIT_MAX, ROUND_TRIPS, Member, bundle_for
from engine.core.messages import Flow, WorkerBeat
from engine.core.stage import StageSpec
from engine.core.trace import by_reason
from tests.core.test_twin import bury, happen
from tests.core.twin import FakeWorker, Twin, ids_of, topology

BRIEF_S = 0.9 * BUNDLE_S / BUNDLE_MOST  # of such batches as many as may be make one
SPEC = StageSpec("s0", 2, Policy(1, 1 << 20, 0.010), timeout_s=2.0, kill_after_s=1.0, max_queue_bytes=1 << 20)


def one_stage(**changes: object) -> Twin:
    twin = Twin(topology(), [replace(SPEC, **changes)])  # type: ignore[arg-type]
    twin.takes_several = True
    return twin


def learnt(
    twin: Twin, batch_s: float = BRIEF_S, *, flow: Flow = Flow.WHOLE, slot: int = 1, local: bool = True
) -> FakeWorker:
    """A worker that has computed some full batches, in so many seconds each: the stage knows no others."""
    worker = twin.worker(flow=flow, slot=slot, local=local)
    n = twin.stages[0].spec.policy.max_batch_size
    for first in range(10_000, 10_000 + 12 * n, n):
        twin.submit(n, first=first)
        twin.pass_time(batch_s)
        twin.finish(worker, compute_us=int(batch_s * 1e6))
        twin.pass_time(AHEAD_S)
    assert not worker.lane
    return worker


def lanes(worker: FakeWorker) -> list[int]:
    return [len(batch.uids) for batch, _ in worker.lane]


def member(twin: Twin, worker: FakeWorker) -> Member:
    return twin.stages[0].workers[worker.key]


def finish_all(twin: Twin) -> None:
    while busy := [worker for worker in twin.workers.values() if worker.lane]:
        for worker in busy:
            if worker.lane:
                n = len(worker.lane[0][0].uids)
                twin.pass_time(n * BRIEF_S)
                twin.finish(worker, compute_us=int(n * BRIEF_S * 1e6))


@pytest.mark.parametrize(
    ("compute_s", "batch_s", "batches"),
    [
        (0.0, 0.0, 1),
        (1.0, 1.0, 1),
        (BUNDLE_S, BUNDLE_S, 1),
        (BUNDLE_S / 2, BUNDLE_S / 2, 2),
        (BUNDLE_S / 5.5, BUNDLE_S / 5.5, 5),
        (BUNDLE_S / 1000, BUNDLE_S / 1000, BUNDLE_MOST),
        (BUNDLE_S / 1000, AHEAD_S / 4.5, 4),  # something else than forward takes long
        (BUNDLE_S / 1000, 1.0, 1),
    ],
)
def test_as_many_make_one_as_are_short_together(compute_s: float, batch_s: float, batches: int) -> None:
    assert bundle_for(compute_s, batch_s) == batches


def test_one_is_computed_and_one_is_there_in_advance() -> None:
    """The rest waits until the first is done: in the queue it can be shared, called off, or come in another order."""
    twin = one_stage()
    worker = learnt(twin)
    twin.submit(40)
    assert lanes(worker) == [BUNDLE_MOST, BUNDLE_MOST]
    assert [batch.reason for batch, _ in worker.lane] == ["full", "full"]
    twin.finish(worker)
    assert lanes(worker) == [BUNDLE_MOST, BUNDLE_MOST]
    finish_all(twin)
    assert [twin.answer(seq) for seq in range(1, 41)] == [(200, b"body%d+0" % seq) for seq in range(1, 41)]
    assert twin.is_empty()


@pytest.mark.parametrize("share", [2, 3, 4, 5, 8])
def test_what_a_worker_has_takes_no_longer_than_it_may(share: int) -> None:
    twin = one_stage()
    worker = learnt(twin, BUNDLE_S / share * 0.95)
    twin.submit(100)
    assert lanes(worker)[0] == share
    has = sum(lanes(worker))
    assert has * BUNDLE_S / share <= 2 * BUNDLE_S or has <= CREDIT_MAX
    assert member(twin, worker).has == has
    finish_all(twin)
    assert member(twin, worker).has == member(twin, worker).bundled == 0
    assert twin.is_empty()


def test_batches_of_several_are_handed_over_whole() -> None:
    twin = one_stage(policy=Policy(4, 1 << 20, 0.010))
    worker = learnt(twin)
    twin.submit(4 * 5 + 3)
    assert lanes(worker) == [20]  # what is left is no full batch, and somebody is busy
    finish_all(twin)
    assert [twin.answer(seq)[0] for seq in range(1, 24)] == [200] * 23


def test_who_wait_alone_go_alone() -> None:
    twin = one_stage()
    worker = learnt(twin)
    for seq in range(1, CREDIT_MAX + 2):
        twin.submit(1, first=seq)
    assert lanes(worker) == [1] * CREDIT_MAX
    twin.submit(12, first=100)  # there is room for none but such as could be many
    assert lanes(worker) == [1] * CREDIT_MAX
    twin.finish(worker)
    assert lanes(worker) == [1] * (CREDIT_MAX - 1) + [8]
    finish_all(twin)


def test_idle_workers_share_alike() -> None:
    twin = one_stage()
    first, second = learnt(twin), twin.worker(slot=2)
    twin.submit(2)
    assert (lanes(first), lanes(second)) == ([1], [1])
    twin.finish(first)
    twin.finish(second)
    twin.submit(6, first=10)
    assert (lanes(first), lanes(second)) == ([3], [3])
    twin.finish(first)
    twin.finish(second)
    twin.submit(64, first=100)
    assert lanes(first) == lanes(second) == [BUNDLE_MOST] * 2
    finish_all(twin)


@pytest.mark.parametrize(
    ("changes", "flow", "batch_s"),
    [
        ({}, Flow.WHOLE, 1.1 * BUNDLE_S),
        ({}, Flow.WHOLE, 0.02),
        ({}, Flow.EVENTS, BRIEF_S),
        ({}, Flow.UNKNOWN, BRIEF_S),
        ({"idempotent": False}, Flow.WHOLE, BRIEF_S),
        ({"policy": Policy(1, 1 << 20, 0.01, max_batch_cost=100.0)}, Flow.WHOLE, BRIEF_S),
    ],
    ids=["not short", "long", "streams", "may stream", "once only", "by cost"],
)
def test_others_go_one_by_one(changes: dict[str, object], flow: Flow, batch_s: float) -> None:
    twin = one_stage(**changes)
    worker = learnt(twin, batch_s, flow=flow)
    twin.submit(40)
    assert set(lanes(worker)) == {1}
    finish_all(twin)
    assert twin.is_empty()


def test_nothing_is_handed_over_as_one_while_nothing_is_known() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.stages[0].foresight.seed({1: int(BRIEF_S * 1e6)})  # examples are not what people send
    twin.submit(40)
    assert set(lanes(worker)) == {1}


@pytest.mark.parametrize("what", ["an earlier version", "another size", "far"])
def test_not_every_worker_takes_several_as_one(what: str) -> None:
    twin = one_stage()
    worker = learnt(twin, local=what != "far")
    one = member(twin, worker)
    if what == "far":
        for _ in range(ROUND_TRIPS):
            twin.stages[0].beat(WorkerBeat(worker.key, round_trip_us=int(1e6 * AHEAD_S * 2)), twin.now)
    elif what == "another size":
        one.most = 2  # which its file says
    else:
        one.protocol = 3
    twin.submit(40)
    assert set(lanes(worker)) == {1}
    finish_all(twin)
    assert twin.is_empty()


def test_who_has_little_time_does_not_wait_for_others() -> None:
    twin = one_stage()
    worker = learnt(twin)
    twin.submit(20, budget_s=1.01 * AHEAD_S)
    assert lanes(worker) == [1] * CREDIT_MAX
    finish_all(twin)


def test_a_stage_with_two_sizes_of_bodies_keeps_to_its_bytes() -> None:
    twin = one_stage(policy=Policy(2, 30, 0.010))
    worker = learnt(twin)
    twin.submit(20, first=10)  # of 6 bytes each
    assert max(lanes(worker)) == 5
    finish_all(twin)
    assert twin.is_empty()


# --- the books ------------------------------------------------------------------------------------------------------


def test_every_figure_counts_batches() -> None:
    twin = one_stage(policy=Policy(2, 1 << 20, 0.010))
    stage = twin.stages[0]
    worker = learnt(twin)
    before = stage.stats.releases["full"]
    lane, one = stage.stats.lanes[1], member(twin, worker)
    counted = lane.batch_size.count, lane.batch_wait.count, lane.process.count, one.done_batches, one.done_items
    twin.submit(16)
    assert lanes(worker) == [16]
    twin.pass_time(8 * BRIEF_S)
    twin.finish(worker, compute_us=int(8 * BRIEF_S * 1e6))
    after = lane.batch_size.count, lane.batch_wait.count, lane.process.count, one.done_batches, one.done_items
    assert [b - a for a, b in zip(counted, after, strict=True)] == [8, 8, 8, 8, 16]
    assert stage.stats.releases["full"] - before == 8
    assert lane.batch_size.total == sum([row.count for row in stage.trace.entries()])
    newest = stage.trace.entries()[-1]
    assert (newest.count, newest.calls, newest.units) == (16, 8, 2)
    assert newest.expected_s == pytest.approx(8 * BRIEF_S, rel=0.1)
    assert newest.took_s == pytest.approx(8 * BRIEF_S)
    assert by_reason([newest]) == {"full": 8}
    assert stage.foresight.service_s == pytest.approx(BRIEF_S, rel=0.05)


def test_what_is_learned_is_how_long_one_takes() -> None:
    twin = one_stage()
    worker = learnt(twin, BRIEF_S)
    for first in range(100, 1700, 16):
        twin.submit(16, first=first)
        for _ in range(2):
            twin.pass_time(BUNDLE_MOST * BRIEF_S / 2)  # they have become quicker
            twin.finish(worker, compute_us=int(BUNDLE_MOST * BRIEF_S / 2 * 1e6))
        twin.pass_time(0.02)
    assert twin.stages[0].foresight.times.shape[1] == pytest.approx(BRIEF_S / 2, rel=0.1)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_what_has_come_counts_and_the_time_limit_is_of_what_is_computed_now() -> None:
    twin = one_stage()
    worker = learnt(twin)
    twin.submit(8)
    for seq in range(1, 8):  # each takes nearly as long as it may
        twin.pass_time(0.9 * SPEC.timeout_s)
        twin.finish(worker, count=1, compute_us=1_800_000)
        assert twin.answer(seq)[0] == 200
        twin.stages[0].beat(WorkerBeat(worker.key), twin.now)
    assert not worker.killed
    assert twin.stages[0].crew.in_flight == 1
    twin.pass_time(0.9 * SPEC.timeout_s)
    twin.finish(worker, compute_us=1_800_000)
    assert twin.answer(8)[0] == 200
    assert twin.is_empty()
    twin.submit(20, first=100)
    assert set(lanes(worker)) == {1}  # they are not short any more


def test_the_one_that_hangs_is_alone_when_all_before_it_are_done() -> None:
    twin = one_stage()
    worker = learnt(twin)
    twin.submit(8)
    twin.finish(worker, count=7, compute_us=100)
    twin.pass_time(SPEC.timeout_s)
    assert [twin.answer(seq)[0] for seq in range(1, 9)] == [200] * 7 + [408]


def test_of_several_that_hang_together_each_is_tried_alone() -> None:
    twin = one_stage()
    worker = learnt(twin)
    other = twin.worker(slot=2)
    twin.submit(16)
    assert lanes(worker) == lanes(other) == [8]
    twin.finish(other, compute_us=100)
    twin.pass_time(SPEC.timeout_s)
    assert lanes(other) == [1]  # never more than forward gets at once
    for _ in range(7):
        twin.finish(other, compute_us=100)
    assert lanes(other) == [1]  # the last of them hangs
    twin.pass_time(SPEC.timeout_s)
    assert sorted(twin.answer(seq)[0] for seq in range(1, 17)) == [200] * 15 + [408]


def test_what_is_given_back_by_a_worker_has_hung_alone() -> None:
    """Its own clock is later than the broker's mostly, and not always."""
    twin = one_stage()
    worker = learnt(twin)
    twin.submit(8)
    batch, _ = worker.lane[0]
    slow = ids_of(batch)[3]
    twin.finish(worker, statuses={slow: 0})
    assert twin.answer(4) == (408, b"inference timeout")
    assert [twin.answer(seq)[0] for seq in range(1, 9) if seq != 4] == [200] * 7
    assert twin.is_empty()


def test_a_suspect_bundle_is_computed_elsewhere_for_the_price_of_one() -> None:
    twin = one_stage()
    worker = learnt(twin)
    other = twin.worker(slot=2)
    twin.submit(16)
    twin.finish(other, compute_us=100)
    twin.pass_time(twin.stages[0].fate.pace.patience_s + 0.01)
    assert twin.stages[0].stats.hedged == 8
    while other.lane:
        twin.finish(other, compute_us=100)
    assert [twin.answer(seq)[0] for seq in range(1, 17)] == [200] * 16
    twin.finish(worker)
    assert twin.is_empty()


@pytest.mark.parametrize("done", [0, 3])
def test_the_one_that_kills_is_found(done: int) -> None:
    twin = one_stage()
    worker = learnt(twin)
    twin.submit(16)
    deadly = "r5"
    for _ in range(60):
        if not worker.lane:
            break
        ids = ids_of(worker.lane[0][0])
        if deadly in ids:
            if done and ids.index(deadly) >= done:
                twin.finish(worker, count=done)
            twin.kill(worker)
            worker = twin.worker()
        else:
            twin.finish(worker, compute_us=100)
    assert [twin.answer(seq)[0] for seq in range(1, 17)] == [200] * 4 + [422] + [200] * 11
    assert twin.is_empty()


def test_some_of_it_can_be_called_off() -> None:
    twin = one_stage()
    worker = learnt(twin)
    twin.submit(8)
    twin.front.cancel(b"f", [2, 5])
    twin.run()
    assert len(worker.told) == 1
    twin.finish(worker)
    assert sorted(seq for _, seq in twin.answers if seq < 100) == [1, 3, 4, 6, 7, 8]
    assert twin.is_empty()


STEPS = ("submit", "submit", "finish", "finish", "part", "lost", "twice", "late", "arrive", "kill", "start", "error")
MORE = ("wait", "long", "cancel", "leave", "learn", "learn")


@pytest.mark.unmeasured
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_exactly_one_answer_whatever_becomes_of_it(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 2]))
    spec = replace(SPEC, policy=Policy(size, 1 << 20, 0.010))
    twin = Twin(
        topology((0, 1), (1,), stages=2),
        [spec, replace(spec, name="s1")],
        shared=data.draw(st.booleans()),
    )
    twin.takes_several = True
    workers = [twin.worker(0), twin.worker(1)]
    for machine in twin.stages:  # as it would be after many short ones
        machine.foresight.took(BRIEF_S)
        for _ in range(3):
            machine.foresight.times.learn(size, BRIEF_S, next(iter(machine.workers.values())), twin.now)
    submitted, cancelled, largest = 0, set[int](), 0
    for _ in range(data.draw(st.integers(1, 50))):
        step = data.draw(st.sampled_from(STEPS + MORE))
        busy = [worker for worker in twin.workers.values() if worker.lane]
        if step == "submit":
            n = data.draw(st.integers(1, 24))
            twin.submit(n, first=submitted + 1, route=data.draw(st.integers(0, 1)), budget_s=50.0)
            submitted += n
        elif step == "cancel" and submitted:
            seq = data.draw(st.integers(1, submitted))
            if (b"f", seq) not in twin.answers:
                cancelled.add(seq)
                twin.front.cancel(b"f", [seq])
                twin.run()
        elif step == "part" and busy:
            twin.finish(data.draw(st.sampled_from(busy)), count=data.draw(st.integers(1, 8)), compute_us=50)
        elif step == "learn":
            for worker in busy:
                if worker.lane:
                    twin.pass_time(BRIEF_S)
                    twin.finish(worker, compute_us=int(BRIEF_S * 1e6) * len(worker.lane[0][0].uids))
        else:
            happen(twin, data, step, stages=2, error=422)
        largest = max([largest, *(len(batch.uids) for one in twin.workers.values() for batch, _ in one.lane)])
        for machine in twin.stages:
            assert machine.crew.in_flight == sum(one.in_flight for one in machine.workers.values())
            for one in machine.workers.values():
                assert one.has == sum(batch.calls for batch in one.batches.values()) <= 2 * BUNDLE_MOST
        bury(twin)
    assert workers
    for _ in range(300):
        bury(twin)
        twin.arrive()
        twin.go_on()
        if twin.is_empty():
            break
    assert twin.is_empty()
    for seq in range(1, submitted + 1):
        if seq not in cancelled:
            assert twin.answer(seq)[0] in (200, 408, 422, 429, 500, 503)
    assert largest <= size * BUNDLE_MOST
