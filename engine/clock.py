"""The one clock: monotonic seconds, and a deadline that survives several waits.

Wall-clock time is never used for a decision: it jumps. Inside a process an instant is a float of monotonic seconds;
between processes only *time remaining* travels (microseconds), because two hosts share no clock.
"""

from __future__ import annotations

import time

now = time.monotonic


class Deadline:
    """One end for all the steps of a wait: ``remaining()`` never goes below zero."""

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        self.at = now() + seconds

    def remaining(self) -> float:
        return max(0.0, self.at - now())

    @property
    def passed(self) -> bool:
        return now() >= self.at
