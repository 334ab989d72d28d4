"""An HTTP/2 connection: gunicorn's, with a budget for frames that carry nothing, bounded turns, and answers that count.

gunicorn bounds PING, SETTINGS and empty DATA, reads 64 KiB of frames at a time (seven thousand of them, for which it
needs a third of a second), copies the rest of an answer for each frame of it, and lets as many answers as there are
streams wait for their client's window. What frames cost is decided in :mod:`frontend.frames`, and how long an answer
waits in :mod:`frontend.unsent`. All the rest is gunicorn's; it names its class nowhere that could be told another, so
:func:`install` puts this one in its place.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

from gunicorn.http2 import async_connection
from gunicorn.http2.async_connection import AsyncHTTP2Connection
from gunicorn.http2.errors import HTTP2ErrorCode

from engine.clock import now
from frontend import errors
from frontend.frames import Frames
from frontend.gate import Gate

PIECE: Final = 64 * 1024  # bytes of an answer handed to gunicorn at once
FRAME: Final = 16 * 1024  # bytes of a frame, unless the client wants larger ones
ANSWER_COST: Final = 24 * 1024  # bytes that holding an answer takes beyond its body: a task, its frames, the stream

_hurried: Final[ContextVar[bool]] = ContextVar("_hurried", default=False)  # what this task writes waits for nobody
_sending: Final[ContextVar[_Answer | None]] = ContextVar("_sending", default=None)  # what this task sends


def install(gate: Gate, head_max: int) -> None:
    """Have gunicorn make these. In a worker process, before the first connection. ``head_max``: bytes of a request's
    headers."""
    logging.getLogger("hpack").setLevel(logging.INFO)  # below it tells of every field, clients' secrets among them
    async_connection.AsyncHTTP2Connection = partial(Connection2, gate, head_max)


class Connection2(AsyncHTTP2Connection):  # type: ignore[misc]  # gunicorn has no types
    """One client connection that speaks HTTP/2."""

    def __init__(self, gate: Gate, head_max: int, cfg: Any, reader: asyncio.StreamReader, *args: Any) -> None:
        super().__init__(cfg, _Turns(reader, self), *args)
        # gunicorn reads UTF-8, and hands on Latin-1: what is not the first ended the connection, what is not the second
        # was a 500 with the codec's words. So bytes are bytes, as over HTTP/1.
        self.h2_conn.config.header_encoding = "latin-1"
        self.frames = Frames(now(), head_max)
        self.gate = gate
        self._unsent = gate.unsent
        self._answers: set[_Answer] = set()  # that are being sent

    async def calm(self) -> None:
        """Its client sends too much that carries nothing: GOAWAY, and the end."""
        await self.close(error_code=HTTP2ErrorCode.ENHANCE_YOUR_CALM)

    def _handle_request_received(self, event: Any) -> Any:
        request = super()._handle_request_received(event)
        if request is None:
            self.frames.refused()
        return request

    def _handle_data_received(self, event: Any) -> None:
        super()._handle_data_received(event)
        stream = self.streams.get(event.stream_id)
        if stream is not None and stream.response_started and not stream.response_complete:
            stream._body_chunks.clear()  # nobody reads it, and its answer may wait for long; no window is given for it

    async def send_error(self, stream_id: int, status_code: int, message: str | None = None) -> None:
        """In the words of our table: gunicorn's are those of an exception."""
        await super().send_error(stream_id, status_code, errors.by_status(status_code).detail)

    async def send_response_headers(self, stream_id: int, headers: Any, end_stream: bool = False) -> bool:
        """Where a body follows, what the client has not taken does not hold them up: it holds up the body, which counts
        while it waits. An answer that waited here would be held and not counted."""
        hurried = _hurried.set(not end_stream)
        try:
            sent: bool = await super().send_response_headers(stream_id, headers, end_stream)
            return sent
        finally:
            _hurried.reset(hurried)

    async def _drain(self) -> None:
        """Until the client has taken something, or the answer is cut: whoever waited on would hold all of it."""
        if _hurried.get():
            return
        answer = _sending.get()
        if answer is None or not self.writer.transport.get_write_buffer_size():  # nearly always
            await super()._drain()
            return
        drained = asyncio.ensure_future(super()._drain())
        try:
            await asyncio.wait((drained, answer.end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not drained.done():
                drained.cancel()
        if drained.done():
            drained.result()

    async def send_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> bool:
        """In pieces, for gunicorn copies the rest behind each frame."""
        size = len(data)
        self.frames.sent(1 + size // FRAME)
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream._body_chunks.clear()
        # And the head, twice: as the stream has it, and as the application does.
        head = 2 * sum([len(name) + len(value) for name, value in stream.request_headers]) if stream is not None else 0
        answer = _Answer(self, stream_id, size, ANSWER_COST + head)
        self._answers.add(answer)
        self._unsent.watch(answer, self._answers)
        sending = _sending.set(answer)
        try:
            while answer.left > PIECE:
                at = size - answer.left
                if not await super().send_data(stream_id, data[at : at + PIECE], end_stream=False):
                    return False
                answer.left -= PIECE
            rest = data[size - answer.left :] if answer.left < size else data
            whole: bool = await super().send_data(stream_id, rest, end_stream=end_stream)
            if stream is not None and stream.response_complete:
                stream._acknowledge(stream.unacked_size)  # common clients send all before they look at the answer
            return whole
        finally:
            _sending.reset(sending)
            self._answers.discard(answer)
            self._unsent.forget(answer)

    def give_up(self) -> None:
        """There are too many beginnings of frames and heads, and this one's is the oldest."""
        self.reader.end()

    def abort_streams_nowait(self) -> None:
        self.gate.partial.has(self, 0)
        super().abort_streams_nowait()

    def reset(self, stream_id: int) -> None:
        """End a stream whose client does not take its answer; the task that sends it finds it closed."""
        stream = self.streams.get(stream_id)
        if stream is not None and not self._closed:
            stream.reset(HTTP2ErrorCode.CANCEL)
            self._reset_quietly(stream_id, HTTP2ErrorCode.CANCEL)
            self._write_pending_nowait()
            self._signal_window()


class _Answer:
    """A piece of an answer that is being sent, whole or of a stream; ``left``: bytes that the connection has not taken,
    to one piece; ``cost``: what holding it takes beside."""

    __slots__ = ("_connection", "_cost", "_stream_id", "end", "left")

    def __init__(self, connection: Connection2, stream_id: int, size: int, cost: int) -> None:
        self._connection = connection
        self._cost = cost
        self._stream_id = stream_id
        self.left = size
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # it is cut

    def get_write_buffer_size(self) -> int:
        return self.left + self._cost

    def abort(self) -> None:
        if not self.end.done():
            self.end.set_result(None)
        self._connection.reset(self._stream_id)


class _Turns:
    """What ``receive_data`` reads from: a turn at a time. Between two that were there already, others have theirs."""

    def __init__(self, reader: asyncio.StreamReader, connection: Connection2) -> None:
        self._reader = reader
        self._connection = connection
        self._rest = memoryview(b"")
        self._is_over = False

    async def read(self, most: int) -> bytes:
        if self._rest:
            await asyncio.sleep(0)
        else:
            self._rest = memoryview(await self._reader.read(most))
        connection = self._connection
        frames = connection.frames
        begun = frames.begun
        size = frames.take(self._rest, now())
        if not self._rest:
            connection.gate.partial.has(connection, 0)
            return b""
        piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
        if not self._rest:
            connection.gate.partial.has(connection, frames.unfinished, anew=frames.begun != begun)
        if frames.is_spent or self._is_over:
            self._rest = memoryview(b"")
            await connection.calm()
            return b""
        return piece

    def end(self) -> None:
        """Nothing more is read: whoever waits for it is told so, and others before their next turn."""
        self._is_over = True
        self._reader.feed_eof()
