"""Ends a ``forward`` that takes too long - politely if it is Python, by the kernel if it is not.

Two limits for one batch, counted from its first call of ``forward`` (calls on halves share them, for the requests'
deadlines do too):

* ``timeout_s``: a thread sends SIGUSR2 to the main thread, whose handler raises EngineTimeoutError out of ``forward``.
  Sleeps, locks and socket waits are interrupted as well. It happens once; user code that swallows it goes on. An
  import is not torn: what it has begun to set up would stay half made for ever. It is interrupted when it is done.
* ``timeout_s + kill_after_s``: the process's real-time interval timer sends SIGALRM. That needs no Python: it works
  while C code holds the interpreter. faulthandler writes all threads' tracebacks, then the default action ends the
  process.

The interleaving that matters: the thread finds the time over while the main thread is just leaving ``forward``. The
handler runs in the main thread, between two of its bytecodes, and raises only while armed and late; so it either
runs before the disarming (and the result is lost: it was late) or sees that there is nothing to interrupt. Raised
*within* the disarming it would leave the timer running: :meth:`Watchdog.call` disarms once more then, undisturbed,
since a call is interrupted once at most. User code must leave SIGUSR2, SIGALRM and ITIMER_REAL alone; handlers that it
replaces are put back after the batch (:meth:`Watchdog.renew`).
"""

from __future__ import annotations

import faulthandler
import signal
import threading
from collections.abc import Callable
from math import inf
from types import FrameType
from typing import Any, Final

from engine.clock import now
from engine.errors import EngineTimeoutError
from engine.log import get_logger, stream
from engine.signals import handler_of

INTERRUPT: Final = signal.SIGUSR2
KILL: Final = signal.SIGALRM

IMPORT_LOOK_S: Final = 0.02  # between two looks at whether an import is done
_IMPORTING: Final = "<frozen importlib."  # how the file names of frames begin that every import of a module stands on


class Watchdog:
    """Made, started, used and stopped by the main thread."""

    def __init__(self, timeout_s: float, kill_after_s: float) -> None:
        self._timeout_s = timeout_s
        self._kill_after_s = kill_after_s
        self._deadline = inf  # of the current batch; inf: it has not begun
        self._armed = False
        self._importing = False  # too late, in the middle of an import
        self.struck = False  # the current batch was interrupted
        self._used = False  # armed since the thread looked last
        self._parked = False
        self._stopping = False
        self._unpark = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._former: Any = None
        self._handler = self._interrupt  # one object, to be known again

    def start(self) -> None:
        self._former = signal.signal(INTERRUPT, self._handler)
        self._set_killing()
        self._thread.start()

    def renew(self) -> None:
        """Put back handlers that user code has replaced."""
        if handler_of(INTERRUPT) is not self._handler:
            signal.signal(INTERRUPT, self._handler)
        if handler_of(KILL) != signal.SIG_DFL:
            faulthandler.unregister(KILL)  # it is not there any more, and does not know
            self._set_killing()

    def _set_killing(self) -> None:
        signal.signal(KILL, signal.SIG_DFL)
        try:
            faulthandler.register(KILL, stream(), all_threads=True, chain=True)
        except (AttributeError, ValueError, OSError, RuntimeError) as error:  # stderr is closed or no file
            get_logger().warning("no tracebacks when a worker is killed for its timeout: %s", error)

    def stop(self) -> None:
        """After the last call. Gives the signals back."""
        self._stopping = True
        self._unpark.set()
        self._thread.join(timeout=5.0)
        faulthandler.unregister(KILL)
        signal.signal(INTERRUPT, self._former)

    def begin(self) -> None:
        """A new batch: its limits begin with the next :meth:`call`."""
        self._deadline = inf
        self._importing = self.struck = False

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """``function(argument)`` under the limits. Raises EngineTimeoutError when the first one has passed."""
        moment = now()
        if self._deadline == inf:
            self._deadline = moment + self._timeout_s
        if (left := self._deadline - moment) <= 0:
            raise EngineTimeoutError
        try:
            try:
                self._arm(left)
                return function(argument)
            finally:
                self._disarm()
        except EngineTimeoutError:
            self._disarm()  # see the module
            raise

    def undisturbed(self, function: Callable[[], object]) -> None:
        """Called from within ``forward`` for work of ours, such as sending, that must not be torn in the middle.

        Raises EngineTimeoutError afterwards if the time has passed meanwhile.
        """
        armed, self._armed = self._armed, False
        try:
            function()
        finally:
            if armed and now() < self._deadline:
                self._rearm()
                armed = False
        if armed:
            self.struck = True
            raise EngineTimeoutError

    def _arm(self, left: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, left + self._kill_after_s)
        self._rearm()

    def _rearm(self) -> None:
        self._armed = self._used = True
        if self._parked:
            self._unpark.set()

    def _disarm(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _interrupt(self, _number: int, frame: FrameType | None) -> None:
        if self._armed and now() >= self._deadline:
            self._importing = _imports(frame)
            if self._importing:
                return  # the thread asks again, and the timer ends what takes too long
            self._armed = False  # once
            self.struck = True
            raise EngineTimeoutError

    def _watch(self) -> None:
        """Sleep until the deadline that is known, and look again.

        Arming does not wake this thread while it sleeps - a switch of threads for every batch would cost more than the
        batch's own bookkeeping - because it never sleeps longer than one timeout: a deadline set meanwhile lies after
        its waking. Only when nothing was to be watched for one timeout it parks, says so, and looks once more before it
        waits; the main thread arms first and looks for a parked one second. One of the two sees the other.
        """
        again_at = -inf
        while not self._stopping:
            if self._armed:
                left = self._deadline - now()
                if left <= 0:
                    # A main thread inside C code takes the signal later; do not fill its time with signals.
                    if self._main is not None and (self._importing or now() >= again_at):
                        again_at = now() + self._timeout_s
                        signal.pthread_kill(self._main, INTERRUPT)
                    left = min(self._timeout_s, IMPORT_LOOK_S)
                self._unpark.wait(left)
            elif self._used:
                self._used = False
                # A deadline that was known before may be armed again: by `undisturbed`, and by calls of one batch.
                left = self._deadline - now()
                self._unpark.wait(left if 0 < left < self._timeout_s else self._timeout_s)
            else:
                self._parked = True
                if not self._armed:
                    self._unpark.wait()
                self._parked = False
            if not self._stopping:
                self._unpark.clear()


def _imports(frame: FrameType | None) -> bool:
    """Whether what this frame was called for, within :meth:`Watchdog.call`, is an import."""
    while frame is not None and frame.f_code is not Watchdog.call.__code__:
        if frame.f_code.co_filename.startswith(_IMPORTING):
            return True
        frame = frame.f_back
    return False
