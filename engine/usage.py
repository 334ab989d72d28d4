"""What a process says of itself: what it uses, where it runs, which version it is, where its log goes."""

from __future__ import annotations

import os
import resource
import stat
import sys
from typing import NamedTuple

_PAGE = resource.getpagesize()


class Usage(NamedTuple):
    """Of this process: memory now, in bytes, and what its CPUs have run for it so far."""

    resident_bytes: int
    cpu_us: int


def own() -> Usage:
    """Some 15 us."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    try:
        with open("/proc/self/statm", "rb") as file:
            resident = int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):  # off Linux: the most it has had, which is in KiB or, on macOS, in bytes
        resident = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(resident, round((used.ru_utime + used.ru_stime) * 1e6))


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
