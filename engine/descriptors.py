"""How many files and sockets a process may have open: all that it is allowed, where it serves.

The usual soft limit, 1,024, is for programs that use ``select``; a broker of 450 workers, their supervisor and a
frontend of some thousand clients need more, and the hard limit lets them have it. User code gets what was there before:
much of it closes or looks at every number up to the limit, which takes seconds where that is a million.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

VARIABLE: Final = "ENGINE_DESCRIPTORS"  # what the soft limit was, for the processes that run user code
MOST: Final = 1 << 20  # where the hard limit is none, or as good as none
_MACOS: Final = 10_240  # what macOS takes where it says that there is no limit


def allow_many() -> int:
    """Raise the soft limit of this process to the hard one, for itself and what it starts; the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return MOST if soft == resource.RLIM_INFINITY else soft
    for wanted in (most, _MACOS):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, most)), hard))
        except (ValueError, OSError):
            continue
        os.environ.setdefault(VARIABLE, str(soft))
        break
    return limit()


def allow_as_before() -> None:
    """Undo what a process above did by :func:`allow_many`. Before user code runs."""
    before = os.environ.get(VARIABLE, "")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before.isdecimal() and int(before) < soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(before), hard))


def are_spent() -> bool:
    """Whether this process, or the whole system, has no descriptor left now: whatever needs one fails, and ZeroMQ's own
    threads, which take connections, say so to nobody."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False


def broker_needs(workers: int, stages: int, frontends: int) -> int:
    """How many a broker has open with so many processes joined to it: of a worker its connections to the control
    socket, the egress and the next stage, its lane with its own, what tells of its end, and its shared memory; of a
    frontend its connection, its end, its memory, and that of a question now and then; of a stage its sockets."""
    return 64 + 8 * workers + 8 * stages + 6 * frontends


def limit() -> int:
    """How many this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft
