"""What gunicorn runs. In the master: configuration. In a worker process: the application and its client."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
import sqlite3
import ssl
from collections.abc import Callable, Sequence
from typing import TypeAlias

from gunicorn.app.base import BaseApplication

from engine.clock import now
from engine.config.schema import Deployment, FrontendSection
from engine.core.call import BrokerClient
from engine.errors import StartError
from engine.loader import load_function, stand_in
from engine.log import Output
from engine.metrics import Family
from engine.tracing import begin
from frontend.accesslog import OFF, AccessLog
from frontend.answer import Answering
from frontend.apikeys import Keys
from frontend.app import create
from frontend.board import Board
from frontend.endpoints import Handler, Request
from frontend.exchange import Application as ASGIApplication
from frontend.gate import Gate
from frontend.hook import Hook
from frontend.jobs.hooks import secret_of
from frontend.jobs.store import Store
from frontend.memo import Memos
from frontend.metrics import FrontendMetrics
from frontend.requestid import Ids
from frontend.serving.options import options
from frontend.shared import Shared

log = logging.getLogger("stageline.frontend")

# A client for this deployment, by the name of its process, what that counts, and at which address it is asked.
Connect: TypeAlias = Callable[[Deployment, str, Callable[[], list[Family]], str], BrokerClient]


def _try(jobs: str, *, has_secret: bool) -> None:
    """Raises StartError where the file of jobs cannot be used. Nothing of it is kept open over a fork."""
    try:
        Store(jobs, kept_s=0).close()
        if has_secret:
            secret_of(jobs)
    except (OSError, ValueError, sqlite3.Error) as error:
        raise StartError(f"[frontend] jobs: {jobs}: {error}") from error


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """What gunicorn runs. In the master: configuration. In a worker process, after :meth:`load`: the application."""

    def __init__(
        self,
        deployment: Deployment,
        sockets: Sequence[socket.socket],
        connect: Connect,
        booted: Callable[[], None],
        *,
        url: str = "",
        secure: ssl.SSLContext | None = None,
        reread: Callable[[], Deployment] | None = None,
        tell: Callable[[str], object] = lambda event: None,
    ) -> None:
        self._booted = booted
        self._bind = [f"fd://{sock.fileno()}" for sock in sockets]
        self.tell = tell  # the supervisor: the master's "beat" and "stopping"
        self._url = url
        self._secure = secure
        self._connect = connect
        self._reread = reread
        self._stopping = mmap.mmap(
            -1, 2
        )  # whether it is, and whether it has served; shared with the processes that the master forks
        self._output: Output | None = None
        self._known: Keys | None = None
        self._board: Board | None = None  # shared by the processes as well
        self._take(deployment)
        super().__init__()

    def _take(self, deployment: Deployment) -> None:
        """What worker processes that are forked from now on are made of."""
        frontend = deployment.frontend
        keys = self._keys(frontend)
        self.deployment = deployment
        paths = deployment.paths
        access = AccessLog(frontend.access_log, self._stdout()) if frontend.access_log != OFF else None
        self.metrics = FrontendMetrics(deployment.engine.namespace, paths, frontend.timeout, access)
        self.gate = Gate(frontend, has_page=deployment.has_page)
        self.gate.keys = self.metrics.keys = keys
        self.gate.memos = Memos(deployment.topology)
        if frontend.jobs:
            _try(frontend.jobs, has_secret=bool(frontend.webhooks))
        self.answering = Answering.of(deployment)

    def _keys(self, frontend: FrontendSection) -> Keys | None:
        """Raises StartError. A file that was good, and is not any more, does not hold up a change of the deployment."""
        if not frontend.api_keys:
            return None
        if self._known is not None and self._known.path == frontend.api_keys:
            self._known.look(now())
            return self._known
        self._board = self._board or Board(frontend.processes)
        self._known = Keys(frontend.api_keys, self._board)
        return self._known

    def _stdout(self) -> Output:
        """One for all that are made in turn. Raises StartError when it is closed."""
        if self._output is None:
            try:
                self._output = Output(1)
            except OSError as error:
                raise StartError(f"access_log is on, and standard output is closed: {error}") from error
        return self._output

    def renew(self) -> bool:
        """Read the deployment again, before worker processes are replaced; whether there is something to read. Raises
        ConfigError."""
        if self._reread is None:
            return False
        self._take(self._reread())
        return True

    def booted(self) -> None:
        """In a worker process that serves."""
        self._stopping[1] = 1
        self._booted()

    @property
    def is_stopping(self) -> bool:
        """All of the frontend is, and not one worker process."""
        return bool(self._stopping[0])

    def stop(self) -> None:
        """Say so, in the master or a worker process."""
        self._stopping[0] = 1

    def load_config(self) -> None:
        self.cfg.set("bind", self._bind)
        for name, value in options(self.deployment.frontend, self.deployment.engine.grace).items():
            self.cfg.set(name, value)
        if self._secure is not None:
            self.cfg.set("certfile", self.deployment.frontend.certfile)  # what gunicorn knows by that it is TLS
            self.cfg.set("ssl_context", lambda _config, _default: self._secure)

    def load(self) -> ASGIApplication:
        name = f"{socket.gethostname()}:{os.getpid()}"
        self.new_id = Ids()
        if self._board is not None:
            self._board.sit()
        if (tracing := begin(self.deployment.engine.name, "frontend")) is not None:
            from frontend.tracing import Traces

            self.metrics.traces = Traces(tracing)
        self.answering.hook = self._hook()
        handlers = {own.path: self._handler(own.handler) for own in self.deployment.endpoints}
        self.client = self._connect(self.deployment, name, self.metrics.families, self._url)
        return create(
            self.deployment, self.client, self.metrics, self.gate, self.answering, name=name, handlers=handlers
        )

    def _hook(self) -> Hook | None:
        """What fails to load ends the start. Once it has been good, though, as for a process that replaces another, or
        after a change of the deployment, the service matters more than how its errors look."""
        spec = self.deployment.frontend.errors
        if not spec:
            return None
        stand_in(self.deployment.argv, self.deployment.path)
        try:
            return Hook(load_function(spec, self.deployment.file.parent))
        except Exception as error:  # user code
            if self._stopping[1]:
                log.error("the function of [frontend] errors cannot be loaded, and is passed over", exc_info=error)
                return None
            log.error("cannot start: [frontend] errors: %s", error)
            raise

    def _handler(self, spec: str) -> Handler:
        """The same of an endpoint; one that cannot be loaded any more answers 500."""
        stand_in(self.deployment.argv, self.deployment.path)
        try:
            return load_function(spec, self.deployment.file.parent)
        except Exception as error:  # user code
            reason = error
            log.error("%s of an endpoint cannot be loaded: %s", spec, error, exc_info=error)
            if not self._stopping[1]:
                raise

        def broken(request: Request) -> object:
            raise RuntimeError(f"{spec} cannot be loaded") from reason

        return broken

    def lean(self, hand_over: Callable[[asyncio.Transport, bytes], asyncio.Protocol]) -> Shared:
        """What lean connections share, in a worker process, after :meth:`load`."""
        return Shared(self.deployment, self.client, self.gate, self.metrics, self.answering, hand_over)
