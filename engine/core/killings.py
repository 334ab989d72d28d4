"""Which deaths were the kernel's doing for want of memory: counters of control groups in, a verdict out. Pure.

The kernel counts a kill in the victim's group before it sends the SIGKILL, so a process that died of one finds its
counter higher than it was. It says how many, not who: each kill explains one death, and only one that was noticed right
after it, for what else it may have hit - a process that user code had started - nobody here asks about.
"""

from __future__ import annotations

import signal
from typing import Final

FRESH_S: Final = 5.0  # a kill that explains a death is noticed at most so long before it: a large process ends slowly
REASON: Final = "oom"
TEXT: Final = "out of memory, killed by the kernel (oom)"

# How a process ends that the kernel killed, and how a shell says so of the one that it ran.
CODES: Final = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})


class Killings:
    """Counters by group, whatever stands for a group. Not thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._unexplained: dict[str, list[float]] = {}  # when a kill was noticed that no death has been put down to

    def look(self, group: str, count: int, now: float) -> None:
        """A counter was read. What it says at first is history."""
        new = count - self._counts.get(group, count)
        self._counts[group] = count
        fresh = [at for at in self._unexplained.get(group, ()) if now - at < FRESH_S]
        self._unexplained[group] = fresh + [now] * new

    def explains(self, group: str, count: int, now: float) -> bool:
        """Whether a death in this group, just noticed, is one of the kills."""
        self.look(group, count, now)
        kills = self._unexplained[group]
        if not kills:
            return False
        kills.pop(0)
        return True


def counted(text: str) -> int | None:
    """Kills, from ``memory.events`` (version 2) or ``memory.oom_control`` (1); None: this kernel does not count."""
    for line in text.splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.strip().isdecimal():
            return int(count)
    return None
