"""Notices at once that a process of this host has ended: a Linux pidfd is readable from that instant on.

All pidfds stand in one epoll set, so that a thread polls one descriptor however many workers it has. Where there are no
pidfds (macOS), heartbeats do it, later. A pidfd also kills safely: a recycled pid cannot be hit.
"""

from __future__ import annotations

import os
import select
import signal
from typing import Final

AVAILABLE: Final = hasattr(os, "pidfd_open") and hasattr(select, "epoll")


class Watch:
    """Maps processes to the owner's keys. Used by one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll() if AVAILABLE else None
        self._by_fd: dict[int, int] = {}
        self._by_key: dict[int, int] = {}
        self._proven: set[int] = set()  # keys of those that may be killed

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
        return True

    def ended(self) -> list[int]:
        """Keys of processes that have ended since the last call; they are forgotten here."""
        if self._epoll is None:
            return []
        keys = [self._by_fd[fd] for fd, _ in self._epoll.poll(0)]
        for key in keys:
            self.remove(key)
        return keys

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
