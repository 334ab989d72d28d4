"""Writing to whatever reads our lines, without ever waiting for it longer than is said.

That a descriptor is writable says little about how much it takes. A pipe takes PIPE_BUF bytes then; a terminal perhaps
one, and a write of more waits for its reader, where neither a signal nor a stop is heard. The description of the file
is shared with other processes, a shell among them, and must not be made non-blocking; so a terminal is opened once
more. Where that is not allowed (it is another user's, as after ``su``) it is given one byte at a time.
"""

from __future__ import annotations

import os
import select
import stat
import time
from contextlib import suppress
from typing import Final

from engine.clock import Deadline

PAUSE_S: Final = 0.001  # before it is tried again


class Sink:
    """To what a descriptor is when this is made: ``fd``, a descriptor of its own, leads there too. One thread at a
    time."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError when it is closed."""
        is_terminal = os.isatty(descriptor)
        own = _opened(descriptor) if is_terminal else None
        self.fd = os.dup(descriptor) if own is None else own
        self.may_block = not stat.S_ISREG(os.fstat(self.fd).st_mode)
        self._never_waits = own is not None or not self.may_block
        self._most = 1 if is_terminal else select.PIPE_BUF  # bytes that are taken where poll says there is room

    def write(self, data: bytes, within_s: float = 0.0) -> int:
        """How many bytes of it are taken, at once or within that time. Raises OSError when it takes none and never
        will."""
        left, deadline, poll = memoryview(data), Deadline(within_s), select.poll()
        poll.register(self.fd, select.POLLOUT)
        while left:
            try:
                count = self._put(left, poll)
            except OSError:
                if len(left) == len(data):
                    raise
                break
            left = left[count:]
            if count:
                continue
            if deadline.passed:
                break
            if poll.poll(0):  # another process writes at this moment
                time.sleep(min(PAUSE_S, deadline.remaining()))
            else:
                poll.poll(deadline.remaining() * 1000)
        return len(data) - len(left)

    def _put(self, data: memoryview, poll: select.poll) -> int:
        if self._never_waits:
            with suppress(BlockingIOError):
                return os.write(self.fd, data)
            return 0
        return os.write(self.fd, data[: self._most]) if poll.poll(0) else 0


def _opened(terminal: int) -> int | None:
    """Its terminal once more; None: that cannot be had."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(os.ttyname(terminal), flags)
    except OSError:
        return None
    # A name of another mount namespace may be that of another terminal here.
    if os.path.sameopenfile(fd, terminal) and os.isatty(fd):
        return fd
    os.close(fd)
    return None
