"""Reading a request's body from the ASGI stream, within its limits and once.

Bytes are counted at the gate as they come, and their sender has to keep :mod:`frontend.pace`. What a declared length
says of it the gate has judged before anything is read (:mod:`frontend.gate`); a growing chunked body is refused with
the chunk that goes too far. A body that ends early is an error of the client's, never a short
request: a connection cut in the middle can look to the application like an end.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from engine.clock import Deadline, now
from frontend import errors, unpacking
from frontend.errors import Refusal
from frontend.exchange import Event, Exchange, Receive
from frontend.gate import Gate, Terms
from frontend.head import Head
from frontend.pace import left_s

SLICE: Final = 1 << 18  # bytes read or written by a thread before it is asked for again: 10 ms at most


class Body:
    """A body being read, and the bytes it holds at the gate until :meth:`release`."""

    __slots__ = ("_client", "_coding", "_exchange", "_gate", "_held", "_length", "_limit", "_pause_s", "left_s")

    def __init__(self, exchange: Exchange, head: Head, gate: Gate, terms: Terms, *, pause_s: float) -> None:
        """Raises Refusal, 429, where there is no room for what its head declares.

        ``pause_s`` is how long its client may be behind. ``left_s`` is what is left of the request's time, which begins
        when all of its body is there.
        """
        self.left_s = terms.timeout_s
        self._exchange = exchange
        self._gate = gate
        self._limit = gate.max_request_size
        self._pause_s = pause_s
        self._held = 0
        self._length = head.length
        self._coding = terms.coding
        self._client = exchange.client
        if self._length and not gate.fits(self._length, self._client):
            raise Refusal(errors.CAPACITY_BYTES)

    async def read(self) -> bytes:
        """The whole body, decompressed. Raises Refusal: 400 when it is cut short or not what it claims to be, 408 when
        it comes too slowly or takes too long to decompress, 413, 429."""
        try:
            data = await self._receive()
        finally:
            self._gate.whole(self._held, self._client)
        return await self._unpack(data) if self._coding else data

    async def _receive(self) -> bytes:
        exchange = self._exchange
        first = b""
        rest = bytearray()  # not a list: a client may send them one by one, and an object each is fifty bytes
        size = 0
        more = True
        began = now()
        while more:
            try:
                event = await _next(exchange.receive, left_s(now() - began, size, self._pause_s))
            except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
                raise Refusal(errors.SLOW_BODY) from None
            if event["type"] != "http.request":
                exchange.body_ended = True
                raise Refusal(errors.TRUNCATED)
            chunk = event.get("body", b"")
            more = event.get("more_body", False)
            exchange.body_ended = not more
            if chunk:
                size += len(chunk)
                exchange.request_bytes = size
                if size > self._limit:
                    raise Refusal(errors.TOO_LARGE)
                self._hold(len(chunk), self._client)
                if first:
                    rest += chunk
                else:
                    first = chunk
        if self._length is not None and size != self._length:
            raise Refusal(errors.TRUNCATED)
        return b"".join((first, rest)) if rest else first

    async def _unpack(self, data: bytes) -> bytes:
        """A small body here, a large one by slices in threads. Between two of them: is there room for what has come
        out, is there time, is there somebody who waits? So the work ends soon after its client, and large bodies have
        their turns however many there are."""
        work = unpacking.Unpacking(self._coding, data, self._limit)
        deadline = Deadline(self.left_s)
        loop = asyncio.get_running_loop()
        watch: asyncio.Task[None] | None = None
        counted = 0
        try:
            if len(data) <= unpacking.INLINE_IN:
                work.go_on(unpacking.INLINE_OUT)
            while True:
                self._hold(work.size - counted, "")
                counted = work.size
                if work.done:
                    break
                if watch is None:
                    watch = loop.create_task(_wait_gone(self._exchange.receive))
                await loop.run_in_executor(None, work.go_on, SLICE)
                if watch.done():
                    self._exchange.leave()
                    raise Refusal(errors.CLIENT_GONE)
                if deadline.passed:
                    raise Refusal(errors.TIMEOUT)
        except unpacking.Corrupt:
            raise Refusal(errors.CORRUPT) from None
        except unpacking.TooLarge:
            raise Refusal(errors.TOO_LARGE) from None
        except unpacking.Fragmented:
            raise Refusal(errors.FRAGMENTED) from None
        finally:
            if watch is not None:
                watch.cancel()
        self._held -= len(data)
        self._gate.release(len(data))
        self.left_s = deadline.remaining()
        return work.result()

    def release(self) -> None:
        """The body is needed no more. Call it once at least, whatever happened."""
        self._gate.release(self._held)
        self._held = 0

    def _hold(self, size: int, client: str) -> None:
        if not self._gate.hold(size, client):
            raise Refusal(errors.CAPACITY_BYTES)
        self._held += size


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


if sys.version_info >= (3, 11):

    async def _next(receive: Receive, pause_s: float) -> Event:
        # No task of its own, as wait_for() makes before 3.12: this is on the path of every request.
        async with asyncio.timeout(pause_s):
            return await receive()

else:

    async def _next(receive: Receive, pause_s: float) -> Event:
        return await asyncio.wait_for(receive(), pause_s)
