"""A frontend in a process of its own, and raw connections to it: what the tests over real TCP are written with."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROGRAM = Path(__file__).parent / "serve_fake.py"
ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 20.0


class Lines:
    """JSON lines from a pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self.seen: list[dict[str, Any]] = []

    def wait(self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The first line, seen already or still to come, that is wanted. Each is given out once."""
        end = time.monotonic() + timeout_s
        while True:
            for line in self.seen:
                if wanted(line):
                    self.seen.remove(line)
                    return line
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._fd, 65536) if ready else b""
            assert data, f"no such line; seen: {self.seen}"
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.seen.extend(json.loads(line) for line in lines)

    def rest(self) -> list[dict[str, Any]]:
        """All that was not given out, once whoever writes has ended."""
        while data := os.read(self._fd, 65536):
            self._rest += data
        return [*self.seen, *map(json.loads, self._rest.split(b"\n")[:-1])]

    def what(self, what: str, **more: Any) -> dict[str, Any]:
        return self.wait(lambda line: line["what"] == what and more.items() <= line.items())


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    status: Lines
    events: Lines
    log: Path
    url: str = ""
    pids: list[int] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def connect(self) -> Raw:
        return Raw(socket.create_connection(self.address, timeout=PATIENCE_S))

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def text(self) -> str:
        return self.log.read_text()


@contextmanager
def frontend(folder: Path, **options: Any) -> Iterator[Running]:
    """A frontend that listens; ``options`` are keys of [frontend], and ``grace``."""
    with launched(folder, **options) as running:
        running.url = running.status.wait(lambda line: line["event"] == "ready")["url"]
        yield running


@contextmanager
def launched(folder: Path, **options: Any) -> Iterator[Running]:
    """The same, started and not waited for."""
    status, status_end = os.pipe()
    events, events_end = os.pipe()
    log = folder / "frontend.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(status_end), str(events_end), json.dumps(options)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(status_end, events_end),
            start_new_session=True,
        )
    os.close(status_end)
    os.close(events_end)
    running = Running(process, Lines(status), Lines(events), log)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()  # its worker processes die with it
            process.wait(PATIENCE_S)
        # The write ends close with the last worker process.
        while select.select([events], [], [], PATIENCE_S)[0] and os.read(events, 65536):
            pass
        os.close(status)
        os.close(events)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


class Raw:
    """A TCP connection that speaks exactly the bytes it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> Raw:
        self.sock.sendall(data)
        return self

    def half_close(self) -> Raw:
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def reply(self) -> Reply:
        """The next HTTP/1.1 answer, framed by its Content-Length. ConnectionError when there is none."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert len(headers) == len(lines), f"a header twice in {lines}"
        length = int(headers["content-length"])
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Reply(int(first.split()[1]), headers, body)

    def at_end(self) -> bool:
        """Wait for the other side to close; False when it sends something more."""
        try:
            self._more()
        except ConnectionError:
            return not self._buffer
        return False

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError(f"closed after {self._buffer!r}")
        self._buffer += data


def post(body: bytes, *headers: str, path: str = "/inference", length: int | None = None) -> bytes:
    """The bytes of a POST."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: test",
        f"content-length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def wait_until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Look again and again until it holds, with a cap."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
