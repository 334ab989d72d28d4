"""The short way for the plain case: POST a body to a service route over HTTP/1.1, get the result.

A connection begins here. As long as its requests are plain - a complete, well-formed head with one Content-Length on a
route that answers at once, nothing to negotiate, nothing to refuse - they are parsed, submitted and answered in place,
without an ASGI event, a task or a future. Whatever is not plain in any respect (other paths and methods, chunked
bodies, ``Expect``, HTTP/2, streams, an overloaded door, and every malformed or suspicious byte) is *handed over*:
gunicorn's connection takes the transport, with the bytes of that request from its first one, and keeps it. So this
module refuses nothing and knows no status code but what the broker answers: each rule about HTTP stays in one place,
and what is accepted here is a subset of what gunicorn's parser accepts, held by one regular expression.

Requests of a connection are answered one after the other; bytes of the next ones wait in the buffer, bounded. There are
no timers here: :class:`Sweeper` looks over all connections a few times a second.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from engine.client import Answer
from engine.clock import now
from engine.core.wire import pack_meta
from engine.errors import Unavailable
from frontend import media, requestid, timing
from frontend.resources import GRACE_S

if TYPE_CHECKING:
    from engine.config import Deployment
    from frontend.broker import BrokerClient
    from frontend.door import Door
    from frontend.metrics import FrontendMetrics

SWEEP_S: Final = 0.25  # how late a time limit may be noticed
BUFFER_MAX: Final = 256 * 1024  # bytes of pipelined requests that wait; above it the client is not read
EVENT_STREAM: Final = "text/event-stream"
HEAD_MAX: Final = 16 * 1024  # bytes of a head worth looking at here

# A request line and header fields exactly as RFC 9112 writes them, no more: single spaces, CRLF, no folding, names that
# are tokens, values without control characters. Anything else may be fine, and is gunicorn's to judge. No part can match
# the same bytes in two ways (blanks around a value are stripped later): else a hostile head could take for ever.
_HEAD: Final = re.compile(
    rb"POST (/[!-~]{0,2000}) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n){1,100})\r\n"
)
_FIELD: Final = re.compile(rb"([^:\r\n]+):([^\r\n]*)\r\n")
_LENGTH: Final = re.compile(rb"[0-9]{1,12}")

# Fields that ask for something which is done elsewhere.
_ELSEWHERE: Final = frozenset(
    {
        b"connection",  # but for keep-alive, the default
        b"content-encoding",
        b"expect",
        b"http2-settings",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-timeout",
        b"x-request-timeout-ms",
    }
)


@dataclass(frozen=True, slots=True)
class Head:
    """A plain head, understood. Equal bytes mean an equal head, so a client that repeats itself is parsed once."""

    route: int
    path: str
    length: int
    meta: bytes
    request_id: str  # the client's own; empty: draw one
    accept: bytes
    stages: tuple[str, ...]  # labels for server-timing


class Reader:
    """Turns head bytes into :class:`Head`, or None for what is not plain. One for all connections of a process."""

    def __init__(self, deployment: Deployment) -> None:
        topology = deployment.topology
        self._routes = {route.path.encode(): index for index, route in enumerate(topology.routes)}
        self._paths = [route.path for route in topology.routes]
        self._stages = [timing.labels(topology.stage_names(index)) for index in range(len(topology.routes))]
        self._limit = deployment.frontend.max_request_size
        self._elsewhere = _ELSEWHERE | ({b"accept-encoding"} if deployment.frontend.compression else frozenset())

    def read(self, head: bytes) -> Head | None:
        match = _HEAD.fullmatch(head)
        if match is None:
            return None
        path, _, query = match[1].partition(b"?")
        route = self._routes.get(path)
        if route is None or b"#" in query:
            return None
        length = -1
        accept = request_id = b""
        hosts = 0
        pairs = []
        for raw_name, raw_value in _FIELD.findall(match[2]):
            name, value = raw_name.lower(), raw_value.strip(b" \t")
            if name == b"content-length":
                if length >= 0 or not _LENGTH.fullmatch(value):
                    return None
                length = int(value)
            elif name == b"host":
                hosts += 1
            elif name == b"accept":
                accept = value
            elif name == b"x-request-id":
                request_id = value
            elif name in self._elsewhere and not (name == b"connection" and value.lower() == b"keep-alive"):
                return None
            pairs.append((name, value))
        if not 0 <= length <= self._limit or hosts != 1:
            return None
        return Head(
            route=route,
            path=self._paths[route],
            length=length,
            meta=pack_meta(query, pairs),
            request_id=requestid.choose(request_id) if request_id else "",
            accept=accept,
            stages=self._stages[route],
        )


class Shared:
    """What all connections of one process use; ``hand_over`` gives a transport and its bytes to gunicorn's side."""

    def __init__(
        self,
        deployment: Deployment,
        client: BrokerClient,
        door: Door,
        metrics: FrontendMetrics,
        hand_over: Callable[[asyncio.Transport, bytes], asyncio.Protocol],
    ) -> None:
        self.client = client
        self.door = door
        self.metrics = metrics
        self.hand_over = hand_over
        self.reader = Reader(deployment)
        self.timeout_s = deployment.frontend.timeout
        self.body_timeout_s = deployment.frontend.body_timeout
        self.header_timeout_s = deployment.frontend.header_timeout
        self.keepalive_s = deployment.frontend.keepalive
        self.connections: set[LeanConnection] = set()
        self.changed: Callable[[], None] = lambda: None  # told when a connection ends or falls idle
        self._last_stages = [route.stages[-1] for route in deployment.topology.routes]
        self._ids = count(int.from_bytes(os.urandom(4), "big"))
        self._prefix = os.urandom(12).hex()  # of this process; the rest counts
        self._date = b""
        self.tick()

    def tick(self) -> None:
        """Once a second at least: the date of the answers."""
        self._date = formatdate(usegmt=True).encode()

    def new_id(self) -> str:
        """Unique over processes and time; the kernel's randomness is asked once, not for each request."""
        return f"{self._prefix}{next(self._ids) & 0xFFFFFFFF:08x}"

    def is_plain(self, route: int) -> bool:
        """Whether a route answers at once and the door is open: streams and refusals are handled elsewhere."""
        stages = self.client.stages
        return bool(stages) and stages[self._last_stages[route]].mime != EVENT_STREAM and self.door.open

    def respond(self, head: Head, answer: Answer, request_id: str, took_s: float) -> bytes:
        """The whole answer as bytes."""
        status, body, extra = answer.status, answer.body, b""
        if status == 200:
            kind = media.content_type(answer.mime)
        else:
            status = status if 400 <= status <= 599 else 500
            kind, body = media.message(head.accept, status, str(body, "utf-8", "replace"), request_id)
            if status in (429, 503):
                extra = b"retry-after: 1\r\n"
        if answer.headers:
            extra += b"".join(
                f"{name}: {value}\r\n".encode("latin-1") for name, value in media.passable(answer.headers)
            )
        size = body.nbytes if isinstance(body, memoryview) else len(body)
        start = _start_line(status, kind)
        line = timing.header(answer.trail, head.stages, took_s)
        fields = f"content-length: {size}\r\nx-request-id: {request_id}\r\nserver-timing: {line}\r\ndate: ".encode()
        self.metrics.count(head.path, status, duration_s=took_s, request_bytes=head.length, response_bytes=size)
        return b"".join((start, fields, self._date, b"\r\n", extra, b"\r\n", body))


_starts: dict[tuple[int, str], bytes] = {}  # statuses and mime types are few; bounded all the same


def _start_line(status: int, kind: str) -> bytes:
    found = _starts.get((status, kind))
    if found is None:
        found = f"HTTP/1.1 {status} {media.title(status)}\r\nserver: stageline\r\ncontent-type: {kind}\r\n".encode(
            "latin-1"
        )
        if len(_starts) < 1000:
            _starts[status, kind] = found
    return found


class LeanConnection(asyncio.Protocol):
    """One client connection until it is handed over or ends."""

    __slots__ = (
        "_answer_by",
        "_began",
        "_buffer",
        "_head",
        "_head_bytes",
        "_id",
        "_paused",
        "_seq",
        "_shared",
        "_transport",
        "closing",
        "held",
        "since",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._transport: Any = None  # uvloop's transports have no common type with asyncio's
        self._buffer = b""
        self._head_bytes = b""
        self._head: Head | None = None
        self._seq = 0  # of the request that is being served; 0: none
        self._id = ""
        self._began = 0.0
        self._answer_by = 0.0
        self._paused = False
        self.held = 0  # bytes of a body at the door
        self.since = now()  # when the connection last changed between idle, reading and serving
        self.closing = False  # after the answer that is being waited for

    # --- coming and going --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._shared.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        shared = self._shared
        shared.connections.discard(self)
        if self._seq:
            shared.client.withdraw(self._seq)
            shared.door.pending -= 1
            shared.metrics.count(self._head.path if self._head else "", 0, reason="client_gone")
            self._seq = 0
        self._release()
        self._transport = None
        shared.changed()

    @property
    def idle(self) -> bool:
        """Nothing is read or served here."""
        return not self._seq and not self._buffer

    def end(self) -> None:
        """Close now if idle, else after the answer."""
        self.closing = True
        if self.idle and self._transport is not None:
            self._transport.close()

    def _hand_over(self, data: bytes) -> asyncio.Protocol:
        """What is here is not plain, or is not to be served here: give the connection away for good."""
        transport, self._transport = self._transport, None
        self._buffer = b""
        self._release()
        if self._paused:
            transport.resume_reading()
        self._shared.connections.discard(self)
        return self._shared.hand_over(transport, data)

    # --- requests ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._seq:  # the next request, while one is served
            self._buffer += data
            if len(self._buffer) > BUFFER_MAX and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            return
        if self._buffer:
            data = self._buffer + data
        self._serve(data)

    def eof_received(self) -> bool | None:
        if self._buffer and not self._seq:
            return self._hand_over(self._buffer).eof_received()  # in the middle of its body: it is told so
        return None  # a client that stops sending has gone: closing a socket looks just so

    def _serve(self, data: bytes) -> None:
        """Take one request from ``data``, which begins with one."""
        shared = self._shared
        size = len(self._head_bytes)
        head: Head | None
        if size and data.startswith(self._head_bytes):
            head = self._head
        else:
            size = data.find(b"\r\n\r\n") + 4
            if size < 4 or size > HEAD_MAX:
                self._hand_over(data)  # a head in pieces
                return
            bytes_of_head = data[:size]
            head = shared.reader.read(bytes_of_head)
            if head is not None:
                self._head, self._head_bytes = head, bytes_of_head
        if head is None or self.closing or not shared.is_plain(head.route):
            self._hand_over(data)
            return
        end = size + head.length
        if len(data) < end:
            if not self.held:
                if head.length > BUFFER_MAX or not shared.door.hold(head.length):
                    self._hand_over(data)  # a large upload: gunicorn's side reads it in pieces and refuses it early
                    return
                self.held = head.length or 1
                self.since = now()
            self._buffer = data
            return
        self._submit(head, data, size, end)

    def _submit(self, head: Head, data: bytes, start: int, end: int) -> None:
        shared = self._shared
        instant = now()
        request_id = head.request_id or shared.new_id()
        try:
            self._seq = shared.client.call(
                head.route,
                data[start:end],
                self._answered,
                timeout_s=shared.timeout_s,
                request_id=request_id,
                meta=head.meta,
            )
        except Unavailable:
            self._hand_over(data)  # it is refused in the words of the one table
            return
        shared.door.pending += 1
        self._id = request_id
        self._began = self.since = instant
        self._answer_by = instant + shared.timeout_s + GRACE_S
        self._buffer = data[end:]

    def _answered(self, answer: Answer | None) -> None:
        """The broker has answered; None: the client of the broker is closing."""
        shared = self._shared
        self._seq = 0
        shared.door.pending -= 1
        self._release()
        transport = self._transport
        head = self._head
        if transport is None or head is None:
            return
        instant = now()
        if answer is None:
            answer = Answer(503, b"service unavailable: shutting down")
        response = shared.respond(head, answer, self._id, instant - self._began)
        if self.closing:
            response = response.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
            transport.write(response)
            transport.close()
            return
        transport.write(response)
        self.since = instant
        if self._buffer:
            data, self._buffer = self._buffer, b""
            if self._paused:
                self._paused = False
                transport.resume_reading()
            self._serve(data)

    def _release(self) -> None:
        if self.held:
            self._shared.door.release(self._head.length if self._head else 0)
            self.held = 0

    # --- time --------------------------------------------------------------------------------------------------------

    def sweep(self, instant: float) -> None:
        """Enforce the time limits."""
        shared = self._shared
        if self._seq:
            if instant > self._answer_by:
                shared.client.withdraw(self._seq)
                self._answered(Answer(408, b"inference timeout"))
        elif self._buffer:
            if instant - self.since > shared.body_timeout_s:
                self._hand_over(self._buffer)  # it knows the answer, and has a time limit of its own
        else:
            limit = shared.keepalive_s if self._head_bytes else shared.header_timeout_s
            if instant - self.since > limit and self._transport is not None:
                self._transport.close()


class Sweeper:
    """Looks over the connections of a process a few times a second, in place of two timers per request."""

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        self._shared = shared
        self._loop = loop
        self._handle = loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._handle = self._loop.call_later(SWEEP_S, self._sweep)
        self._shared.tick()
        instant = now()
        for connection in list(self._shared.connections):
            connection.sweep(instant)

    def stop(self) -> None:
        self._handle.cancel()
