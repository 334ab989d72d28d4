"""More clients than a process may have sockets: who makes room. Pure.

Behind the last descriptor a connection can only be reset, and so can whatever else the process wants to open. So some
are kept free. From there on new connections take the places of those that have been idle for longest, one for one: a
client that keeps a connection for later must expect that it ends, and opens another. Where none is idle, and where more
come at once than end meanwhile, the new one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import nsmallest
from typing import Final, Protocol, TypeVar

SPARE: Final = 64  # descriptors beside connections: the event loop, the link, pages, files; fewer where there are few
AT_ONCE: Final = 16  # idle connections that are ended together, so that looking for them costs each new one little
LOOK: Final = 256  # connections that may be looked at for each that is refused, for the same


class Connection(Protocol):
    @property
    def idle(self) -> bool: ...


C = TypeVar("C", bound=Connection)


class Crowd:
    """The connections of one event loop."""

    def __init__(self, limit: Callable[[], int]) -> None:
        """``limit``: how many descriptors the process may have open."""
        self.ended = 0  # idle connections that made room
        self.refused = 0  # new ones for which there was none
        self._limit = limit
        self._places = 0  # of those that were ended, for others to come
        self._going: set[object] = set()  # ended, and perhaps still there: that takes a turn of the loop
        self._blind = 0  # so many are refused before it is looked again

    def room(self, count: int) -> int:
        """How many may come beside ``count`` others before anybody has to make room."""
        limit = self._limit()
        free = limit - min(SPARE, limit // 4) - count
        if free > 0:
            self._places = self._blind = 0
        return max(0, free)

    def admit(
        self, count: int, connections: Callable[[], Iterable[C]], idle_since: Callable[[C], float]
    ) -> list[C] | None:
        """Those to end for a connection beside ``count`` others, longest idle first; None: it is to be refused."""
        if self.room(count):
            return []
        limit = self._limit()
        spare = min(SPARE, limit // 4)
        if count < limit - spare // 4:
            if self._places:
                self._places -= 1
                return []
            if self._blind:
                self._blind -= 1
            elif idle := self._longest_idle(list(connections()), idle_since):
                self._places = len(idle) - 1
                self.ended += len(idle)
                return idle
            else:
                self._blind = count // LOOK
        self.refused += 1
        return None

    def _longest_idle(self, connections: list[C], idle_since: Callable[[C], float]) -> list[C]:
        self._going.intersection_update(connections)
        staying = (one for one in connections if one.idle and one not in self._going)
        idle = nsmallest(AT_ONCE, staying, key=idle_since)
        self._going.update(idle)
        return idle
