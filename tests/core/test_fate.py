"""What becomes of items whose worker hangs, dies or fails: hedging, narrowing, poison, the breaker, bad workers."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.batching import Policy
from engine.core.breaker import BACK_OFF_MOST_S, BACK_OFF_S, FAILURES_LEAST, Breaker, BreakerState, can_explain
from engine.core.deaths import Death, death_of
from engine.core.failing import Verdict, judge
from engine.core.fate import SPARED
from engine.core.hedging import PATIENCE_LEAST_S, SAVED_BATCHES, Budget, Pace, may_hedge, part_size
from engine.core.messages import CancelItems, Revoke
from engine.core.stage import StageSpec
from tests.core.twin import FakeWorker, Twin, ids_of, topology

SPEC = StageSpec("s0", 3, Policy(8, 1 << 20, 0.010), timeout_s=2.0, kill_after_s=1.0, max_queue_bytes=1 << 20)
BATCH_S = 0.2


def learnt(workers: int = 3, **changes: object) -> Twin:
    """A stage whose batches take BATCH_S."""
    twin = Twin(topology(), [replace(SPEC, **changes)])  # type: ignore[arg-type]
    crew = [twin.worker(slot=slot + 1) for slot in range(workers)]
    for seq in range(1000, 1020):
        twin.submit(1, first=seq)
        twin.pass_time(BATCH_S)
        for worker in crew:
            while worker.lane:
                twin.finish(worker)
    assert twin.stages[0].fate.pace.patience_s < SPEC.timeout_s / 2
    return twin


def busy(twin: Twin) -> list[FakeWorker]:
    return [worker for worker in twin.workers.values() if worker.lane]


# --- hedging ---------------------------------------------------------------------------------------------------------


def test_patience_is_several_times_the_usual_and_widens_with_the_spread() -> None:
    pace = Pace()
    assert pace.patience_s == float("inf")
    for _ in range(100):
        pace.learn(1.0)
    steady = pace.patience_s
    assert 3.0 <= steady < 3.1
    pace.learn(3600.0)  # it was stopped for an hour: that is no measure
    assert pace.patience_s < 10 * steady
    for _ in range(100):
        pace.learn(0.0001)
    assert pace.patience_s == PATIENCE_LEAST_S


def test_second_computations_come_out_of_a_budget() -> None:
    budget = Budget(8)
    assert all(budget.spend(8) for _ in range(SAVED_BATCHES))
    assert not budget.spend(1)
    budget.done += 100
    assert budget.spend(5)
    assert not budget.spend(1)


@pytest.mark.parametrize(("stuck", "able", "may"), [(1, 0, False), (1, 1, True), (2, 1, False), (2, 2, True)])
def test_what_hangs_gets_no_more_than_half_of_the_workers(stuck: int, able: int, may: bool) -> None:
    assert may_hedge(stuck=stuck, able=able) is may


@given(items=st.integers(1, 512), tries=st.integers(1, 8))
def test_parts_shrink_to_single_items_with_the_last_try(items: int, tries: int) -> None:
    for left in range(tries, 0, -1):
        size = part_size(items, left)
        assert 1 <= size <= items
        items = size
    assert items == 1


def test_a_stopped_workers_batch_is_computed_elsewhere_in_time() -> None:
    twin = learnt()
    twin.submit(8, budget_s=SPEC.timeout_s)
    (stopped,) = busy(twin)
    twin.submit(1, first=50, budget_s=SPEC.timeout_s)
    twin.pass_time(twin.stages[0].fate.pace.patience_s)
    while others := [worker for worker in busy(twin) if worker is not stopped]:
        for worker in others:
            twin.finish(worker)
    assert [twin.answer(seq)[0] for seq in (*range(1, 9), 50)] == [200] * 9
    assert twin.stages[0].stats.hedged == 8
    twin.pass_time(1.0)
    assert not stopped.killed  # only a suspicion
    twin.finish(stopped)  # continued: all of it is dropped
    assert twin.is_empty()
    assert not twin.stages[0].workers[stopped.key].slow
    assert twin.stages[0].workers[stopped.key].rank == 0  # it may be given work again


def test_a_spare_takes_the_place_of_who_is_suspect_until_that_is_done() -> None:
    twin = learnt(workers=2, num=1, spare=1)
    first, spare = twin.workers.values()
    twin.submit(3, budget_s=SPEC.timeout_s)
    assert busy(twin) == [first]
    twin.pass_time(twin.stages[0].fate.pace.patience_s)
    assert busy(twin) == [first, spare]
    while spare.lane:
        twin.finish(spare)
    assert [twin.answer(seq)[0] for seq in (1, 2, 3)] == [200] * 3
    twin.finish(first)
    twin.submit(1, first=50)
    assert busy(twin) == [first]
    twin.finish(first)
    assert twin.is_empty()


def test_whoever_is_done_first_calls_the_others_off() -> None:
    twin = learnt()
    twin.submit(8)
    (slow,) = busy(twin)
    twin.pass_time(twin.stages[0].fate.pace.patience_s)
    assert len(busy(twin)) == 3
    held = {uid for worker in busy(twin) if worker is not slow for uid in worker.lane[0][0].uids}
    twin.finish(slow)
    told = [message for worker in busy(twin) for message in worker.told]
    assert {uid for message in told if isinstance(message, CancelItems) for uid in message.uids} >= held
    for worker in busy(twin):
        twin.finish(worker)
    assert twin.is_empty()


def test_what_waits_behind_a_suspect_batch_goes_to_others_long_before_the_limit() -> None:
    twin = learnt(workers=1)
    (worker,) = twin.workers.values()
    twin.submit(1)
    twin.submit(8, first=2)
    assert len(worker.lane) == 2
    twin.pass_time(twin.stages[0].fate.pace.patience_s)
    assert worker.told == [Revoke([worker.lane[1][0].batch])]
    other = twin.worker(slot=2)
    assert len(ids_of(other.lane[0][0])) == 8


def test_a_once_only_stage_and_a_budget_that_is_spent_hedge_nothing() -> None:
    twin = learnt(idempotent=False)
    twin.submit(8)
    twin.pass_time(1.0)
    assert twin.stages[0].stats.hedged == 0
    assert len(busy(twin)) == 1


@settings(max_examples=50, deadline=None)
@given(guilty=st.integers(1, 8), workers=st.integers(1, 3))
def test_an_item_that_hangs_is_found_and_its_neighbours_are_answered(guilty: int, workers: int) -> None:
    twin = learnt(workers=workers)
    twin.submit(8, budget_s=60.0)
    for _ in range(400):
        for worker in busy(twin):
            if worker.killed:
                twin.kill(worker, Death.OUTSIDE)
                twin.worker(slot=1)
            elif f"r{guilty}" not in ids_of(worker.lane[0][0]):
                twin.finish(worker)
        if twin.is_empty() and not busy(twin):
            break
        twin.pass_time(0.1)
    assert twin.is_empty()
    assert [twin.answer(seq)[0] for seq in range(1, 9)] == [408 if seq == guilty else 200 for seq in range(1, 9)]


def test_what_a_worker_gives_back_for_its_time_limit_is_tried_apart() -> None:
    twin = learnt(workers=1)
    (worker,) = twin.workers.values()
    twin.submit(8, budget_s=60.0)
    twin.skip(worker)
    assert worker.lane[0][0].reason == "replay"
    assert len(worker.lane[0][0].uids) < 8
    while worker.lane:
        if "r3" in ids_of(worker.lane[0][0]):
            twin.skip(worker)
        else:
            twin.finish(worker)
    assert [twin.answer(seq)[0] for seq in range(1, 9)] == [408 if seq == 3 else 200 for seq in range(1, 9)]
    assert twin.is_empty()


# --- deaths ----------------------------------------------------------------------------------------------------------


def test_ways_to_end_are_told_apart() -> None:
    assert death_of(None) == (Death.OWN, "")
    assert death_of(int(signal.SIGKILL)) == (Death.OUTSIDE, "by SIGKILL")
    assert death_of(int(signal.SIGSEGV)) == (Death.OWN, "by SIGSEGV")
    assert death_of(3 << 8) == (Death.OWN, "with exit code 3")
    for status in (int(signal.SIGKILL), None):
        assert death_of(status, oom=True)[0] is Death.MEMORY
    assert death_of(int(signal.SIGSEGV), oom=True)[0] is Death.OWN


def test_connections_that_are_lost_convict_nothing_and_nobody() -> None:
    """However often: the processes come back. What was cut off often goes alone, in case it ends them after all."""
    twin = Twin(topology(), [SPEC])
    twin.worker(local=False, instance="one")
    twin.submit(4)
    for _ in range(20):
        (worker,) = busy(twin)
        twin.kill(worker, Death.CUT)
        twin.worker(local=False, instance="one")
    (worker,) = busy(twin)
    assert len(worker.lane[0][0].uids) == 1
    assert worker.lane[0][0].attempts == [1]
    while worker.lane:
        twin.finish(worker)
    assert [twin.answer(seq)[0] for seq in range(1, 5)] == [200] * 4
    stage = twin.stages[0]
    assert (stage.stats.deaths.total(), stage.stats.cuts, stage.stats.poisoned) == (0, 20, 0)
    assert stage.fate.is_sound
    assert twin.is_empty()


def test_a_connection_that_was_lost_with_its_process_counts_when_another_takes_its_place() -> None:
    """On another host nothing else tells of a death: an item that kills workers there is found all the same."""
    twin = Twin(topology(), [SPEC])
    twin.worker(local=False)
    twin.submit(1)
    for _ in range(3 + SPARED):
        assert (b"f", 1) not in twin.answers
        (worker,) = busy(twin)
        twin.kill(worker, Death.CUT)
        twin.worker(local=False)
    assert twin.answer(1)[0] == 422
    assert twin.stages[0].stats.deaths[Death.OWN] == 3 + SPARED


def test_a_process_that_introduces_itself_again_has_not_died() -> None:
    twin = Twin(topology(), [SPEC])
    twin.worker(instance="one")
    twin.submit(1)
    for _ in range(10):
        twin.worker(instance="one")
    (worker,) = busy(twin)
    assert worker.lane[0][0].attempts == [1]
    twin.finish(worker)
    assert twin.answer(1)[0] == 200
    assert twin.stages[0].stats.deaths.total() == 0


@pytest.mark.parametrize(("death", "tries"), [(Death.OWN, 3), (Death.OUTSIDE, 3 + SPARED), (Death.MEMORY, 3 + SPARED)])
def test_deaths_from_outside_convict_an_item_later(death: Death, tries: int) -> None:
    twin = Twin(topology(), [SPEC])
    twin.worker()
    twin.submit(1)
    for _ in range(tries):
        assert (b"f", 1) not in twin.answers
        (worker,) = busy(twin)
        twin.kill(worker, death)
        twin.worker()
    assert twin.answer(1)[0] == 422
    assert twin.stages[0].stats.poisoned == 1


# --- the breaker -----------------------------------------------------------------------------------------------------


def test_a_few_items_may_explain_all_deaths() -> None:
    assert can_explain([frozenset({1, 2}), frozenset({2, 3}), frozenset({4})], 2)
    assert not can_explain([frozenset({uid}) for uid in range(4)], 3)


def test_it_opens_for_deaths_that_no_few_items_explain_and_tries_again_with_back_off() -> None:
    breaker = Breaker()
    assert not breaker.died(1, 3, [1], 0.0)
    assert not breaker.died(2, 3, [2], 0.0)
    assert not breaker.died(3, 3, [3], 0.0)
    assert not breaker.died(4, 4, [4], 0.0)  # the first of those that came after
    assert breaker.died(5, 5, [5], 1.0, "by SIGSEGV")
    assert "by SIGSEGV" in breaker.reason
    now, back_off = 1.0, BACK_OFF_S
    for _ in range(10):
        assert breaker.refuses(now)
        assert not breaker.feeds(now + back_off - 0.01)
        now += back_off
        assert breaker.feeds(now)
        breaker.feed()
        assert not breaker.feeds(now)  # one at a time
        assert breaker.died(6, 6, [9], now)
        back_off = min(2 * back_off, BACK_OFF_MOST_S)
    breaker.feed()
    assert breaker.succeeded()
    assert breaker.feeds(now)


def test_one_blow_to_all_workers_does_not_open_it() -> None:
    breaker = Breaker()
    assert not any(breaker.died(worker, 64, [worker], 0.0) for worker in range(1, 65))


def test_failures_open_it_only_where_nothing_was_ever_right() -> None:
    breaker = Breaker()
    assert not any(breaker.failed(FAILURES_LEAST, float(now), is_proven=True) for now in range(10))
    assert not breaker.failed(FAILURES_LEAST, 0.0, is_proven=False)
    assert breaker.failed(1, 2.0, is_proven=False)


def test_a_stage_whose_every_request_kills_is_refused_at_once_and_comes_back() -> None:
    twin = Twin(topology(), [SPEC])
    seq = 0
    for _ in range(40):
        if twin.stages[0].fate.breaker.state is not BreakerState.CLOSED:
            break
        if not busy(twin):
            twin.worker()
            seq += 1
            twin.submit(1, first=seq)
        for worker in busy(twin):
            twin.kill(worker)
            twin.worker()
    assert twin.stages[0].fate.breaker.state is BreakerState.OPEN
    assert any("not fed" in note for note in twin.notes)
    twin.submit(5, first=500)
    assert {twin.answer(n)[0] for n in range(500, 505)} == {503}
    assert twin.retries_ms[500] == BACK_OFF_S * 1000  # when it is tried again
    twin.pass_time(BACK_OFF_S)
    twin.submit(9, first=600)
    assert len(busy(twin)) == 1  # one batch, to see
    while busy(twin):
        for worker in busy(twin):
            twin.finish(worker)
    assert {twin.answer(n)[0] for n in range(600, 609)} == {200}
    assert twin.stages[0].fate.breaker.state is BreakerState.CLOSED
    assert twin.is_empty()


# --- a worker that fails everything ----------------------------------------------------------------------------------


def test_failing_is_judged_by_how_the_neighbours_fare() -> None:
    assert judge(50, others_good=0, others_failed=0) is Verdict.SOUND  # it is alone
    assert judge(20, others_good=10, others_failed=90) is Verdict.SOUND  # the requests are bad
    assert judge(3, others_good=20, others_failed=0) is Verdict.SUSPECT
    assert judge(8, others_good=20, others_failed=0) is Verdict.BROKEN


def test_a_worker_that_fails_everything_is_replaced_and_meanwhile_given_no_more_than_its_share() -> None:
    twin = learnt(workers=3)
    bad = next(iter(twin.workers.values()))
    given_bad = seq = 0
    while not bad.killed:
        seq += 3
        assert seq < 300
        twin.submit(3, first=seq, budget_s=60.0)
        for worker in busy(twin):
            while worker.lane:
                if worker is bad:
                    given_bad += 1
                    twin.finish(worker, statuses=dict.fromkeys(ids_of(worker.lane[0][0]), 500))
                else:
                    twin.pass_time(0.0)
                    break
        twin.pass_time(BATCH_S)
        for worker in busy(twin):
            while worker.lane and worker is not bad:
                twin.finish(worker)
    assert twin.stages[0].stats.replaced == 1
    assert any("while its neighbours do not" in note for note in twin.notes)
    assert given_bad <= 20
