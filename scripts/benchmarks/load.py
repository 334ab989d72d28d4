"""The open-loop client: sends at times fixed beforehand, whether or not answers have come. A process of its own.

A closed loop sends the next request when the last one is answered, so a slow system is asked less and its queueing is
never seen. Here latency counts from the time a request was *meant* to be sent, including what this client itself adds;
that part is reported as its lag, so that a client that cannot keep up is noticed.

Plain non-blocking sockets and one epoll: 15 to 25 us of CPU per request. asyncio and uvloop round their timers to
milliseconds, which would be a tenth of the latencies measured; select() sleeps to the microsecond, and waits here for
the epoll descriptor. One thread, standard library only::

    python -m benchmarks.load < LOAD_AS_JSON        # prints an Outcome as JSON
"""

from __future__ import annotations

import dataclasses
import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

from benchmarks.stats import arrivals, percentile

START_S: Final = 0.05  # between the connections being there and the first arrival
RECEIVE: Final = 65536


@dataclass(frozen=True)
class Load:
    """What to send, where, and how fast. Kinds of requests take turns; so do connections, so that all stay in use."""

    port: int
    body: str
    rate: float  # requests per second
    seconds: float
    connections: int
    seed: int
    paths: Sequence[str] = ("/inference",)
    heads: Sequence[str] = ("",)  # more lines of it; each path with each of these is a kind
    timeout_s: float = 10.0  # after the last arrival, for answers still missing
    goodput_ms: float = 100.0


@dataclass(frozen=True)
class Outcome:
    """What became of it. Latencies in milliseconds, None where nothing was answered so."""

    sent: int
    ok: int
    good: int  # 200 within goodput_ms of the intended time
    refused: int  # 429 and 503
    failed: int  # anything else, connections cut, and requests never answered
    p50_ms: float | None
    p99_ms: float | None
    refused_p99_ms: float | None
    lag_p50_ms: float | None
    lag_p99_ms: float | None
    waited: int  # requests for which no connection was free: a sign of too few connections
    seconds: float


def parse(data: bytes) -> tuple[int, int] | None:
    """Status and length of the response that ``data`` begins with, or None while it is incomplete.

    Raises ValueError for what is no HTTP/1.1 response with a Content-Length.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if not head.startswith(b"http/1.1 ") or at < 0:
        raise ValueError(f"a response without content-length: {head!r}")
    length = int(head[at + 17 :].partition(b"\r\n")[0])
    size = end + 4 + length
    return (int(head[9:12]), size) if len(data) >= size else None


@dataclass
class Tally:
    """Latencies in seconds by what became of the request."""

    ok: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: int = 0
    lags: list[float] = field(default_factory=list)
    waited: int = 0

    def add(self, status: int, latency_s: float) -> None:
        if status == 200:
            self.ok.append(latency_s)
        elif status in (429, 503):
            self.refused.append(latency_s)
        else:
            self.failed += 1

    def outcome(self, load: Load, sent: int) -> Outcome:
        return Outcome(
            sent=sent,
            ok=len(self.ok),
            good=sum(latency * 1000 <= load.goodput_ms for latency in self.ok),
            refused=len(self.refused),
            failed=sent - len(self.ok) - len(self.refused),
            p50_ms=_ms(self.ok, 50),
            p99_ms=_ms(self.ok, 99),
            refused_p99_ms=_ms(self.refused, 99),
            lag_p50_ms=_ms(self.lags, 50),
            lag_p99_ms=_ms(self.lags, 99),
            waited=self.waited,
            seconds=load.seconds,
        )


def _ms(samples: Sequence[float], q: float) -> float | None:
    return percentile(samples, q) * 1000 if samples else None


class Client:
    """The connections and what is under way on them."""

    def __init__(self, load: Load, due: Sequence[float] = ()) -> None:
        """``due``: when to send, in seconds from the start and in order; by default as often as the load says."""
        self._epoll = select.epoll()  # made first: select() below takes descriptors under 1024 only
        self._load = load
        self._due = list(due) or arrivals(load.rate, load.seconds, load.seed)  # by number; instants once it has begun
        self._coming: list[tuple[float, int]] = []  # a heap
        self._requests = [request(path, load.body, head) for path in load.paths for head in load.heads]
        self._sockets: dict[int, socket.socket] = {}
        self._free: deque[int] = deque()
        self._buffers: dict[int, bytes] = {}
        self._serving: dict[int, int] = {}  # descriptor -> number of the request
        self._waiting: deque[int] = deque()
        self._tally = Tally()

    def run(self) -> Outcome:
        """Open the connections, send all, wait for the answers, close."""
        try:
            for _ in range(self._load.connections):
                self._open()
            return self._send_all()
        finally:
            for connection in self._sockets.values():
                connection.close()
            self._epoll.close()

    def _open(self) -> None:
        connection = socket.create_connection(("127.0.0.1", self._load.port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        descriptor = connection.fileno()
        self._sockets[descriptor] = connection
        self._buffers[descriptor] = b""
        self._epoll.register(descriptor, select.EPOLLIN)
        self._free.append(descriptor)

    def _send_all(self) -> Outcome:
        load, coming = self._load, self._coming
        start = time.monotonic() + START_S
        self._due = [start + at for at in self._due]
        coming.extend((at, number) for number, at in enumerate(self._due))  # in order: a heap
        give_up = start + load.seconds + load.timeout_s
        while (instant := time.monotonic()) < give_up:
            while coming and coming[0][0] <= instant:
                at, number = heappop(coming)
                if self._free:
                    self._send(self._free.popleft(), number)
                    self._tally.lags.append(time.monotonic() - at)
                else:
                    self._tally.waited += 1
                    self._waiting.append(number)
            if not coming and not self._serving and not self._waiting:
                break
            until = coming[0][0] if coming else give_up
            select.select([self._epoll], [], [], max(until - time.monotonic(), 0))
            for descriptor, _ in self._epoll.poll(0):
                self._receive(descriptor)
        return self._tally.outcome(load, len(self._due))

    def _answered(self, number: int, status: int, instant: float) -> None:
        """An answer has come."""
        self._tally.add(status, instant - self._due[number])

    def _kind(self, number: int) -> int:
        """Which of the requests this one is."""
        return number % len(self._requests)

    def _ask_at(self, at: float) -> int:
        """Send one more, at that instant; its number."""
        number = len(self._due)
        self._due.append(at)
        heappush(self._coming, (at, number))
        return number

    def _send(self, descriptor: int, number: int) -> None:
        data = self._requests[self._kind(number)]
        self._serving[descriptor] = number
        try:
            if self._sockets[descriptor].send(data) != len(data):
                raise RuntimeError("a small request did not fit into an empty socket buffer")
        except (BrokenPipeError, ConnectionResetError):
            self._replace(descriptor)

    def _receive(self, descriptor: int) -> None:
        try:
            data = self._sockets[descriptor].recv(RECEIVE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._replace(descriptor)
            return
        data = self._buffers[descriptor] + data
        found = parse(data)
        if found is None:
            self._buffers[descriptor] = data
            return
        status, size = found
        number = self._serving.pop(descriptor, None)
        if number is None or len(data) != size:
            raise RuntimeError("an answer that nobody asked for")
        self._buffers[descriptor] = b""
        self._answered(number, status, time.monotonic())
        if self._waiting:
            self._send(descriptor, self._waiting.popleft())
        else:
            self._free.append(descriptor)

    def _replace(self, descriptor: int) -> None:
        """The server closed a connection: what was under way on it has failed, and another takes its place."""
        if self._serving.pop(descriptor, None) is not None:
            self._tally.failed += 1
        else:
            self._free.remove(descriptor)
        self._epoll.unregister(descriptor)
        self._sockets.pop(descriptor).close()
        self._open()
        if self._waiting:
            self._send(self._free.popleft(), self._waiting.popleft())


def request(path: str, body: str, fields: str = "") -> bytes:
    """One POST of JSON. ``fields``: more lines of its head, each with its end."""
    data = body.encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return f"{head}\r\n{fields}\r\n".encode() + data


def main() -> None:
    """Read a load from standard input, offer it, print what became of it."""
    told: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps(dataclasses.asdict(Client(Load(**told)).run())))


if __name__ == "__main__":
    main()
