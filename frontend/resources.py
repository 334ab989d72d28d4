"""A route of the service, and /metrics.

A route does in order: refuse at the door, read the body, submit, wait, answer. It promises one answer by the deadline
plus GRACE_S whatever the broker does, and to cancel what nobody waits for.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

import falcon.asgi

from engine.client import Answer
from engine.clock import now
from engine.core.liveness import ANSWER_GRACE_S
from engine.core.messages import Flow
from engine.core.wire import pack_meta
from engine.errors import ProtocolError, Unavailable
from engine.metrics import exposition, unpack_sources
from engine.metrictext import CONTENT_TYPE
from frontend import compression, deadline, errors, media, streams, timing
from frontend.body import Body
from frontend.broker import BrokerClient
from frontend.door import Door
from frontend.errors import Refusal
from frontend.exchange import Exchange, Receive
from frontend.metrics import FrontendMetrics

log = logging.getLogger("stageline.frontend")

GRACE_S: Final = ANSWER_GRACE_S
QUICK_S: Final = 0.02  # most answers are there by then; a watch for the client's leaving costs a task


@dataclass(frozen=True)
class Limits:
    """Of one request: seconds and bytes."""

    timeout_s: float
    max_request_size: int
    body_timeout_s: float
    compression: bool = False


class RouteResource:
    """``POST path``: the service."""

    def __init__(
        self, route: int, stages: tuple[str, ...], last: int, *, client: BrokerClient, door: Door, limits: Limits
    ) -> None:
        """``stages``: the names of the route's stages; ``last``: the number of the last of them."""
        self._route = route
        self._last = last
        self._stages = timing.labels(stages)
        self._client = client
        self._door = door
        self._limits = limits

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        exchange = Exchange.of(req.scope)
        limits = self._limits
        self._check_door()
        timeout_s = deadline.allowed(
            exchange.header(deadline.SECONDS), exchange.header(deadline.MILLISECONDS), limits.timeout_s
        )
        if timeout_s is None:
            raise Refusal(errors.BAD_TIMEOUT)
        body = Body(
            exchange,
            self._door,
            limit=limits.max_request_size,
            pause_s=limits.body_timeout_s,
            compressed=limits.compression,
        )
        exchange.at_end.append(body.release)
        data = await body.read()
        self._check_door()  # a slow upload may end in another world than it began in
        meta = pack_meta(req.scope["query_string"], _told(exchange.headers, limits))
        answer: Answer | None
        if streams.state_of(self._client, self._last).flow == Flow.WHOLE:
            answer = await self._ask(exchange, data, meta, timeout_s)
        else:
            stream = streams.Stream(exchange, self._client, self._door, self._last)
            exchange.at_end.append(stream.end)
            stream.submit(self._route, data, timeout_s=timeout_s, grace_s=GRACE_S, meta=meta)
            begun = await stream.begin()
            if begun is streams.Begun.STREAMING:
                self._stream(resp, stream)
                return
            answer = begun if isinstance(begun, Answer) else None
        if answer is None:
            exchange.gone = True
            errors.answer_problem(exchange, resp, errors.CLIENT_GONE)
        else:
            self._respond(exchange, resp, answer)
            if limits.compression:
                await _compress(exchange, resp)

    def _stream(self, resp: falcon.asgi.Response, stream: streams.Stream) -> None:
        resp.content_type = media.content_type(stream.mime)
        resp.set_header("cache-control", "no-cache")
        resp.set_header("x-accel-buffering", "no")  # nginx would collect it otherwise
        resp.stream = stream

    def _check_door(self) -> None:
        if (problem := self._door.check(self._client.view())) is not None:
            raise Refusal(problem)

    async def _ask(self, exchange: Exchange, data: bytes, meta: bytes, timeout_s: float) -> Answer | None:
        """The answer; None when the client has gone. Raises Refusal when there is none in time."""
        client = self._client
        connected = client.view().connected
        try:
            future = client.submit(self._route, data, timeout_s=timeout_s, request_id=exchange.request_id, meta=meta)
        except Unavailable as error:
            raise Refusal(errors.unavailable(error)) from None
        self._door.pending += 1
        try:
            if not await _wait(future, exchange.receive, timeout_s + GRACE_S):
                return None
            if future.done():
                return _result(future)
            reached = connected or client.view().connected
            raise Refusal(errors.TIMEOUT if reached else errors.UNREACHABLE)
        finally:
            self._door.pending -= 1
            if not future.done():
                client.cancel(future)

    def _respond(self, exchange: Exchange, resp: falcon.asgi.Response, answer: Answer) -> None:
        if answer.status == 200:
            resp.content_type = media.content_type(answer.mime)
            resp.data = bytes(answer.body)  # a large one is a view of ZeroMQ's memory; gunicorn writes bytes only
        else:
            status = answer.status if 400 <= answer.status <= 599 else 500
            errors.answer_failure(exchange, resp, status, str(answer.body, "utf-8", "replace"))
        resp.set_header(timing.HEADER, timing.header(answer.trail, self._stages, now() - exchange.started))
        if answer.headers:
            for name, value in media.passable(answer.headers):
                if name.lower() == "set-cookie":
                    resp.append_header(name, value)  # Falcon refuses it in set_header
                else:
                    resp.set_header(name, value)


def _told(headers: list[tuple[bytes, bytes]], limits: Limits) -> list[tuple[bytes, bytes]]:
    """What the service is told of a request's headers: nothing of a coding that has been undone."""
    return [pair for pair in headers if pair[0] != b"content-encoding"] if limits.compression else headers


async def _compress(exchange: Exchange, resp: falcon.asgi.Response) -> None:
    """Compress the answer, if the client wants that and it is worth it."""
    resp.append_header("vary", compression.VARY)
    coding, forced = compression.choose(exchange.joined(b"accept-encoding"))
    body = resp.data or b""
    if coding and compression.is_worth(resp.content_type or "", len(body), forced=forced):
        resp.data = await compression.answer_body(coding, body)
        resp.set_header("content-encoding", coding)


def _result(future: asyncio.Future[Answer]) -> Answer:
    if future.cancelled():  # the client is closing
        raise Refusal(errors.UNREACHABLE)
    try:
        return future.result()
    except Unavailable as error:
        raise Refusal(errors.unavailable(error)) from None


async def _wait(future: asyncio.Future[Answer], receive: Receive, timeout_s: float) -> bool:
    """Wait for the answer, the time-out or the client's leaving; False: it left."""
    end = now() + timeout_s
    await asyncio.wait((future,), timeout=min(QUICK_S, timeout_s))
    if future.done():
        return True
    watch = asyncio.ensure_future(_wait_gone(receive))
    try:
        await asyncio.wait((future, watch), timeout=max(0.0, end - now()), return_when=asyncio.FIRST_COMPLETED)
        if future.done() or not watch.done():
            return True
        watch.result()  # an error in receive() is ours to see
        return False
    finally:
        watch.cancel()


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class MetricsResource:
    """``GET /metrics``: the whole deployment, by way of the broker; this process alone when that does not answer."""

    def __init__(self, client: BrokerClient, metrics: FrontendMetrics, *, name: str, namespace: str) -> None:
        self._client = client
        self._metrics = metrics
        self._name = name
        self._namespace = namespace

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        try:
            sources = unpack_sources(await self._client.ask("metrics"))
        except Unavailable:
            sources = None
        except ProtocolError as error:
            log.warning("metrics: %s", error)
            sources = None
        resp.content_type = CONTENT_TYPE
        resp.data = exposition(sources, self._name, self._metrics.families(), self._namespace)
        resp.set_header("cache-control", "no-store")

    on_head = on_get
