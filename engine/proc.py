"""What the system tells of a process from outside: Linux's ``/proc``. Elsewhere nothing is told or concluded."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

from engine.core.vitality import SLEEPING, STOPPED, Sample

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_STATE, _UTIME, _STIME, _BEGAN = 0, 11, 12, 19  # fields of /proc/PID/stat, from the one behind the name


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


def memory(pid: int) -> int:
    """Bytes of memory that a process holds, pages that it shares among them; 0 where nobody knows."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def descriptors(pid: int | str) -> int:
    """How many a process (``self``: this one) has open; 0 where nobody knows, or may look."""
    folder = f"/proc/{pid}/fd"
    try:
        return os.stat(folder).st_size or len(os.listdir(folder))  # the size says it from Linux 6.2 on
    except OSError:
        return 0


def descriptors_most(pid: int) -> int:
    """How many it may have open; 0: nobody knows, or as many as it likes."""
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:
            soft = next(line for line in file if line.startswith(b"Max open files")).split()[3]
    except (OSError, StopIteration, IndexError):
        return 0
    return int(soft) if soft.isdigit() else 0


def began_s(pid: int) -> float:
    """When it began, in seconds of the epoch, by the kernel's word; 0 where nobody knows."""
    found, booted_s = fields(f"/proc/{pid}/stat"), _booted_s()
    return booted_s + int(found[_BEGAN]) / _TICKS if found and booted_s else 0.0


@lru_cache(maxsize=1)
def _booted_s() -> int:
    try:
        with open("/proc/stat", "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(b"btime ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def resident(pid: int) -> int:
    """Bytes of memory that a process and what it has started hold, pages that they share counted for each; 0 where
    nobody knows."""
    try:
        total = memory(pid)
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:  # of ours the first thread starts them
            return total + sum(resident(int(child)) for child in file.read().split())
    except (OSError, ValueError, IndexError):  # it has ended, or this kernel does not list them
        return 0
