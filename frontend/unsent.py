"""Answers that are written and not read: who has to pay, how much there is, and when it is cut off.

A transport keeps in memory what its client does not take. Each that says so (``pause_writing``), and each that is
closed with something still to send, is watched here: one that takes less than :mod:`frontend.pace` asks for is cut, and
when all of them together hold more than there is room for, those that take the least are.
"""

from __future__ import annotations

from typing import Protocol

from engine.clock import now
from frontend.pace import STALL_S, is_late


class Transport(Protocol):
    """What this needs of one; uvloop's have no common type with asyncio's."""

    def get_write_buffer_size(self) -> int: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


class _Debt:
    """What one client has not taken; ``paid``: bytes it took since it is watched."""

    __slots__ = ("owed", "paid", "since")

    def __init__(self, owed: int, since: float) -> None:
        self.owed = owed
        self.paid = 0
        self.since = since

    def rate(self, instant: float) -> tuple[float, float]:
        """Who pays least comes first, and of those who pay nothing who owes for longest."""
        elapsed = max(1e-3, instant - self.since)
        return self.paid / elapsed, -elapsed


class Unsent:
    """The unread answers of one event loop. ``most``: bytes of them together."""

    def __init__(self, most: int) -> None:
        self.total = 0  # bytes, when last looked at
        self._most = most
        self._debts: dict[Transport, _Debt] = {}

    def watch(self, transport: Transport) -> None:
        """It holds bytes that its client does not take. More than once does no harm."""
        if transport not in self._debts and (owed := transport.get_write_buffer_size()):
            self._debts[transport] = _Debt(owed, now())
            self.total += owed
            if self.total > self._most:
                self.sweep(now())

    def forget(self, transport: Transport) -> None:
        """Its client reads again, or has gone."""
        debt = self._debts.pop(transport, None)
        if debt is not None:
            self.total -= debt.owed

    def close(self, transport: Transport) -> None:
        """Close it when all is sent. Without this a client that reads nothing would keep it for ever."""
        self.watch(transport)
        transport.close()

    def sweep(self, instant: float) -> None:
        """Enforce both bounds; call it a few times a second."""
        if not self._debts:
            return
        for transport, debt in list(self._debts.items()):
            owed = transport.get_write_buffer_size()
            debt.paid += max(0, debt.owed - owed)
            self.total += owed - debt.owed
            debt.owed = owed
            if not owed:
                self.forget(transport)
            elif is_late(instant - debt.since, debt.paid, STALL_S):
                self._cut(transport)
        if self.total <= self._most:
            return
        for transport in sorted(self._debts, key=lambda one: self._debts[one].rate(instant)):
            self._cut(transport)
            if self.total <= self._most:
                return

    def _cut(self, transport: Transport) -> None:
        self.forget(transport)
        transport.abort()
