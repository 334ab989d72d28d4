"""Who is stopped, hung, busy or only starved: samples in, verdicts out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import pytest

from engine.core.liveness import BEAT_S, HANG_S, LOOK_S, STOPPED_S
from engine.core.vitality import LATE_LOOKS, Sample, Vitals

LONG = 60  # looks


def noticed(states: Iterable[tuple[str, float]], *, beats: bool, gap_s: float = LOOK_S) -> tuple[float, str]:
    """After how many seconds what is said of a process that does not show itself; ``states``: letter and time computed
    between two looks."""
    vitals, now, cpu_s = Vitals(0.0), 0.0, 0.0
    if beats:
        vitals.beat()
    for state, worked_s in states:
        now, cpu_s = now + gap_s, cpu_s + worked_s
        if how := vitals.look(Sample(state, cpu_s), now):
            return now, how
    return now, ""


@pytest.mark.parametrize("beats", [True, False])
def test_one_that_is_stopped_is_found_in_time(beats: bool) -> None:
    after, how = noticed(repeat(("T", 0.0), LONG), beats=beats)
    assert "stopped" in how
    assert STOPPED_S <= after <= STOPPED_S + LOOK_S


def test_one_that_sleeps_and_does_not_show_itself_hangs_if_it_is_known_to() -> None:
    after, how = noticed(repeat(("S", 0.0), LONG), beats=True)
    assert how == "hung"
    assert HANG_S <= after <= HANG_S + LOOK_S
    assert noticed(repeat(("S", 0.0), LONG), beats=False)[1] == "", "a worker's code may hold the interpreter"


def test_one_that_computes_is_given_more_time_and_not_for_ever() -> None:
    after, how = noticed(repeat(("R", LOOK_S), LONG), beats=True)
    assert how == "hung"
    assert after >= 3 * HANG_S
    assert noticed(repeat(("R", LOOK_S), LONG), beats=False)[1] == ""


@pytest.mark.parametrize(
    ("state", "share"), [("R", 0.1), ("R", 0.0), ("D", 0.0), ("t", 0.0)], ids=["starved", "no time", "disk", "debugger"]
)
def test_one_that_gets_no_time_or_is_looked_at_is_left_alone(state: str, share: float) -> None:
    assert noticed(repeat((state, share * LOOK_S), LONG), beats=True)[1] == ""


def test_one_that_is_let_run_a_tenth_of_the_time_is_left_alone() -> None:
    """As by a program that limits its share by stopping and continuing it."""
    assert noticed(repeat(("T", 0.1 * LOOK_S), LONG), beats=False)[1] == ""


def test_one_that_is_continued_between_looks_is_left_alone_though_it_computes_next_to_nothing() -> None:
    vitals = Vitals(0.0)
    for turn in range(LONG):
        assert vitals.look(Sample("T", 0.0, 1000 + turn), LOOK_S * (1 + turn)) == ""
    how = [vitals.look(Sample("T", 0.0, 1000 + LONG), LOOK_S * (LONG + 1 + turn)) for turn in range(LONG)]
    assert any(how), "continued no more"


def test_a_watcher_that_was_late_concludes_nothing() -> None:
    for state in "ST":
        assert noticed(repeat((state, 0.0), LONG), beats=True, gap_s=LOOK_S * LATE_LOOKS + 0.1)[1] == ""


def test_a_beat_is_forgiveness_and_one_that_is_told_to_stop_need_not_beat() -> None:
    vitals, now = Vitals(0.0), 0.0
    for turn in range(LONG):
        now += LOOK_S
        if turn % int(2 * BEAT_S / LOOK_S) == 0:
            vitals.beat()
        assert vitals.look(Sample("S", 0.0), now) == ""
    vitals.rest()
    for _ in range(LONG):
        now += LOOK_S
        assert vitals.look(Sample("S", 0.0), now) == ""
        assert not vitals.is_doubtful


def test_who_is_continued_in_time_begins_anew() -> None:
    short = [("T", 0.0)] * int(STOPPED_S / LOOK_S)
    assert noticed([*short, ("S", 0.0), *short, ("S", 0.0)], beats=False)[1] == ""
