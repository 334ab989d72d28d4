"""A route of the service, and /metrics.

A route does in order: refuse at the gate, read the body, submit, wait, answer. It promises one answer by the deadline
plus a small grace whatever the broker does, and to cancel what nobody waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import falcon.asgi

from engine import metrictext
from engine.clock import now
from engine.core import meta, oip
from engine.core.call import BrokerClient
from engine.errors import ProtocolError, Unavailable
from engine.metrics import exposition, unpack_sources
from frontend import asking, compression, errors
from frontend import head as heads
from frontend.answer import Answering
from frontend.body import Body
from frontend.errors import Refusal
from frontend.exchange import Exchange
from frontend.gate import Gate
from frontend.handlers import fill
from frontend.head import Head
from frontend.idempotency import beside, key_of
from frontend.jobs.resources import Jobs, wants_job
from frontend.metrics import FrontendMetrics
from frontend.waiting import Begun, Waiting

if TYPE_CHECKING:
    from frontend.tracing import Traces

log = logging.getLogger("stageline.frontend")


@dataclass(frozen=True)
class Collaborators:
    """What all routes of a process share. ``body_timeout_s``: the longest pause while a client sends its body."""

    client: BrokerClient
    gate: Gate
    answering: Answering
    body_timeout_s: float
    compression: bool = False
    traces: Traces | None = None
    jobs: Jobs | None = None


class RouteResource:
    """``POST path``: the service."""

    def __init__(self, route: int, stages: Sequence[str], shared: Collaborators, model: str = "") -> None:
        """``stages``: the names of those with which the route may end; ``model``: what it serves, where it speaks the
        Open Inference Protocol."""
        self._route = route
        self._model = model
        self._stages = stages
        self._shared = shared

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        shared, exchange = self._shared, Exchange.of(req.scope)
        head = exchange.head
        assert head is not None
        if shared.traces is not None:
            exchange.trace = shared.traces.begin(head, exchange.started, exchange.request_id)
        jobs = shared.jobs if shared.jobs is not None and wants_job(head) else None
        if jobs is None:
            self._check_gate()
        elif shared.gate.draining:
            raise Refusal(errors.DRAINING)
        if not exchange.fits:
            raise Refusal(errors.CAPACITY_BYTES)
        terms = shared.gate.terms(head)
        body = Body(exchange, head, shared.gate, terms, pause_s=shared.body_timeout_s)
        exchange.at_end.append(body.release)
        data = await body.read()
        if jobs is None:
            self._check_gate()  # a slow upload may end in another world than it began in
        key = await self._key(head, data)
        told = meta.pack_head(
            head.query, heads.told(head, undone=bool(terms.coding), keyed=shared.gate.keys is not None)
        )
        if exchange.trace is not None:
            told = meta.traced(told, exchange.trace.told)
        timeout_s, qos, wants = body.left_s, terms.qos, oip.Terms()
        if self._model:
            asked, wants = await self._asked(head, data)
            told = meta.asking(told, asked)
            timeout_s, qos = asking.within(wants, timeout_s), asking.standing(wants, qos)
        about = meta.pack(exchange.request_id, told)
        if jobs is not None:
            await jobs.take(head, self._route, data, about, key, resp, wants)
            return
        memo = await self._memo(head, data)
        waiting = Waiting(exchange, shared.client, shared.gate, self._stages, shared.answering.last_events[self._route])
        exchange.at_end.append(waiting.end)
        waiting.submit(self._route, data, timeout_s=timeout_s, meta=about, key=key, qos=qos, memo=memo)
        del data  # the broker's client has it while it may be needed again
        begun = await waiting.begin()
        if begun is Begun.GONE:
            exchange.leave()
        elif isinstance(begun, Begun):
            fill(resp, shared.answering.stream(waiting.stream.mime))
            resp.data = None
            resp.stream = waiting
        else:
            body.release()  # not only when the client has read its answer, which is its own affair
            took_s = now() - exchange.started
            reply = shared.answering.result(self._route, head, begun, exchange.request_id, took_s)
            fill(resp, reply)
            if shared.compression:
                await _compress(head, resp)

    async def _asked(self, head: Head, body: bytes) -> tuple[oip.Asked, oip.Terms]:
        """What the request asks for; a long one is read beside the event loop."""
        if not asking.is_long(head, len(body)):
            return asking.read(self._model, head, body)
        return await asyncio.get_running_loop().run_in_executor(None, asking.read, self._model, head, body)

    async def _key(self, head: Head, body: bytes) -> bytes:
        """Of the request, if it has one; of a large body beside the event loop."""
        if head.idempotency_key is None:
            return b""
        return await beside(len(body), key_of, head, body)

    async def _memo(self, head: Head, body: bytes) -> bytes:
        """The same for the cache of the route's first stage."""
        memos = self._shared.gate.memos
        if not memos.has(self._route):
            return b""
        return await beside(len(body), memos.of, self._route, head.query, head.fields, body)

    def _check_gate(self) -> None:
        if (problem := self._shared.gate.refusal(self._shared.client.view())) is not None:
            raise Refusal(problem)


async def _compress(head: Head, resp: falcon.asgi.Response) -> None:
    """Compress the answer, if the client wants that and it is worth it."""
    coding, forced = compression.choose(head.accept_encoding)
    body = resp.data or b""
    if coding and compression.is_worth(resp.content_type or "", len(body), forced=forced):
        if len(body) <= compression.INLINE_MAX:
            resp.data = compression.pack(coding, body)
        else:
            resp.data = await asyncio.get_running_loop().run_in_executor(None, compression.pack, coding, body)
        resp.set_header("content-encoding", coding)


def _is_open(req: falcon.asgi.Request) -> bool:
    """Whether whoever asks for metrics would have them as OpenMetrics rather than as text."""
    accept = req.get_header("accept") or ""
    if "openmetrics" not in accept.lower():
        return False  # "*/*" is a browser, or curl
    try:
        return falcon.mediatypes.best_match([metrictext.CLASSIC[0], metrictext.OPEN[0]], accept) == metrictext.OPEN[0]
    except falcon.errors.InvalidMediaRange:
        return False


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
        resp.content_type, written = metrictext.OPEN if _is_open(req) else metrictext.CLASSIC
        resp.data = exposition(sources, self._name, self._metrics.families(), self._namespace, written)
        resp.set_header("vary", "accept")
        resp.set_header("cache-control", "no-store")

    on_head = on_get
