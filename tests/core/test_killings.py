"""Deaths that are put down to the kernel's want of memory: counters in, verdicts out."""

from __future__ import annotations

import pytest

from engine.core.killings import FRESH_S, Killings, counted


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("low 0\nhigh 0\nmax 12\noom 2\noom_kill 3\noom_group_kill 0\n", 3),  # version 2
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", 7),  # version 1
        ("oom_kill_disable 0\nunder_oom 0\n", None),  # version 1 of old
        ("oom_kill many\n", None),
        ("", None),
    ],
)
def test_kills_are_read_from_the_files_of_either_version(text: str, count: int | None) -> None:
    assert counted(text) == count


def test_a_death_is_explained_by_a_kill_and_each_kill_explains_one() -> None:
    killings = Killings()
    killings.look("g", 4, 0.0)
    assert not killings.explains("g", 4, 1.0)
    assert killings.explains("g", 5, 1.1)
    assert not killings.explains("g", 5, 1.2)
    assert killings.explains("g", 7, 1.3)
    assert killings.explains("g", 7, 1.3)
    assert not killings.explains("g", 7, 1.3)


def test_what_was_counted_before_is_history() -> None:
    assert not Killings().explains("g", 9, 0.0)


def test_a_kill_that_hit_somebody_else_explains_no_later_death() -> None:
    killings = Killings()
    killings.look("g", 0, 0.0)
    killings.look("g", 1, 0.5)
    assert not killings.explains("g", 1, 0.5 + FRESH_S)
    killings.look("g", 2, 10.0)
    assert killings.explains("g", 2, 10.5), "the look came between the kill and the death"


def test_a_kill_in_one_group_explains_no_death_in_another() -> None:
    killings = Killings()
    killings.look("a", 0, 0.0)
    killings.look("b", 0, 0.0)
    killings.look("a", 1, 0.1)
    assert not killings.explains("b", 0, 0.2)
    assert killings.explains("a", 1, 0.2)


def test_a_counter_that_begins_anew_is_taken_as_it_is() -> None:
    killings = Killings()
    killings.look("g", 5, 0.0)
    killings.look("g", 0, 1.0)  # another group of the same name
    assert not killings.explains("g", 0, 1.1)
    assert killings.explains("g", 1, 1.2)
