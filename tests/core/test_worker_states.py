"""A worker's life: the table itself, and the machine that follows it, in every state and for every event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from engine.core.batching import Policy
from engine.core.liveness import ABSENT_S, SETTLE_S
from engine.core.messages import CancelItems, Dismiss, Pulse, Ready, WorkerBeat
from engine.core.stage import StageSpec
from engine.core.worker_states import SERVING, TABLE, WorkerEvent, WorkerState
from tests.core.twin import FakeWorker, Twin, topology, worker_words

S, E = WorkerState, WorkerEvent
SPEC = StageSpec("s0", 1, Policy(1), timeout_s=0.2, kill_after_s=60.0, max_queue_bytes=1 << 20)

# What cannot come to pass in a state: a worker that has not begun has no batch, a dead one waits for nothing else.
NEVER = {
    *product([S.STARTING], [E.LATE, E.BACK, E.END_OWING, E.SETTLED]),
    *product([S.READY, S.OVERDUE, S.LEAVING], [E.SETTLED]),
    *product([S.OVERDUE], [E.LATE]),  # of the same batch: a second begins when the first is back
    *product([S.GONE], E),
}


def test_the_table_is_total() -> None:
    assert set(TABLE) == set(product(WorkerState, WorkerEvent))


def test_the_end_is_the_end() -> None:
    assert {TABLE[S.GONE, event] for event in E} == {S.GONE}
    assert {TABLE[S.DYING, event] for event in E} == {S.DYING, S.GONE}  # the dead do not rise


def test_nobody_who_leaves_is_given_work_again() -> None:
    assert not {TABLE[S.LEAVING, event] for event in E} & SERVING


def test_every_state_can_be_reached_and_left() -> None:
    reached, before = {S.STARTING}, set[WorkerState]()
    while reached != before:
        before = set(reached)
        reached |= {TABLE[state, event] for state in before for event in E if (state, event) not in NEVER}
    assert reached == set(S)


# --- the machine -----------------------------------------------------------------------------------------------------


def bring(twin: Twin, state: WorkerState, *, busy: bool) -> FakeWorker:
    """A worker in this state, with a batch or without."""
    fake = twin.worker(ready=state is not S.STARTING)
    machine = twin.stages[0]
    if busy:
        twin.submit(1)
        assert fake.lane
    if state is S.OVERDUE:
        twin.pass_time(SPEC.timeout_s)
    elif state is S.LEAVING:
        machine.leave(fake.key, twin.now)
    elif state is S.DYING:
        machine.exited(fake.key, twin.now)
    twin.run()
    assert machine.workers[fake.key].state is state
    return fake


def hello_again(twin: Twin, fake: FakeWorker) -> None:
    key = twin.stages[0].introduce(worker_words(twin.topology, "s0", pid=fake.pid), local=True, now=twin.now)
    assert isinstance(key, int)
    twin.workers[0, key] = FakeWorker(0, key, fake.pid)


HAPPEN: dict[WorkerEvent, Callable[[Twin, FakeWorker], object]] = {
    E.READY: lambda twin, fake: twin.stages[0].ready(Ready(fake.key, "text/plain"), twin.now),
    E.LATE: lambda twin, _: twin.pass_time(SPEC.timeout_s),
    E.BACK: lambda twin, fake: twin.finish(fake),
    E.LEAVE: lambda twin, fake: twin.stages[0].leave(fake.key, twin.now),
    E.END: lambda twin, fake: twin.stages[0].exited(fake.key, twin.now),
    E.END_OWING: lambda twin, fake: twin.stages[0].exited(fake.key, twin.now),
    E.SETTLED: lambda twin, _: twin.pass_time(SETTLE_S),
    E.AGAIN: hello_again,
}


@pytest.mark.parametrize(("state", "event"), sorted(set(TABLE) - NEVER, key=str))
def test_the_machine_follows_the_table(state: WorkerState, event: WorkerEvent) -> None:
    once_only = state is S.DYING or event is E.END_OWING
    busy = state in (S.OVERDUE, S.DYING) or event in (E.LATE, E.BACK, E.END_OWING)
    twin = Twin(topology(), [replace(SPEC, idempotent=not once_only)])
    fake = bring(twin, state, busy=busy)
    machine = twin.stages[0]
    if state is S.DYING and event is E.LATE:
        twin.now += SPEC.timeout_s  # it began so long ago; what it sent is waited for from now on
        machine._dying[fake.key] = twin.now + SETTLE_S
        twin.run()
    else:
        HAPPEN[event](twin, fake)
    expected = TABLE[state, event]
    if state is S.DYING and event is E.BACK:
        expected = S.GONE  # all that it had has come: nothing more is waited for
    known = machine.workers.get(fake.key)
    assert (known.state if known is not None else S.GONE) is expected
    assert machine.state().ready == (expected in SERVING)
    twin.run()
    # Whatever has happened, one more worker serves what is left, and every request gets its one answer.
    fake.lane.clear()
    machine.exited(fake.key, twin.now)
    twin.pass_time(SETTLE_S)
    for other in list(machine.workers.values()):
        machine.exited(other.key, twin.now)
    twin.run()
    last = twin.worker(slot=2)
    while last.lane:
        twin.finish(last)
    assert twin.is_empty()
    assert all(len(given) == 1 for given in twin.answers.values())
    assert len(twin.answers) == busy


@pytest.mark.parametrize("event", E)
def test_what_comes_from_the_forgotten_names_nobody(event: WorkerEvent) -> None:
    twin = Twin(topology(), [SPEC])
    fake = twin.worker()
    twin.kill(fake)
    if event in (E.READY, E.LEAVE, E.END):
        HAPPEN[event](twin, fake)
    twin.run()
    assert twin.stages[0].workers == {}
    assert twin.stages[0].beat(WorkerBeat(fake.key), twin.now) == Pulse(7, False)


def test_a_leave_that_was_still_in_the_socket_does_not_wake_the_dead() -> None:
    twin = Twin(topology(), [replace(SPEC, idempotent=False, timeout_s=60.0)])
    fake = bring(twin, S.DYING, busy=True)
    twin.stages[0].leave(fake.key, twin.now)
    twin.run()
    assert Dismiss() not in fake.told
    twin.pass_time(SETTLE_S)
    assert twin.stages[0].stats.deaths.total() == 1
    assert twin.answer(1)[0] == 500


def test_a_death_that_is_told_twice_is_waited_for_once() -> None:
    twin = Twin(topology(), [replace(SPEC, idempotent=False, timeout_s=60.0)])
    fake = bring(twin, S.DYING, busy=True)
    for _ in range(5):
        twin.now += SETTLE_S / 10
        twin.stages[0].exited(fake.key, twin.now)
    twin.run()
    twin.pass_time(0.6 * SETTLE_S)
    assert not twin.stages[0].workers


def test_once_all_it_sent_has_come_the_dead_is_not_waited_for() -> None:
    twin = Twin(topology(), [replace(SPEC, idempotent=False, timeout_s=60.0)])
    fake = twin.worker()
    twin.submit(1)
    twin.finish(fake, late=True)
    twin.stages[0].exited(fake.key, twin.now)
    twin.run()
    twin.arrive()
    assert twin.answer(1)[0] == 200
    assert not twin.stages[0].workers


def test_a_dying_worker_is_told_of_no_cancellation_that_matters_and_killed_by_nobody() -> None:
    twin = Twin(topology(), [replace(SPEC, idempotent=False, kill_after_s=0.01)])
    fake = bring(twin, S.DYING, busy=True)
    twin.front.cancel(b"f", [1])
    twin.run()
    assert all(isinstance(one, CancelItems) for one in fake.told)
    twin.pass_time(SPEC.timeout_s)
    twin.pass_time(SETTLE_S)
    assert not fake.killed


@pytest.mark.parametrize("how", ["leaves", "dies", "dies owing"])
def test_absence_is_counted_from_when_the_last_worker_stopped_serving(how: str) -> None:
    """Not from when it was forgotten, and not from the broker's start: a stage whose only worker has just said that it
    leaves is about to have another one."""
    twin = Twin(topology(), [replace(SPEC, idempotent=how == "dies", timeout_s=60.0)])
    fake = twin.worker()
    twin.pass_time(5.0)
    if how == "dies owing":
        twin.submit(1)
    if how == "leaves":
        twin.stages[0].leave(fake.key, twin.now)
    else:
        twin.stages[0].exited(fake.key, twin.now)
    twin.run()
    assert twin.front.stages[0].absent_at == twin.now + ABSENT_S


def test_workers_that_die_before_they_are_ready_do_not_keep_requests_waiting() -> None:
    twin = Twin(topology(), [SPEC])
    twin.kill(twin.worker())
    absent_at = twin.front.stages[0].absent_at
    for _ in range(20):
        twin.pass_time(1.0)
        twin.kill(twin.worker(ready=False))
    assert twin.front.stages[0].absent_at == absent_at < twin.now
    twin.submit(1)
    assert twin.answer(1)[0] == 503
