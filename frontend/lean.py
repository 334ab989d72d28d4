"""The short way for the plain case: POST a body to a service route over HTTP/1.1, get the result or a stream.

A connection begins here. As long as its requests are plain (:mod:`frontend.plain`), they are submitted and answered in
place, without an ASGI event, a task or a future. Whatever is not plain in any respect - other paths and methods,
chunked bodies, ``Expect``, HTTP/2, large uploads, and every malformed or suspicious byte - is *handed over*: gunicorn's
connection takes the transport, with the bytes of that request from its first one, and keeps it. What a head means,
whether it may come in, and what is answered is said by the same three modules as there (``head``, ``gate``,
``answer``); here it is only carried out.

Requests of a connection are answered one after the other; what comes before its turn waits in its
:mod:`~frontend.inbox`. Where all clients together send too much in advance, those that send more get ``connection:
close``. There are no timers per request: :class:`Sweeper` looks over all connections a few times a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from engine.clock import now
from engine.core import meta
from engine.core.call import Answer, Call, StreamEvent
from engine.core.liveness import ANSWER_GRACE_S
from engine.core.messages import Flow, Speaker
from engine.errors import Unavailable
from frontend import errors
from frontend.errors import Problem
from frontend.idempotency import key_of
from frontend.inbox import Inbox
from frontend.lingering import Lingering
from frontend.pace import FRESH_S, is_late
from frontend.plain import LAST_CHUNK, Plain, Reader, Writer, chunk
from frontend.requestid import Ids
from frontend.streams import GRANT, HEAD_S, KEEPALIVE_S, Stream
from frontend.waiting import hint

if TYPE_CHECKING:
    from engine.config import Deployment
    from engine.core.call import BrokerClient
    from frontend.answer import Answering
    from frontend.gate import Gate
    from frontend.metrics import FrontendMetrics

SWEEP_S: Final = 0.25  # how late a time limit may be noticed
SWEEP_MOST: Final = 200  # connections looked at in one go: about 0.1 ms
BUFFER_MAX: Final = 256 * 1024  # bytes of a body that is read here; larger ones are read elsewhere, in pieces
PIPELINED_PER_TURN: Final = 32  # requests of one connection that are refused before others have their turn
JOIN_MAX: Final = 64 * 1024  # bytes of an answer that is copied behind its head; larger ones are written beside it
HEAD_MAX: Final = 4 * 1024  # bytes of a head that is read here: each connection remembers its last one, parsed


class Shared:
    """What all connections of one process use; ``hand_over`` gives a transport and its bytes to gunicorn's side."""

    def __init__(
        self,
        deployment: Deployment,
        client: BrokerClient,
        gate: Gate,
        metrics: FrontendMetrics,
        answering: Answering,
        hand_over: Callable[[asyncio.Transport, bytes], asyncio.Protocol],
    ) -> None:
        frontend, topology = deployment.frontend, deployment.topology
        self.client = client
        self.gate = gate
        self.metrics = metrics
        self.answering = answering
        self.hand_over = hand_over
        self.reader = Reader(topology, gate.terms, compressed=frontend.compression)
        self.writer = Writer(topology, answering, compressed=frontend.compression)
        self.body_timeout_s = frontend.body_timeout
        self.header_timeout_s = frontend.header_timeout
        self.keepalive_s = frontend.keepalive
        self.head_max = min(HEAD_MAX, frontend.max_header_size)
        self.connections: set[LeanConnection] = set()
        self.lingering: set[Lingering] = set()  # connections whose last answer has been written
        self.changed: Callable[[], None] = lambda: None  # told when a connection ends or falls idle
        self.new_id = Ids()
        self._last_stages = [topology.stage_names(index)[-1] for index in range(len(topology.routes))]
        self.tick()

    def linger(self, transport: asyncio.Transport) -> None:
        """Nothing more is served on this connection: end it so that its client sees its last answer."""
        self.lingering.add(Lingering(transport, self.gate.unsent, self._lingered))
        self.changed()

    def _lingered(self, lingering: Lingering) -> None:
        self.lingering.discard(lingering)
        self.changed()

    def tick(self) -> None:
        """Once a second at least: the date of the answers."""
        self.writer.date = formatdate(usegmt=True).encode()

    def hint(self, route: int) -> Flow:
        """How the route gives its answers, as far as is known."""
        return hint(self.client, self._last_stages[route])

    def respond(self, plain: Plain, answer: Answer, request_id: str, took_s: float) -> tuple[bytes, bytes | memoryview]:
        """Head and body of the answer, counted."""
        status, size, head, body = self.writer.answer(plain, answer, request_id, took_s)
        self.metrics.count(plain.head.path, status, duration_s=took_s, request_bytes=plain.length, response_bytes=size)
        return head, body

    def refuse(self, plain: Plain, problem: Problem, *, close: bool) -> bytes:
        """A refusal as bytes, counted."""
        self.metrics.count(plain.head.path, problem.status, reason=problem.reason, request_bytes=plain.length)
        request_id = plain.head.request_id or self.new_id()
        return self.writer.reply(self.answering.problem(problem, plain.head, request_id), request_id, close=close)


class LeanConnection(asyncio.Protocol):
    """One client connection until it is handed over or ends; also who waits for the answer of its request."""

    __slots__ = (
        "_began",
        "_choked",
        "_head_bytes",
        "_id",
        "_inbox",
        "_plain",
        "_seq",
        "_shared",
        "_stream",
        "_transport",
        "closing",
        "since",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._transport: Any = None  # uvloop's transports have no common type with asyncio's
        self._inbox: Inbox  # what has come and is not served
        self._head_bytes = b""
        self._plain: Plain | None = None
        self._seq = 0  # of the request that is being served; 0: the broker owes nothing
        self._stream: _Streaming | None = None  # the answer, while it is sent in pieces
        self._id = ""
        self._began = 0.0
        self._choked = False  # the client does not read its answers
        self.since = now()  # when the connection last changed between idle, reading and serving
        self.closing = False  # after the answer that is being waited for

    # --- coming and going --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._inbox = Inbox(self._shared.gate, transport)
        self._shared.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        shared = self._shared
        shared.connections.discard(self)
        if self._seq or self._stream is not None:
            self._withdraw()
            sent = self._stream.sent if self._stream is not None else 0
            path = self._plain.head.path if self._plain else ""
            shared.metrics.count(path, 0, reason=errors.CLIENT_GONE.reason, response_bytes=sent)
            self._stream = None
        self._inbox.drop()
        if self._transport is not None:
            shared.gate.unsent.forget(self._transport)
            self._transport = None
        shared.changed()

    @property
    def idle(self) -> bool:
        """Nothing is read or served here."""
        return not self._seq and not self._inbox.data and self._stream is None

    def is_fresh(self, instant: float) -> bool:
        """So new that its first request may be on its way."""
        return not self._head_bytes and instant - self.since < FRESH_S

    def end(self) -> None:
        """Close now if idle, else after the answer."""
        self.closing = True
        if self.idle and self._transport is not None:
            self._shared.gate.unsent.close(self._transport)

    def _hand_over(self, data: bytes | bytearray) -> asyncio.Protocol:
        """What is here is not plain, or is not to be served here: give the connection away for good."""
        transport, self._transport = self._transport, None
        data = bytes(data)
        self._inbox.leave()
        self._shared.gate.unsent.forget(transport)
        self._shared.connections.discard(self)
        return self._shared.hand_over(transport, data)

    def _finish(self) -> None:
        """The last answer has been written: end the connection so that its client sees it."""
        transport, self._transport = self._transport, None
        self._inbox.leave()
        self._shared.connections.discard(self)
        self._shared.linger(transport)

    # --- requests ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._seq or self._choked or self._stream is not None:
            self._keep(data)
        elif not self._inbox.data:
            if self._serve(data):
                self._go_on()
        elif not self._inbox.wanted:
            self._keep(data)  # behind those that have their turn later
        elif not self._inbox.more(data):
            self._hand_over(self._inbox.data)  # it says so
        elif len(self._inbox.data) >= self._inbox.wanted:
            self._go_on()

    def _keep(self, data: bytes) -> None:
        """The next requests, while one is served or its answer is not read. What is dropped is the end of the
        connection: what comes behind it would be read from the middle."""
        is_owed = self._seq or self._stream is not None
        if self.closing and is_owed:
            return  # the answer says that it is the last
        if not self._inbox.add(data):
            self.closing = True
            if not is_owed:
                self._finish()

    def pause_writing(self) -> None:
        self._choked = True  # serve no more until it has read what it got
        self._shared.gate.unsent.watch(self._transport)
        self.since = now()

    def resume_writing(self) -> None:
        self._choked = False
        self.since = now()
        self._shared.gate.unsent.taken(self._transport)
        if self._stream is not None:
            self._write_stream()
        elif not self._seq:
            self._go_on()

    def eof_received(self) -> bool | None:
        if self._inbox.data and not self._seq and self._stream is None and not self._choked:
            return self._hand_over(self._inbox.data).eof_received()  # in the middle of its body: it is told so
        return None  # a client that stops sending has gone: closing a socket looks just so

    def _serve(self, data: bytes | bytearray) -> bool:
        """Take one request from ``data``, which begins with one, and is what came or the buffer. Whether it was refused
        at once, so that the next one may be taken."""
        shared = self._shared
        size = len(self._head_bytes)
        plain: Plain | None
        if size and data.startswith(self._head_bytes):
            plain = self._plain
        else:
            size = data.find(b"\r\n\r\n", 0, shared.head_max) + 4
            if size < 4:
                self._hand_over(data)  # a head in pieces
                return False
            head_bytes = bytes(data[:size])
            plain = shared.reader.read(head_bytes)
            if plain is not None:
                self._plain, self._head_bytes = plain, head_bytes
        if plain is None:
            self._hand_over(data)
            return False
        end = size + plain.length
        if len(data) < end:
            # A large upload is read in pieces on gunicorn's side, and one that has no room refused there, early.
            if plain.length > BUFFER_MAX or not self._inbox.begin(data, size, end):
                self._hand_over(data)
            self.since = now()
            return False
        if len(data) == end and type(data) is bytes:
            return self._submit(plain, data[size:])
        return self._submit(plain, self._inbox.take(data, size, end))

    def _submit(self, plain: Plain, body: bytes) -> bool:
        shared = self._shared
        gate = shared.gate
        if not gate.enter(plain.length) and (problem := gate.refusal(shared.client.view())) is not None:
            return self._refuse(plain, problem)
        request_id = plain.head.request_id or shared.new_id()
        about = meta.pack(request_id, plain.meta)
        instant = now()
        try:
            key = b"" if plain.head.idempotency_key is None else key_of(plain.head, body)
            call = Call(plain.route, body, instant + plain.timeout_s, about, self, key)
            self._seq = shared.client.call(call, instant)
        except Unavailable as error:
            gate.leave(plain.length)
            return self._refuse(plain, errors.unavailable(error))
        self._id = request_id
        self._began = instant
        return False

    def _refuse(self, plain: Plain, problem: Problem, *, last: bool = False) -> bool:
        """Answer at once. Whether the connection goes on with what has come behind."""
        close = last or self.closing or self._shared.gate.draining
        self._transport.write(self._shared.refuse(plain, problem, close=close))
        self.since = now()
        if close:
            self._finish()
        return not close

    def _go_on(self) -> None:
        """Serve what has come meanwhile: at most so much of it as others can wait for."""
        inbox = self._inbox
        for _ in range(PIPELINED_PER_TURN):
            if not inbox.data or self._choked or self._transport is None:
                return
            inbox.relax()
            if not self._serve(inbox.data):
                return
        asyncio.get_running_loop().call_soon(self._go_on_later)

    def _go_on_later(self) -> None:
        if not self._seq and self._stream is None:
            self._go_on()

    def _withdraw(self) -> None:
        if self._seq and self._plain is not None:
            self._shared.client.withdraw(self._seq)
            self._seq = 0
            self._shared.gate.leave(self._plain.length)

    # --- answers -----------------------------------------------------------------------------------------------------

    def answered(self, answer: Answer | None) -> None:
        """The broker has answered; None: the client of the broker is closing."""
        shared, plain, transport = self._shared, self._plain, self._transport
        assert plain is not None  # it has been submitted
        self._seq = 0
        shared.gate.leave(plain.length)
        if transport is None:
            return
        if answer is None:
            self._give_up(plain, errors.DRAINING)
            return
        streams = self._stream is not None or (answer.status != 200 and shared.hint(plain.route) is Flow.EVENTS)
        if streams and self._answer_stream(plain, answer):
            return
        instant = now()
        head, body = shared.respond(plain, answer, self._id, instant - self._began)
        is_last = self.closing or shared.gate.draining
        if is_last:
            head = head.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
        if len(body) < JOIN_MAX:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        if is_last:
            self._finish()
            return
        self.since = instant
        if self._inbox.data:
            self._go_on()

    def event(self, event: StreamEvent) -> None:
        """Something of an answer that is computed piece by piece."""
        plain = self._plain
        assert plain is not None  # it has been submitted
        streaming = self._stream
        if streaming is None:
            streaming = self._stream = _Streaming()
        freed = streaming.stream.event(event, self._shared.hint(plain.route))
        if freed:
            self._shared.client.consumed(self._seq, freed)
        self._write_stream()

    def _answer_stream(self, plain: Plain, answer: Answer) -> bool:
        """The end of an answer that is a stream, or would have been one; False: it is to be given whole."""
        streaming = self._stream or _Streaming()
        streaming.stream.answered(answer, self._shared.hint(plain.route))
        if streaming.stream.flow is Flow.UNKNOWN:
            self._stream = None
            return False
        self._stream = streaming
        self._write_stream()
        return True

    def _give_up(self, plain: Plain, problem: Problem) -> None:
        """The broker gives no answer: this process does. A stream that has begun ends with it."""
        if self._stream is not None and self._stream.has_begun:
            speaker = int(Speaker.DOOR)
            self._answer_stream(plain, Answer(problem.status, problem.detail.encode(), speaker=speaker))
            return
        self._stream = None
        if self._refuse(plain, problem):
            self._go_on()

    def _write_stream(self) -> None:
        """Write what there is, as far as the client takes it."""
        streaming, transport, plain = self._stream, self._transport, self._plain
        if streaming is None or transport is None or plain is None or streaming.stream.flow is Flow.UNKNOWN:
            return
        stream = streaming.stream
        if not streaming.has_begun:
            streaming.has_begun = True
            reply = self._shared.answering.stream(stream.mime)
            self.closing = self.closing or self._shared.gate.draining
            transport.write(self._shared.writer.begin(reply, self._id, close=self.closing))
        while not self._choked:
            data, cost = stream.take()
            if not data:
                break
            transport.write(chunk(data))
            streaming.sent += len(data)
            streaming.taken += cost
            streaming.wrote_at = now()
            if streaming.taken >= GRANT and self._seq:
                self._shared.client.consumed(self._seq, streaming.taken)
                streaming.taken = 0
        if stream.is_over:
            self._end_stream(plain, streaming)

    def _end_stream(self, plain: Plain, streaming: _Streaming) -> None:
        transport, shared = self._transport, self._shared
        self._stream = None
        instant = now()
        shared.metrics.count(
            plain.head.path,
            streaming.stream.status,
            duration_s=instant - self._began,
            request_bytes=plain.length,
            response_bytes=streaming.sent,
        )
        if streaming.stream.is_cut:
            shared.gate.unsent.close(transport)
            return
        transport.write(LAST_CHUNK)
        if self.closing:
            self._finish()
            return
        self.since = instant
        self._go_on()

    # --- time --------------------------------------------------------------------------------------------------------

    def sweep(self, instant: float) -> None:
        """Enforce the time limits."""
        shared = self._shared
        if self._seq or self._stream is not None:
            self._sweep_answer(instant)
        elif self._choked:
            pass  # it does not read its answer: frontend.unsent sees to it
        elif (inbox := self._inbox).data:
            late = inbox.wanted and is_late(instant - self.since, inbox.held, shared.body_timeout_s)
            if late and self._plain is not None:
                self._refuse(self._plain, errors.SLOW_BODY, last=True)
        else:
            limit = shared.keepalive_s if self._head_bytes else shared.header_timeout_s
            if instant - self.since > limit and self._transport is not None:
                shared.gate.unsent.close(self._transport)

    def _sweep_answer(self, instant: float) -> None:
        streaming, plain = self._stream, self._plain
        if self._seq and plain is not None and instant > self._began + plain.timeout_s + ANSWER_GRACE_S:
            self._withdraw()
            late = errors.TIMEOUT if self._shared.client.view().connected else errors.UNREACHABLE
            self._give_up(plain, late)
        elif self._seq and plain is not None and not self._choked:
            begun = streaming is not None and streaming.has_begun
            if begun and streaming is not None:
                quiet = streaming.stream.flow is Flow.EVENTS and instant - streaming.wrote_at > KEEPALIVE_S
            else:
                quiet = instant - self._began > HEAD_S and self._shared.hint(plain.route) is Flow.EVENTS
            if quiet:
                streaming = self._stream = streaming or _Streaming()
                streaming.stream.comment()
                self._write_stream()


class _Streaming:
    """A streamed answer and what has been written of it."""

    __slots__ = ("has_begun", "sent", "stream", "taken", "wrote_at")

    def __init__(self) -> None:
        self.stream = Stream()
        self.has_begun = False  # its head has been written
        self.sent = 0  # bytes of the body
        self.taken = 0  # bytes of the window that were written and are not reported yet
        self.wrote_at = now()


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
