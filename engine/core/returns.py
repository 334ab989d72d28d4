"""Do those who are answered ask again at once? Clients that each wait for their answer before they send more do. Pure.

Of a worker that is alone such clients see two halves: one is computed while the other waits, is answered, asks again
and waits while the other is computed. Where most of a batch's time is fixed both could have been one batch in hardly
more time. They become one if who waits is not taken at once when a batch is done, nor before, but when the others have
come back, which takes them a moment. So it is counted how many come in a short while behind each batch, beyond those
who would have come anyway; where it is most of those who were answered, it is waited for as many as usually come, and
never longer than that while. Who comes whenever it likes is not waited for, and costs nobody anything.
"""

from __future__ import annotations

from math import inf
from typing import Final

WHILE: Final = 0.25  # of what a batch takes however small it is: what is waited for at most
MOSTLY: Final = 0.5  # of those who were answered
LEAST: Final = 12.0  # items; before so many were answered nobody knows
FADE: Final = 0.9  # of what is known, with each batch; with less a few Poisson arrivals would often look like a return


class Returns:
    """See the module. Seconds. Not thread-safe."""

    __slots__ = ("_began", "_by_chance", "_came", "_chances", "_count", "_counts", "_returned", "_until")

    def __init__(self) -> None:
        # Of batches that fade: their items, how many came behind them, and how many would have come anyway.
        self._counts = self._returned = self._chances = 0.0
        # Of the newest batch the same, when it was done, and when the while behind that ends.
        self._count = self._came = 0
        self._by_chance = 0.0
        self._began = self._until = -inf

    def done(self, count: int, fixed_s: float, rate: float, now: float) -> None:
        """A batch of ``count`` is done. ``fixed_s``: what one takes however small it is; ``rate``: how many come in a
        second."""
        self._counts = self._counts * FADE + self._count
        self._returned = self._returned * FADE + min(self._came, self._count)
        self._chances = self._chances * FADE + min(self._by_chance, self._count)
        self._count, self._came = count, 0
        self._by_chance = rate * WHILE * fixed_s
        self._began, self._until = now, now + WHILE * fixed_s

    def come(self, count: int, now: float) -> None:
        """So many have come."""
        if now < self._until:
            self._came += count

    @property
    def are_usual(self) -> bool:
        """Most of those who are answered ask again at once."""
        return self._returned - self._chances > MOSTLY * max(self._counts, LEAST)

    def until(self, most_s: float) -> float:
        """Until when it is waited for those who were answered last, but no longer than ``most_s``; in the past: nobody
        is waited for, or all have come."""
        if not self.are_usual or self._came >= round(self._returned / self._counts * self._count):
            return -inf
        return min(self._until, self._began + most_s)
