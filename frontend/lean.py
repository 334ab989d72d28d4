"""The short way for the plain case: POST a body to a service route over HTTP/1, get the result or a stream.

A connection begins here. As long as its requests are plain (:mod:`frontend.plain`), they are submitted and answered in
place, without an ASGI event, a task or a future. Whatever is not plain in any respect - other paths and methods,
HTTP/2, bodies in many chunks or codings that take long to undo, heads in pieces, and every malformed or suspicious
byte - is *handed over*: gunicorn's connection takes the transport, with the bytes of that request from its first one,
and keeps it. What a head means, whether it may come in, and what is answered is said by the same three modules as there
(``head``, ``gate``, ``answer``); here it is only carried out.

Requests of a connection are answered one after the other; what comes before its turn waits in its
:mod:`~frontend.inbox`. Where all clients together send too much in advance, those that send more get ``connection:
close``. There are no timers per request: :mod:`frontend.sweeper` looks over all connections a few times a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from engine.clock import now
from engine.core import meta
from engine.core.call import Answer, Call, StreamEvent
from engine.core.liveness import ANSWER_GRACE_S
from engine.core.messages import Flow, Speaker
from engine.errors import Unavailable
from frontend import asking, chunked, compression, errors, unpacking
from frontend.accesslog import peer
from frontend.answer import Reply
from frontend.errors import Problem, Refusal
from frontend.gate import BEHIND_ALL
from frontend.idempotency import INLINE_MAX as DIGEST_MAX
from frontend.idempotency import key_of
from frontend.inbox import Inbox
from frontend.pace import FRESH_S, is_late
from frontend.plain import More, Plain
from frontend.shapes import Shape
from frontend.streams import GRANT, HEAD_S, KEEPALIVE_S, Stream
from frontend.timing import header as server_timing
from frontend.writer import connection_of

if TYPE_CHECKING:
    from frontend.accepting import Bare
    from frontend.apikeys import Key
    from frontend.shared import Shared
    from frontend.tracing import Trace

PIPELINED_PER_TURN: Final = 32  # requests of one connection that are refused before others have their turn
JOIN_MAX: Final = 64 * 1024  # bytes of an answer that is copied behind its head; larger ones are written beside it
EARLY_MAX: Final = 2048  # bytes of a request that is not whole, for which there is no transport yet
MOST: Final = 16 * 1024  # bytes of a request that is waited for without one
BARE_S: Final = 0.2  # so long a connection has none, by which it would be known that its client has gone
GO_ON: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class LeanConnection(asyncio.Protocol):
    """One client connection until it is handed over or ends; also who waits for the answer of its request."""

    __slots__ = (
        "_bare",
        "_began",
        "_came",
        "_choked",
        "_first",
        "_head_bytes",
        "_id",
        "_inbox",
        "_key",
        "_plain",
        "_seq",
        "_serving",
        "_shape",
        "_shared",
        "_size",
        "_stream",
        "_trace",
        "_transport",
        "closing",
        "since",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._transport: Any = None  # uvloop's transports have no common type with asyncio's
        self._bare: Bare | None = None  # that, while there is none
        self._first = b""  # what came meanwhile
        self._inbox: Inbox  # what has come and is not served
        self._head_bytes = b""
        self._plain: Plain | None = None
        self._shape: Shape | None = None  # of that
        self._serving = False  # a request has been submitted, and the end of its answer has not been written
        self._seq = 0  # of that; 0: the broker owes nothing
        self._came = 0  # bytes of its body as it came
        self._size = 0  # and as they are counted at the gate, while the broker owes something
        self._stream: _Streaming | None = None  # the answer, while it is sent in pieces
        self._id = ""
        self._key: Key | None = None  # the API key by which it came in
        self._trace: Trace | None = None  # of the request that is served, if it is sampled
        self._began = 0.0
        self._choked = False  # the client does not read its answers
        self.since = now()  # when the connection last changed between idle, reading and serving
        self.closing = False  # after the answer that is being waited for

    # --- coming and going --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._inbox = Inbox(self._shared.gate, transport)
        self._shared.connections.add(self)
        if self._bare is not None:
            self._settle(transport, self._bare)
        elif self._shared.is_tls:
            session = self._transport.get_extra_info("ssl_object")
            if session is not None and session.selected_alpn_protocol() == "h2":
                self._hand_over(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        shared = self._shared
        shared.connections.discard(self)
        if self._serving:
            self._serving = False
            self._withdraw()
            sent = self._stream.sent if self._stream is not None else 0
            path = self._plain.head.path if self._plain else ""
            shared.metrics.count(path, 0, reason=errors.CLIENT_GONE.reason, response_bytes=sent)
            self._end_trace(0, errors.CLIENT_GONE.reason)
            if shared.access is not None:
                self._tell(errors.CLIENT_GONE.status, sent, now() - self._began, reason=errors.CLIENT_GONE.reason)
            self._stream = None
        self._inbox.drop()
        if self._transport is not None:
            shared.gate.unsent.forget(self._transport)
            self._transport = self._bare = None
        shared.changed()

    @property
    def idle(self) -> bool:
        """Nothing is read or served here."""
        return not self._serving and not self._inbox.data and not self._first

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
        bare = self._bare
        if bare is None:
            self._inbox.leave()
            self._shared.connections.discard(self)
            self._shared.linger(transport)
        elif not bare.is_adopted and bare.finish():
            self._bare = None  # which refers to this as well
            self._shared.connections.discard(self)
            self._shared.changed()
        else:
            bare.is_over = True
            bare.adopt()

    # --- without a transport (frontend.accepting) --------------------------------------------------------------------

    def arrive(self, bare: Bare) -> None:
        """It begins without one."""
        self._bare = self._transport = bare
        self._inbox = self._shared.empty
        self._shared.connections.add(self)

    def come(self, data: bytes, bare: Bare) -> bool:
        """Serve the first request, if it asks for nothing but an answer; else, and with the next one, it takes a
        transport. False: not all of it is here."""
        shared = self._shared
        if self._first:
            data = self._first + data
        size = data.find(b"\r\n\r\n", 0, shared.head_max) + 4
        waits = len(data) <= EARLY_MAX
        if self._head_bytes:
            waits = False
        elif size >= 4:
            plain, self._shape = shared.reader.like(data[:size], None)
            if plain is not None and (plain.more is None or plain.more.is_easy):
                end = size + plain.length
                if len(data) == end:
                    self._visit(plain, data, size)
                    return True
                waits = waits and len(data) < end <= MOST
            else:
                waits = False
        self._first = data
        if not waits:
            bare.adopt()
        return not waits

    def _visit(self, plain: Plain, data: bytes, size: int) -> None:
        self._plain, self._head_bytes, self._first = plain, data[:size], b""
        more = plain.more
        if more is not None and more.is_last:
            self.closing = True
        if more is not None and more.page:
            self._show(plain, more)
        else:
            self._submit(plain, data[size:], plain.length)

    def _settle(self, transport: Any, bare: Bare) -> None:
        """It has one now."""
        self._bare = None
        for data in bare.written:
            transport.write(data)
        if bare.is_aborted:
            transport.abort()
        elif bare.is_over:
            self._finish()
        elif self._first:
            asyncio.get_running_loop().call_soon(self._begin)  # until this is over, reading cannot be stopped

    def _begin(self) -> None:
        """Serve what came before there was a transport."""
        if self._first and self._transport is not None:
            self.data_received(b"")

    # --- requests ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._first:
            data, self._first = self._first + data, b""
        if self._serving or self._choked:
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
        if self.closing and self._serving:
            return  # the answer says that it is the last
        if not self._inbox.add(data):
            self.closing = True
            if not self._serving:
                self._finish()

    def _bound_behind(self) -> None:
        """The same of what came in one piece with a request that is served now."""
        if self._inbox.data and self._shared.gate.behind > BEHIND_ALL:
            self._inbox.drop()
            self.closing = True

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
        elif not self._serving:
            self._go_on()

    def eof_received(self) -> bool | None:
        if self._first:
            transport = self._transport
            self._begin()
            if (other := transport.get_protocol()) is not self:  # it has been handed over
                return bool(other.eof_received())
        if self._inbox.data and not self._serving and not self._choked:
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
            plain, self._shape = shared.reader.like(head_bytes, self._shape)
            if plain is not None:
                self._plain, self._head_bytes = plain, head_bytes
        if plain is None:
            self._hand_over(data)
            return False
        if plain.more is not None:
            return self._serve_more(plain, plain.more, data, size)
        end = size + plain.length
        if len(data) < end:
            self._await(plain, data, size, end)
            return False
        if len(data) == end and type(data) is bytes:
            return self._submit(plain, data[size:], plain.length)
        body = self._inbox.take(data, size, end)
        self._bound_behind()
        return self._submit(plain, body, plain.length)

    def _serve_more(self, plain: Plain, more: More, data: bytes | bytearray, size: int) -> bool:
        """The same, where more is asked for than an answer; ``size`` is that of its head. What of that is not easily
        done is handed over."""
        slow = (more.coding and plain.length > unpacking.INLINE_IN) or (more.digests and plain.length > DIGEST_MAX)
        if slow or (more.model and asking.is_long(plain.head, plain.length)):
            self._hand_over(data)  # what takes long is done in threads there
            return False
        end = size + plain.length
        pieces, is_whole = [(size, end)], len(data) >= end
        if more.is_chunked:
            try:
                pieces, end, is_whole = chunked.read(data, size)
            except chunked.Odd:
                self._hand_over(data)
                return False
        if not is_whole:
            self._await(plain, data, size, end)
            return False
        with memoryview(data) as view:
            raw = b"".join([view[begin:stop] for begin, stop in pieces])
        most = self._shared.gate.max_request_size
        body = unpacking.at_once(more.coding, raw, most) if more.coding else raw
        is_long = body is not None and more.model and asking.is_long(plain.head, len(body))  # in chunks, or a coding
        if body is None or is_long or len(raw) > most or (more.digests and len(body) > DIGEST_MAX):
            self._hand_over(data)  # the same, and the client is told there what is wrong
            return False
        self._inbox.take(data, end, end)
        self._bound_behind()
        if more.is_last:
            self.closing = True
        if more.page:
            return self._show(plain, more)
        return self._submit(plain, body, len(raw))

    def _await(self, plain: Plain, data: bytes | bytearray, size: int, end: int) -> None:
        """The rest of a body has to come, up to ``end`` at least."""
        inbox, more = self._inbox, plain.more
        is_new = not inbox.wanted
        if end - size > self._shared.most_bytes:
            self._hand_over(data)
            return
        asks = is_new and more is not None and more.expects
        is_refused = asks and self._shared.gate.refusal(self._shared.client.view()) is not None
        if is_new and (keys := self._shared.gate.keys) is not None and keys.refusal(plain.head.token) is not None:
            is_refused = True  # a key that was good when this head came first
        if is_refused or not inbox.begin(data, size, end):
            self._hand_over(data)  # it says so before the body comes
            return
        if is_new:
            self.since = now()
        if asks and len(data) == size:
            self._transport.write(GO_ON)

    def _show(self, plain: Plain, more: More) -> bool:
        """A health page."""
        shared = self._shared
        reply, request_id = shared.pages[more.page](), plain.head.request_id or shared.new_id()
        close = self.closing or shared.gate.is_closing
        write = shared.writer.look if more.is_look else shared.writer.reply
        self._transport.write(shared.said(plain, write(reply, request_id, connection=connection_of(more, close=close))))
        self.since = now()
        if close:
            self._finish()
        elif self._bare is not None:
            self._bare.flush()
        return not close

    def _submit(self, plain: Plain, body: bytes | memoryview, came: int) -> bool:
        shared = self._shared
        gate = shared.gate
        size = len(body)
        self._came = came
        request_id = plain.head.request_id or shared.new_id()
        instant = now()
        told = plain.meta
        if shared.traces is not None and (trace := shared.traces.begin(plain.head, instant, request_id)) is not None:
            self._trace = trace
            told = meta.traced(told, trace.told)
        if gate.keys is not None:
            try:
                self._key = gate.keys.enter(plain.head.token, instant)
            except Refusal as refusal:
                return self._refuse(plain, refusal.problem, request_id)
        if not gate.enter(size) and (problem := gate.refusal(shared.client.view())) is not None:
            self._leave_key()
            return self._refuse(plain, problem, request_id)
        timeout_s, qos = plain.timeout_s, plain.qos
        if plain.more is not None and plain.more.model:
            try:
                asked, wants = asking.read(plain.more.model, plain.head, body)
            except Refusal as refusal:
                gate.leave(size)
                return self._refuse(plain, refusal.problem, request_id)
            told = meta.asking(told, asked)
            timeout_s, qos = asking.within(wants, timeout_s), asking.standing(wants, qos)
        about = meta.pack(request_id, told)
        try:
            key = b"" if plain.head.idempotency_key is None else key_of(plain.head, body)
            memo = gate.memos.of(plain.route, plain.head.query, plain.head.fields, body) if gate.memos.any else b""
            call = Call(plain.route, body, instant + timeout_s, about, self, key, qos, memo)
            self._seq = shared.client.call(call, instant)
        except Unavailable as error:
            gate.leave(size)
            self._leave_key()
            return self._refuse(plain, errors.unavailable(error), request_id)
        self._serving = True
        self._size = size
        self._id = request_id
        self._began = instant
        return False

    def _refuse(self, plain: Plain, problem: Problem, request_id: str = "", *, last: bool = False) -> bool:
        """Answer at once. Whether the connection goes on with what has come behind."""
        close = last or self.closing or self._shared.gate.is_closing
        instant = now()
        # It was served in vain, or its body did not come; or it is refused as soon as it is here.
        took_s = instant - self._began if self._serving else instant - self.since if last else 0.0
        self._serving = False
        request_id = request_id or plain.head.request_id or self._shared.new_id()
        written = self._shared.refuse(plain, problem, request_id, self._came, close=close)
        self._transport.write(written)
        if self._trace is not None:
            self._end_trace(problem.status, problem.reason)
        if self._shared.access is not None:
            self._id, sent = request_id, len(written) - written.find(b"\r\n\r\n") - 4
            self._tell(problem.status, sent, took_s, reason=problem.reason)
        self.since = now()
        if close:
            self._finish()
        elif self._bare is not None:
            self._bare.flush()
        return not close

    def _go_on(self) -> None:
        """Serve what has come meanwhile: at most so much of it as others can wait for."""
        inbox = self._inbox
        for _ in range(PIPELINED_PER_TURN):
            if not inbox.data or self._choked or self._transport is None:
                return
            if not self._serve(inbox.data):
                return
        asyncio.get_running_loop().call_soon(self._go_on_later)

    def _go_on_later(self) -> None:
        if not self._serving:
            self._go_on()

    def _withdraw(self) -> None:
        if self._seq:
            self._shared.client.withdraw(self._seq)
            self._seq = 0
            self._shared.gate.leave(self._size)
            self._leave_key()

    def _leave_key(self) -> None:
        """The request that came in by it is over."""
        key, self._key = self._key, None
        if key is not None and (keys := self._shared.gate.keys) is not None:
            keys.leave(key)

    # --- answers -----------------------------------------------------------------------------------------------------

    def answered(self, answer: Answer | None) -> None:
        """The broker has answered; None: the client of the broker is closing."""
        shared, plain, transport = self._shared, self._plain, self._transport
        assert plain is not None  # it has been submitted
        self._seq = 0
        shared.gate.leave(self._size)
        if self._key is not None:
            self._leave_key()
        if transport is None:
            return
        if answer is None:
            self._give_up(plain, errors.DRAINING)
            return
        streams = self._stream is not None or (answer.status != 200 and shared.hint(plain.route) is Flow.EVENTS)
        if streams and self._answer_stream(plain, answer):
            return
        instant = now()
        more = plain.more
        if more is not None and more.packing:
            self._pack(plain, more, answer, instant)
            return
        trace = self._trace
        is_last = self.closing or shared.gate.is_closing
        said = connection_of(more, close=is_last) if is_last or more is not None else ""
        head, body = shared.respond(plain, answer, self._id, instant - self._began, self._came, trace, said)
        if trace is not None:
            head = head.replace(b"\r\n", b"\r\nserver-timing: %b\r\n" % trace.timing.encode(), 1)
            self._end_trace(int(head[9:12]), answer.refused.reason if answer.refused is not None else "")
        if shared.access is not None:
            self._tell(int(head[9:12]), len(body), instant - self._began, answer=answer)
        if shared.cors is not None:
            head = shared.said(plain, head)
        if len(body) < JOIN_MAX:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        self._done(instant, is_last=is_last)

    def _done(self, instant: float, *, is_last: bool) -> None:
        """All of an answer has been written."""
        self._serving = False
        if is_last:
            self._finish()
            return
        self.since = instant
        if self._bare is not None:
            self._bare.flush()
        elif self._inbox.data:
            self._go_on()

    def _count(self, plain: Plain, status: int, instant: float, sent: int, answer: Answer | None) -> None:
        self._shared.metrics.count(
            plain.head.path,
            status,
            duration_s=instant - self._began,
            request_bytes=self._came,
            response_bytes=sent,
            who=("request_id", self._id) if self._trace is None else self._trace.label,
        )
        if self._trace is not None:
            self._end_trace(status)
        if self._shared.access is not None:
            self._tell(status, sent, instant - self._began, answer=answer)

    def _end_trace(self, status: int, reason: str = "") -> None:
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.end(status, reason)

    def _tell(self, status: int, sent: int, took_s: float, *, answer: Answer | None = None, reason: str = "") -> None:
        """A line of the access log, where there is one."""
        shared, plain = self._shared, self._plain
        if shared.access is None or plain is None or self._transport is None:
            return
        timing = ""
        if answer is not None:
            timing = server_timing(answer.trail, shared.answering.stages[plain.route], took_s)
            reason = answer.refused.reason if answer.refused is not None else reason
        shared.access.note(
            client=peer(self._transport.get_extra_info("peername")),
            method="POST",
            path=plain.head.path,
            status=status,
            came=self._came,
            sent=sent,
            took_s=took_s,
            request_id=self._id,
            timing=timing,
            reason=reason,
            key=shared.gate.key_name(plain.head),
        )

    def _pack(self, plain: Plain, more: More, answer: Answer, instant: float) -> None:
        """The answer in a coding that its client likes, if it is worth it: large ones beside the event loop."""
        reply = self._shared.answering.result(plain.route, plain.head, answer, self._id, instant - self._began)
        size = len(reply.body)
        if not compression.is_worth(reply.mime, size, forced=more.packs_all):
            self._packed(plain, reply, answer)
        elif size <= compression.INLINE_MAX:
            self._packed(plain, _coded(reply, more.packing, compression.pack(more.packing, reply.body)), answer)
        else:
            loop = asyncio.get_running_loop()
            packing = loop.run_in_executor(None, compression.pack, more.packing, reply.body)
            packing.add_done_callback(lambda done: self._packed_aside(plain, reply, more.packing, done, answer))

    def _packed_aside(
        self, plain: Plain, reply: Reply, coding: str, done: asyncio.Future[bytes], answer: Answer
    ) -> None:
        if done.cancelled():
            return  # the process ends
        failed = done.exception() is not None  # for want of memory: the answer is right as it is
        self._packed(plain, reply if failed else _coded(reply, coding, done.result()), answer)

    def _packed(self, plain: Plain, reply: Reply, answer: Answer) -> None:
        shared, transport = self._shared, self._transport
        if transport is None:
            return
        instant = now()
        close = self.closing or shared.gate.is_closing
        if self._trace is not None:
            reply = self._trace.told_in(reply)
        written = shared.writer.reply(reply, self._id, connection=connection_of(plain.more, close=close))
        transport.write(shared.said(plain, written))
        self._count(plain, reply.status, instant, len(reply.body), answer)
        self._done(instant, is_last=close)

    def event(self, event: StreamEvent) -> None:
        """Something of an answer that is computed piece by piece."""
        plain = self._plain
        assert plain is not None  # it has been submitted
        streaming = self._stream
        if streaming is None:
            streaming = self._stream = self._streaming(plain)
        freed = streaming.stream.event(event, self._shared.hint(plain.route))
        if freed:
            self._shared.client.consumed(self._seq, freed)
        self._write_stream()

    def _streaming(self, plain: Plain) -> _Streaming:
        if self._bare is not None:
            self._bare.adopt()
        return _Streaming(self._shared.answering.last_events[plain.route])

    def _answer_stream(self, plain: Plain, answer: Answer) -> bool:
        """The end of an answer that is a stream, or would have been one; False: it is to be given whole."""
        streaming = self._stream or self._streaming(plain)
        streaming.answer = answer
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
        is_old = plain.more is not None and plain.more.is_old
        if not streaming.has_begun:
            streaming.has_begun = True
            reply = self._shared.answering.stream(stream.mime)
            self.closing = self.closing or self._shared.gate.is_closing or is_old
            said = connection_of(plain.more, close=self.closing)
            if self._trace is not None:
                reply = self._trace.told_in(reply)
            begin = self._shared.writer.begin(reply, self._id, is_chunked=not is_old, connection=said)
            transport.write(self._shared.said(plain, begin))
        while not self._choked:
            data, cost = stream.take()
            if not data:
                break
            transport.write(data if is_old else chunked.chunk(data))
            streaming.sent += len(data)
            streaming.taken += cost
            streaming.wrote_at = now()
            if streaming.taken >= GRANT and self._seq:
                self._shared.client.consumed(self._seq, streaming.taken)
                streaming.taken = 0
        if stream.is_over:
            self._end_stream(plain, streaming, is_old=is_old)

    def _end_stream(self, plain: Plain, streaming: _Streaming, *, is_old: bool) -> None:
        transport, shared = self._transport, self._shared
        self._stream = None
        instant = now()
        self._count(plain, streaming.stream.status, instant, streaming.sent, streaming.answer)
        if streaming.stream.is_cut:
            if is_old:
                transport.abort()  # an end like any other would say that it is whole
            else:
                shared.gate.unsent.close(transport)
            self._serving = False
            return
        if not is_old:
            transport.write(chunked.LAST_CHUNK)
        self._done(instant, is_last=self.closing)

    # --- time --------------------------------------------------------------------------------------------------------

    def sweep(self, instant: float) -> None:
        """Enforce the time limits."""
        shared = self._shared
        if self._bare is not None and instant - self.since > BARE_S:
            self._bare.adopt()
            return
        if self._serving:
            self._sweep_answer(instant)
        elif self._choked:
            pass  # it does not read its answer: frontend.unsent sees to it
        elif (inbox := self._inbox).data:
            late = inbox.wanted and is_late(instant - self.since, inbox.held, shared.body_timeout_s)
            if late and self._plain is not None:
                self._came = inbox.held
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
                streaming = self._stream = streaming or self._streaming(plain)
                streaming.stream.comment()
                self._write_stream()


def _coded(reply: Reply, coding: str, body: bytes) -> Reply:
    return reply._replace(body=body, headers=[*reply.headers, ("content-encoding", coding)])


class _Streaming:
    """A streamed answer and what has been written of it."""

    __slots__ = ("answer", "has_begun", "sent", "stream", "taken", "wrote_at")

    def __init__(self, error: Callable[[int, str], bytes]) -> None:
        self.stream = Stream(error)
        self.answer: Answer | None = None  # its end
        self.has_begun = False  # its head has been written
        self.sent = 0  # bytes of the body
        self.taken = 0  # bytes of the window that were written and are not reported yet
        self.wrote_at = now()
