"""The log of a deployment that was started on a terminal: a file in its run directory, which stays when that ends.

All its processes write to it by appending, so none of them ever waits for whoever reads; the supervisor reads what is
new, for the terminal, and bounds it, whether or not it is read: of more than MOST bytes the former part goes to a
second file, and what was there goes. So does, at the next start, the log of this one. What is passed over is said.
Whoever empties the file by hand, or by a tool that rotates logs, has what follows shown all the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from engine.supervisor.rundir import FORMER_LOG, LOG

MOST: Final = 8 << 20  # bytes: the folder may be memory (a tmpfs)
READ_MOST: Final = 256 << 10  # bytes read at once
BEHIND_MOST: Final = 1 << 20  # bytes: who writes so much more quickly than it can be shown is passed over


class LogFile:
    """Made, used and closed by one thread. Raises OSError when it cannot be made."""

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self.path = folder / LOG
        self._former = folder / FORMER_LOG
        self._most = most
        if self.path.is_file() and not self.path.is_symlink():
            self.path.replace(self._former)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self.fd = os.open(self.path, flags, 0o600)
        self._read = 0  # bytes so far
        self._rest = b""  # of a line that has not ended
        self._unread = 0  # bytes that were put into the former file since the last time

    def lines(self) -> list[bytes]:
        """What has been written since the last time, as far as there are whole lines; of a flood its end."""
        size = self._size()
        notice = []
        if self._unread:
            notice.append(f"... {self._unread} bytes more in {self._former}".encode())
            self._unread = 0
        if size - self._read > BEHIND_MOST:
            skipped = size - READ_MOST - self._read + len(self._rest)
            self._read, self._rest = size - READ_MOST, b""
            notice.append(f"... {skipped} bytes more in {self.path}".encode())
        # All there is, before it is put away.
        most = READ_MOST if size < self._most else BEHIND_MOST
        data = os.pread(self.fd, most, self._read)
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > READ_MOST:  # a progress bar's, perhaps, that never ends a line
            lines, self._rest = [*lines, self._rest], b""
        self.bound()
        return notice + lines

    def bound(self) -> None:
        """See to its size, also while nobody can be shown what is in it."""
        if self._size() >= self._most:
            self._turn()

    def last(self) -> list[bytes]:
        """All that is left, when nobody writes any more."""
        found: list[bytes] = []
        while lines := self.lines():
            found += lines
        rest, self._rest = self._rest, b""
        return [*found, rest] if rest else found

    def close(self) -> None:
        os.close(self.fd)

    def _size(self) -> int:
        size = os.fstat(self.fd).st_size
        if size < self._read:  # somebody has emptied it
            self._read, self._rest = 0, b""
        return size

    def _turn(self) -> None:
        """By copying: everybody holds this very file. What is written between the two is lost, and where the disk is
        full the former part."""
        with contextlib.suppress(OSError), open(self._former, "wb") as former, open(self.path, "rb") as present:
            os.fchmod(former.fileno(), 0o600)
            shutil.copyfileobj(present, former)
        unread = self._size() - self._read
        os.ftruncate(self.fd, 0)
        if unread:
            self._unread += unread + len(self._rest)
            self._rest = b""  # what follows is not its end
        self._read = 0
