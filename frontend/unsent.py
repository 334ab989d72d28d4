"""Answers that are written and not read: who has to pay, how much there is, and when it is cut off.

A transport keeps in memory what its client does not take, and so does an answer over HTTP/2 that waits for its turn or
for the client's window. Each transport that says so (``pause_writing``), each that is closed with something still to
send, and each answer of HTTP/2 is watched here: one that takes less than :mod:`frontend.pace` asks for is cut, and when
all of them together hold more than there is room for, those that take the least are.

What is held counts, which is all of an answer until the last of it has been taken: nothing frees a part of it.
"""

from __future__ import annotations

from collections.abc import Sized
from itertools import islice
from typing import Final, Protocol

from engine.clock import now
from frontend.pace import NEW_S, STALL_S, is_late

LOOK_MOST: Final = 2000  # that are looked at in one go: a millisecond or two
ROOM: Final = 8  # where there is too much, this part of the bound is made free, so that it is not done for each answer
SLACK: Final = 64  # by this part it may be passed until the next sweep, where a look at all has found room


class Debtor(Protocol):
    """Something that is to be taken by a client."""

    def get_write_buffer_size(self) -> int: ...

    def abort(self) -> None: ...


class Transport(Debtor, Protocol):
    """What this needs of one; uvloop's have no common type with asyncio's."""

    def close(self) -> None: ...

    def is_closing(self) -> bool: ...


class _Debt:
    """What one client has not taken; ``held``: the most that was at once."""

    __slots__ = ("_among", "_paid", "held", "owed", "since")

    def __init__(self, owed: int, since: float, among: Sized) -> None:
        self.held = self.owed = owed
        self.since = since
        self._paid = 0
        self._among = among

    def look(self, owed: int) -> None:
        self._paid += max(0, self.owed - owed)
        self.owed = owed
        self.held = max(self.held, owed)

    @property
    def paid(self) -> int:
        """Bytes that were taken since it is watched, for each of those that are sent on one connection."""
        return self._paid * max(1, len(self._among))

    def rank(self, instant: float) -> tuple[bool, int, float, float]:
        """Who pays least comes first, and of those who pay nothing who owes for longest. Behind them all, those who had
        no time to pay: what the kernel took says nothing of them yet, so first who asks for most on one connection."""
        elapsed = max(1e-3, instant - self.since)
        rate = self.paid / elapsed
        if elapsed < NEW_S:
            return True, -len(self._among), rate, -elapsed
        return False, 0, rate, -elapsed


class Unsent:
    """The unread answers of one event loop. ``most``: bytes of them together."""

    def __init__(self, most: int) -> None:
        self.total = 0  # bytes, when last looked at
        self._most = most
        self._look_at = most  # bytes above which a new one has all looked at
        self._debts: dict[Debtor, _Debt] = {}

    def watch(self, debtor: Debtor, among: Sized = ()) -> None:
        """It holds bytes that its client does not take. More than once does no harm. ``among``: those that share one
        connection with it, and so what its line can carry."""
        if debtor not in self._debts and (owed := debtor.get_write_buffer_size()):
            self._debts[debtor] = _Debt(owed, now(), among)
            self.total += owed
            if self.total > self._look_at:
                self._make_room(now())

    def taken(self, transport: Transport) -> None:
        """Its client reads again (``resume_writing``): what is left is little. One that is closed says so too, and has
        to be rid of that as well."""
        if not transport.is_closing():
            self.forget(transport)

    def forget(self, debtor: Debtor) -> None:
        """Its client has all of it, or has gone."""
        debt = self._debts.pop(debtor, None)
        if debt is not None:
            self.total -= debt.held

    def close(self, transport: Transport) -> None:
        """Close it when all is sent. Without this a client that reads nothing would keep it for ever."""
        self.watch(transport)
        transport.close()

    def sweep(self, instant: float) -> None:
        """Enforce both bounds; call it a few times a second."""
        debts = self._debts
        self._look_at = self._most
        for debtor in list(islice(debts, LOOK_MOST)):
            debt = debts[debtor] = debts.pop(debtor)  # the next time it is the turn of others
            self._look(debtor, debt, instant)
        if self.total > self._most:
            self._make_room(instant)

    def _look(self, debtor: Debtor, debt: _Debt, instant: float) -> None:
        before = debt.held
        debt.look(debtor.get_write_buffer_size())
        self.total += debt.held - before
        if not debt.owed:
            self.forget(debtor)
        elif is_late(instant - debt.since, debt.paid, STALL_S):
            self._cut(debtor)

    def _make_room(self, instant: float) -> None:
        for debtor, debt in list(self._debts.items()):
            self._look(debtor, debt, instant)
        if self.total <= self._most:
            self._look_at = max(self._most, self.total + self._most // SLACK)
            return
        for debtor in sorted(self._debts, key=lambda one: self._debts[one].rank(instant)):
            if debtor in self._debts:  # still: to cut one may end others
                self._cut(debtor)
            if self.total <= self._most - self._most // ROOM:
                return

    def _cut(self, debtor: Debtor) -> None:
        self.forget(debtor)
        debtor.abort()
