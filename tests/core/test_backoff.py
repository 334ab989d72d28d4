"""Restarting as a table: a history of deaths in, delays and decisions out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.core.backoff import (
    DEFAULT,
    Backoff,
    Decision,
    GiveUp,
    History,
    Restart,
    became_ready,
    delay_s,
    died,
    hastened,
)

SLOW = Backoff(first_s=1.0, most_s=8.0, essential_most_s=2.0, budget=3)


def was_ready(at: float = 0.0) -> History:
    return became_ready(History(), at)


@pytest.mark.parametrize(
    ("strikes", "expected"),
    [(1, 0.1), (2, 0.2), (3, 0.4), (7, 6.4), (8, 10.0), (9, 10.0), (10_000, 10.0)],
)
def test_the_delay_doubles_up_to_its_cap(strikes: int, expected: float) -> None:
    assert delay_s(strikes, DEFAULT) == pytest.approx(expected)


def test_a_child_that_was_never_ready_is_given_up_at_once() -> None:
    _, decision = died(History(), 5.0, cause="exit code 1", essential=False, policy=SLOW)
    assert decision == GiveUp("could not start")


@pytest.mark.parametrize(
    ("cause", "at", "expected"),
    [
        ("exit code 1", SLOW.lasting_s, 0.0),  # it had served
        ("", SLOW.lasting_s, 0.0),
        ("", 1.0, 0.0),  # ended from outside
        ("", 0.2, 0.3),  # ... right after it was ready: it does not spin
        ("exit code 1", 0.2, 1.0),  # of itself, right after it was ready
    ],
)
def test_only_what_dies_of_itself_at_once_waits(cause: str, at: float, expected: float) -> None:
    history, decision = died(was_ready(), at, cause=cause, essential=False, policy=SLOW)
    assert isinstance(decision, Restart)
    assert (decision.at - at, decision.failing) == (pytest.approx(expected), False)
    assert history.ready_since is None
    assert history.ever_ready


def test_one_that_is_killed_again_and_again_comes_back_at_once_each_time() -> None:
    history, now = was_ready(), 0.0
    for _ in range(60):
        now += 1.0
        history, decision = died(history, now, cause="", essential=False)
        assert decision == Restart(now, failing=False)
        now += 0.3  # its start
        history = became_ready(history, now)


def test_failing_starts_wait_longer_each_time_and_say_so() -> None:
    history, now, seen = was_ready(), 1.0, []
    for _ in range(6):
        history, decision = died(history, now, cause="exit code 1", essential=False, policy=SLOW)
        assert isinstance(decision, Restart)
        seen.append((decision.at - now, decision.failing))
        now = decision.at
    assert seen == [(1.0, False), (2.0, True), (4.0, True), (8.0, True), (8.0, True), (8.0, True)]


def test_a_crash_loop_that_gets_ready_each_time_still_waits_longer() -> None:
    history, now, delays = was_ready(), 0.0, []
    for _ in range(4):
        history, decision = died(history, now + 1.0, cause="exit code 1", essential=False, policy=SLOW)
        assert isinstance(decision, Restart)
        delays.append(decision.at - now - 1.0)
        now = decision.at
        history = became_ready(history, now)
    assert delays == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("cause", ["", "exit code 1"])
def test_whatever_happens_there_are_no_more_than_two_starts_a_second(cause: str, after_s: float) -> None:
    history, now, starts = was_ready(), 0.0, 0
    while now < 60.0:
        history, decision = died(history, now + after_s, cause=cause, essential=True, proven=True)
        assert isinstance(decision, Restart)
        now = max(now, decision.at)
        starts += 1
        history = became_ready(history, now)
    assert starts <= 125


def test_what_everybody_needs_is_not_waited_for_for_long() -> None:
    history, decision = died(was_ready(), 0.1, cause="exit code 1", essential=True)
    for _ in range(DEFAULT.budget - 1):
        assert isinstance(decision, Restart)
        now = decision.at
        history, decision = died(history, now, cause="exit code 1", essential=True)
        assert isinstance(decision, Restart)
        assert decision.at - now <= 0.5 + 1e-9


def test_one_that_has_lasted_is_forgiven_its_past() -> None:
    history = History(ever_ready=True, ready_since=0.0, strikes=9)
    after, _ = died(history, SLOW.lasting_s, cause="exit code 1", essential=False, policy=SLOW)
    assert after.strikes == 0


@pytest.mark.parametrize(("essential", "ends"), [(True, True), (False, False)])
def test_only_what_everybody_needs_has_a_last_start(essential: bool, ends: bool) -> None:
    history, decision = died(was_ready(), 1.0, cause="exit code 1", essential=essential, policy=SLOW)
    for _ in range(SLOW.budget):
        assert isinstance(decision, Restart)
        history, decision = died(history, decision.at, cause="exit code 1", essential=essential, policy=SLOW)
    assert isinstance(decision, GiveUp) is ends


def test_becoming_ready_refills_the_budget() -> None:
    history = History(ever_ready=True, strikes=2, failed_starts=SLOW.budget - 1)
    history = became_ready(history, 1.0)
    history, _ = died(history, 2.0, cause="exit code 1", essential=True, policy=SLOW)
    history, decision = died(history, 3.0, cause="exit code 1", essential=True, policy=SLOW)
    assert isinstance(decision, Restart)
    assert history.failed_starts == 1


# --- ready, and dead


def crashes(causes: Sequence[str], *, after_s: float = 0.1, proven: bool = False) -> list[Decision]:
    """What is decided when a child gets ready each time and dies ``after_s`` later."""
    history, now, decisions = History(), 0.0, []
    for cause in causes:
        now += 100.0
        history = became_ready(history, now)
        history, decision = died(history, now + after_s, cause=cause, essential=False, proven=proven, policy=SLOW)
        decisions.append(decision)
    return decisions


def test_the_same_error_right_after_it_was_ready_is_a_failed_start() -> None:
    *before, last = crashes(["exit code 1"] * SLOW.alike)
    assert all(isinstance(decision, Restart) for decision in before)
    assert last == GiveUp(f"died right after it was ready, {SLOW.alike} times in a row")


@pytest.mark.parametrize(
    "decisions",
    [
        crashes(["exit code 1", "killed by SIGKILL"] * 20),
        crashes([""] * 40),
        crashes(["exit code 1"] * 40, after_s=SLOW.lasting_s),
        crashes(["exit code 1"] * 40, proven=True),
    ],
    ids=["other errors", "ended from outside", "it lasts", "a sibling lasted"],
)
def test_anything_else_is_started_again_for_ever(decisions: list[Decision]) -> None:
    assert all(isinstance(decision, Restart) for decision in decisions)


def test_one_that_has_lasted_once_is_never_given_up_for_it() -> None:
    history, decision = died(was_ready(), SLOW.lasting_s, cause="killed by SIGKILL", essential=False, policy=SLOW)
    for _ in range(40):
        assert isinstance(decision, Restart)
        history = became_ready(history, decision.at)
        history, decision = died(history, decision.at, cause="exit code 1", essential=False, policy=SLOW)


def test_failed_starts_in_between_do_not_begin_the_count_anew() -> None:
    history, decision = died(was_ready(), 0.1, cause="exit code 1", essential=False, policy=SLOW)
    for _ in range(SLOW.alike - 1):
        assert isinstance(decision, Restart)
        history, decision = died(history, decision.at, cause="no disk", essential=False, policy=SLOW)
        assert isinstance(decision, Restart)
        history = became_ready(history, decision.at)
        history, decision = died(history, decision.at, cause="exit code 1", essential=False, policy=SLOW)
    assert isinstance(decision, GiveUp)


def test_one_that_is_killed_whenever_it_starts_is_not_waited_for_longer_each_time() -> None:
    history, now = was_ready(), 5.0
    for _ in range(20):
        history, decision = died(history, now, cause="", essential=False)
        assert isinstance(decision, Restart)
        assert decision.at - now <= DEFAULT.spacing_s
        now = decision.at
    _, decision = died(history, now, cause="no disk", essential=False)
    assert decision == Restart(now + DEFAULT.first_s, failing=True)


@pytest.mark.parametrize(
    ("took_s", "left_s", "expected"),
    [
        (0.2, 30.0, 11.0),  # early_s after the death
        (3.0, 30.0, 13.0),  # a start that fails in three seconds has half of the time
        (0.2, 1.1, 18.0),  # too late for all who wait
        (5.0, 9.0, 18.0),
        (20.0, 90.0, 18.0),  # earlier would be later
    ],
)
def test_while_requests_wait_a_start_is_hastened_if_it_is_in_time(
    took_s: float, left_s: float, expected: float
) -> None:
    assert hastened(18.0, 10.0, died_at=10.0, took_s=took_s, left_s=left_s) == expected


def test_what_keeps_failing_does_not_spin_however_many_wait() -> None:
    history, now, starts = was_ready(), 0.0, 0
    while now < 100.0:
        history, decision = died(history, now, cause="exit code 1", essential=False)
        assert isinstance(decision, Restart)
        died_at = now
        now += 0.3
        now = max(now, hastened(decision.at, now, died_at=died_at, took_s=0.5, left_s=60.0))
        starts += 1
        now += 0.5
    assert 60 <= starts <= 75, "one in a second and a half, where the back-off allows one in ten"
