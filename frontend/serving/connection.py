"""One client connection, HTTP/1.1 or HTTP/2: gunicorn's, with time limits and an end of our own.

What gunicorn's connection lacks and a public port needs: a time limit for request headers, a bound on their total size,
an answer (not a reset) for a client whose connection ends, bounds on what comes in advance and on what is not read, and
no copying of what waits. Everything else of HTTP/1 and HTTP/2 is
gunicorn's. Which of its names this relies on, and why, is in :mod:`frontend.serving.names`.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from gunicorn.asgi.parser import RFC9112_TARGET_INVALID, InvalidChunkSize, LimitRequestHeaders, PythonProtocol
from gunicorn.asgi.protocol import ASGIProtocol

from engine.clock import now
from frontend import errors
from frontend.exchange import CUT
from frontend.gate import BEHIND_ALL, BEHIND_MAX
from frontend.pace import FRESH_S, LINGER_S
from frontend.writer import whole

if TYPE_CHECKING:
    from frontend.serving.process import Worker
    from frontend.unsent import Unsent


CHUNK_MAX: Final = (1 << 64) - 1  # a larger size means something else to whoever counts in 64 bits
CHUNK_LEAST: Final = 16  # bytes that each chunk of a body has in the mean, above so many
CHUNKS_FREE: Final = 4096


class Parser(PythonProtocol):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's, but what stands behind a request waits where it is: gunicorn copies it out and in again for each one,
    which is quadratic in what a client sends in advance."""

    _on_body: Any
    _on_message_complete: Any
    _tiny = 0  # bytes by which the chunks of this body fall short of CHUNK_LEAST each

    def remaining(self) -> bytes | bytearray:
        return self._buffer if self.is_complete else b""

    def reset(self) -> None:
        self._buffer = bytearray()  # what is there has been given away by `remaining`
        self._tiny = 0
        super().reset()

    def feed(self, data: bytes | bytearray) -> None:
        if isinstance(data, bytearray) and not self._buffer:
            self._buffer, data = data, b""
        super().feed(data)

    @property
    def behind(self) -> int:
        """Bytes behind the request that was read last."""
        return len(self._buffer) if self.is_complete else 0

    def _parse_chunked_body(self) -> bool:
        """All chunks that are here, as one piece of the body: each for itself costs the application as much as one of
        64 KiB does. The tinier they are, the more of them cost nothing but work, so there is a bound on that."""
        deliver, complete = self._on_body, self._on_message_complete
        pieces: list[bytes] = []
        begun = self._chunk_state == "data"  # a chunk of which there was something before
        self._on_body, self._on_message_complete = pieces.append, None
        try:
            going: bool = super()._parse_chunked_body()
        finally:
            self._on_body, self._on_message_complete = deliver, complete
        if self._chunk_size > CHUNK_MAX:
            raise InvalidChunkSize("chunk size too large")
        if pieces:
            whole = b"".join(pieces)
            tiny = self._tiny + CHUNK_LEAST * (len(pieces) - begun) - len(whole)
            self._tiny = max(0, tiny)
            if tiny > CHUNK_LEAST * CHUNKS_FREE:
                raise InvalidChunkSize("too many tiny chunks")
            deliver(whole)
        if self.is_complete:
            complete()
        return going


class Connection(ASGIProtocol):  # type: ignore[misc]  # gunicorn has no types
    """One client connection, HTTP/1.1 or HTTP/2."""

    _closed: bool  # gunicorn's: nothing more is read or written here
    _current_request: Any  # gunicorn's: its headers are complete and it is not answered yet

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        frontend = worker.app.deployment.frontend
        self._keepalive = frontend.keepalive
        self._header_timeout = frontend.header_timeout
        self._max_header_size = frontend.max_header_size
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0  # of a request whose headers are not complete
        self._arrived = 0  # the same, with the bytes just being parsed
        self._answered = False  # the current request has got the head of its answer
        self._refused = False  # by gunicorn's parser or by a time limit
        self._body_ended = False  # the client stopped sending in the middle of a body
        self._lingering: asyncio.TimerHandle | None = None
        self._made_at = now()
        self._behind = 0  # bytes counted as such at the gate
        self._is_last = False  # too much came behind this request: no other is served

    @property
    def idle(self) -> bool:
        """No request is being read, served or answered here."""
        if self._closed:
            return True
        if self.reader is not None:
            return not self._h2_tasks
        if self._h2c_buffer is not None:
            return not self._h2c_buffer
        return self._awaiting_request and not self._finishing_calls and not self._header_bytes

    def is_fresh(self, instant: float) -> bool:
        """So new that its first request may be on its way."""
        return not self._answered and instant - self._made_at < FRESH_S

    def end(self) -> None:
        """Close now. An HTTP/2 peer is told so first (GOAWAY), by the task that reads its frames."""
        if self.reader is not None and not self._closed:
            self.reader.feed_eof()
        elif self.transport is not None:
            self._closed = True
            self._unsent.close(self.transport)

    @property
    def _unsent(self) -> Unsent:
        unsent: Unsent = self.worker.app.gate.unsent
        return unsent

    # --- coming and going ---

    def connection_made(self, transport: Any) -> None:
        self.worker.connections.add(self)
        self._header_timer = self.worker.loop.call_later(self._header_timeout, self._on_slow_headers)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_header_timer()
        if self._lingering is not None:
            self._lingering.cancel()
        if self.transport is not None:
            self._unsent.forget(self.transport)
        if self._flow_control is not None:
            self._flow_control.resume_writing()  # gunicorn lets an answer wait, and be kept, for some seconds more
        self._drop_input()
        self.worker.connections.discard(self)
        self.worker.connection_ended()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._unsent.watch(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.transport is not None:
            self._unsent.taken(self.transport)

    def eof_received(self) -> bool | None:
        # A client that stops in the middle of its body may still be reading: it gets its 400, which needs the transport
        # kept open. A client that stops sending while it waits for an answer has gone: closing a socket looks just so.
        receiver = self._body_receiver
        if self.reader is None and receiver is not None and not receiver._complete and not self._closed:
            receiver.signal_disconnect()
            self._body_ended = True
            return True
        super().eof_received()
        return None

    def _drop_input(self) -> None:
        """Nothing of what has come is read any more. A connection that has ended waits for the garbage collector, which
        counts objects and not bytes: what it held of refused bodies came to more than all that were accepted."""
        self._count_behind(0)
        if self._header_bytes:
            self._count_head(0)
        for receiver in (self._body_receiver, *self._finishing_calls.values()):
            if receiver is not None:
                receiver._chunks.clear()
        if self._callback_parser is not None:
            self._callback_parser.reset()

    def _close_transport(self) -> None:
        receiver = self._body_receiver
        answered = self._current_request is not None or self._refused
        if self.reader is not None or self._closed or self._body_ended or not answered:
            if self.transport is not None:
                self._unsent.watch(self.transport)
            super()._close_transport()
            self.worker.connection_ended()
            return
        # By halves, as frontend.lingering does: what still comes must not reset the last answer.
        self._closed = True
        if receiver is not None:
            receiver.signal_disconnect()  # the application waits for no more of it
        self._drop_input()
        if self.transport is None or self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
            super()._resume_reading()
            self._unsent.watch(self.transport)
            self._lingering = self.worker.loop.call_later(LINGER_S, self._unsent.close, self.transport)
        else:
            self._unsent.close(self.transport)  # TLS, as in frontend.lingering
        self.worker.connection_ended()

    # --- reading requests ---

    def data_received(self, data: bytes) -> None:
        if self._lingering is None and not self._is_last:
            super().data_received(data)
            if self.reader is None:
                self._bound_behind()

    def _setup_callback_parser(self) -> None:
        cfg = self.cfg
        self._callback_parser = Parser(
            on_headers_complete=self._on_headers_complete,
            on_body=self._on_body,
            on_message_complete=self._on_message_complete,
            limit_request_line=cfg.limit_request_line,
            limit_request_fields=cfg.limit_request_fields,
            limit_request_field_size=cfg.limit_request_field_size,
        )

    def _http1_buffered(self) -> int:
        """Bytes above which the client is not read: of its body, what the application has not taken, and of what it
        sends in advance, four times as much as is kept of it (gunicorn allows so much of both)."""
        receiver = self._body_receiver
        taken: int = receiver.buffered if receiver is not None else 0
        return self._ahead() + taken

    def _ahead(self) -> int:
        parser = self._callback_parser
        ahead: int = parser.behind * (self._max_buffer_size // BEHIND_MAX) if parser is not None else 0
        return ahead

    def _resume_reading(self) -> None:
        # gunicorn does so behind every answer, however much of the next requests is there already. What is left of the
        # body of this one does not count: nobody wanted it, and it is dropped next.
        if self._is_last:
            self._close_transport()
        elif self._closed or self._write_paused or self._ahead() <= self._max_buffer_size:
            super()._resume_reading()

    def _count_behind(self, size: int) -> None:
        self.worker.app.gate.behind += size - self._behind
        self._behind = size

    def _bound_behind(self) -> None:
        """Count what came in advance. Where all clients together send too much of it, this one gets no further
        answers."""
        parser = self._callback_parser
        self._count_behind(parser.behind if parser is not None and not self._closed else 0)
        if self._behind and self.worker.app.gate.behind > BEHIND_ALL:
            parser._buffer.clear()
            self._is_last = True
            self._count_behind(0)

    def _start_http1(self, buffered: bytes = b"") -> None:
        super()._start_http1()
        # HTTP/2 comes by prior knowledge only: "Upgrade: h2c", through a proxy that does not know it, is a way to
        # smuggle requests.
        self._h2c_upgrade_ok = False
        if buffered:
            self._feed_callback_parser(buffered)

    def _h2c_start(self, buffered: bytes) -> None:
        self._cancel_header_timer()  # from here the keep-alive limit of idle HTTP/2 connections holds
        super()._h2c_start(buffered)

    def _feed_callback_parser(self, data: bytes) -> bool:
        self._arrived = self._header_bytes + len(data)
        try:
            going: bool = super()._feed_callback_parser(data)
        except ValueError:  # a Content-Length of more digits than int() takes
            self._current_request = None
            self._send_error_response(400, "")
            self._close_transport()
            self._wake()
            return False
        if self._reading_paused and not self._is_buffer_full():
            super()._resume_reading()  # more of this one is wanted
        if not going or self._current_request is not None:
            if self._header_bytes:
                self._count_head(0)
            self._cancel_header_timer()
            self._bound_behind()
            return going
        self._count_head(self._arrived)
        if self._closed:
            return False  # there is too much of that, and this one began first
        if self._header_bytes > self._max_header_size:
            self._send_error_response(431, "")
            self._close_transport()
            self._wake()
            return False
        if self._header_timer is None:
            self._header_timer = self.worker.loop.call_later(self._header_timeout, self._on_slow_headers)
        return True

    def _on_headers_complete(self) -> bool:
        skip: bool = super()._on_headers_complete()
        self._answered = False
        # Headers are part of what arrived: only when that exceeds the bound do they need adding up.
        if self._arrived > self._max_header_size:
            request = self._current_request
            size = len(request.raw_path or b"") + sum(
                len(name) + len(value) + 4 for name, value in request.headers_bytes
            )
            if size > self._max_header_size:
                self._current_request = None  # it is not to be served
                raise LimitRequestHeaders("headers too large")
        return skip

    def _count_head(self, size: int) -> None:
        self._header_bytes = size
        self.worker.app.gate.partial.has(self, size)

    def give_up(self) -> None:
        """There are too many beginnings of requests, and this one's is the oldest."""
        self._cancel_header_timer()
        self._on_slow_headers()

    def _on_slow_headers(self) -> None:
        self._header_timer = None
        if self._header_bytes or self._h2c_buffer:
            self._send_error_response(408, "")
        self._close_transport()
        self._wake()

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _wake(self) -> None:
        """Let the task that serves this connection see that it is closed."""
        if self._request_ready is not None:
            self._request_ready.set()

    def _is_websocket_upgrade(self, request: Any) -> bool:
        return False  # it is refused like any other head that asks for what there is not: frontend.head

    # --- answering ---

    def _build_http_scope(self, *args: Any) -> dict[str, Any]:
        scope: dict[str, Any] = super()._build_http_scope(*args)
        scope[CUT] = self._cut
        return scope

    def _build_http2_scope(self, request: Any, *args: Any) -> dict[str, Any]:
        """Its target means what it means over HTTP/1; one that could not come there is nobody's."""
        scope: dict[str, Any] = super()._build_http2_scope(request, *args)
        target: bytes = request.uri.encode("latin-1")
        path, _, query = target.partition(b"?")
        is_sane = RFC9112_TARGET_INVALID.search(target) is None
        scope["path"] = unquote_to_bytes(path).decode("utf-8", "replace") if is_sane else ""
        scope["raw_path"], scope["query_string"] = path, query
        return scope

    def _cut(self, at_once: bool) -> None:
        """The answer that is being sent ends here, unfinished."""
        self._closed = True
        if self.transport is not None:
            if at_once:
                self.transport.abort()
            else:
                self._unsent.close(self.transport)

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        # A body that was not read to its end is followed by nothing that could be told from the rest of it.
        receiver = self._body_receiver
        unread = receiver is not None and not receiver._complete
        closing: bool = unread or self._is_last or super()._will_close(request, response_requires_close)
        return closing

    def _send_response_start(self, status: int, headers: Any, request: Any, close: bool = False) -> None:
        self._answered = True
        if request.version == (1, 0) and not close:
            # A client of HTTP/1.0 waits for the end of the connection unless it is told that it is kept. gunicorn
            # keeps it and does not say so.
            is_sized = any(name.lower() == b"content-length" for name, _ in headers)
            headers = [*headers, (b"connection", b"keep-alive" if is_sized else b"close")]
        super()._send_response_start(status, headers, request, close=close)

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """gunicorn's own refusals (malformed HTTP), in the words of our table: its messages quote the request."""
        if self._answered and self._current_request is not None:
            return  # the application was quicker; a second answer would be read as the next request's
        self._refused = True
        problem = errors.by_status(status)
        if self._current_request is None:  # else the application counts it
            self.worker.app.metrics.count("", problem.status, reason=problem.reason)
        app = self.worker.app
        request_id = app.new_id()
        path = self._current_request.path if self._current_request is not None else ""
        reply = app.answering.problem(problem, None, request_id, path or "")
        reply = reply._replace(headers=[*reply.headers, *extra_headers])
        self._safe_write(whole(reply, request_id, formatdate(usegmt=True).encode(), connection="close"))
