"""Beats name the batches that a worker has: what is lost on its way, while its connection lives, is given out again."""

from __future__ import annotations

from dataclasses import replace

from engine.core.liveness import BEAT_S
from engine.core.messages import Leave, Pulse, WorkerBeat
from tests.core.test_fate import SPEC, busy
from tests.core.twin import FakeWorker, Twin, topology


def beat(twin: Twin, worker: FakeWorker, *, newest: int, held: list[int]) -> None:
    stage = twin.stages[0]
    answer = stage.beat(WorkerBeat(worker.key, newest=newest, held=held), twin.now)
    assert isinstance(answer, Pulse)
    twin.run()


def lost(*, idempotent: bool = True) -> tuple[Twin, FakeWorker, int]:
    """A worker that was given a batch, and does not have it."""
    twin = Twin(topology(), [replace(SPEC, idempotent=idempotent, timeout_s=60.0)])
    worker = twin.worker()
    twin.submit(3)
    batch, _ = worker.lane.pop()
    return twin, worker, batch.batch


def test_a_batch_that_is_absent_from_two_beats_is_given_out_again_without_blame() -> None:
    twin, worker, number = lost()
    beat(twin, worker, newest=number, held=[])
    assert not busy(twin)  # its results may be on their way
    twin.pass_time(BEAT_S)
    beat(twin, worker, newest=number, held=[])
    (again,) = worker.lane
    assert again[0].batch > number
    assert again[0].attempts == [1, 1, 1]
    twin.finish(worker)
    assert [twin.answer(seq)[0] for seq in range(1, 4)] == [200] * 3
    stats = twin.stages[0].stats
    assert (stats.resent, stats.replayed, stats.deaths.total()) == (1, 3, 0)
    assert twin.is_empty()


def test_what_is_held_or_settled_in_between_or_came_later_is_not_lost() -> None:
    twin, worker, number = lost()
    for held, newest in (([], number), ([number], number), ([], number - 1), ([], number), ([number], number)):
        beat(twin, worker, newest=newest, held=held)
        twin.pass_time(BEAT_S)
    assert twin.stages[0].stats.resent == 0


def test_two_beats_that_come_together_are_one() -> None:
    twin, worker, number = lost()
    beat(twin, worker, newest=number, held=[])
    beat(twin, worker, newest=number, held=[])
    assert twin.stages[0].stats.resent == 0


def test_results_of_a_batch_that_was_given_up_too_early_count_all_the_same() -> None:
    twin = Twin(topology(), [replace(SPEC, timeout_s=60.0)])
    worker = twin.worker()
    twin.submit(2)
    number = worker.lane[0][0].batch
    for _ in range(2):
        beat(twin, worker, newest=number, held=[])
        twin.pass_time(BEAT_S)
    assert [batch.batch > number for batch, _ in worker.lane] == [False, True]
    twin.finish(worker)
    assert [twin.answer(seq)[0] for seq in (1, 2)] == [200, 200]
    twin.finish(worker)  # what was given out again is a duplicate
    assert twin.is_empty()
    assert not twin.stages[0].workers[worker.key].late


def test_each_time_the_patience_is_twice_what_it_was() -> None:
    twin = Twin(topology(), [replace(SPEC, timeout_s=60.0)])
    worker = twin.worker()
    twin.submit(2, budget_s=100.0)
    given = []
    for _ in range(30):
        newest = worker.lane[-1][0].batch
        given.append(newest)
        beat(twin, worker, newest=newest, held=[])
        twin.pass_time(BEAT_S)
    assert len(set(given)) == 6  # after 1, 1, 2, 4, 8 and 16 s, and not 30 times


def test_what_must_not_be_computed_twice_is_not_sent_again() -> None:
    twin, worker, number = lost(idempotent=False)
    for _ in range(5):
        beat(twin, worker, newest=number, held=[])
        twin.pass_time(BEAT_S)
    assert not busy(twin)
    assert twin.stages[0].stats.resent == 0


def test_an_older_worker_that_names_no_batch_loses_none() -> None:
    twin, worker, _ = lost()
    for _ in range(5):
        beat(twin, worker, newest=0, held=[])
        twin.pass_time(BEAT_S)
    assert twin.stages[0].stats.resent == 0


def test_a_worker_that_leaves_and_has_lost_its_last_batch_is_dismissed() -> None:
    twin, worker, number = lost()
    other = twin.worker(slot=2)
    twin.stages[0].leave(Leave(worker.key).worker, twin.now)
    for _ in range(2):
        beat(twin, worker, newest=number, held=[])
        twin.pass_time(BEAT_S)
    assert [type(one).__name__ for one in worker.told] == ["Dismiss"]
    twin.finish(other)
    assert [twin.answer(seq)[0] for seq in range(1, 4)] == [200] * 3


def test_an_overdue_worker_that_has_lost_its_batch_works_again() -> None:
    twin = Twin(topology(), [replace(SPEC, timeout_s=1.0, kill_after_s=60.0)])
    worker = twin.worker()
    twin.submit(1, budget_s=100.0)
    number = worker.lane.pop()[0].batch
    twin.pass_time(1.5)
    assert twin.stages[0].workers[worker.key].state.value == "overdue"
    for _ in range(2):
        beat(twin, worker, newest=number, held=[])
        twin.pass_time(BEAT_S)
    assert twin.stages[0].workers[worker.key].state.value == "ready"
    twin.submit(1, first=2)
    while worker.lane:
        twin.finish(worker)
    assert twin.answer(2)[0] == 200
