"""For tests of a service, in three sizes: a stage, all stages in this process, the whole deployment over HTTP.

::

    from engine import testing

    def test_a_stage():
        assert testing.call(Square, [2, 3], max_batch_size=8) == [4, 9]

    def test_all_stages():
        with testing.local("stages.toml") as service:
            assert service.post({"x": 3}).json() == 9

    def test_over_http():
        with testing.running("stages.toml") as service:
            assert service.post({"x": 3}).status == 200

No test framework is needed. :func:`local` is quick and stops in a debugger; what processes bring - batches of several
requests, time limits, environments of their own, restarts - only :func:`running` has. That takes seconds to start: keep
it in a fixture of the module. It is known to be ready when it is, so no test needs to wait.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from engine.clock import Deadline
from engine.config import SNAPSHOT, Deployment, load
from engine.errors import StartError
from engine.supervisor.family import BOOTSTRAP
from engine.supervisor.rundir import LOOK_S, sleep
from stages.base import Worker
from stages.build import create
from stages.compute import as_results
from stages.local import Pipeline
from stages.stream import StreamWorker

__all__ = ["Answer", "Local", "Running", "call", "local", "made", "running"]

START_S: Final = 300.0  # for models to be loaded
STOP_S: Final = 15.0  # beyond what a deployment has to finish in
ANSWER_S: Final = 300.0  # the deployment's own time limits come first
TAIL: Final = 40  # lines of the log that a failure shows

W = TypeVar("W", bound=Worker)


# --- a stage ---------------------------------------------------------------------------------------------------------


def made(worker: type[W], *, max_batch_size: int = 1, device: str = "cpu", args: Mapping[str, Any] | None = None) -> W:
    """An object of the class as a worker process would make it: with what stands in its ``[[stage]]``, and set up.

    Raises StartError for a class that could answer no request, or whatever the class raises.
    """
    found: Any = create(
        worker, stage=worker.__name__, worker_id=1, max_batch_size=max_batch_size, device=device, args=args or {}
    )
    return found  # type: ignore[no-any-return]  # of the class that was asked for


def call(
    worker: type[Worker],
    values: Sequence[Any],
    *,
    max_batch_size: int = 1,
    device: str = "cpu",
    args: Mapping[str, Any] | None = None,
) -> list[Any]:
    """``forward`` of a new object of the class on ``values``: one by one, or with a ``max_batch_size`` in lists. The
    results in order; of a StreamWorker each is its pieces joined.

    What ``forward`` raises is raised; an exception that it returns for one value stands in its place.
    """
    values = list(values)
    one = made(worker, max_batch_size=max_batch_size, device=device, args=args)
    try:
        if isinstance(one, StreamWorker):
            return [b"".join(one.forward(value)) for value in values]
        if max_batch_size == 1:
            return [one.forward(value) for value in values]
        batches = [values[start : start + max_batch_size] for start in range(0, len(values), max_batch_size)]
        return [result for batch in batches for result in as_results(one.forward(batch), len(batch))]
    finally:
        one.teardown()


# --- a service -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a client gets. Names of headers are in small letters."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The data of each server-sent event, an error's too."""
        parts = [block.split("\n") for block in self.text.split("\n\n")]
        lines = [[line[5:].removeprefix(" ") for line in part if line.startswith("data:")] for part in parts]
        return ["\n".join(data) for data in lines if data]


class Local:
    """A deployment in this process: :func:`local`."""

    def __init__(self, deployment: Deployment, pipeline: Pipeline) -> None:
        self.deployment = deployment
        self.pipeline = pipeline

    def post(self, body: object, path: str | None = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """A request to ``path``, with ``?query`` perhaps; None: the first route. A ``body`` that is no bytes is sent as
        JSON. KeyError where there is no such route."""
        where, _, query = (path or self.deployment.routes[0].path).partition("?")
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        reply = self.pipeline.call(where, _data(body), query=query, headers=list(sent.items()))
        return Answer(reply.status, reply.body, {"content-type": reply.mime, **getattr(reply, "headers", {})})


@contextmanager
def local(file: str | os.PathLike[str] = ".") -> Iterator[Local]:
    """All stages of a deployment in this process, one worker of each, without sockets; ``file``: a ``stages.toml``, or
    its folder. Raises ConfigError, and whatever the stages raise while they load."""
    deployment = load(file)
    with Pipeline(deployment) as pipeline:
        yield Local(deployment, pipeline)


class Running:
    """A deployment that runs: :func:`running`. ``url`` is where it listens, ``pid`` its supervisor."""

    def __init__(
        self, url: str, path: str, process: subprocess.Popen[bytes], folder: Path, trusted: ssl.SSLContext | None
    ) -> None:
        self.url = url
        self._path = path
        self._process = process
        self._folder = folder
        self._trusted = trusted

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What its processes have written, and what its code has printed, so far."""
        return _written(self._folder)

    def post(self, body: object, path: str | None = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """A request to ``path``; None: the first route. A ``body`` that is no bytes is sent as JSON."""
        return self.request("POST", path or self._path, _data(body), headers)

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, None, headers)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own, past any proxy of the environment."""
        host, port = urlsplit(self.url).hostname or "", urlsplit(self.url).port
        connection: http.client.HTTPConnection
        if self._trusted is None:
            connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=ANSWER_S, context=self._trusted)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(
                response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
            )
        finally:
            connection.close()


@contextmanager
def running(
    file: str | os.PathLike[str] = ".",
    *flags: str,
    env: Mapping[str, str] | None = None,
    within_s: float = START_S,
) -> Iterator[Running]:
    """The whole deployment, as ``engine up`` runs it, on a free port of this machine alone, beside any other of its
    name; ended, in order, with the ``with`` block.

    ``flags`` of ``engine up`` besides, ``env`` over the environment. Raises StartError with the end of its log where it
    cannot start, is not ready ``within_s``, or does not stop in order; a block that fails shows that end on stderr.
    """
    deployment = load(file)
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp") as made:  # sockets need a short path
        folder = Path(made)
        where = [
            "--address",
            "127.0.0.1",
            "--port",
            "0",
            "--run-dir",
            str(folder / "run"),
            "--parent",
            str(os.getpid()),
        ]
        with (folder / "out").open("wb") as out, (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, BOOTSTRAP, "up", str(deployment.file), *where, *flags],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # a Ctrl-C is for the test, which ends it in order
            )
        try:
            url = _wait_ready(process, folder, within_s)
            yield Running(url, deployment.routes[0].path, process, folder, _trusted(folder))
        except BaseException as error:
            if not isinstance(error, StartError | GeneratorExit | KeyboardInterrupt):
                print(_tail(folder), file=sys.stderr)
            _stop(process, deployment)
            raise
        code = _stop(process, deployment)
        if code != 0:
            raise StartError(f"{deployment.engine.name} ended with exit code {code}\n{_tail(folder)}")


def _wait_ready(process: subprocess.Popen[bytes], folder: Path, within_s: float) -> str:
    """The URL that its last lines name."""
    deadline = Deadline(within_s)
    while not (found := re.search(r" is ready: (https?://\S+)", (folder / "out").read_text(errors="replace"))):
        if process.poll() is not None:
            raise StartError(f"it did not start (exit code {process.returncode})\n{_tail(folder)}")
        if deadline.passed:
            raise StartError(f"it was not ready within {within_s:g} s\n{_tail(folder)}")
        sleep(LOOK_S)
    return found[1]


def _trusted(folder: Path) -> ssl.SSLContext | None:
    """Whom to believe where it speaks TLS, as it knows by now of files, flags and variables: its own certificate and no
    other, whoever has signed it, and though it is for a name that leads elsewhere."""
    certfile = load(folder / "run" / SNAPSHOT).frontend.certfile
    if not certfile:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    made.load_verify_locations(certfile)
    return made


def _stop(process: subprocess.Popen[bytes], deployment: Deployment) -> int:
    """Its exit code; what does not end in time is killed, with all that it has started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(deployment.engine.grace + deployment.frontend.drain_delay + STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its children ask the kernel to end them with it
        return process.wait()


def _data(body: object) -> bytes:
    return bytes(body) if isinstance(body, bytes | bytearray | memoryview) else json.dumps(body).encode()


def _written(folder: Path) -> str:
    return "".join((folder / name).read_text(errors="replace") for name in ("out", "log"))


def _tail(folder: Path) -> str:
    return "\n".join(_written(folder).splitlines()[-TAIL:])
