"""More clients than a process may have sockets: who makes room. Pure.

Behind the last descriptor a connection can only be reset, and so can whatever else the process wants to open. So some
are kept free. From there on a new connection takes the place of those that have been idle for longest: a client that
keeps a connection for later must expect that it ends, and opens another. Where none is idle, the new one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar

SPARE: Final = 64  # descriptors beside connections: the event loop, the link, pages, files; fewer where there are few
AT_ONCE: Final = 16  # idle connections that are ended together, so that looking for them costs each new one little


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

    def is_full(self, count: int) -> bool:
        """Whether a connection beside ``count`` others needs room first."""
        limit = self._limit()
        return count >= limit - min(SPARE, limit // 4)

    def make_room(self, connections: Iterable[C], idle_since: Callable[[C], float]) -> list[C]:
        """Those to end, longest idle first; none: the new one is to be refused."""
        idle = sorted((one for one in connections if one.idle), key=idle_since)[:AT_ONCE]
        self.ended += len(idle)
        self.refused += not idle
        return idle
