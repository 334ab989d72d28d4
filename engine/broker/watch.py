"""Notices at once that a process of this host has ended: a Linux pidfd is readable from that instant on.

All pidfds stand in one epoll set, so that a thread polls one descriptor however many workers it has. Where there are no
pidfds (macOS), heartbeats do it, later. A pidfd also kills safely: a recycled pid cannot be hit.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
from typing import Final

from engine.core.deaths import Death, death_of
from engine.oom import OomWatch

# struct pidfd_info as it was at first: a mask, the number of a control group and eleven ids, the exit status.
_INFO: Final = struct.Struct("=Q52xi")
_INFO_EXIT: Final = 1 << 3
_GET_INFO: Final = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, struct pidfd_info)

AVAILABLE: Final = hasattr(os, "pidfd_open") and hasattr(select, "epoll")


class Watch:
    """Maps processes to the owner's keys. Used by one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll() if AVAILABLE else None
        self._by_fd: dict[int, int] = {}
        self._by_key: dict[int, int] = {}
        self._proven: set[int] = set()  # keys of those that may be killed
        self._pids: dict[int, int] = {}
        self._oom = OomWatch()

    def fileno(self) -> int | None:
        return self._epoll.fileno() if self._epoll is not None else None

    def add(self, key: int, pid: int, *, may_kill: bool = False) -> bool:
        """Watch a process. ``may_kill``: that it is this one is more than a peer's word. False when that is not
        possible here; a process that has ended already is watched too briefly to matter: ``ended`` returns it at once
        where the system still knows it, else this is False."""
        if self._epoll is None or pid <= 0:
            return False
        try:
            fd = os.pidfd_open(pid)
        except (OSError, OverflowError):  # the number is a peer's word: it may be no process's at all
            return False
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except OSError:  # more than the system lets one user watch
            os.close(fd)
            return False
        self._by_fd[fd] = key
        self._by_key[key] = fd
        if may_kill:
            self._proven.add(key)
        self._pids[key] = pid
        self.look()
        return True

    def look(self) -> None:
        """To be called now and then: what has to be known of a process before it ends."""
        self._oom.look(self._pids.values())

    def ended(self) -> list[tuple[int, Death, str]]:
        """Keys of processes that have ended since the last call, and how, as far as the system tells; they are
        forgotten here."""
        if self._epoll is None:
            return []
        ends = []
        for fd, _ in self._epoll.poll(0):
            key = self._by_fd[fd]
            pid = self._pids[key]
            status = _wait_status(pid, fd)
            # A kill is put down to a death once; one that was told to end otherwise has no need of it.
            oom = (status is None or os.WTERMSIG(status) == signal.SIGKILL) and self._oom.killed(pid)
            ends.append((key, *death_of(status, oom=oom)))
            self.remove(key)
        return ends

    def kill(self, key: int) -> bool:
        """SIGKILL the process; False when it is not watched, not to be killed, or gone."""
        fd = self._by_key.get(key)
        if fd is None or key not in self._proven:
            return False
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def remove(self, key: int) -> None:
        self._proven.discard(key)
        self._pids.pop(key, None)
        fd = self._by_key.pop(key, None)
        if fd is not None and self._epoll is not None:
            del self._by_fd[fd]
            self._epoll.unregister(fd)
            os.close(fd)

    def close(self) -> None:
        for key in list(self._by_key):
            self.remove(key)
        if self._epoll is not None:
            self._epoll.close()


def _wait_status(pid: int, fd: int) -> int | None:
    """How a process ended; None where the system does not tell.

    The parent - the supervisor - is told at the same instant as the reader of a pidfd. Until it has asked, the process
    is to be seen in ``/proc``; afterwards a kernel from 6.15 on tells by the pidfd, and an older one has forgotten.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        fields = []
    # proc(5): state is the 3rd field, exit_code the 52nd; the pid may be another process's by now.
    if len(fields) > 49 and fields[0] in (b"Z", b"X"):
        return int(fields[49])
    return _told_by(fd)


def _told_by(pidfd: int) -> int | None:
    """``PIDFD_GET_INFO`` of linux/pidfd.h: asks for, and then has, a bit for each thing that is told."""
    info = bytearray(_INFO.size)
    _INFO.pack_into(info, 0, _INFO_EXIT, 0)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    told, status = _INFO.unpack(info)
    return int(status) if told & _INFO_EXIT else None
