"""Signals as input of an event loop: the handlers only enqueue.

A Python signal handler runs between any two lines, so one that decides or logs can meet half-made state. These write
the signal's number into a socket pair (the C part of the interpreter does, in the order of arrival, also while the main
thread is deep inside C code); the loop or thread that selects on it decides.

The wake-up descriptor is one for the whole process, and libraries take it: an event loop of asyncio that watches
signals sets its own, and none at all when it ends. So a handler looks whose it is, and enqueues the number itself where
it was not ours.

A forked child - a process that user code starts, with ``multiprocessing`` perhaps - would inherit both: what is sent to
the child would be read by its parent, and the child could not be stopped. So a fork gives the child the handlers that
were there before, with the signals held back until that is done.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, Final

from engine.errors import StartError

try:
    # The public one makes an enumeration's member of what it finds, if it can: 3 us instead of 0.05.
    from _signal import getsignal as _handler_of  # type: ignore[import-not-found]  # CPython's own
except ImportError:
    from signal import getsignal as _handler_of
handler_of: Callable[[int], Any] = _handler_of  # what is done with a signal

WAKEUP_EVERY: Final = 16  # renewals
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_entered: list[Signals] = []  # innermost last; changed by the main thread only


class Signals:
    """While entered, the given signals arrive as numbers from :meth:`read` when :meth:`fileno` is readable.

    To be entered in the main thread only (StartError otherwise: the interpreter delivers signals nowhere else); any
    thread may read. What was set up before is put back on leaving. A SIGHUP that is ignored stays ignored: that is what
    nohup asked for.

    ``interrupt`` is called with the number in the main thread besides, between any two of its lines, and may raise to
    get out of code that is not ours.
    """

    def __init__(
        self,
        numbers: Sequence[int] = (*STOPPING, signal.SIGCHLD),
        *,
        interrupt: Callable[[int], None] | None = None,
    ) -> None:
        self._numbers = [
            number for number in numbers if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN)
        ]
        self._interrupt = interrupt
        self._renewals = 0
        self._handler = self._handle  # one object, to be known again
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
            raise StartError("this can only be run from the main thread of a process") from error
        _entered.append(self)
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(self._before_fd)

    def renew(self) -> None:
        """Put back what code that is not ours has replaced meanwhile. The main thread only.

        Made to be called often: 0.3 us where nothing was replaced. The wake-up descriptor takes four times as long to
        look at, and without it a signal is heard all the same, when the main thread is next in Python: now and then.
        """
        replaced = False
        for number in self._numbers:
            if handler_of(number) is not self._handler:
                signal.signal(number, self._handler)
                replaced = True
        self._renewals += 1
        if replaced or self._renewals % WAKEUP_EVERY == 1:
            signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)

    def fileno(self) -> int:
        return self._reading.fileno()

    def read(self) -> list[int]:
        """The signals that have arrived, in order; never blocks. Numbers of signals that others handle may be among
        them."""
        try:
            return list(self._reading.recv(4096))
        except BlockingIOError:
            return []

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """A handler must exist, or the default action would be taken. Mostly the descriptor has the number already."""
        ours = self._writing.fileno()
        former = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
        if former != ours:
            try:
                self._writing.send(bytes([number]))
            except BlockingIOError:
                pass  # as many as that were not read: one more says nothing new
            if former != -1:
                try:
                    signal.set_wakeup_fd(former)  # of a loop that runs
                except (OSError, ValueError):
                    pass  # of one that has closed it
        if self._interrupt is not None:
            self._interrupt(number)

    def _leave(self, wakeup_fd: int) -> None:
        if self not in _entered:  # a forked child that leaves as its parent will: it has left already
            return
        _entered.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup_fd)
        self._close()

    def _close(self) -> None:
        self._reading.close()
        self._writing.close()


# --- forks -----------------------------------------------------------------------------------------------------------

_held = threading.local()  # the mask of a thread that forks just now


def _before_fork() -> None:
    numbers = {number for signals in _entered for number in signals._numbers}
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _in_child() -> None:
    for signals in reversed(_entered.copy()):
        signals._leave(-1)
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
