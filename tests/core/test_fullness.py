"""A thread that is full: said after a while, and not of a moment, nor all the time."""

from __future__ import annotations

from engine.core.fullness import AGAIN_S, FULL, FULL_S, LOOK_S, Fullness


def said(shares: list[float], others: float = 0.1) -> list[int]:
    """When it is said, in looks, of two threads of which one has such shares of a CPU from look to look."""
    fullness, cpu_s, found = Fullness(), [0.0, 0.0], []
    for look, share in enumerate(shares):
        cpu_s = [cpu_s[0] + others * LOOK_S, cpu_s[1] + share * LOOK_S]
        if fullness.is_news(cpu_s, 100.0 + look * LOOK_S):
            found.append(look)
    return found


def test_it_is_said_once_a_thread_has_worked_all_the_time() -> None:
    assert said([1.0] * 40) == [round(FULL_S / LOOK_S)]  # the first look has nothing to compare with


def test_a_moment_of_rest_begins_it_anew() -> None:
    most = round(FULL_S / LOOK_S)
    assert said([1.0] * most + [FULL - 0.05] + [1.0] * most) == [2 * most]
    assert said([1.0, 0.5] * 40) == []


def test_two_that_work_half_the_time_are_not_one_that_is_full() -> None:
    assert said([0.5] * 40, others=0.5) == []


def test_it_is_said_again_after_a_while() -> None:
    first = round(FULL_S / LOOK_S)
    assert said([1.0] * round(2.5 * AGAIN_S)) == [first, first + round(AGAIN_S), first + round(2 * AGAIN_S)]


def test_other_threads_begin_anew_and_many_looks_are_one() -> None:
    fullness = Fullness()
    for look in range(int(FULL_S)):
        assert not fullness.is_news([float(look)], float(look))
    assert not fullness.is_news([0.1], FULL_S)  # another thread's clock
    for look in range(1, int(FULL_S)):
        now = FULL_S + look
        assert not fullness.is_news([0.1 + look], now)
        assert not fullness.is_news([0.1 + look], now + LOOK_S / 2)  # too soon to tell
    assert fullness.is_news([0.1 + FULL_S], 2 * FULL_S)
