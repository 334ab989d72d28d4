"""What the system tells of a process from outside: Linux's ``/proc``. Elsewhere nothing is told or concluded."""

from __future__ import annotations

import os
from typing import Final

from engine.core.vitality import SLEEPING, STOPPED, Sample

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_STATE, _UTIME, _STIME = 0, 11, 12  # fields of /proc/PID/stat, from the one behind the name


def fields(path: str) -> list[bytes] | None:
    """Of a ``stat`` file, those behind the command's name, which may contain anything; None: no such process."""
    try:
        with open(path, "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def sample(pid: int, *, threads: bool = False) -> Sample | None:
    """How a process stands. ``threads``: its state is "R" where any thread of it is neither asleep nor stopped."""
    found = fields(f"/proc/{pid}/stat")
    if found is None:
        return None
    state = found[_STATE].decode()
    if threads and state == SLEEPING:
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError:
            tasks = []
        told = (fields(f"/proc/{pid}/task/{task}/stat") for task in tasks)
        if any(one is not None and one[_STATE] in (b"R", b"D") for one in told):
            state = "R"
    ran_ns = _ran_ns(pid) if state == STOPPED else 0
    return Sample(state, (int(found[_UTIME]) + int(found[_STIME])) / _TICKS, ran_ns)


def _ran_ns(pid: int) -> int:
    """How long the first thread of a process has run; 0 where the kernel does not count."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def resident(pid: int) -> int:
    """Bytes of memory that a process and what it has started hold, pages that they share counted for each; 0 where
    nobody knows."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            total = int(file.read().split()[1]) * _PAGE
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:  # of ours the first thread starts them
            return total + sum(resident(int(child)) for child in file.read().split())
    except (OSError, ValueError, IndexError):  # it has ended, or this kernel does not list them
        return 0
