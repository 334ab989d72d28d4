"""The life of a deployment: events in, actions out, ``now`` passed in."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence

import pytest

from engine.core.backoff import Backoff
from engine.core.lifecycle import (
    ABANDON_S,
    BROKER_STOP_S,
    CHILD_TABLE,
    MARGIN_S,
    UNREADY_STOP_S,
    WORKERS_STOP_S,
    ChildState,
    Machine,
    Outcome,
    Phase,
    Turn,
    describe_exit,
    stop_order,
)
from engine.core.liveness import ACCEPT_S, frontend_stop_s
from engine.core.processes import (
    Action,
    Begin,
    Child,
    Committed,
    Died,
    Failed,
    Hung,
    Kill,
    Kind,
    Level,
    Loading,
    Ready,
    Replace,
    Replaced,
    Resize,
    Say,
    Serving,
    Spawn,
    StopAsked,
    Stopping,
    Terminate,
    Tick,
    Waiting,
    Warming,
    Worn,
)

BROKER = Child(Kind.BROKER, "broker", start_s=30)
ONE = Child(Kind.WORKER, "worker encode-1", "encode", 1, start_s=100)
TWO = Child(Kind.WORKER, "worker encode-2", "encode", 2, start_s=100)
FRONT = Child(Kind.FRONTEND, "frontend", start_s=30)
DAEMON = Child(Kind.DAEMON, "daemon cache")
EVERYBODY = (BROKER, ONE, TWO, FRONT)
GRACE = 10.0
DRAIN = frontend_stop_s(0.0, GRACE) + MARGIN_S
POLICY = Backoff(first_s=1.0, most_s=8.0, budget=3)


def machine(children: Sequence[Child] = EVERYBODY, grace_s: float = GRACE) -> Machine:
    return Machine(children, grace_s=grace_s, policy=POLICY)


def serving(children: Sequence[Child] = EVERYBODY) -> Machine:
    """A deployment that was started at 0 and serves."""
    made = machine(children)
    made.handle(Begin(), 0.0)
    for child in children:
        made.handle(Ready(child), 0.0)
    assert made.phase is Phase.SERVING
    return made


def acts(actions: list[Action]) -> list[Action]:
    """Without what is only said."""
    return [action for action in actions if not isinstance(action, Say | Stopping)]


def said(actions: list[Action]) -> str:
    return "\n".join(action.text for action in actions if isinstance(action, Say))


# --- starting


def test_the_broker_starts_alone_and_the_rest_at_once_when_it_is_ready() -> None:
    made = machine()
    assert acts(made.handle(Begin(), 0.0)) == [Spawn(BROKER)]
    assert acts(made.handle(Ready(BROKER), 1.0)) == [Spawn(FRONT), Spawn(ONE), Spawn(TWO)]


def test_of_many_workers_some_start_at_once_and_each_that_is_ready_makes_room_for_the_next() -> None:
    many = [Child(Kind.WORKER, f"worker encode-{slot}", "encode", slot, start_s=100) for slot in range(1, 11)]
    made = Machine((BROKER, *many, FRONT), grace_s=GRACE, policy=POLICY, starts_most=3)
    made.handle(Begin(), 0.0)
    assert acts(made.handle(Ready(BROKER), 1.0)) == [Spawn(FRONT), Spawn(many[0]), Spawn(many[1])]
    assert acts(made.handle(Ready(FRONT), 2.0)) == [Spawn(many[2])]
    starting = many[:3]
    for child in many[3:]:
        assert acts(made.handle(Ready(starting.pop(0)), 2.0)) == [Spawn(child)]
        starting.append(child)
    assert acts(made.handle(Tick(), 101.9)) == [], "each has its whole time from when it is started"
    for child in starting:
        actions = made.handle(Ready(child), 102.0)
    assert acts(actions) == [Serving(102.0)]


def test_it_serves_when_everybody_is_ready() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    for child in (BROKER, FRONT, TWO):
        made.handle(Ready(child), 1.0)
    assert made.phase is Phase.STARTING
    assert acts(made.handle(Ready(ONE), 4.0)) == [Serving(4.0)]
    assert made.phase is Phase.SERVING


def test_progress_is_told() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    made.handle(Ready(BROKER), 1.0)
    assert said(made.handle(Loading(TWO), 1.0)) == "worker encode-2 loading"
    assert said(made.handle(Warming(TWO, 1, 3), 2.0)) == "worker encode-2 warming up 1/3"
    assert said(made.handle(Ready(TWO), 4.2)) == "worker encode-2 ready in 3.2 s"


def test_a_worker_that_cannot_start_ends_the_start_with_its_own_reason() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    made.handle(Ready(BROKER), 1.0)
    made.handle(Failed(ONE, "ModuleNotFoundError:\n no torch"), 2.0)
    actions = made.handle(Died(ONE, 4), 2.1)
    assert acts(actions) == [Terminate(TWO), Terminate(FRONT)]
    assert made.phase is Phase.STOPPING
    assert made.outcome is Outcome.NOT_STARTED
    assert made.failed_code is None, "of user code's number nothing is concluded"
    assert made.reason == "worker encode-1 could not start: ModuleNotFoundError: no torch"
    made.handle(Died(TWO, -15), 2.2)
    assert acts(made.handle(Died(FRONT, 0), 2.3)) == [Terminate(BROKER)]
    made.handle(Died(BROKER, 0), 2.4)
    assert made.phase is Phase.STOPPED


def test_a_worker_that_says_it_failed_and_stays_is_killed() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    made.handle(Ready(BROKER), 0.0)
    made.handle(Failed(ONE, "no"), 2.0)
    assert made.wake_at is not None
    assert acts(made.handle(Tick(), made.wake_at)) == [Kill(ONE)]


def test_a_worker_that_is_not_ready_in_time_is_killed_and_fails_the_start() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    for child in (BROKER, FRONT, TWO):
        made.handle(Ready(child), 0.0)
    assert made.wake_at == 100.0
    assert acts(made.handle(Tick(), 99.9)) == []
    assert acts(made.handle(Tick(), 100.0)) == [Kill(ONE)]
    made.handle(Died(ONE, -9), 100.1)
    assert made.outcome is Outcome.NOT_STARTED
    assert "was not ready within 100 s" in made.reason


def test_one_that_dies_while_others_still_start_is_started_again() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    made.handle(Ready(BROKER), 0.0)
    made.handle(Ready(ONE), 0.0)
    assert acts(made.handle(Died(ONE, -9), 1.0)) == [Spawn(ONE)]
    made.handle(Ready(FRONT), 1.0)
    made.handle(Ready(TWO), 1.0)
    assert made.phase is Phase.STARTING
    assert acts(made.handle(Ready(ONE), 3.0)) == [Serving(3.0)]


# --- serving


@pytest.mark.parametrize("child", EVERYBODY, ids=lambda child: child.name)
def test_whoever_dies_is_started_again_and_nobody_else_is_touched(child: Child) -> None:
    made = serving()
    actions = made.handle(Died(child, -9), 5.0)
    assert acts(actions) == [Spawn(child)]
    assert said(actions) == f"{child.name} died (killed by SIGKILL); starting it at once"
    made.handle(Ready(child), 7.0)
    assert made.phase is Phase.SERVING
    assert made.wake_at is None


def test_a_worker_that_fails_later_keeps_the_others_serving_for_ever() -> None:
    made = serving()
    made.handle(Died(ONE, -9), 5.0)
    at = 5.0
    for _ in range(50):
        assert "failed to start again (the disk is gone)" in said(
            [*made.handle(Failed(ONE, "the disk is gone"), at), *made.handle(Died(ONE, 4), at)]
        )
        assert made.wake_at is not None
        at = made.wake_at
        assert acts(made.handle(Tick(), at)) == [Spawn(ONE)]
    assert made.phase is Phase.SERVING


def test_workers_that_die_whenever_they_get_ready_have_not_started() -> None:
    """As with a library that crashes in a thread: each says ready, and ends of the same error."""
    made = serving()
    made.handle(Died(ONE, 1), 0.1)
    made.handle(Died(TWO, 1), 0.1)
    while made.phase is Phase.SERVING:
        now = made.wake_at
        assert now is not None
        for action in acts(made.handle(Tick(), now)):
            assert isinstance(action, Spawn)
            made.handle(Ready(action.child), now)
            made.handle(Died(action.child, 1), now)
    assert made.outcome is Outcome.NOT_STARTED
    assert made.reason == f"worker encode-1 died right after it was ready, {POLICY.alike} times in a row: exit code 1"


@pytest.mark.parametrize(("stage", "phase"), [("encode", Phase.SERVING), ("other", Phase.DRAINING)])
def test_requests_that_kill_every_worker_from_the_start_do_not_end_the_deployment(stage: str, phase: Phase) -> None:
    made = serving()
    made.handle(Waiting({stage: 5.0}), 0.0)
    made.handle(Died(ONE, 1), 0.1)
    made.handle(Died(TWO, 1), 0.1)
    for _ in range(10 * POLICY.alike):
        now = made.wake_at
        if made.phase is not Phase.SERVING or now is None:
            break
        for action in acts(made.handle(Tick(), now)):
            assert isinstance(action, Spawn)
            made.handle(Ready(action.child), now)
            made.handle(Died(action.child, 1), now)
    assert made.phase is phase


def test_who_is_killed_from_outside_has_made_no_mistake() -> None:
    made = serving()
    for _ in range(40):
        made.handle(Died(ONE, -9), made.wake_at or 0.0)
        now = made.wake_at
        assert now is not None
        assert acts(made.handle(Tick(), now)) == [Spawn(ONE)]
        made.handle(Ready(ONE), now)
    assert made.phase is Phase.SERVING


def test_who_is_waited_for_is_started_early_once_each_time() -> None:
    made = serving()
    made.handle(Died(TWO, -9), 10.0)
    for at in (10.0, 11.5, 14.0):  # fails in half a second, and waits for 1, 2 and 4 s
        made.handle(Tick(), at)
        assert made.state(TWO) is ChildState.STARTING
        made.handle(Died(TWO, 1), at + 0.5)
        assert made.state(TWO) is ChildState.BACKING_OFF
    assert made.wake_at == 18.5
    assert acts(made.handle(Waiting({"other": 60.0}), 15.0)) == []
    assert acts(made.handle(Waiting({"encode": 0.6}), 15.0)) == [], "it would be too late for them"
    assert acts(made.handle(Waiting({"encode": 5.0}), 15.0)) == []
    assert made.wake_at == 15.5, "a second after its death"
    assert acts(made.handle(Tick(), 15.5)) == [Spawn(TWO)]
    made.handle(Ready(TWO), 16.0)
    assert acts(made.handle(Waiting({"encode": 5.0}), 16.0)) == []


def test_who_runs_out_of_memory_whenever_it_is_ready_is_waited_for_like_one_that_crashes() -> None:
    """The kernel's SIGKILL, but not from outside: to start it at once would take the memory from its neighbours."""
    made = serving()
    made.handle(Died(TWO, -9), POLICY.lasting_s)
    at, waits = POLICY.lasting_s, []
    for _ in range(4):
        made.handle(Ready(TWO), at)
        died = made.handle(Died(TWO, -9, "out of memory"), at)
        assert "worker encode-2 died (out of memory)" in said(died)
        waits.append((made.wake_at or 0.0) - at)
        at = made.wake_at or 0.0
        assert acts(made.handle(Tick(), at)) == [Spawn(TWO)]
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert made.phase is Phase.SERVING


def test_one_of_a_stage_that_lasts_is_proof_that_it_can_be_started() -> None:
    made = serving()
    at = POLICY.lasting_s
    made.handle(Died(ONE, -9), at)
    for _ in range(10):
        made.handle(Ready(ONE), at)
        made.handle(Died(ONE, -11), at)
        at = made.wake_at or 0.0
        assert acts(made.handle(Tick(), at)) == [Spawn(ONE)]
    assert made.phase is Phase.SERVING


@pytest.mark.parametrize("child", [BROKER, FRONT], ids=lambda child: child.name)
def test_without_a_broker_or_a_frontend_there_is_an_end_to_it(child: Child) -> None:
    made = serving()
    made.handle(Died(child, -9), 5.0)
    at = 5.0
    while True:
        made.handle(Died(child, 1), at)
        if made.phase is not Phase.SERVING:
            break
        assert made.wake_at is not None
        at = made.wake_at
        assert acts(made.handle(Tick(), at)) == [Spawn(child)]
    assert made.outcome is Outcome.FAILED
    assert made.reason == f"{child.name} failed to start 3 times in a row: exit code 1"


def test_a_daemon_that_ends_ends_the_deployment() -> None:
    made = serving((*EVERYBODY, DAEMON))
    assert acts(made.handle(Died(DAEMON, 0), 5.0)) == [Terminate(FRONT)]
    assert made.outcome is Outcome.FAILED
    assert made.reason == "daemon cache ended (exit code 0)"


def test_one_that_cannot_be_run_again_is_tried_later() -> None:
    made = serving()
    made.handle(Died(ONE, -9), 5.0)
    assert "out of memory" in said(made.handle(Died(ONE, None, "out of memory"), 6.0))
    assert made.wake_at == 7.0


@pytest.mark.parametrize("child", EVERYBODY, ids=lambda child: child.name)
def test_who_hangs_is_killed_and_started_again_at_once(child: Child) -> None:
    made = serving()
    assert acts(made.handle(Hung(child, "hung"), 5.0)) == [Kill(child)]
    assert acts(made.handle(Hung(child, "hung"), 5.5)) == [], "once"
    actions = made.handle(Died(child, -9), 5.6)
    assert acts(actions) == [Spawn(child)]
    assert said(actions) == f"{child.name} died (hung); starting it at once"


def test_nobody_is_killed_for_hanging_who_never_started_or_is_told_to_stop() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    assert acts(made.handle(Hung(BROKER, "hung"), 1.0)) == []
    made = serving()
    made.handle(StopAsked(signal.SIGTERM), 1.0)
    assert acts(made.handle(Hung(FRONT, "hung"), 2.0)) == []


# --- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stop_drains_the_frontend_then_stops_workers_then_the_broker(number: int) -> None:
    made = serving()
    assert acts(made.handle(StopAsked(number), 100.0)) == [Terminate(FRONT)]
    assert made.phase is Phase.DRAINING
    assert made.wake_at == 100.0 + DRAIN
    assert acts(made.handle(Died(FRONT, 0), 104.0)) == [Terminate(ONE), Terminate(TWO)]
    assert made.phase is Phase.STOPPING
    assert acts(made.handle(Died(ONE, 0), 104.1)) == []
    assert acts(made.handle(Died(TWO, 0), 104.2)) == [Terminate(BROKER)]
    made.handle(Died(BROKER, 0), 104.3)
    assert made.phase is Phase.STOPPED
    assert made.outcome is Outcome.STOPPED


def test_a_stop_is_bounded_when_nobody_obeys() -> None:
    made = serving()
    made.handle(StopAsked(signal.SIGTERM), 0.0)
    now = DRAIN
    assert made.wake_at == now
    assert acts(made.handle(Tick(), now)) == [Kill(FRONT)]
    assert acts(made.handle(Died(FRONT, -9), now)) == [Terminate(ONE), Terminate(TWO)]
    now += WORKERS_STOP_S
    assert made.wake_at == now
    assert acts(made.handle(Tick(), now)) == [Kill(ONE), Kill(TWO)]
    made.handle(Died(ONE, -9), now)
    assert acts(made.handle(Died(TWO, -9), now)) == [Terminate(BROKER)]
    now += BROKER_STOP_S
    assert made.wake_at == now
    assert acts(made.handle(Tick(), now)) == [Kill(BROKER)]
    made.handle(Died(BROKER, -9), now)
    assert made.phase is Phase.STOPPED
    assert now <= GRACE + 8


def test_how_long_a_stop_may_take_is_told_and_true() -> None:
    made = serving()
    (told,) = (action for action in made.handle(StopAsked(signal.SIGTERM), 0.0) if isinstance(action, Stopping))
    while made.phase is not Phase.STOPPED:  # nobody obeys, and the kernel can end nobody
        assert made.wake_at is not None
        now = made.wake_at
        made.handle(Tick(), now)
    assert now == told.within_s
    assert told.within_s < GRACE + 15


def test_a_process_that_the_kernel_cannot_end_is_left_behind() -> None:
    made = serving()
    made.handle(StopAsked(signal.SIGTERM), 0.0)
    made.handle(Died(FRONT, 0), 1.0)
    made.handle(Died(TWO, 0), 1.0)
    made.handle(Tick(), 1.0 + WORKERS_STOP_S)
    assert made.wake_at == 1.0 + WORKERS_STOP_S + ABANDON_S
    assert acts(made.handle(Tick(), made.wake_at)) == [Terminate(BROKER)]


def test_a_second_sigint_kills_everybody_at_once() -> None:
    made = serving()
    made.handle(StopAsked(signal.SIGINT), 0.0)
    actions = acts(made.handle(StopAsked(signal.SIGINT), 0.1))
    assert {action.child for action in actions if isinstance(action, Kill)} == set(EVERYBODY)
    for child in EVERYBODY:
        made.handle(Died(child, -9), 0.2)
    assert made.phase is Phase.STOPPED
    assert made.outcome is Outcome.FAILED


def test_a_second_sigterm_changes_nothing() -> None:
    made = serving()
    made.handle(StopAsked(signal.SIGTERM), 0.0)
    assert made.handle(StopAsked(signal.SIGTERM), 0.1) == []
    assert made.phase is Phase.DRAINING


def test_a_worker_that_dies_while_requests_drain_is_started_again() -> None:
    made = serving()
    made.handle(StopAsked(signal.SIGTERM), 0.0)
    assert acts(made.handle(Died(ONE, -9), 1.0)) == [Spawn(ONE)]
    made.handle(Ready(ONE), 3.0)
    assert acts(made.handle(Died(FRONT, 0), 4.0)) == [Terminate(ONE), Terminate(TWO)]


def test_a_stop_while_starting_spawns_nobody_any_more() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    assert acts(made.handle(StopAsked(signal.SIGTERM), 1.0)) == [Terminate(BROKER)]
    assert acts(made.handle(Ready(BROKER), 1.1)) == []
    made.handle(Died(BROKER, -15), 1.2)
    assert made.phase is Phase.STOPPED
    assert made.outcome is Outcome.STOPPED


def test_whoever_was_never_ready_is_stopped_at_once_and_hardly_waited_for() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    for child in (BROKER, FRONT, TWO):
        made.handle(Ready(child), 1.0)
    assert acts(made.handle(StopAsked(signal.SIGTERM), 2.0)) == [Terminate(ONE), Terminate(FRONT)]
    assert made.wake_at == 2.0 + UNREADY_STOP_S
    assert acts(made.handle(Died(FRONT, 0), 2.1)) == [Terminate(TWO)]  # the one that has been told is not told again
    made.handle(Died(TWO, 0), 2.2)
    assert acts(made.handle(Tick(), 2.0 + UNREADY_STOP_S)) == [Kill(ONE)]
    assert acts(made.handle(Died(ONE, -9), 2.9)) == [Terminate(BROKER)]


def test_a_start_that_fails_does_not_wait_for_those_that_were_never_ready() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    made.handle(Ready(BROKER), 0.0)
    made.handle(Died(ONE, 4), 1.0)
    assert made.wake_at == 1.0 + UNREADY_STOP_S
    assert acts(made.handle(Tick(), made.wake_at)) == [Kill(TWO), Kill(FRONT)]


def test_one_that_is_being_started_again_may_be_what_admitted_requests_wait_for() -> None:
    made = serving()
    assert acts(made.handle(Died(ONE, -9), 5.0)) == [Spawn(ONE)]
    assert acts(made.handle(StopAsked(signal.SIGTERM), 6.5)) == [Terminate(FRONT)]
    made.handle(Ready(ONE), 7.0)
    assert acts(made.handle(Died(FRONT, 0), 8.0)) == [Terminate(ONE), Terminate(TWO)]


def test_a_stop_while_backing_off_does_not_wait_for_the_restart() -> None:
    made = serving()
    made.handle(Died(FRONT, 1), 1.0)
    assert made.state(FRONT) is ChildState.BACKING_OFF
    assert acts(made.handle(StopAsked(signal.SIGTERM), 1.1)) == [Terminate(ONE), Terminate(TWO)]


def test_a_worker_that_fails_while_stopping_does_not_change_the_outcome() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    made.handle(Ready(BROKER), 0.0)
    made.handle(StopAsked(signal.SIGTERM), 1.0)
    made.handle(Died(ONE, 4), 1.1)
    made.handle(Died(FRONT, 0), 1.2)
    made.handle(Died(TWO, 0), 1.3)
    made.handle(Died(BROKER, 0), 1.4)
    assert made.outcome is Outcome.STOPPED


def test_workers_on_their_own_get_the_whole_grace() -> None:
    made = serving((ONE, TWO))
    assert acts(made.handle(StopAsked(signal.SIGTERM), 0.0)) == [Terminate(ONE), Terminate(TWO)]
    assert made.wake_at == GRACE + MARGIN_S
    made.handle(Died(ONE, 0), 1.0)
    made.handle(Died(TWO, 0), 2.0)
    assert made.phase is Phase.STOPPED


# --- the tables


def test_no_turn_leads_out_of_gone() -> None:
    assert {after for (before, _), after in CHILD_TABLE.items() if before is ChildState.GONE} == {ChildState.GONE}


@pytest.mark.parametrize("state", ChildState)
def test_every_state_can_be_stopped(state: ChildState) -> None:
    assert CHILD_TABLE[state, Turn.STOP] in (ChildState.STOPPING, ChildState.GONE)


@pytest.mark.parametrize(
    ("code", "expected"),
    [(0, "exit code 0"), (-9, "killed by SIGKILL"), (None, "could not be run"), (-64, "killed by SIGRTMAX")],
)
def test_exits_are_described_in_words(code: int | None, expected: str) -> None:
    assert describe_exit(code) == expected


def errors(actions: Sequence[Action]) -> list[tuple[str, str]]:
    return [
        (action.text, action.trace) for action in actions if isinstance(action, Say) and action.level is Level.ERROR
    ]


def test_a_mistake_that_all_workers_meet_is_told_once_and_another_as_well() -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    made.handle(Ready(BROKER), 1.0)
    made.handle(Failed(ONE, "SyntaxError: x", "the trace"), 2.0)
    made.handle(Failed(TWO, "SyntaxError: x", "the trace"), 2.0)
    assert errors(made.handle(Died(ONE, 4), 2.1)) == [("worker encode-1 could not start: SyntaxError: x", "the trace")]
    assert errors(made.handle(Died(TWO, 4), 2.1)) == []
    made = machine()
    made.handle(Begin(), 0.0)
    made.handle(Ready(BROKER), 1.0)
    made.handle(Failed(ONE, "SyntaxError: x", "the trace"), 2.0)
    made.handle(Failed(TWO, "KeyError: y", "another"), 2.0)
    made.handle(Died(ONE, 4), 2.1)
    assert errors(made.handle(Died(TWO, 4), 2.1)) == [
        ("worker encode-2 could not start either: KeyError: y", "another")
    ]


@pytest.mark.parametrize("code", [3, 5, 77])
def test_a_code_that_user_code_chose_is_not_passed_on(code: int) -> None:
    made = machine()
    made.handle(Begin(), 0.0)
    made.handle(Ready(BROKER), 1.0)
    made.handle(Died(ONE, code), 2.0)
    assert made.outcome is Outcome.NOT_STARTED
    assert made.failed_code is None


# --- replacing workers


def edition(number: int, num: int = 2) -> tuple[Child, ...]:
    return tuple(
        Child(Kind.WORKER, f"worker encode-{k}", "encode", k, start_s=100, edition=number) for k in range(1, num + 1)
    )


def test_new_workers_are_ready_before_old_ones_leave() -> None:
    made = serving()
    new_one, new_two = edition(1)
    assert acts(made.handle(Replace((new_one, new_two), "reloading"), 100.0)) == [Spawn(new_one)]
    assert acts(made.handle(Ready(new_one), 101.0)) == [Committed(), Terminate(ONE)]
    assert acts(made.handle(Died(ONE, 0), 102.0)) == [Spawn(new_two)]
    assert acts(made.handle(Ready(new_two), 103.0)) == [Terminate(TWO)]
    assert acts(made.handle(Died(TWO, 0), 104.0)) == [Replaced()]
    assert set(made.workers) == {new_one, new_two}
    assert made.phase is Phase.SERVING


def test_an_old_worker_that_does_not_leave_is_killed() -> None:
    made = serving()
    new_one, new_two = edition(1)
    made.handle(Replace((new_one, new_two), "reloading"), 100.0)
    made.handle(Ready(new_one), 101.0)
    assert acts(made.handle(Tick(), 101.0 + DRAIN)) == [Kill(ONE)]


@pytest.mark.parametrize("first", [True, False])
def test_a_version_that_cannot_start_leaves_the_old_workers(first: bool) -> None:
    other = Child(Kind.WORKER, "worker post-1", "post", 1)
    made = serving((*EVERYBODY, other))
    new_one, new_two = edition(1)
    new_other = Child(Kind.WORKER, "worker post-1", "post", 1, edition=1)
    made.handle(Replace((new_one, new_two, new_other), "reloading"), 100.0)
    if not first:
        made.handle(Ready(new_one), 101.0)
    bad = new_one if first else new_other
    made.handle(Failed(bad, "ValueError: no such model", "the trace"), 102.0)
    actions = made.handle(Died(bad, 4), 103.0)
    assert "no such model" in said(actions)
    reason = f"{bad.name} could not start: ValueError: no such model"
    assert acts(actions) == ([] if first else [Terminate(new_one)]) + [Replaced(reason)]
    assert made.phase is Phase.SERVING
    if not first:
        made.handle(Died(new_one, 0), 104.0)
    assert set(made.workers) == {ONE, TWO, other}
    assert acts(made.handle(Replace((*edition(2), other), "again"), 105.0)) == [Spawn(edition(2)[0])]


def test_after_the_commit_a_death_is_like_any_other() -> None:
    made = serving()
    new_one, new_two = edition(1)
    made.handle(Replace((new_one, new_two), "reloading"), 100.0)
    made.handle(Ready(new_one), 101.0)
    made.handle(Died(ONE, 0), 102.0)
    assert acts(made.handle(Died(new_two, -9), 103.0)) == []
    assert made.phase is Phase.SERVING
    assert made.wake_at is not None
    assert acts(made.handle(Tick(), made.wake_at)) == [Spawn(new_two)]


def test_where_one_stage_is_renewed_the_others_keep_their_workers() -> None:
    other = Child(Kind.WORKER, "worker post-1", "post", 1)
    made = serving((*EVERYBODY, other))
    new_other = dataclasses.replace(other, edition=1)
    asked = Replace((*edition(1), new_other), "replacing post", renew=frozenset({"post"}))
    assert acts(made.handle(asked, 100.0)) == [Spawn(new_other)]
    assert acts(made.handle(Ready(new_other), 101.0)) == [Committed(), Terminate(other)]
    assert acts(made.handle(Died(other, 0), 102.0)) == [Replaced()]
    assert set(made.workers) == {ONE, TWO, new_other}


def test_scaling_keeps_who_is_there() -> None:
    made = serving()
    one, two, three = edition(1, 3)
    assert acts(made.handle(Replace((one, two, three), "scaling", renew=frozenset()), 100.0)) == [Spawn(three)]
    assert acts(made.handle(Ready(three), 101.0)) == [Committed(), Replaced()]
    assert set(made.workers) == {ONE, TWO, three}
    assert acts(made.handle(Replace((one,), "scaling", renew=frozenset()), 102.0)) == [
        Committed(),
        Terminate(TWO),
        Terminate(three),
    ]
    made.handle(Died(TWO, 0), 103.0)
    assert acts(made.handle(Died(three, 0), 104.0)) == [Replaced()]
    assert made.workers == [ONE]


def test_more_workers_for_the_demand_come_at_once_and_fewer_finish_what_they_have() -> None:
    made = serving()
    many = edition(1, 4)
    assert made.takes(fewer=False)
    actions = made.handle(Resize(many, "scaling encode from 2 to 4"), 100.0)
    assert said(actions) == "scaling encode from 2 to 4"
    assert acts(actions) == [Spawn(many[2]), Spawn(many[3])]
    for child in many[2:]:
        made.handle(Ready(child), 101.0)
    assert acts(made.handle(Resize(edition(2, 1), "scaling"), 102.0)) == [
        Terminate(TWO), Terminate(many[2]), Terminate(many[3]),
    ]  # fmt: skip
    assert acts(made.handle(Tick(), 102.0 + DRAIN)) == [Kill(TWO), Kill(many[2]), Kill(many[3])]
    for child in (TWO, *many[2:]):
        made.handle(Died(child, 0), 104.0)
    assert made.workers == [ONE]


def test_a_change_of_numbers_that_comes_after_the_end_has_begun_is_passed_over() -> None:
    made = serving()
    made.handle(StopAsked(signal.SIGTERM), 100.0)
    made.handle(Died(FRONT, 0), 100.0)
    assert made.handle(Resize(edition(1, 4), "scaling"), 100.0) == []
    now, actions = 100.0, []
    while made.phase is not Phase.STOPPED and now < 200.0:
        now += 0.5
        actions += acts(made.handle(Tick(), now))
    assert made.phase is Phase.STOPPED
    assert {action.child for action in actions if isinstance(action, Kill)} == {ONE, TWO, BROKER}


def test_one_that_was_never_started_can_end() -> None:
    assert CHILD_TABLE[ChildState.WAITING, Turn.END] is ChildState.GONE


def test_it_is_well_while_workers_come_for_more_demand_and_not_when_one_of_them_fails() -> None:
    made = Machine(EVERYBODY, grace_s=GRACE, policy=POLICY, starts_most=1)
    made.handle(Begin(), 0.0)
    for child in (BROKER, FRONT, ONE, TWO):
        made.handle(Ready(child), 0.0)
    _, _, three, four = many = edition(1, 4)
    assert acts(made.handle(Resize(many, "scaling"), 100.0)) == [Spawn(three)]
    assert made.state(four) is ChildState.WAITING
    assert not made.unwell
    made.handle(Died(ONE, 9), 101.0)
    assert made.unwell == f"not ready: {ONE.name}"
    made.handle(Died(three, 1), 102.0)
    assert three.name in made.unwell
    assert made.wake_at is not None
    assert Spawn(three) in acts(made.handle(Tick(), made.wake_at + 5))
    assert three.name in made.unwell, "it has failed once"
    made.handle(Ready(three), 110.0)
    assert three.name not in made.unwell


def test_it_is_well_while_a_fresh_worker_loads_beside_the_one_whose_place_it_takes() -> None:
    made = serving()
    (spawn,) = acts(made.handle(Worn(ONE, "12 h old"), 100.0))
    assert isinstance(spawn, Spawn)
    assert not made.unwell
    made.handle(Ready(spawn.child), 101.0)
    made.handle(Died(spawn.child, 9), 102.0)
    assert made.unwell == f"not ready: {spawn.child.name}"


def test_no_more_of_them_start_at_once_than_when_a_deployment_starts() -> None:
    made = Machine(EVERYBODY, grace_s=GRACE, policy=POLICY, starts_most=2)
    made.handle(Begin(), 0.0)
    for child in (BROKER, FRONT, ONE, TWO):
        made.handle(Ready(child), 0.0)
    many = edition(1, 5)
    assert acts(made.handle(Resize(many, "scaling"), 100.0)) == [Spawn(many[2]), Spawn(many[3])]
    assert acts(made.handle(Ready(many[2]), 101.0)) == [Spawn(many[4])]


def test_a_stage_without_workers_gets_them_and_one_that_cannot_start_is_tried_again() -> None:
    made = serving((BROKER, FRONT))
    one, _ = edition(1)
    assert acts(made.handle(Resize((one,), "scaling"), 100.0)) == [Spawn(one)]
    made.handle(Failed(one, "OSError: no such model"), 101.0)
    assert acts(made.handle(Died(one, 4), 101.0)) == []
    assert made.phase is Phase.SERVING
    assert made.wake_at is not None
    assert acts(made.handle(Tick(), made.wake_at)) == [Spawn(one)]
    made.handle(Resize((), "scaling"), 200.0)
    made.handle(Died(one, 0), 201.0)
    assert made.workers == []
    assert not made.unwell


def test_whoever_waits_for_another_start_is_not_started_any_more_when_there_are_to_be_fewer() -> None:
    made = serving()
    made.handle(Died(TWO, 9), 1.0)
    assert acts(made.handle(Resize((ONE,), "scaling"), 1.0)) == []
    assert acts(made.handle(Tick(), 200.0)) == []
    assert made.workers == [ONE]


def test_the_demand_waits_while_the_deployment_is_changed_and_takes_nobody_while_one_is_replaced() -> None:
    made = serving()
    made.handle(Worn(ONE, "12 h old"), 100.0)
    assert (made.takes(fewer=False), made.takes(fewer=True)) == (True, False)
    made.handle(Replace(edition(1), "reloading"), 101.0)
    assert not made.takes(fewer=False)
    made = machine()
    assert not made.takes(fewer=False)


def test_a_worn_worker_gets_a_fresh_one_in_its_place_and_others_wait() -> None:
    made = serving()
    actions = made.handle(Worn(ONE, "12 h old"), 100.0)
    assert "12 h old" in said(actions)
    (spawn,) = acts(actions)
    assert isinstance(spawn, Spawn)
    fresh = spawn.child
    assert (fresh.stage, fresh.slot, fresh.edition) == ("encode", 1, 0)
    assert fresh != ONE
    assert acts(made.handle(Worn(TWO, "12 h old"), 101.0)) == []
    assert acts(made.handle(Replace(edition(1), "reloading"), 102.0)) == []
    assert acts(made.handle(Ready(fresh), 103.0)) == [Terminate(ONE)]
    new_one, new_two = edition(1)
    assert acts(made.handle(Died(ONE, 0), 104.0)) == [Spawn(new_one)], "what was asked for comes before what is worn"
    for event in (Ready(new_one), Died(fresh, 0), Ready(new_two)):
        made.handle(event, 105.0)
    assert acts(made.handle(Died(TWO, 0), 106.0)) == [Replaced()]
    assert set(made.workers) == {new_one, new_two}, "whoever was worn has gone"


def test_one_change_at_a_time_and_none_while_it_stops() -> None:
    made = serving()
    made.handle(Replace(edition(1), "reloading"), 100.0)
    (refused,) = acts(made.handle(Replace(edition(2), "reloading"), 101.0))
    assert isinstance(refused, Replaced)
    assert "already" in refused.error
    stopping = acts(made.handle(StopAsked(signal.SIGTERM), 102.0))
    assert [action.error for action in stopping if isinstance(action, Replaced)] == ["it is stopping"]
    (refused,) = acts(made.handle(Replace(edition(3), "reloading"), 102.1))
    assert isinstance(refused, Replaced)
    assert "draining" in refused.error
    for child in (FRONT, edition(1)[0], ONE, TWO, BROKER):
        made.handle(Died(child, 0), 104.0)
    assert made.phase is Phase.STOPPED


def test_frontends_have_the_delay_in_which_they_turn_requests_away_and_their_grace() -> None:
    first, second, _ = stop_order(Kind, 10.0, delay_s=5.0)
    assert (first.kinds, first.bound_s) == ({Kind.FRONTEND}, 15.0 + ACCEPT_S + MARGIN_S)
    assert second.bound_s <= 10.0


def test_where_only_a_part_of_a_deployment_runs_others_send_and_compute_too() -> None:
    def steps(*kinds: Kind) -> list[tuple[Kind, bool]]:
        return [(*step.kinds & set(kinds), step.bound_s > 20.0) for step in stop_order(kinds, 20.0)]

    whole = [(Kind.FRONTEND, True), (Kind.WORKER, False), (Kind.BROKER, False)]
    assert steps(Kind.BROKER, Kind.FRONTEND, Kind.WORKER) == whole
    assert steps(Kind.WORKER) == [(Kind.WORKER, True)]
    assert steps(Kind.FRONTEND, Kind.WORKER) == [(Kind.FRONTEND, True), (Kind.WORKER, True)]
    assert steps(Kind.BROKER, Kind.WORKER) == [(Kind.BROKER, True), (Kind.WORKER, False)]
    assert steps(Kind.FRONTEND, Kind.BROKER) == [(Kind.FRONTEND, True), (Kind.BROKER, True)]
    assert steps(Kind.BROKER) == [(Kind.BROKER, True)]
