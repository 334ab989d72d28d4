"""gunicorn's master, which supervises the worker processes of the frontend, and its log.

No thread is started here, because it forks again whenever it replaces a worker; each worker process makes its client,
with its ZeroMQ context, after the fork.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from engine.errors import ConfigError, StartError
from frontend.serving.application import Application
from frontend.serving.process import HELD


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

    def signal(self, sig: int, frame: FrameType | None) -> None:
        if sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._told = True
            self.app.stop()
        super().signal(sig, frame)

    def spawn_worker(self) -> int:
        if self._told:
            raise StopIteration
        former = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        try:
            pid: int = super().spawn_worker()
            return pid
        finally:
            if os.getpid() == self.pid:  # else this is the child, which lets them in when its event loop runs
                signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def handle_int(self) -> None:
        raise StopIteration  # gunicorn's own way to say: halt gracefully

    def handle_hup(self) -> None:
        """Replace the worker processes by ones that serve what the deployment is now; the old ones drain."""
        try:
            changed = self.app.renew()
        except ConfigError as error:  # it was checked by whoever wrote it
            self.log.error("the changed deployment cannot be read: %s", error)
            return
        if changed:
            self._reloads = True
            super().handle_hup()
            self._reloads = False
        else:
            self.log.warning("SIGHUP is ignored: a deployment is read once")

    def reap_workers(self) -> None:
        """gunicorn looks for the old workers' ends from inside a reload, and hears of a stop only after it."""
        if self._reloads and self._told:
            raise StopIteration
        super().reap_workers()

    def handle_usr2(self) -> None:
        self.log.warning("SIGUSR2 is ignored: the supervisor replaces this process")


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
