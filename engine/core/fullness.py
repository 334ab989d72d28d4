"""When a process works all the time, and for long enough to say so: it is full. Pure.

More workers bring nothing where whoever feeds them is full, and nobody sees it who looks at the workers. A moment is no
sign: after a pause, or while much is learned, there is much to do as well. What is full is a thread that has a CPU for
itself, or a process that has used all that it is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

FULL: Final = 0.9  # of what it can get: what is left are waits for the CPU, and for what comes next
FULL_S: Final = 10.0  # for so long
LOOK_S: Final = 1.0  # between two looks, for a share to mean something
AGAIN_S: Final = 600.0  # until it is said again


class Fullness:
    """Of some threads, and of their process, of whose CPU times it is told from time to time."""

    def __init__(self) -> None:
        self._before: Sequence[float] = ()
        self._at = -inf
        self._since = inf  # one of them is full
        self._said_at = -inf

    def is_full(self, cpu_s: Sequence[float], most: Sequence[float], now: float) -> bool | None:
        """Whether one of them has been for long; None: it is too early for another look. ``cpu_s``: of each so far;
        where they are others than before, it begins anew. ``most``: CPUs that each can have."""
        past, before = now - self._at, self._before
        if past < LOOK_S:
            return None
        self._before, self._at = [*cpu_s], now
        grown = [later - former for later, former in zip(cpu_s, before, strict=False)]
        works = any(used >= FULL * bound * past for used, bound in zip(grown, most, strict=False))
        if len(before) != len(cpu_s) or not works or min(grown) < 0.0:
            self._since = inf
            return False
        self._since = min(self._since, now - past)
        return now - self._since >= FULL_S

    def is_news(self, now: float) -> bool:
        """Whether it is to be said, where it is full."""
        if now - self._said_at < AGAIN_S:
            return False
        self._said_at = now
        return True
