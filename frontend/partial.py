"""What has begun to come and is not whole - heads above all - of all connections of a process together. Pure.

A time limit bounds how long a connection keeps the beginning of something, and a size how much; but not how many do. So
together they have so many bytes, and beyond that those that began first are given up: a head of a client that means
what it sends is whole within a moment, whatever others do.
"""

from __future__ import annotations

from typing import Final, Protocol

PARTIAL_ALL: Final = 32 << 20  # bytes


class Owner(Protocol):
    def give_up(self) -> None:
        """It came too slowly: answer so, if there is a way, and end the connection."""


class Partial:
    """Of one event loop."""

    def __init__(self, most: int = PARTIAL_ALL) -> None:
        self.total = 0
        self._most = most
        self._sizes: dict[Owner, int] = {}  # in the order in which they began

    def has(self, owner: Owner, size: int, *, anew: bool = False) -> None:
        """So much of something unfinished has come there; 0: nothing. ``anew``: what was unfinished before is whole."""
        before = self._sizes.get(owner, 0)
        if not size or anew:
            self._sizes.pop(owner, None)
        if size:
            self._sizes[owner] = size
        self.total += size - before
        while self.total > self._most and self._sizes:
            oldest = next(iter(self._sizes))
            self.has(oldest, 0)
            oldest.give_up()
