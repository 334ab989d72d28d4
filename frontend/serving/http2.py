"""An HTTP/2 connection: gunicorn's, with a budget for frames that carry nothing, and bounded turns.

gunicorn bounds PING, SETTINGS and empty DATA, reads 64 KiB of frames at a time (seven thousand of them, for which it
needs a third of a second), and copies the rest of an answer for each frame of it. What frames cost is decided in
:mod:`frontend.frames`. All the rest is gunicorn's; it names its class nowhere that could be told another, so
:func:`install` puts this one in its place.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from gunicorn.http2 import async_connection
from gunicorn.http2.async_connection import AsyncHTTP2Connection
from gunicorn.http2.errors import HTTP2ErrorCode

from engine.clock import now
from frontend.frames import Frames

PIECE: Final = 64 * 1024  # bytes of an answer handed to gunicorn at once
FRAME: Final = 16 * 1024  # bytes of a frame, unless the client wants larger ones


def install() -> None:
    """Have gunicorn make these. In a worker process, before the first connection."""
    async_connection.AsyncHTTP2Connection = Connection2


class Connection2(AsyncHTTP2Connection):  # type: ignore[misc]  # gunicorn has no types
    """One client connection that speaks HTTP/2."""

    def __init__(self, cfg: Any, reader: asyncio.StreamReader, *args: Any) -> None:
        super().__init__(cfg, _Turns(reader, self), *args)
        self.frames = Frames(now())

    async def calm(self) -> None:
        """Its client sends too much that carries nothing: GOAWAY, and the end."""
        await self.close(error_code=HTTP2ErrorCode.ENHANCE_YOUR_CALM)

    def _handle_request_received(self, event: Any) -> Any:
        request = super()._handle_request_received(event)
        if request is None:
            self.frames.refused()
        return request

    async def send_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> bool:
        """In pieces, for gunicorn copies the rest behind each frame."""
        size = len(data)
        self.frames.sent(1 + size // FRAME)
        at = 0
        while size - at > PIECE:
            if not await super().send_data(stream_id, data[at : at + PIECE], end_stream=False):
                return False
            at += PIECE
        whole: bool = await super().send_data(stream_id, data[at:] if at else data, end_stream=end_stream)
        return whole


class _Turns:
    """What ``receive_data`` reads from: a turn at a time. Between two that were there already, others have theirs."""

    def __init__(self, reader: asyncio.StreamReader, connection: Connection2) -> None:
        self._reader = reader
        self._connection = connection
        self._rest = memoryview(b"")

    async def read(self, most: int) -> bytes:
        if self._rest:
            await asyncio.sleep(0)
        else:
            self._rest = memoryview(await self._reader.read(most))
        frames = self._connection.frames
        size = frames.take(self._rest, now())
        if frames.is_spent:
            self._rest = memoryview(b"")
            await self._connection.calm()
            return b""
        piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return piece
