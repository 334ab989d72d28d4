"""How quickly counters grew lately, and what a share of values stay below: what a page shows of the last seconds. Pure.

Nothing is counted for it that is not counted anyway. About once a second somebody marks how far counters have come
(:meth:`Marks.mark`); whoever asks compares the present with the oldest mark that is not too old.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, Generic, TypeVar

WINDOW_S: Final = 10.0  # long enough for a rate that one slow batch does not double, short enough to see a change
LEAST_S: Final = 0.5  # between two looks, for a rate to mean something

Counts = tuple[float, ...]


Value = TypeVar("Value")


class Marks(Generic[Value]):
    """What something was in the last WINDOW_S, about once a second."""

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        self._marks: deque[tuple[float, Value]] = deque()

    def mark(self, now: float, value: Value) -> None:
        """To be called about once a second."""
        marks = self._marks
        marks.append((now, value))
        while len(marks) > 1 and marks[1][0] <= now - WINDOW_S:  # one may be older: what lies between is the window
            marks.popleft()

    def oldest(self, now: float) -> tuple[float, Value] | None:
        """When the window begins, and what it was then; None while nothing is known of it."""
        return next((mark for mark in self._marks if now - mark[0] <= 1.5 * WINDOW_S), None)


class Window(Marks[Counts]):
    """Of some counters, in an order of the caller's."""

    __slots__ = ()

    def rates(self, now: float, counts: Counts) -> list[float]:
        """By how much each has grown per second. Zeros where nothing is known; never negative, for what is counted
        of something that is under way may be taken back."""
        former = self.oldest(now)
        if former is None or now - former[0] < LEAST_S:
            return [0.0] * len(counts)
        since, before = former
        return [max(0.0, (count - one) / (now - since)) for count, one in zip(counts, before, strict=True)]


def quantiles(weighted: Iterable[tuple[float, int]], shares: Sequence[float]) -> list[float]:
    """The least value that such a share of the weight does not exceed, for each of ``shares`` (0 to 1), of values with
    weights; zeros where there are none."""
    ordered = sorted(weighted)
    sums = [*accumulate(weight for _, weight in ordered)]
    if not sums or not sums[-1]:
        return [0.0] * len(shares)
    return [ordered[min(bisect_left(sums, share * sums[-1]), len(sums) - 1)][0] for share in shares]


def of_buckets(bounds: Sequence[float], counts: Sequence[float], shares: Sequence[float]) -> list[float]:
    """The same of a histogram, by a straight line within each bucket: ``counts`` has one more than ``bounds``, what is
    past the last of them, of which no more is known than that."""
    sums = [*accumulate(counts)]
    if not sums or sums[-1] <= 0:
        return [0.0] * len(shares)
    found = []
    for share in shares:
        wanted = share * sums[-1]
        at = bisect_left(sums, wanted)
        if at >= len(bounds):
            found.append(bounds[-1] if bounds else 0.0)
            continue
        low, below = (bounds[at - 1], sums[at - 1]) if at else (0.0, 0.0)
        within = (wanted - below) / counts[at] if counts[at] else 1.0
        found.append(low + (bounds[at] - low) * within)
    return found
