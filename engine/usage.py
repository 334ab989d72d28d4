"""What a process says of itself: what it uses, where it runs, which version it is, where its log goes."""

from __future__ import annotations

import os
import resource
import stat
import sys
from functools import lru_cache
from typing import NamedTuple

from engine import proc

_PAGE = resource.getpagesize()


class Usage(NamedTuple):
    """Of this process: memory now, in bytes, and what its CPUs have run for it so far."""

    resident_bytes: int
    cpu_us: int


class Process(NamedTuple):
    """What is told of a process for metrics. ``began_s``: when it began, in seconds of the epoch. 0: nobody knows."""

    resident_bytes: int = 0
    cpu_us: int = 0
    descriptors: int = 0  # that it has open
    descriptors_most: int = 0  # and may have
    began_s: float = 0.0


def own() -> Usage:
    """Some 15 us."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    try:
        with open("/proc/self/statm", "rb") as file:
            resident = int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):  # off Linux: the most it has had, which is in KiB or, on macOS, in bytes
        resident = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(resident, round((used.ru_utime + used.ru_stime) * 1e6))


def whole() -> Process:
    """Of this process. Some 25 us; on a kernel before 6.2 more with each descriptor."""
    used = own()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = 0 if most == resource.RLIM_INFINITY else most
    return Process(used.resident_bytes, used.cpu_us, proc.descriptors("self"), most, _began_s(os.getpid()))


def of(pid: int) -> Process:
    """Of another one, where it may be looked at."""
    found, looked = proc.memory(pid), proc.sample(pid)
    if looked is None:
        return Process()
    return Process(
        found, round(looked.cpu_s * 1e6), proc.descriptors(pid), proc.descriptors_most(pid), proc.began_s(pid)
    )


@lru_cache(maxsize=1)
def _began_s(pid: int) -> float:
    return proc.began_s(pid)


def node() -> str:
    """The name of this host, for people."""
    return os.uname().nodename


def version() -> str:
    """Ours. The first time it takes 15 ms."""
    import engine

    return engine.__version__


def log_place(fd: int = 2) -> str:
    """Where this process's log goes, for people: a file, a terminal, the journal, or a pipe to whoever started it."""
    try:
        about = os.fstat(fd)
    except OSError:
        return "nowhere"
    if os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}":  # systemd.exec(5)
        return "journal"
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        path = ""
    if stat.S_ISREG(about.st_mode):
        return path or "a file"
    if os.isatty(fd):
        return f"terminal {path}".rstrip()
    if path == os.devnull:
        return "nowhere"
    return "a pipe" if stat.S_ISFIFO(about.st_mode) else "a socket" if stat.S_ISSOCK(about.st_mode) else path
