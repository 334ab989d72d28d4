"""gunicorn's master, which supervises the worker processes of the frontend, and its log.

No thread is started here, because it forks again whenever it replaces a worker; each worker process makes its client,
with its ZeroMQ context, after the fork.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, Final, NoReturn

from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from engine.clock import now
from engine.core.liveness import LOOK_S
from engine.core.vitality import Vitals
from engine.errors import ConfigError, StartError
from engine.proc import sample
from frontend.serving.application import Application
from frontend.serving.process import HELD

STOPS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


class Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's logger without its handlers: records go where all of ours go, and its news of every step to debug."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.error_log.propagate = self.access_log.propagate = True

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.loglevel = logging.NOTSET
        self.error_log.handlers.clear()
        self.access_log.handlers.clear()

    def info(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.error_log.debug(msg, *args, **kwargs)


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master, for which Ctrl-C drains as SIGTERM does; a second one, while it drains, stops at once.

    It forks one worker process after the other, with a pause between any two; a stop that comes meanwhile ends that.
    """

    _told = False  # to stop
    _reloads = False

    def __init__(self, app: Application) -> None:
        # With the library `setproctitle` installed it would write over the arguments, and over the environment.
        util._setproctitle = _keep_title
        super().__init__(app)
        self._watched: dict[int, _Watched] = {}  # by pid

    def signal(self, sig: int, frame: FrameType | None) -> None:
        if sig in STOPS:
            self._told = True
            self.app.stop()
        super().signal(sig, frame)

    def spawn_worker(self) -> int:
        if self._told:
            self._end()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        try:
            pid: int = super().spawn_worker()
            return pid
        finally:
            if os.getpid() == self.pid:  # else this is the child, which lets them in when its event loop runs
                signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def _end(self) -> NoReturn:
        """Halt as gunicorn does, out of the midst of something. What told so lies in the queue still, where that would
        take it for a second one, which lets nobody finish."""
        with suppress(queue.Empty):
            while self.SIG_QUEUE.get_nowait() not in STOPS:
                pass
        raise StopIteration

    def murder_workers(self) -> None:
        self._look()
        super().murder_workers()

    def _look(self) -> None:
        """Show that this process lives, and see whether the others do.

        gunicorn's own way takes its time-out, which bodies may take, and another second after a signal that a stopped
        process does not hear. It remains for where there is nothing to see from outside.
        """
        self.app.tell("beat")
        former = self._watched
        self._watched = {pid: former.get(pid) or _Watched(worker) for pid, worker in self.WORKERS.items()}
        for pid, watched in self._watched.items():
            if how := watched.look(pid):
                self.log.error("frontend worker process %d %s; killing it", pid, how)
                self.kill_worker(pid, signal.SIGKILL)

    def wait_for_signals(self, timeout: float | None = 1.0) -> Any:
        return super().wait_for_signals(LOOK_S if timeout == 1.0 else timeout)

    def stop(self, graceful: bool = True) -> None:
        self.app.tell("stopping")
        super().stop(graceful)

    def handle_int(self) -> None:
        raise StopIteration  # gunicorn's own way to say: halt gracefully

    def handle_hup(self) -> None:
        """Replace the worker processes by ones that serve what the deployment is now; the old ones drain."""
        try:
            changed = self.app.renew()
        except (ConfigError, StartError) as error:  # it was checked by whoever wrote it
            self.log.error("the changed deployment cannot be read: %s", error)
            return
        if changed:
            self._reloads = True
            try:
                super().handle_hup()
            finally:
                self._reloads = False
        else:
            self.log.warning("SIGHUP is ignored: a deployment is read once")

    def reap_workers(self) -> None:
        """gunicorn looks for the old workers' ends from inside a reload, and hears of a stop only after it."""
        if self._reloads and self._told:
            self._end()
        if self._reloads:
            self._look()
        super().reap_workers()

    def handle_usr2(self) -> None:
        self.log.warning("SIGUSR2 is ignored: the supervisor replaces this process")


class _Watched:
    """A worker process, which shows that it lives by the time of a file."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._vitals = Vitals(now())
        self._shown = self._last()

    def _last(self) -> float:
        try:
            return float(self._worker.tmp.last_update())
        except (OSError, ValueError):
            return 0.0  # it has ended

    def look(self, pid: int) -> str:
        shown = self._last()
        if shown != self._shown:
            self._shown = shown
            self._vitals.beat()
        seen = sample(pid, threads=self._vitals.is_doubtful)
        return "" if seen is None else self._vitals.look(seen, now())


def _keep_title(title: str) -> None:
    """The process has one (:mod:`engine.titles`)."""


def run(app: Application) -> int:
    """Supervise worker processes until told to stop; the exit status. StartError when one of them could not start.

    Returns in the master alone: a worker process, forked somewhere inside, ends here.
    """
    master = os.getpid()
    status: object = 0
    try:
        Master(app).run()
    except SystemExit as stop:
        status = stop.code
    code = status if isinstance(status, int) else 0 if status is None else 1
    if os.getpid() != master:
        # What stands above us on the stack belongs to the master.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    if code in (Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR):
        raise StartError("a frontend worker process could not start")
    return code
