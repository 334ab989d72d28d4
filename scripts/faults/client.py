"""An open-loop client: asks at its own pace whatever becomes of what it asked, and enters everything in a ledger.

Its own small HTTP/1.1, because what others hide is what is looked for: a second answer, bytes that nobody asked for, a
connection that ends in the middle. One request at a time on a connection; connections are kept and used again.
It runs on a thread of its own; its methods may be called from any other.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from faults.ledger import Ask, Ledger

OPEN_MOST: Final = 600  # connections at once; at more the load waits, so that its own descriptors do not run out
IDLE_MOST_S: Final = 20.0  # a connection is used again: well below the time after which a server closes it
PATIENCE_S: Final = 10.0  # beyond the deadline: what has not come by then does not come


@dataclass(frozen=True)
class Answer:
    """What came: ``status`` 0 when there was no answer, and ``body`` says why."""

    status: int
    headers: dict[str, str]
    body: bytes
    took_s: float


class _Connection(asyncio.Protocol):
    """One connection; at most one request is awaited on it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None
        self._transport: asyncio.Transport | None = None
        self.open = False
        self.used_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer:
            if self._answer is None:
                self._ledger.unasked(self._buffer)
                self._buffer = b""
                self.close()
                return
            whole = _parse(self._buffer)
            if whole is None:
                return
            status, headers, body, self._buffer = whole
            answer, self._answer = self._answer, None
            if headers.get("connection", "").lower() == "close":
                self.close()
            if not answer.done():
                answer.set_result((status, headers, body))

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            seen = f"in the middle of an answer {self._buffer[:60]!r}" if self._buffer else "without an answer"
            self._answer.set_exception(ConnectionResetError(f"cut {seen}" + (f" ({error})" if error else "")))
            self._answer = None

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, dict[str, str], bytes]]:
        if self._transport is None or not self.open:
            raise ConnectionResetError("cut before anything was asked")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self.open = False
        self._answer = None
        if self._transport is not None:
            self._transport.abort()


class Client:
    """Asks ``rate`` requests a second of what ``make(number)`` gives, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        url: str,
        make: Callable[[int], Ask],
        *,
        numbers: Iterator[int],
        rate: float,
        deadline_s: float,
        late_s: float,
    ) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "", where.port or 0
        self._make, self._rate, self._deadline_s = make, rate, deadline_s
        self.ledger = Ledger(deadline_s=deadline_s, late_s=late_s)
        self.numbers = numbers
        self._idle: list[_Connection] = []
        self._tasks: set[asyncio.Task[Answer]] = set()
        self.ended = 0  # requests that have their answer, or will have none
        self.good = 0  # of them, answered 200
        self._loop = asyncio.new_event_loop()
        self._asking = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="chaos-client")

    def start(self) -> None:
        self._asking.set()
        self._thread.start()

    def pause(self) -> None:
        """Ask nothing by itself until :meth:`resume`."""
        self._asking.clear()

    def resume(self) -> None:
        self._asking.set()

    def stop(self) -> None:
        """Ask no more, and let everything have its answer; what has none PATIENCE_S after its deadline is lost."""
        self._stop = True
        self._thread.join()

    def ask(self, ask: Ask) -> Future[Answer]:
        """One request beside the load, with a number out of ``numbers``; the ledger has it as well."""

        async def one() -> Answer:
            return await self._begin(ask)

        return asyncio.run_coroutine_threadsafe(one(), self._loop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._pace())
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _pace(self) -> None:
        due = time.monotonic()
        while not self._stop:
            await asyncio.sleep(max(0.001, due - time.monotonic()))
            now = time.monotonic()
            if not self._asking.is_set() or now - due > 1.0:
                due = now + 1.0 / self._rate  # what could not be asked is not made up for: that would be a burst
                continue
            while due <= now:
                due += 1.0 / self._rate
                if len(self._tasks) < OPEN_MOST:
                    self._begin(self._make(next(self.numbers)))
        while self._tasks:
            await asyncio.wait(self._tasks)
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)  # a turn of the loop for the ends of connections

    def _begin(self, ask: Ask) -> asyncio.Task[Answer]:
        task = self._loop.create_task(self._one(ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _one(self, ask: Ask) -> Answer:
        began = time.monotonic()
        self.ledger.asked(ask, began)
        connection = self._kept()
        deadline_s = self._deadline_s if ask.deadline_s is None else ask.deadline_s
        limit = deadline_s + PATIENCE_S if ask.leaves_after_s is None else ask.leaves_after_s
        try:
            if connection is None:
                connection = await asyncio.wait_for(self._made(), limit)
            status, headers, body = await asyncio.wait_for(connection.ask(_request(ask)), limit)
            self.ledger.answered(ask.number, status, body, time.monotonic())
            self.good += status == 200
            return Answer(status, headers, body, time.monotonic() - began)
        except asyncio.TimeoutError:  # before OSError, which it is one of since Python 3.11
            if connection is not None:
                connection.abort()
            if ask.leaves_after_s is None:
                self.ledger.silent(ask.number, time.monotonic())
            else:
                self.ledger.left(ask.number)
            return Answer(0, {}, b"no answer", time.monotonic() - began)
        except OSError as error:
            self.ledger.cut(ask.number, str(error), time.monotonic())
            return Answer(0, {}, str(error).encode(), time.monotonic() - began)
        finally:
            self.ended += 1
            if connection is not None and connection.open:
                connection.used_at = time.monotonic()
                self._idle.append(connection)

    def _kept(self) -> _Connection | None:
        """One that is open and was used lately. No turn of the loop lies between this and what is asked on it, in which
        the other side could have ended it, as it may."""
        while self._idle:
            kept = self._idle.pop()
            if kept.open and time.monotonic() - kept.used_at < IDLE_MOST_S:
                return kept
            kept.close()
        return None

    async def _made(self) -> _Connection:
        _, made = await self._loop.create_connection(lambda: _Connection(self.ledger), self._host, self._port)
        return made


def _request(ask: Ask) -> bytes:
    body = json.dumps(ask.body).encode()
    lines = [f"POST {ask.path} HTTP/1.1", "host: chaos", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in ask.headers.items()]
    if ask.deadline_s is not None:
        lines.append(f"x-request-timeout-ms: {round(ask.deadline_s * 1000)}")
    lines.append(f"content-length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


def _parse(data: bytes) -> tuple[int, dict[str, str], bytes, bytes] | None:
    """Status, headers, body, and what comes behind; None while it is not whole."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    return (int(first.split()[1]), headers, rest[:length], rest[length:]) if len(rest) >= length else None
