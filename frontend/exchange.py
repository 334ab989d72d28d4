"""One request and its answer, below Falcon: what Falcon hides or does too late for us.

A thin ASGI layer around the application. It gives every answer its x-request-id and counts it; it hands routes the
connection's own ``receive`` (Falcon keeps it to itself, and only it tells that a client has gone); and it begins with
an empty body event of its own, because Falcon awaits the first event before anything else: a body that will be refused
is then never asked for, and a client that waits for ``100 Continue`` gets the refusal instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from engine.clock import now
from frontend import requestid
from frontend.metrics import FrontendMetrics

Event: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("stageline.frontend")

LINGER_S: Final = 5.0  # how long the rest of a refused body is read and dropped, so that its sender sees the answer

CUT: Final = "stageline.cut"  # in the scope, by its connection: ends a connection in the middle of an answer
_KEY: Final = "stageline.exchange"
_SERVER: Final = (b"server", b"stageline")


class Exchange:
    """What the layers share about one request. ``gone``: there is nobody to answer any more."""

    __slots__ = (
        "_cut",
        "at_end",
        "body_ended",
        "gone",
        "headers",
        "reason",
        "receive",
        "request_bytes",
        "request_id",
        "started",
        "status",
    )

    def __init__(
        self, headers: list[tuple[bytes, bytes]], receive: Receive, cut: Callable[[bool], None] | None = None
    ) -> None:
        self._cut = cut
        self.at_end: list[Callable[[], None]] = []  # called when the request is over, however it ended
        self.headers = headers
        self.receive = receive
        self.request_id = requestid.choose(self.header(requestid.HEADER) or None)
        self.started = now()
        self.status = 0  # 0: not begun to answer
        self.request_bytes = 0
        self.body_ended = False
        self.reason = ""  # why it was refused
        self.gone = False

    @staticmethod
    def of(scope: Scope) -> Exchange:
        exchange: Exchange = scope[_KEY]
        return exchange

    def leave(self) -> None:
        """The client has gone: nothing more is sent."""
        self.gone = True
        self.status = 499
        self.reason = "client_gone"

    def cut(self, *, at_once: bool = False) -> None:
        """End an answer in its middle, so that the client sees that it is not whole. ``at_once``: what is still to be
        written is dropped. Over HTTP/2 the server resets the stream of an answer that was not finished."""
        self.gone = True
        if self._cut is not None:
            self._cut(at_once)

    def header(self, name: bytes) -> bytes:
        """The first header of this lower-case name; empty without one."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""

    def joined(self, name: bytes) -> bytes:
        """All headers of this name as one list (RFC 9110, section 5.3)."""
        return b", ".join([value for key, value in self.headers if key == name])


class Layer:
    """The ASGI application around ``app``."""

    def __init__(self, app: Application, metrics: FrontendMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope["headers"], receive, scope.get(CUT))
        scope[_KEY] = exchange
        extra = [(requestid.HEADER, exchange.request_id.encode()), _SERVER]
        sent = 0

        async def send_marked(event: Event) -> None:
            nonlocal sent
            if exchange.gone:
                return
            if event["type"] == "http.response.start":
                exchange.status = event["status"]
                event["headers"] = [*event["headers"], *extra]
            else:
                sent += len(event.get("body", b""))
            await send(event)

        took_s: float | None = None
        first = True

        async def receive_lazily() -> Event:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": b"", "more_body": True}
            return await receive()

        try:
            await self._app(scope, receive_lazily, send_marked)
            took_s = now() - exchange.started
            if scope["http_version"] == "2" and exchange.status >= 400 and not exchange.body_ended:
                await _drop_body(exchange)
        finally:
            for release in exchange.at_end:
                release()
            self._metrics.count(
                scope["path"],
                exchange.status,
                reason=exchange.reason,
                duration_s=now() - exchange.started if took_s is None else took_s,
                request_bytes=exchange.request_bytes,
                response_bytes=sent,
            )


async def _drop_body(exchange: Exchange) -> None:
    """Read the rest of a refused body, for a while: common HTTP/2 clients look for the answer only after they have sent
    all, and wait for window credit until then. (Over HTTP/1 frontend.serving.connection half-closes instead.)"""

    async def drop() -> None:
        while (event := await exchange.receive())["type"] == "http.request" and event.get("more_body", False):
            pass

    try:
        await asyncio.wait_for(drop(), LINGER_S)
    except asyncio.TimeoutError:
        pass  # the server resets the stream
