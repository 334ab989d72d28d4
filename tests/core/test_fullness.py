"""A process that is full: after a while, and not of a moment."""

from __future__ import annotations

from engine.core.fullness import AGAIN_S, FULL, FULL_S, LOOK_S, Fullness

MOST = round(FULL_S / LOOK_S)


def full(shares: list[float], *, others: float = 0.1, allowed: float = 4.0) -> list[int]:
    """In which looks it is full, of two threads of which one has such shares of a CPU from look to look."""
    fullness, cpu_s, found = Fullness(), [0.0, 0.0, 0.0], []
    for look, share in enumerate(shares):
        grown = (others, share, others + share)
        cpu_s = [used + more * LOOK_S for used, more in zip(cpu_s, grown, strict=True)]
        if fullness.is_full(cpu_s, [1.0, 1.0, allowed], 100.0 + look * LOOK_S):
            found.append(look)
    return found


def test_once_a_thread_has_worked_all_the_time_and_as_long_as_it_does() -> None:
    # The first look has nothing to compare with.
    assert full([1.0] * (2 * MOST)) == list(range(MOST, 2 * MOST))
    assert full([1.0] * MOST + [1.0, 0.2, 0.2]) == [MOST]


def test_a_moment_of_rest_begins_it_anew() -> None:
    assert full([1.0] * MOST + [FULL - 0.05] + [1.0] * MOST) == [2 * MOST]
    assert full([1.0, 0.5] * 40) == []


def test_two_that_work_half_the_time_are_not_one_that_is_full() -> None:
    assert full([0.5] * 40, others=0.5) == []


def test_a_process_that_has_used_what_it_is_allowed_is() -> None:
    assert full([0.3] * 40, others=0.2, allowed=0.5)[0] == MOST
    assert full([0.2] * 40, others=0.2, allowed=0.5) == []


def test_it_is_said_again_after_a_while() -> None:
    fullness = Fullness()
    assert [fullness.is_news(now) for now in (5.0, 6.0, 4.0 + AGAIN_S, 5.0 + AGAIN_S)] == [True, False, False, True]


def test_other_threads_begin_anew_and_many_looks_are_one() -> None:
    fullness = Fullness()
    for look in range(MOST):
        assert fullness.is_full([float(look)], [1.0], float(look)) is False
    assert fullness.is_full([0.1], [1.0], FULL_S) is False  # another thread's clock
    for look in range(1, MOST):
        now = FULL_S + look
        assert fullness.is_full([0.1 + look], [1.0], now) is False
        assert fullness.is_full([0.1 + look], [1.0], now + LOOK_S / 2) is None  # too soon to tell
    assert fullness.is_full([0.1 + FULL_S], [1.0], 2 * FULL_S) is True
