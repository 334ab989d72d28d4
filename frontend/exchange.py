"""One request and its answer, below Falcon: what Falcon hides or does too late for us.

A thin ASGI layer around the application. It reads every request's head and refuses what no head may say, whatever the
path; it gives every answer its x-request-id and counts it; it hands routes the connection's own ``receive`` (Falcon
keeps it to itself, and only it tells that a client has gone); and it begins with an empty body event of its own,
because Falcon awaits the first event before anything else: a body that will be refused is then never asked for, and a
client that waits for ``100 Continue`` gets the refusal instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import structs

from engine.clock import Deadline, now
from frontend import head as heads
from frontend.accesslog import peer
from frontend.answer import Answering, Reply, common
from frontend.cors import Cors, varied
from frontend.errors import CLIENT_GONE, Refusal
from frontend.gate import REQUEST_COST, Gate, client_of
from frontend.head import Head
from frontend.metrics import FrontendMetrics
from frontend.pace import LINGER_S
from frontend.requestid import Ids
from frontend.timing import HEADER

if TYPE_CHECKING:
    from frontend.tracing import Trace

Event: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("stageline.frontend")

SMALL_BODY: Final = 64 * 1024  # bytes of a refused body that are read before its refusal is sent
SMALL_BODY_S: Final = 0.5  # how long that may take

TIMING: Final = HEADER.encode()
CUT: Final = "stageline.cut"  # in the scope, by the connection: ends it in the middle of an answer
_KEY: Final = "stageline.exchange"


class Exchange:
    """What the layers share about one request. ``gone``: there is nobody to answer any more."""

    __slots__ = (
        "_cut",
        "at_end",
        "body_ended",
        "client",
        "fits",
        "gone",
        "head",
        "is_old",
        "reason",
        "receive",
        "request_bytes",
        "request_id",
        "started",
        "status",
        "trace",
    )

    def __init__(
        self, head: Head | None, request_id: str, receive: Receive, cut: Callable[[bool], None] | None = None
    ) -> None:
        """``head`` None: it could not be read, and nobody but this layer sees the request."""
        self._cut = cut
        self.at_end: list[Callable[[], None]] = []  # called when the request is over, however it ended
        self.client = ""  # who it is counted as at the gate
        self.fits = True  # there is room for its head; else it is answered at once, and nothing is waited for
        self.head = head
        self.receive = receive
        self.request_id = request_id
        self.started = now()
        self.status = 0  # 0: not begun to answer
        self.request_bytes = 0
        self.body_ended = False
        self.reason = ""  # why it was refused
        self.trace: Trace | None = None  # of a request to a route, if it is sampled
        self.gone = False
        self.is_old = False  # HTTP/1.0: a body without a length ends with its connection

    @staticmethod
    def of(scope: Scope) -> Exchange:
        exchange: Exchange = scope[_KEY]
        return exchange

    def leave(self) -> None:
        """The client has gone: nothing more is sent."""
        self.gone = True
        self.status = CLIENT_GONE.status
        self.reason = CLIENT_GONE.reason

    def cut(self, *, at_once: bool = False) -> None:
        """End an answer in its middle, so that the client sees that it is not whole. ``at_once``: what is still to be
        written is dropped. Over HTTP/2 the server resets the stream of an answer that was not finished."""
        self.gone = True
        if self._cut is not None:
            self._cut(at_once)


class Layer:
    """The ASGI application around ``app``."""

    def __init__(
        self,
        app: Application,
        metrics: FrontendMetrics,
        answering: Answering,
        gate: Gate,
        aliases: Mapping[str, str] = MappingProxyType({}),
        cors: Cors | None = None,
    ) -> None:
        """``aliases``: other paths of routes; what comes there is the route's, in its metrics too."""
        self._aliases = aliases
        self._app = app
        self._gate = gate
        self._metrics = metrics
        self._answering = answering
        self._cors = cors
        self._new_id = Ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fields = scope["headers"]
        refusal: Refusal | None = None
        head: Head | None = None
        try:
            head = heads.read(scope["method"], scope["http_version"], scope["path"], scope["query_string"], fields)
            if head.path in self._aliases:
                head = structs.replace(head, path=self._aliases[head.path])
            scope["path"] = head.path
        except Refusal as error:
            refusal = error
        is_old = scope["http_version"] == "1.0"
        cors = None if head is None or self._gate.is_page(head.path) else self._cors
        preflight = cors.preflight(scope["method"], head) if cors is not None and head is not None else None
        exchange = Exchange(head, (head and head.request_id) or self._new_id(), receive, scope.get(CUT))
        exchange.is_old = is_old
        if head is not None and preflight is None and self._gate.asks_key(head, scope.get("client"), is_old=is_old):
            try:
                exchange.at_end.append(self._gate.come_in(head, exchange.started))
            except Refusal as error:
                refusal = error
        exchange.client = client_of(scope.get("client"))
        # Twice: as the connection has it, and as the application does.
        weight = REQUEST_COST + 2 * sum([len(name) + len(value) for name, value in fields])
        exchange.fits = self._gate.open(weight, exchange.client)
        scope[_KEY] = exchange
        extra = [(name.encode(), value.encode()) for name, value in common(exchange.request_id)]
        if cors is not None and head is not None and preflight is None:
            extra += [(name.encode(), value.encode()) for name, value in cors.lines(head)]
        sent, timing, access = 0, "", self._metrics.access

        async def send_marked(event: Event) -> None:
            nonlocal sent, timing
            if exchange.gone:
                return
            if event["type"] == "http.response.start":
                exchange.status = event["status"]
                if exchange.fits and not exchange.body_ended and heads.sends_little(fields, SMALL_BODY):
                    await _finish_body(exchange)
                event["headers"] = [*event["headers"], *extra]
                if cors is not None and preflight is None:
                    event["headers"] = varied(event["headers"], cors.vary)
                if exchange.trace is not None:
                    event["headers"].append((TIMING, exchange.trace.timing.encode()))
                if access is not None:
                    timing = next((str(value, "latin-1") for name, value in event["headers"] if name == TIMING), "")
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
            if preflight is not None:
                await _send(preflight, send_marked)
            elif refusal is None:
                await self._app(scope, receive_lazily, send_marked)
            else:
                reply = self._answering.problem(refusal.problem, head, exchange.request_id, scope["path"])
                exchange.reason = reply.reason
                await _send(reply, send_marked)
            took_s = now() - exchange.started
            is_refused = exchange.status >= 400 and not exchange.body_ended
            if scope["http_version"] == "2" and is_refused and exchange.fits:
                await _drop_body(exchange)
        finally:
            self._gate.close(weight, exchange.client)
            for release in exchange.at_end:
                release()
            exchange.at_end.clear()  # no circle of references: bodies must not wait for the garbage collector
            took_s = now() - exchange.started if took_s is None else took_s
            self._metrics.count(
                scope["path"],
                exchange.status,
                reason=exchange.reason,
                duration_s=took_s,
                request_bytes=exchange.request_bytes,
                response_bytes=sent,
                who=("request_id", exchange.request_id) if exchange.trace is None else exchange.trace.label,
            )
            if exchange.trace is not None:
                exchange.trace.end(exchange.status, exchange.reason)
            if access is not None and self._metrics.tells(scope["path"], exchange.reason):
                access.note(
                    client=peer(scope.get("client")),
                    method=scope["method"],
                    path=scope["path"],
                    status=exchange.status or CLIENT_GONE.status,
                    came=exchange.request_bytes,
                    sent=sent,
                    took_s=took_s,
                    request_id=exchange.request_id,
                    timing=timing,
                    reason=exchange.reason,
                    key=self._gate.key_name(exchange.head),
                )


async def _send(reply: Reply, send: Send) -> None:
    """A reply without Falcon."""
    headers = [("content-type", reply.mime), ("content-length", str(len(reply.body))), *reply.headers]
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
    await send({"type": "http.response.body", "body": reply.body})


async def _finish_body(exchange: Exchange) -> None:
    """Read and drop the rest of a small body that nobody wanted before the answer is sent, so that the connection stays
    in step and open: whether all of it had come by then is chance. Behind a large one, or one that was not sent before
    it was asked for, the connection ends."""
    deadline, dropped = Deadline(SMALL_BODY_S), 0
    while dropped <= SMALL_BODY and (event := await _next(exchange, deadline)) is not None:
        dropped += len(event.get("body", b""))
        if event["type"] != "http.request" or not event.get("more_body", False):
            exchange.body_ended = True
            return


async def _drop_body(exchange: Exchange) -> None:
    """Read the rest of a refused body, for a while: common HTTP/2 clients look for the answer only after they have sent
    all, and wait for window credit until then. (Over HTTP/1 the connection is closed by halves: frontend.serving.)"""
    deadline = Deadline(LINGER_S)
    while (event := await _next(exchange, deadline)) is not None:
        if event["type"] != "http.request" or not event.get("more_body", False):
            return


async def _next(exchange: Exchange, deadline: Deadline) -> Event | None:
    """The next event; None when the time is over. A limit on each wait, and none around the loop: before Python 3.12
    wait_for() drops the cancellation of what it is called in when a byte comes in that instant, and the loop went on
    for as long as bytes did."""
    if deadline.passed:
        return None
    try:
        return await asyncio.wait_for(exchange.receive(), deadline.remaining())
    except asyncio.TimeoutError:
        return None
