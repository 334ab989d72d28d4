"""Signals as input of an event loop: the handlers only enqueue.

A Python signal handler runs between any two lines, so one that decides or logs can meet half-made state. These write
the signal's number into a socket pair (the C part of the interpreter does, in the order of arrival); the loop that
selects on it decides.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from engine.errors import StartError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """While entered, the given signals arrive as numbers from :meth:`read` when :meth:`fileno` is readable.

    Main thread only (StartError otherwise: the interpreter delivers signals nowhere else). What was set up before is
    put back on leaving. A SIGHUP that is ignored stays ignored: that is what nohup asked for.
    """

    def __init__(self, numbers: Sequence[int] = (*STOPPING, signal.SIGCHLD)) -> None:
        self._numbers = [
            number for number in numbers if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN)
        ]
        self._before: dict[int, Any] = {}  # typeshed's handler type is a private union
        self._before_fd = -1
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)

    def __enter__(self) -> Signals:
        try:
            self._before_fd = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        except ValueError as error:
            self._close()
            raise StartError("a deployment can only be run from the main thread of a process") from error
        for number in self._numbers:
            self._before[number] = signal.signal(number, _enqueued)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._before_fd)
        self._close()

    def fileno(self) -> int:
        return self._reading.fileno()

    def read(self) -> list[int]:
        """The signals that have arrived, in order; never blocks."""
        try:
            return list(self._reading.recv(4096))
        except BlockingIOError:
            return []

    def _close(self) -> None:
        self._reading.close()
        self._writing.close()


def _enqueued(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor already has the number. A handler must exist, or the default action would be taken."""
