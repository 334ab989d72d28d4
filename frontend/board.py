"""What all processes of a frontend know together of the limits of API keys: a few numbers in memory that they share.

A client's connections lie with one process or with several, as the kernel likes. So a share of a limit for each would
be a fraction of it for one client and all of it for another: what counts is counted here, once for all.

The memory is made before the processes are forked, and so is the file by whose locks they agree. Locks of POSIX belong
to a process and end with it, however it ends: by one each process holds its *seat*, a column in which it alone counts
what it serves, and whoever finds a seat that nobody holds clears what its last owner left. By others a row is kept
for one process while it decides. None is waited for: a process that is stopped with one in its hand must not stop the
others, and what is lost without it is one request too many.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from typing import Final

from engine.core.apikeys import KEYS_MOST, Limits, admit

ROWS: Final = 2 * KEYS_MOST  # of keys that were removed as well, until others need theirs
_TRIES: Final = 100  # for a row, some 50 us: whoever decides has it for 2
_ID: Final = 8  # bytes of a key's digest by which its row is known
_HEAD: Final = 16  # of a row: those bytes, and when it is due


class Board:
    """Made once, before the fork; :meth:`sit` in each process that uses it."""

    def __init__(self, processes: int) -> None:
        # Those that are replaced are there beside the new ones, and how many there are may change in between.
        self._seats = max(32, 4 * processes)
        self._width = _HEAD + 4 * self._seats
        self._taken = ROWS * self._width  # where it stands which seats were ever taken
        self._memory = mmap.mmap(-1, self._taken + self._seats)  # pages of rows that nobody has cost nothing
        with memoryview(self._memory) as whole:
            self._due = whole[: self._taken].cast("d")
            self._counts = whole[: self._taken].cast("I")
            self._flags = whole[self._taken :]
        self._fd = _nameless_file()
        self._seat = -1

    def close(self) -> None:
        """In a process that uses it no more; its seat is free then."""
        for view in (self._due, self._counts, self._flags):
            view.release()
        self._memory.close()
        os.close(self._fd)

    # --- seats -------------------------------------------------------------------------------------------------------

    def sit(self) -> None:
        """Take a seat, in a process of its own."""
        for seat in range(self._seats):
            if self._try(seat):
                self._seat = seat
                self._flags[seat] = 1
                self._clear(seat)
                return

    def sweep(self) -> None:
        """Clear what processes left that have ended."""
        for seat in range(self._seats):
            if self._flags[seat] and seat != self._seat and self._try(seat):
                self._clear(seat)
                self._flags[seat] = 0
                self._let_go(seat)

    def _clear(self, seat: int) -> None:
        for row in range(ROWS):
            at = self._cell(row, seat)
            if self._counts[at]:
                self._counts[at] = 0

    def _cell(self, row: int, seat: int) -> int:
        return (row * self._width + _HEAD) // 4 + seat

    # --- rows --------------------------------------------------------------------------------------------------------

    def row(self, digest: bytes, known: set[int]) -> int:
        """The row of a key; ``known``: rows that belong to others of our file. The same in all processes."""
        mine = digest[:_ID]
        start = int.from_bytes(mine, "little") % ROWS
        spare = -1
        self._hold(ROWS)
        try:
            for step in range(ROWS):
                row = (start + step) % ROWS
                at = row * self._width
                found = self._memory[at : at + _ID]
                if found == mine:
                    return row
                if not any(found):
                    return self._claim(row, mine)
                if spare < 0 and row not in known:
                    spare = row
            return self._claim(spare, mine)  # of a key that is gone
        finally:
            self._let_go(self._seats + ROWS)

    def _claim(self, row: int, mine: bytes) -> int:
        at = row * self._width
        self._memory[at : at + self._width] = mine + bytes(self._width - _ID)
        return row

    def enter(self, row: int, limits: Limits, instant: float) -> float:
        """Count one more request, admitted by its limits: 0. Else, and nothing is counted: seconds that it has to wait,
        or -1: others of this key have to end first."""
        first, mine = self._cell(row, 0), self._cell(row, max(0, self._seat))
        if not limits.rate and not limits.concurrent:
            self._counts[mine] += 1
            return 0.0
        self._hold(row)
        try:
            if limits.concurrent and sum(self._counts[first : first + self._seats]) >= limits.concurrent:
                return -1.0
            at = row * self._width // 8 + 1
            self._due[at], wait = admit(self._due[at], instant, limits)
            if wait <= 0:
                self._counts[mine] += 1
            return wait
        finally:
            self._let_go(self._seats + row)

    def leave(self, row: int) -> None:
        """Such a request is over."""
        mine = self._cell(row, max(0, self._seat))
        if self._counts[mine]:  # else its row was cleared
            self._counts[mine] -= 1

    def _hold(self, row: int) -> None:
        for _ in range(_TRIES):
            if self._try(self._seats + row):
                return

    def _try(self, place: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place, os.SEEK_SET)
        except OSError:
            return False
        return True

    def _let_go(self, place: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, place, os.SEEK_SET)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("stageline-board", os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp()
    os.unlink(path)
    return fd
