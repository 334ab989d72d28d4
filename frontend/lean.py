"""The short way for the plain case: POST a body to a service route over HTTP/1.1, get the result.

A connection begins here. As long as its requests are plain (:mod:`frontend.plain`) and their route answers at once,
they are submitted and answered in place, without an ASGI event, a task or a future. Whatever is not plain in any
respect - other paths and methods, chunked bodies, ``Expect``, HTTP/2, streams, large uploads, and every malformed or
suspicious byte - is *handed over*: gunicorn's connection takes the transport, with the bytes of that request from its
first one, and keeps it. So each rule about HTTP stays in one place; refused here are only requests that came whole,
at the door.

Requests of a connection are answered one after the other; bytes of the next ones wait in the buffer, bounded. There are
no timers per request: :class:`Sweeper` looks over all connections a few times a second.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from email.utils import formatdate
from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from engine.client import Answer
from engine.clock import now
from engine.core.messages import Flow
from engine.errors import Unavailable
from frontend import errors
from frontend.errors import Problem
from frontend.plain import Head, Reader, Writer
from frontend.resources import GRACE_S

if TYPE_CHECKING:
    from engine.config import Deployment
    from frontend.broker import BrokerClient
    from frontend.door import Door
    from frontend.metrics import FrontendMetrics

SWEEP_S: Final = 0.25  # how late a time limit may be noticed
SWEEP_MOST: Final = 200  # connections looked at in one go: about 0.1 ms
BUFFER_MAX: Final = 256 * 1024  # bytes of pipelined requests that wait; above it the client is not read
HEAD_MAX: Final = 16 * 1024  # bytes of a head worth looking at here


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
        self._writer = Writer(deployment.topology, varies=deployment.frontend.compression)
        self.tick()

    def tick(self) -> None:
        """Once a second at least: the date of the answers."""
        self._writer.date = formatdate(usegmt=True).encode()

    def new_id(self) -> str:
        """Unique over processes and time; the kernel's randomness is asked once, not for each request."""
        return f"{self._prefix}{next(self._ids) & 0xFFFFFFFF:08x}"

    def is_plain(self, route: int) -> bool:
        """Whether a route answers at once: streams are sent elsewhere."""
        stages = self.client.stages
        return bool(stages) and stages[self._last_stages[route]].flow == Flow.WHOLE

    def respond(self, head: Head, answer: Answer, request_id: str, took_s: float) -> bytes:
        """The whole answer as bytes, counted."""
        status, size, data = self._writer.answer(head, answer, request_id, took_s)
        self.metrics.count(head.path, status, duration_s=took_s, request_bytes=head.length, response_bytes=size)
        return data

    def refuse(self, head: Head, problem: Problem, *, close: bool) -> bytes:
        """A refusal as bytes, counted."""
        self.metrics.count(head.path, problem.status, reason=problem.reason, request_bytes=head.length)
        return self._writer.problem(head, problem, head.request_id or self.new_id(), close=close)


class LeanConnection(asyncio.Protocol):
    """One client connection until it is handed over or ends."""

    __slots__ = (
        "_answer_by",
        "_began",
        "_buffer",
        "_choked",
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
        self._paused = False  # reading, because too much waits to be served
        self._choked = False  # the client does not read its answers
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
        if self._seq or self._choked:  # the next request, while one is served
            self._buffer += data
            if len(self._buffer) > BUFFER_MAX and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            return
        if self._buffer:
            data = self._buffer + data
        self._serve(data)

    def pause_writing(self) -> None:
        self._choked = True  # serve no more until it has read what it got

    def resume_writing(self) -> None:
        self._choked = False
        if not self._seq:
            self._go_on()

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
        if head is None or not shared.is_plain(head.route):
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
        if not shared.door.open and (problem := shared.door.check(shared.client.view())) is not None:
            self._refuse(head, problem, data[end:])
            return
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
        except Unavailable as error:
            self._refuse(head, errors.unavailable(error), data[end:])
            return
        shared.door.pending += 1
        self._id = request_id
        self._began = self.since = instant
        self._answer_by = instant + shared.timeout_s + GRACE_S
        self._buffer = data[end:]

    def _refuse(self, head: Head, problem: Problem, rest: bytes) -> None:
        """Answer at once, and go on with what has come behind."""
        self._release()
        close = self.closing or self._shared.door.draining
        self._transport.write(self._shared.refuse(head, problem, close=close))
        self.since = now()
        self._buffer = rest
        if close:
            self._transport.close()
        else:
            self._go_on()

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
        self._go_on()

    def _go_on(self) -> None:
        """Serve what has come meanwhile."""
        if not self._buffer or self._choked or self._transport is None:
            return
        data, self._buffer = self._buffer, b""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
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
    """Looks over the connections of a process a few times a second, in place of two timers per request.

    A round visits all of them in SWEEP_S, so few at a time that no request notices, however many there are.
    """

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        self._shared = shared
        self._loop = loop
        self._left: list[LeanConnection] = []  # of this round
        self._pause_s = SWEEP_S
        self._handle = loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        known = self._shared.connections
        if not self._left:
            self._shared.tick()
            self._left = list(known)
            self._pause_s = SWEEP_S / max(1, ceil(len(known) / SWEEP_MOST))
        self._handle = self._loop.call_later(self._pause_s, self._sweep)
        instant = now()
        portion = self._left[-SWEEP_MOST:]
        del self._left[-SWEEP_MOST:]
        for connection in portion:
            if connection in known:  # still
                connection.sweep(instant)

    def stop(self) -> None:
        self._handle.cancel()
