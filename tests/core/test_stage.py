"""The rules of one stage: credits, replay, time limits, leaving. Over the twin; no sockets, no clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.core.actions import News
from engine.core.batching import AHEAD_S, Policy
from engine.core.liveness import ABSENT_S, LIMIT_S, SETTLE_S, WORKER_SILENCE_S
from engine.core.member import CREDIT_MAX, credit_for
from engine.core.messages import CancelItems, Dismiss, Pulse, Ready, Results, Revoke, WorkerBeat
from engine.core.routing import FINAL
from engine.core.stage import StageMachine, StageSpec
from engine.core.stats import HOSTS_MOST, StageStats
from engine.core.worker_states import WorkerState
from tests.core.twin import DEPLOYMENT, FakeWorker, Twin, ids_of, topology, worker_words

SPEC = StageSpec("s0", 1, Policy(4, 1 << 20, 0.010), timeout_s=2.0, kill_after_s=1.0, max_queue_bytes=1 << 20)


def one_stage(**changes: object) -> Twin:
    return Twin(topology(), [replace(SPEC, **changes)])  # type: ignore[arg-type]


def sizes(twin: Twin) -> dict[str, int]:
    return twin.stages[0].stats.releases


def test_a_lone_request_leaves_at_once_and_is_answered() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    assert [batch.reason for batch, _ in worker.lane] == ["idle"]
    twin.finish(worker)
    assert twin.answer(1) == (200, b"body1+0")
    assert twin.is_empty()


def test_while_the_worker_is_busy_the_next_batch_grows_until_it_is_full() -> None:
    twin = one_stage()
    worker = twin.worker()
    for seq in range(1, 10):
        twin.submit(1, first=seq)
    assert [(len(batch.uids), batch.reason) for batch, _ in worker.lane] == [(1, "idle"), (4, "full")]
    assert len(twin.stages[0].queue) == 4  # no third batch: the credit is two


@pytest.mark.parametrize(
    ("batch_s", "credit"),
    [(0.0, 2), (1.0, 2), (AHEAD_S, 2), (AHEAD_S / 2, 3), (AHEAD_S / 3, 4), (AHEAD_S / 1000, CREDIT_MAX)],
)
def test_the_shorter_a_batch_the_more_of_them_are_given(batch_s: float, credit: int) -> None:
    assert credit_for(batch_s) == credit


def learnt(twin: Twin, batch_s: float) -> FakeWorker:
    """A worker that has computed one batch, in so many seconds: the stage knows no other."""
    worker = twin.worker()
    twin.submit(1, first=1000)
    twin.pass_time(batch_s)
    twin.finish(worker)
    return worker


def test_short_batches_are_given_in_advance_as_many_as_fill_the_time() -> None:
    twin = one_stage()
    worker = learnt(twin, AHEAD_S / 3)
    twin.submit(1)
    twin.submit(40, first=2)
    assert [len(batch.uids) for batch, _ in worker.lane] == [1, 4, 4, 4]
    twin.submit(1, first=100)
    second = twin.worker(slot=2)
    assert len(second.lane) == 4  # whoever has fewest comes first
    while worker.lane or second.lane:
        twin.finish(worker if worker.lane else second)
    assert sorted(seq for _, seq in twin.answers) == [*range(1, 42), 100, 1000]
    assert twin.is_empty()


def test_what_waits_behind_a_late_batch_is_revoked_and_given_to_others() -> None:
    twin = one_stage()
    worker = learnt(twin, AHEAD_S / 3)
    twin.submit(16)
    assert len(worker.lane) == 4
    twin.pass_time(SPEC.timeout_s)
    assert worker.told == [Revoke([3, 4, 5])]
    other = twin.worker(slot=2)
    assert [ids_of(batch) for batch, _ in other.lane] == [["r1", "r2"]]  # the late batch in parts, each by itself
    twin.finish(other)
    twin.finish(other)
    assert [ids_of(batch)[0] for batch, _ in other.lane] == ["r5", "r9", "r13"]  # in their order
    while other.lane:
        twin.finish(other)
    assert [twin.answer(seq)[0] for seq in range(1, 17)] == [200] * 16


@pytest.mark.parametrize(("handover_s", "ahead_s"), [(0.0003, AHEAD_S), (0.004, 0.006)], ids=["small", "large"])
def test_a_full_batch_leaves_as_late_as_it_can_be_handed_over(handover_s: float, ahead_s: float) -> None:
    """What is large is on its way, and being taken apart, for longer."""
    compute_s = 0.020
    twin = one_stage()
    worker = twin.worker()
    for first in range(100, 150):  # by which that is learned
        twin.submit(1, first=first)
        twin.pass_time(compute_s + handover_s)
        twin.finish(worker, compute_us=int(compute_s * 1e6))
    (member,) = twin.stages[0].workers.values()
    twin.submit(1)
    twin.submit(4, first=2)
    assert member.free_at == pytest.approx(twin.now + compute_s + handover_s, abs=1e-4)
    twin.pass_time(member.free_at - ahead_s - twin.now - 1e-4)
    assert len(worker.lane) == 1
    twin.pass_time(2e-4)
    assert [len(batch.uids) for batch, _ in worker.lane] == [1, 4]


@pytest.mark.parametrize(
    ("times_us", "left"),
    [
        (dict.fromkeys(range(1, 9), 20_000), [[(5, "full")], [(3, "idle")]]),
        ({1: 20_000, 8: 160_000}, [[(4, "idle")], [(3, "idle")]]),
    ],
    ids=["by the batch", "by the item"],
)
def test_of_what_is_full_in_bytes_an_idle_worker_takes_its_share(
    times_us: dict[int, int], left: list[list[tuple[int, str]]]
) -> None:
    """Full is what is as large as it may be; a share of it leaves because somebody is idle. (What takes its time by the
    item is shared with the one that is busy again by then.)"""
    twin = one_stage(policy=Policy(8, 30, 0.010))
    twin.stages[0].foresight.seed(times_us)
    assert twin.stages[0].foresight.is_long
    workers = [twin.worker(slot=slot) for slot in (1, 2)]
    twin.submit(8, first=10)  # 6 bytes each
    assert [[(len(batch.uids), batch.reason) for batch, _ in worker.lane] for worker in workers] == left


def test_other_numbers_hold_from_the_next_batch_on() -> None:
    twin = one_stage()
    worker = twin.worker()
    stage = twin.stages[0]
    for most in (9, 2):
        twin.submit(4, first=100 * most)
        policy = replace(SPEC.policy, max_batch_size=most)
        stage.change(replace(SPEC, policy=policy), twin.now)
        twin.submit(12, first=100 * most + 50)
        taken = []
        while worker.lane:
            taken.append(len(worker.lane[0][0].uids))
            twin.pass_time(0.1)
            twin.finish(worker)
        assert sum(taken) == 16
        assert max(taken[1:]) == most
    assert twin.is_empty()


def test_a_partial_batch_is_given_in_advance_past_its_wait() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(3)
    assert len(worker.lane) == 1
    twin.submit(2, first=10)
    assert len(worker.lane) == 1
    assert twin.run() == pytest.approx(twin.now + 0.010)
    twin.pass_time(0.011)
    assert [(len(batch.uids), batch.reason) for batch, _ in worker.lane] == [(3, "idle"), (2, "wait")]


def test_an_idle_worker_is_preferred_to_a_busy_one() -> None:
    twin = one_stage()
    first, second = twin.worker(slot=1), twin.worker(slot=2)
    twin.submit(1)
    twin.submit(1, first=2)
    assert (len(first.lane), len(second.lane)) == (1, 1)


def loads(twin: Twin, workers: list[FakeWorker]) -> list[int]:
    """How many batches each has, after more items came than all of them take."""
    twin.submit(100, first=1000 * len(twin.answers) + 1000)
    return [len(worker.lane) for worker in workers]


def test_it_is_told_for_how_long_somebody_waits_for_a_worker() -> None:
    twin = one_stage()
    stage = twin.stages[0]
    worker = twin.worker()
    twin.submit(8, budget_s=3.0)
    assert stage.waits_until < twin.now, "all of them are at it"
    twin.submit(1, first=10, budget_s=5.0)
    twin.submit(1, first=11, budget_s=4.0)
    assert stage.waits_until == pytest.approx(twin.now + 5.0)
    while worker.lane:
        twin.finish(worker)
    assert stage.waits_until < twin.now


def test_a_spare_worker_is_given_nothing_until_one_is_missing() -> None:
    twin = one_stage(num=2, spare=1)
    workers = [twin.worker(slot=slot) for slot in (3, 1, 2)]
    spare, first, second = workers
    assert loads(twin, workers) == [0, 2, 2]
    state = twin.stages[0].state()
    assert (state.ready, state.wanted) == (2, 2)
    twin.kill(first)
    assert len(spare.lane) == 2, "at once"
    assert [len(batch.uids) for batch, _ in spare.lane] == [4, 4]
    assert twin.stages[0].state().ready == 2

    again = twin.worker(slot=1)
    assert len(again.lane) == 2
    while spare.lane:
        twin.finish(spare)  # what it has, it finishes; it is given no more
    assert [len(second.lane), len(again.lane)] == [2, 2]
    assert twin.stages[0].state().ready == 2


def test_no_more_are_held_back_than_there_are_beyond_those_that_are_wanted() -> None:
    """Workers from elsewhere are wanted all: only as many rest as the file says."""
    twin = one_stage(num=2, spare=2)
    workers = [twin.worker(slot=slot) for slot in (4, 3)]
    assert loads(twin, workers) == [2, 2]
    workers += [twin.worker(slot=1)]
    assert twin.stages[0].state().ready == 2
    workers += [twin.worker(slot=slot) for slot in (2, 1, 2)]
    assert twin.stages[0].state().ready == 4
    for worker in workers[:2]:
        while worker.lane:
            twin.finish(worker)
    assert [len(worker.lane) for worker in workers] == [0, 0, 2, 2, 2, 2]


def test_workers_of_which_their_own_supervisor_keeps_no_spare_all_work() -> None:
    twin = one_stage(num=1, spare=1)
    asked = [twin.worker(slot=slot, host="there", may_rest=False) for slot in (1, 2, 3)]
    first, spare = twin.worker(slot=1), twin.worker(slot=2)
    assert loads(twin, [*asked, first, spare]) == [2, 2, 2, 2, 0]
    assert twin.stages[0].state().ready == 4


def test_each_host_has_its_own_spare_which_takes_the_place_of_one_of_that_host() -> None:
    twin = one_stage(num=1, spare=1)
    workers = [twin.worker(slot=slot, host=host) for host in ("here", "there") for slot in (1, 2)]
    assert loads(twin, workers) == [2, 0, 2, 0]
    twin.kill(workers[2])
    assert [len(worker.lane) for worker in workers[1:]] == [0, 0, 2]


def test_who_joined_before_there_were_spares_works_and_the_newer_one_rests() -> None:
    twin = one_stage(num=2, spare=1)
    workers = [twin.worker(slot=slot, may_rest=slot > 2) for slot in (1, 2, 3)]
    assert loads(twin, workers) == [2, 2, 0]
    twin.kill(workers[0])
    assert len(workers[2].lane) == 2


def test_a_spare_takes_the_place_of_one_that_leaves_or_is_late_too() -> None:
    twin = one_stage(num=1, spare=1)
    first, spare = twin.worker(slot=1), twin.worker(slot=2)
    assert loads(twin, [first, spare]) == [2, 0]
    twin.stages[0].leave(first.key, twin.now)
    twin.run()
    assert len(spare.lane) == 2

    twin = one_stage(num=1, spare=1)
    first, spare = twin.worker(slot=1), twin.worker(slot=2)
    twin.submit(1)
    twin.pass_time(SPEC.timeout_s)
    twin.submit(1, first=2)
    assert len(spare.lane) >= 1


def test_that_there_are_spares_can_change() -> None:
    twin = one_stage(num=1, spare=1)
    workers = [twin.worker(slot=slot) for slot in (1, 2)]
    assert loads(twin, workers) == [2, 0]
    twin.stages[0].change(replace(SPEC, num=2), twin.now)
    twin.run()
    assert [len(worker.lane) for worker in workers] == [2, 2]
    assert twin.stages[0].state().ready == 2


def test_in_advance_goes_to_the_worker_that_computes_longest() -> None:
    twin = one_stage()
    first, second = twin.worker(slot=1), twin.worker(slot=2)
    twin.submit(1)
    twin.pass_time(0.001)
    twin.submit(1, first=2)
    twin.submit(4, first=10)
    assert (len(first.lane), len(second.lane)) == (2, 1)


def test_a_killed_workers_items_go_to_the_front_in_their_order() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1, first=1)
    twin.submit(4, first=2)
    twin.submit(3, first=6)
    twin.kill(worker)
    other = twin.worker()
    (batch, _) = other.lane[0]
    assert ids_of(batch) == ["r1", "r2", "r3", "r4"]
    assert batch.attempts == [2, 2, 2, 2]
    while other.lane:
        twin.finish(other)
    assert all(twin.answer(seq)[0] == 200 for seq in range(1, 9))
    assert twin.is_empty()


def test_the_last_attempt_is_alone_with_nothing_behind_it() -> None:
    twin = one_stage()
    twin.submit(0)
    worker = twin.worker()
    twin.submit(4)
    twin.kill(worker)
    worker = twin.worker()
    assert len(worker.lane[0][0].uids) == 4
    twin.kill(worker)
    worker = twin.worker()
    twin.submit(8, first=50)
    assert [(ids_of(batch), batch.reason) for batch, _ in worker.lane] == [(["r1"], "replay")]
    twin.kill(worker)  # r1 is the poison: three workers died under it
    assert twin.answer(1) == (
        422,
        b"workers of stage s0 died 3 times under this request; it is not tried again",
    )
    worker = twin.worker()
    while worker.lane:
        assert len(worker.lane[0][0].uids) == 1 or not twin.stages[0].fate.apart
        twin.finish(worker)
    assert all(twin.answer(seq)[0] == 200 for seq in (2, 3, 4, *range(50, 58)))
    assert twin.is_empty()


def test_last_attempts_do_not_starve_under_load() -> None:
    twin = one_stage(max_attempts=2)
    worker = twin.worker()
    twin.submit(1)
    twin.kill(worker)
    worker = twin.worker()
    twin.finish(worker)
    twin.submit(1, first=2)
    twin.submit(40, first=100)
    twin.kill(worker)
    worker = twin.worker()
    rounds = 0
    while (b"f", 2) not in twin.answers:
        twin.finish(worker)
        rounds += 1
        assert rounds < 10
    assert twin.answer(2)[0] == 200


def test_a_stage_that_is_not_idempotent_never_replays_and_says_so() -> None:
    twin = one_stage(idempotent=False)
    worker = twin.worker()
    twin.submit(6)
    assert len(worker.lane) == 1  # nothing in advance
    twin.kill(worker)
    twin.pass_time(SETTLE_S)
    status, text = twin.answer(1)
    assert status == 500
    assert b"not replayed" in text
    worker = twin.worker()
    twin.finish(worker)
    assert twin.answer(5)[0] == 200
    assert twin.is_empty()


def test_results_that_were_on_their_way_when_the_worker_died_count() -> None:
    twin = one_stage(idempotent=False)
    worker = twin.worker()
    twin.submit(2)
    lane = list(worker.lane)
    twin.kill(worker)
    worker.lane = lane
    twin.finish(worker)
    twin.submit(1, first=10)
    assert not worker.lane  # the dead get nothing more
    twin.pass_time(SETTLE_S)
    assert twin.answer(1) == (200, b"body1+0")
    twin.finish(twin.worker())
    assert twin.answer(10)[0] == 200
    assert twin.is_empty()


def test_timeout_answers_and_takes_back_what_was_given_in_advance() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    twin.submit(4, first=2)
    twin.pass_time(2.0)
    assert twin.answer(1) == (408, b"inference timeout")
    assert worker.told == [Revoke([worker.lane[1][0].batch])]
    assert not worker.killed
    other = twin.worker(slot=2)
    assert ids_of(other.lane[0][0]) == ["r2", "r3", "r4", "r5"]
    assert other.lane[0][0].attempts == [1] * 4  # it was nobody's fault
    twin.finish(worker)  # it comes back late: dropped, and it may work again
    twin.skip(worker)
    assert twin.stages[0].workers[worker.key].state is WorkerState.READY
    twin.finish(other)
    assert twin.is_empty()
    assert twin.answer(1) == (408, b"inference timeout")


def test_a_worker_that_computes_a_revoked_batch_all_the_same_does_no_harm() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    twin.submit(4, first=2)
    twin.pass_time(2.0)
    other = twin.worker(slot=2)
    twin.finish(worker)
    twin.finish(worker)
    twin.finish(other)
    assert [twin.answer(seq)[0] for seq in range(1, 6)] == [408, 200, 200, 200, 200]
    assert twin.front.stats.duplicates == 5
    assert twin.is_empty()


def test_a_stuck_worker_is_killed_after_the_further_time() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    twin.pass_time(2.0)
    twin.pass_time(0.99)
    assert not worker.killed
    twin.pass_time(0.02)
    assert worker.killed
    twin.kill(worker)
    assert twin.is_empty()
    assert twin.stages[0].stats.deaths.total() == 1


def test_the_second_batchs_time_begins_when_the_first_is_done() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    twin.submit(4, first=2)
    twin.pass_time(1.5)
    twin.finish(worker)
    twin.pass_time(1.9)
    assert twin.stages[0].stats.narrowed == 0
    twin.pass_time(0.2)
    assert twin.stages[0].stats.narrowed == 4


def test_leaving_is_dismissed_when_nothing_is_in_flight() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    twin.stages[0].leave(worker.key, twin.now)
    twin.submit(5, first=2)
    assert (len(worker.lane), worker.told) == (1, [])
    twin.finish(worker)
    assert worker.told == [Dismiss()]
    twin.kill(worker)
    assert twin.stages[0].stats.deaths.total() == 0
    other = twin.worker()
    while other.lane:
        twin.finish(other)
    assert twin.is_empty()


def test_silence_gives_a_remote_worker_up_but_not_a_local_one_that_computes() -> None:
    for local, expected in ((True, 0), (False, 1)):
        twin = Twin(topology(), [replace(SPEC, timeout_s=60.0)])
        worker = twin.worker(local=local)
        twin.submit(1)
        twin.pass_seconds(int(WORKER_SILENCE_S) + 2)
        assert twin.stages[0].stats.replayed == expected
        assert (worker.key in twin.stages[0].workers) is local


def test_a_worker_on_another_host_that_computes_may_be_silent_while_the_connection_to_it_is_watched() -> None:
    """As one on this host: its interpreter may be held for as long as its time limit allows."""
    twin = Twin(topology(), [replace(SPEC, timeout_s=60.0)])
    worker = twin.worker(local=False)
    twin.stages[0].workers[worker.key].linked = True
    twin.submit(1)
    twin.pass_seconds(int(WORKER_SILENCE_S) + 2)
    assert worker.key in twin.stages[0].workers
    twin.finish(worker)
    twin.pass_seconds(int(WORKER_SILENCE_S) + 2)  # idle, and silent: whatever the kernels say
    assert worker.key not in twin.stages[0].workers
    assert twin.stages[0].stats.replayed == 0


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_connection_that_is_lost_makes_silent_neighbours_of_its_host_suspect(idempotent: bool) -> None:
    twin = Twin(topology(), [replace(SPEC, timeout_s=60.0, idempotent=idempotent)])
    stage = twin.stages[0]
    workers = [twin.worker(local=False, slot=slot) for slot in (1, 2, 3, 4)]
    for worker in workers:
        stage.workers[worker.key].linked = True
    stage.workers[workers[3].key].host = "another"
    twin.pass_seconds(int(LIMIT_S) + 1)
    stage.beat(WorkerBeat(workers[2].key), twin.now)
    stage.cut_off(workers[0].key, twin.now)
    left = [worker.key in stage.workers for worker in workers]
    assert left == [False, not idempotent, True, True]
    assert stage.stats.deaths.total() == 0


def test_an_idle_silent_worker_is_given_up_and_asked_to_say_hello_again() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.pass_seconds(int(WORKER_SILENCE_S) + 2)
    assert twin.stages[0].beat(WorkerBeat(worker.key), twin.now) == Pulse(7, False)


def test_a_broker_that_was_stopped_itself_takes_nobody_for_silent() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.pass_seconds(3)
    twin.pass_time(10 * WORKER_SILENCE_S)
    assert worker.key in twin.stages[0].workers
    twin.pass_seconds(int(WORKER_SILENCE_S) + 2)
    assert worker.key not in twin.stages[0].workers


def test_beats_keep_a_worker() -> None:
    twin = one_stage()
    worker = twin.worker(local=False)
    for _ in range(30):
        twin.pass_time(1.0)
        assert twin.stages[0].beat(WorkerBeat(worker.key, b""), twin.now) == Pulse(7, True)


def test_cancelled_items_leave_the_queue_and_workers_are_told() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    twin.submit(2, first=2)
    uid = worker.lane[0][0].uids[0]
    twin.front.cancel(b"f", [1, 2])
    twin.run()
    assert worker.told == [CancelItems([uid])]
    twin.finish(worker)
    assert ids_of(worker.lane[0][0]) == ["r3"]
    twin.finish(worker)
    assert set(twin.answers) == {(b"f", 3)}
    assert twin.is_empty()


def test_a_full_queue_refuses_by_bytes() -> None:
    twin = one_stage(max_queue_bytes=20)
    worker = twin.worker()
    twin.submit(1)
    twin.submit(4, first=2)  # goes in advance
    twin.submit(5, first=10)
    outcomes = [twin.answers.get((b"f", seq)) for seq in range(10, 15)]
    assert any(one is not None and one[0][0] == 429 for one in outcomes)
    while worker.lane:
        twin.finish(worker)
    assert twin.is_empty()


def test_the_same_process_introducing_itself_again_replaces_itself() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(2)
    key = twin.stages[0].introduce(worker_words(twin.topology, "s0", pid=worker.pid), local=True, now=twin.now)
    twin.run()
    assert list(twin.stages[0].workers) == [key]
    assert len(twin.stages[0].queue) == 2  # replayed


def test_workers_of_two_hosts_with_equal_pids_and_slots_are_two() -> None:
    twin = one_stage()
    keys = [
        twin.stages[0].introduce(worker_words(twin.topology, "s0", pid=7, instance=host), local=False, now=twin.now)
        for host in ("one", "two", "one")
    ]
    assert list(twin.stages[0].workers) == keys[1:]  # only the first came again
    assert twin.stages[0].stats.deaths.total() == 0


def test_absence_is_told_only_after_a_while() -> None:
    twin = one_stage()
    assert twin.front.stages[0].absent_at <= twin.now
    worker = twin.worker()
    assert twin.front.stages[0].absent_at > twin.now + 1e9
    twin.kill(worker)
    assert twin.front.stages[0].absent_at == twin.now + ABSENT_S
    twin.submit(1)
    assert (b"f", 1) not in twin.answers
    twin.pass_time(ABSENT_S)
    twin.submit(1, first=2)
    assert twin.answer(2)[0] == 503


def test_two_stages_hold_the_item_until_the_next_has_it() -> None:
    twin = Twin(topology((0, 1), stages=2), [SPEC, replace(SPEC, name="s1")])
    a, b = twin.worker(0), twin.worker(1)
    twin.submit(2)
    twin.finish(a, lost=True)  # computed, and then killed before the results left it
    assert twin.stages[0].state().in_flight == 2
    twin.kill(a)
    a = twin.worker(0)
    twin.finish(a, twice=True)  # and a copy of the results on top
    assert len(b.lane) == 1
    twin.finish(b)
    assert [twin.answer(seq) for seq in (1, 2)] == [(200, b"body1+0+1"), (200, b"body2+0+1")]
    assert twin.is_empty()


def test_an_error_at_the_first_stage_skips_the_second() -> None:
    twin = Twin(topology((0, 1), stages=2), [SPEC, replace(SPEC, name="s1")])
    a, b = twin.worker(0), twin.worker(1)
    twin.submit(2)
    twin.finish(a, statuses={"r1": 422})
    assert twin.answer(1)[0] == 422
    twin.finish(b)
    assert twin.answer(2)[0] == 200
    assert twin.is_empty()


def test_a_shared_stage_serves_items_of_both_routes_in_one_batch() -> None:
    twin = Twin(topology((0, 1), (1,), stages=2), [SPEC, replace(SPEC, name="s1")])
    a, b = twin.worker(0), twin.worker(1)
    twin.submit(1, first=1, route=0)
    twin.submit(1, first=5, route=1)
    twin.finish(b)
    twin.finish(a)
    twin.finish(b)
    assert twin.answer(1) == (200, b"body1+0+1")
    assert twin.answer(5) == (200, b"body5+1")
    assert twin.is_empty()


def test_a_failure_of_a_stale_copy_does_not_hurt_the_one_that_went_on() -> None:
    twin = Twin(topology((0, 1), stages=2), [replace(SPEC, max_attempts=1), replace(SPEC, name="s1")])
    a, b = twin.worker(0), twin.worker(1)
    twin.submit(1)
    lane = list(a.lane)
    twin.finish(a)  # stage 1 has it ...
    a.lane = lane
    assert twin.stages[0].workers[a.key].batches == {}
    twin.kill(a)
    twin.finish(b)
    assert twin.answer(1)[0] == 200
    assert twin.is_empty()


def test_keys_of_another_epoch_mean_nobody() -> None:
    twin = one_stage()
    worker = twin.worker()
    assert worker.key >> 20 == 7
    twin.stages[0].leave(1, twin.now)
    twin.stages[0].exited(1, twin.now)
    assert twin.stages[0].beat(WorkerBeat(1), twin.now) == Pulse(7, False)
    assert list(twin.stages[0].workers) == [worker.key]


def test_a_broker_that_has_just_started_waits_for_workers_that_may_be_there() -> None:
    twin = one_stage()
    machine = StageMachine(0, SPEC, topology(), 7, deployment=DEPLOYMENT, absent_at=twin.now + 3)
    machine.pump(twin.now)
    machine.introduce(worker_words(topology(), "s0"), local=True, now=twin.now)
    (news,) = machine.actions
    assert isinstance(news, News)
    assert news.absent_at == twin.now + 3


def test_what_workers_say_of_forward_is_counted_once_a_batch_and_never_of_the_dead() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(2)
    batch, payloads = worker.lane.pop(0)
    results = Results(0, worker.key, batch.batch, batch.uids, [200] * len(batch.uids), batch.trails, compute_us=1500)
    twin.deliver(results, payloads, FINAL)
    twin.deliver(results, payloads, FINAL)  # once more, late
    twin.run()
    assert twin.stages[0].stats.lanes[1].forward_s == pytest.approx(0.0015)


def test_how_long_batches_take_is_learned_by_their_size_from_what_workers_say() -> None:
    twin = one_stage()
    worker = twin.worker()
    for seq in range(0, 200, 5):
        twin.pass_time(0.02)  # who comes at once when others are answered is waited for
        twin.submit(1 + seq % 4, first=1 + seq)
        twin.pass_time(0.020 + 0.010 * len(worker.lane[0][0].uids))
        while worker.lane:
            n = len(worker.lane[0][0].uids)
            twin.finish(worker, compute_us=10_000 + 10_000 * n)
    machine = twin.stages[0]
    (member,) = machine.workers.values()
    for n in (1, 3, 4):
        assert machine.foresight.times.predict(n, member) == pytest.approx(
            0.020 + 0.010 * n, rel=0.1
        )  # 10 ms beside computing
    twin.submit(3, first=1000)
    assert member.free_at == pytest.approx(twin.now + 0.050, rel=0.1)


# --- what workers say of themselves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Policy(8), Policy(8, max_batch_cost=1000)], ids=["by count", "by cost"])
def test_a_worker_is_given_no_more_at_once_than_its_own_file_says(policy: Policy) -> None:
    twin = Twin(topology(), [replace(SPEC, policy=policy)])
    small, large = twin.worker(slot=1), twin.worker(slot=2)
    twin.stages[0].workers[small.key].most = 2
    twin.submit(30)
    sizes: dict[int, set[int]] = {small.key: set(), large.key: set()}
    while any(worker.lane for worker in (small, large)):
        for worker in (small, large):
            if worker.lane:
                sizes[worker.key].add(len(worker.lane[0][0].uids))
                twin.finish(worker)
    assert max(sizes[small.key]) <= 2 < max(sizes[large.key])


def test_who_says_where_it_is_and_what_it_computes_on_is_known_by_that() -> None:
    twin = Twin(topology(), [SPEC])
    stage = twin.stages[0]
    key = twin.worker(ready=False).key
    stage.ready(Ready(key, "application/json", most=4, device="cuda:1", node="gpu-7"), twin.now)
    worker = stage.workers[key]
    assert (worker.most, worker.device, worker.node) == (4, "cuda:1", "gpu-7")


def test_hosts_beyond_many_are_counted_together() -> None:
    stats = StageStats()
    names = {stats.host(f"pod-{number}")[0] for number in range(200)}
    assert len(names) == len(stats.hosts) == HOSTS_MOST + 1
    assert stats.host("pod-3")[0] == "pod-3"
    assert stats.host("")[0] == "others"
