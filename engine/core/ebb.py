"""When a peak of what a process holds is over, and memory had better be given back to the system. Pure.

Whoever gives back after every large request takes the same memory again with the next one, page by page; so it is done
when for a while there was little of what there had been.
"""

from __future__ import annotations

from math import inf
from typing import Final

LEAST: Final = 16 << 20  # bytes worth giving back
PART: Final = 4  # less than this part of the peak is little
CALM_S: Final = 1.0  # for so long


class Ebb:
    """Of one process, told from time to time what it holds."""

    def __init__(self) -> None:
        self._peak = 0  # bytes, since memory was given back last
        self._since = inf  # it holds little

    def is_over(self, held: int, now: float) -> bool:
        """Whether to give back, now: once after each peak."""
        self._peak = max(self._peak, held)
        if self._peak < LEAST or held >= self._peak // PART:
            self._since = inf
            return False
        self._since = min(self._since, now)
        if now - self._since < CALM_S:
            return False
        self._peak, self._since = held, inf
        return True
