"""How a worker ended, as far as it can be known, and whether what it computed may have been the cause. Pure.

A worker that runs into its own death - a segmentation fault, an abort, an exit out of user code - may have been killed
by an item. One that somebody sends a signal, whose host or network has gone, or that the kernel had no memory for, was
not: that does not count against what it computed. Where the system does not tell, the items are looked at.

A connection that is lost is no death: the worker may be well, and what it held is given to others without any account
of it. Only when another process comes in its place, on the same host, is it known that it had died.
"""

from __future__ import annotations

import signal
from enum import Enum
from typing import Final

from engine.core import killings


class Death(Enum):
    OWN = "own"  # of something that it did itself, or nobody knows of what
    OUTSIDE = "outside"  # somebody ended it
    MEMORY = killings.REASON  # the kernel ended it for want of memory
    FORGOTTEN = "forgotten"  # it said goodbye, or was not heard any more
    CUT = "cut"  # the connection to it was lost, or it says so by introducing itself again: none, as far as is known


# Sent by people and supervisors; nothing that a program runs into.
_SENT: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


def death_of(status: int | None, *, oom: bool = False) -> tuple[Death, str]:
    """From a wait status (None: the system did not tell): what it was, and in words. ``oom``: one
    of the kernel's kills for want of memory was its, if it was killed."""
    if oom and (status is None or status & 0x7F == signal.SIGKILL):
        return Death.MEMORY, killings.TEXT
    if status is None:
        return Death.OWN, ""
    if number := status & 0x7F:  # wait(2)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return (Death.OUTSIDE if number in _SENT else Death.OWN), f"by {name}"
    return Death.OWN, f"with exit code {status >> 8}"
