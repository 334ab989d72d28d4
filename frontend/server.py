"""The frontend process: gunicorn, embedded. Listening, worker processes, stopping.

The listening sockets are bound here and handed to gunicorn: a port that is in use is then an exit code instead of five
retries, and with port 0 the real one is known at once. gunicorn's master supervises the worker processes; each makes
its client, with its ZeroMQ context, after the fork. No thread is started in the master, because it forks again whenever
it replaces a worker.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import logging
import math
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from engine.config.schema import Deployment, FrontendSection
from engine.errors import StartError
from engine.exitcodes import ExitCode
from engine.log import get_logger
from engine.metrics import Family
from engine.process import Notifier, die_with_parent
from frontend import compression, tls
from frontend.app import create
from frontend.broker import BrokerClient
from frontend.door import Door
from frontend.exchange import Application as ASGIApplication
from frontend.lean import Shared
from frontend.metrics import FrontendMetrics

log = get_logger("stageline.frontend")

Connect: TypeAlias = Callable[[Deployment, str, Callable[[], list[Family]]], BrokerClient]

WORKER_CLASS: Final = "frontend.worker.Worker"
BACKLOG: Final = 2048  # connections the kernel accepts for us, gunicorn's default; net.core.somaxconn caps it
MAX_FIELDS: Final = 100  # header fields of one request, gunicorn's default
MAX_TARGET: Final = 8190  # bytes of the request line, the most gunicorn allows


def connect(deployment: Deployment, name: str, families: Callable[[], list[Family]]) -> BrokerClient:
    """The client of a real broker, not started. Imported here: only worker processes need ZeroMQ."""
    from engine.client import Client
    from engine.transport import endpoints_of

    return Client(endpoints_of(deployment), name=name, families=families)


# --- listening -------------------------------------------------------------------------------------------------------


class PortInUse(StartError):
    """Somebody listens there already."""


def listen(address: str, port: int) -> list[socket.socket]:
    """Bound, listening sockets for every address that ``address`` (a name, IPv4 or IPv6) means, all on one port.

    Port 0 takes a free one. Raises PortInUse, or StartError when the address cannot be listened on.
    """
    try:
        found = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f"cannot resolve the address {address!r} to listen on: {error}") from error
    sockets: list[socket.socket] = []
    trouble: OSError | None = None
    for family, sockaddr in dict.fromkeys((entry[0], entry[4]) for entry in found):
        host = sockaddr[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not hold the port
            sock.bind((host, port, *sockaddr[2:]))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                _close(sockets)
                raise PortInUse(
                    f"port {port} of {address or 'this host'} is in use; stop what listens there or set another port"
                ) from error
            trouble = error  # a name may also mean an address this host has not got: localhost without IPv6
            continue
        port = sock.getsockname()[1]
        sockets.append(sock)
    if not sockets:
        raise StartError(f"cannot listen on {address or '*'}:{port}: {trouble}") from trouble
    return sockets


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def url(address: str, sock: socket.socket, *, secure: bool = False) -> str:
    """Where a client on this host reaches the service."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    elif address and address != host:
        host = address
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


# --- gunicorn --------------------------------------------------------------------------------------------------------


class _Log(Logger):  # type: ignore[misc]  # gunicorn has no types
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


class _Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master, for which Ctrl-C drains as SIGTERM does; a second one, while it drains, stops at once."""

    def handle_int(self) -> None:
        raise StopIteration  # gunicorn's own way to say: halt gracefully

    def handle_hup(self) -> None:
        self.log.warning("SIGHUP is ignored: a deployment is read once")

    def handle_usr2(self) -> None:
        self.log.warning("SIGUSR2 is ignored: the supervisor replaces this process")


class Application(BaseApplication):  # type: ignore[misc]
    """What gunicorn runs. In the master: configuration. In a worker process, after :meth:`load`: the application."""

    def __init__(
        self,
        deployment: Deployment,
        sockets: Sequence[socket.socket],
        connect: Connect,
        booted: Callable[[], None],
        *,
        secure: ssl.SSLContext | None = None,
    ) -> None:
        self.deployment = deployment
        self.booted = booted
        self._sockets = sockets
        self._secure = secure
        self._connect = connect
        frontend = deployment.frontend
        paths = [route.path for route in deployment.routes]
        self.metrics = FrontendMetrics(deployment.engine.namespace, paths, frontend.timeout)
        self.door = Door(capacity=frontend.capacity, capacity_bytes=frontend.capacity_bytes)
        super().__init__()

    def load_config(self) -> None:
        self.cfg.set("bind", [f"fd://{sock.fileno()}" for sock in self._sockets])
        for name, value in options(self.deployment.frontend, self.deployment.engine.grace).items():
            self.cfg.set(name, value)
        if self._secure is not None:
            self.cfg.set("certfile", self.deployment.frontend.certfile)  # what gunicorn knows by that it is TLS
            self.cfg.set("ssl_context", lambda _config, _default: self._secure)

    def load(self) -> ASGIApplication:
        name = f"{socket.gethostname()}:{os.getpid()}"
        self.client = self._connect(self.deployment, name, self.metrics.families)
        return create(self.deployment, self.client, self.metrics, self.door, name=name)

    def lean(self, hand_over: Callable[[asyncio.Transport, bytes], asyncio.Protocol]) -> Shared:
        """What lean connections share, in a worker process, after :meth:`load`."""
        return Shared(self.deployment, self.client, self.door, self.metrics, hand_over)


def options(frontend: FrontendSection, grace_s: float) -> dict[str, Any]:
    """gunicorn's settings, each with its reason where it is not ours by name."""
    http2 = _http2()
    return {
        "workers": frontend.workers,
        "worker_class": WORKER_CLASS,
        "logger_class": _Log,
        "accesslog": None,
        "backlog": BACKLOG,
        "proc_name": "stageline frontend",
        # The worker drains for exactly `grace` and then needs a moment to say goodbye; after this the master kills it.
        "graceful_timeout": math.ceil(grace_s) + 2,
        # A worker whose event loop is stuck for this long is replaced. It also bounds gunicorn's own waits for a body,
        # so it must be above ours, which answers 408.
        "timeout": max(30, math.ceil(frontend.body_timeout) + 10),
        "limit_request_line": MAX_TARGET,
        "limit_request_fields": MAX_FIELDS,
        "limit_request_field_size": frontend.max_header_size,
        "http2_max_header_list_size": frontend.max_header_size,
        "http_protocols": "h2,h1" if http2 else "h1",
        # "both", because with prior knowledge alone gunicorn refuses HTTP/1; frontend.worker turns upgrading off.
        "http2_cleartext": "both" if http2 else "off",
        # gunicorn allows cleartext HTTP/2 to peers it trusts with forwarding headers: trust all peers, and no header.
        "forwarded_allow_ips": "*",
        "secure_scheme_headers": {},
        "forwarder_headers": "",
        # No files of its own: no socket for gunicornc, no pid file.
        "control_socket_disable": True,
        "pidfile": None,
        "post_fork": _post_fork,
    }


def _http2() -> bool:
    return importlib.util.find_spec("h2") is not None


def _post_fork(arbiter: Any, worker: Any) -> None:
    die_with_parent(worker.ppid)


# --- the process -----------------------------------------------------------------------------------------------------


def serve(deployment: Deployment, notify: Notifier, *, connect: Connect = connect) -> int:
    """Run the frontend until it is told to stop; gives the exit code.

    SIGTERM and SIGINT drain for at most ``engine.grace``. Sends "ready" with the service's ``url`` when all worker
    processes listen, "failed" with a reason when it cannot start. Call it in the main thread, once in a process.
    """
    frontend = deployment.frontend
    try:
        if frontend.compression:
            compression.require()
        secure = tls.context(frontend.certfile, frontend.keyfile, http2=_http2())
        sockets = listen(frontend.address, frontend.port)
    except StartError as error:
        log.error("%s", error)
        notify.send("failed", reason=str(error))
        return ExitCode.BUSY if isinstance(error, PortInUse) else ExitCode.START
    address = url(frontend.address, sockets[0], secure=secure is not None)
    turns = _Turns(frontend.workers)

    def booted() -> None:
        if turns.last():
            log.info("listening", extra={"url": address, "workers": frontend.workers})
            notify.send("ready", url=address)

    app = Application(deployment, sockets, connect, booted, secure=secure)
    for sock in sockets:
        sock.detach()  # gunicorn opens the descriptors anew and closes them
    master = os.getpid()
    status: object = 0
    try:
        _Master(app).run()
    except SystemExit as stop:
        status = stop.code
    code = status if isinstance(status, int) else 0 if status is None else 1
    if os.getpid() != master:
        # A worker process, forked somewhere inside run(): what stands above us on the stack belongs to the master.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    if code in (Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR):
        notify.send("failed", reason="a frontend worker process could not start")
        return ExitCode.START
    return ExitCode.OK if code == 0 else ExitCode.FAILED


class _Turns:
    """Tells the last of ``count`` processes that it is the last, by bytes in a pipe: each takes one, and the last byte
    is another. A process that replaces one that died early takes a turn again, which can only make it early."""

    def __init__(self, count: int) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.write(writing, b"." * (count - 1) + b"!")
        os.close(writing)

    def last(self) -> bool:
        try:
            return os.read(self._reading, 1) == b"!"
        except BlockingIOError:
            return False
