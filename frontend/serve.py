"""The frontend process: :func:`serve`.

It listens, and lets the server in :mod:`frontend.serving` run the application in as many worker processes as asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine import descriptors
from engine.config.schema import Deployment
from engine.core.call import BrokerClient
from engine.errors import StartError
from engine.exitcodes import ExitCode
from engine.log import get_logger
from engine.metrics import Family
from engine.process import Notifier, counted, stay_around
from frontend import compression, tls
from frontend.listening import PortInUse, listen, url, where
from frontend.serving import names
from frontend.serving.options import has_http2

if TYPE_CHECKING:
    from frontend.serving.application import Connect

log = get_logger("stageline.frontend")


def connect(deployment: Deployment, name: str, families: Callable[[], list[Family]], url: str) -> BrokerClient:
    """The client of real brokers, not started. Imported here: only worker processes need ZeroMQ."""
    from engine.cells import client_of

    return client_of(deployment, name, families, url)


def serve(
    deployment: Deployment,
    notify: Notifier,
    *,
    connect: Connect = connect,
    reread: Callable[[], Deployment] | None = None,
) -> int:
    """Run the frontend until it is told to stop; gives the exit code.

    SIGTERM and SIGINT drain for at most ``engine.grace``; SIGHUP has the worker processes replaced by ones that serve
    the deployment that ``reread`` gives. Sends "ready" with the service's ``url`` when all worker
    processes listen, "failed" with a reason when it cannot start. Call it in the main thread, once in a process.
    """
    try:
        code = _serve(deployment, notify, connect, reread)
    except StartError as error:
        if not notify.send("failed", reason=str(error)):  # else the supervisor tells it
            log.error("%s", error)
        return ExitCode.BUSY if isinstance(error, PortInUse) else ExitCode.START
    return ExitCode.OK if code == 0 else ExitCode.FAILED


def _serve(deployment: Deployment, notify: Notifier, connect: Connect, reread: Callable[[], Deployment] | None) -> int:
    descriptors.allow_many()
    stay_around()
    names.check()
    from frontend.serving import application, master  # only now: what is missing would be an ImportError of theirs

    deployment = counted(deployment)
    frontend = deployment.frontend
    if frontend.compression:
        compression.require()
    secure = tls.context(frontend.certfile, frontend.keyfile, http2=has_http2())
    sockets = listen(frontend.address, frontend.port)
    address = url(frontend.address, sockets[0], secure=secure is not None)
    at = where(frontend.address, sockets)
    turns = _Turns(frontend.processes)

    def booted() -> None:
        if turns.last():
            log.info("listening", extra={"url": address, "on": at, "workers": frontend.processes})
            notify.send("ready", url=address, on=at)

    app = application.Application(
        deployment, sockets, connect, booted, url=address, secure=secure, reread=reread, tell=notify.send
    )
    for sock in sockets:
        sock.detach()  # gunicorn opens the descriptors anew and closes them
    return master.run(app)


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
