"""What a process is called where people look for it: ``stageline encode-1 (echo)`` in ``ps`` and ``top -c`` and
``py-spy``, and ``encode-1`` in ``top``.

The title takes the place of the interpreter's path, which is the same everywhere and says nothing; the arguments stay
as they were, argument by argument, for whoever finds processes by them. Libraries that set titles put one text in the
place of all arguments, and some of the environment, by which others (we) know what belongs to whom.

The kernel shows a process's command line out of its memory, and that is where it is written: by /proc, so that an
address that is none costs an error and no crash. Off Linux, and where that is not allowed, all is as it was.
"""

from __future__ import annotations

import os
from typing import Final

from engine.process import name_thread

OURS: Final = "stageline"
SCRIPT: Final = b"engine/bootstrap.py"  # of the second argument this much stays, whatever the title takes
COMM_MOST: Final = 15  # bytes of a name that the kernel keeps

_ARG_START, _ARG_END = 45, 46  # of /proc/PID/stat, from the field behind the name


def entitle(what: str, deployment: str, *, short: str = "") -> None:
    """Give this process a title: the part of a ``deployment`` that it is. The kernel's name is ``short``, if that is
    given. Never raises."""
    name_thread(comm(short or what))
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        with open("/proc/self/cmdline", "rb") as file:
            shown = file.read()
        fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            if start and len(shown) == end - start and os.pread(fd, len(shown), start) == shown:
                os.pwrite(fd, titled(shown, f"{OURS} {what} ({deployment})".encode()), start)
        finally:
            os.close(fd)
    except (OSError, ValueError, IndexError):
        return


def comm(what: str) -> str:
    """The short name. Of a worker's that is too long the number stays."""
    if len(what.encode()) <= COMM_MOST:
        return what
    head, dash, number = what.rpartition("-")
    kept = COMM_MOST - len(dash + number)
    return head.encode()[:kept].decode(errors="ignore") + dash + number if head and kept > 0 else what[:COMM_MOST]


def titled(shown: bytes, title: bytes) -> bytes:
    """A command line as the kernel shows it, each argument ended by a null byte, with ``title`` in place of the first:
    as long as before, with as many arguments. Where the title is longer, our own script's path gives way from its
    beginning; what does not fit then is left out."""
    first, *others = shown.split(b"\0")
    title = title.replace(b"\0", b" ")
    if others and others[0].endswith(SCRIPT):
        room = len(first) + len(others[0]) - len(SCRIPT)
        taken = max(0, min(len(title), room) - len(first))
        others[0] = others[0][taken:]
        first = b" " * (len(first) + taken)
    return b"\0".join([title[: len(first)].ljust(len(first)), *others])
