"""What all connections of the short way (:mod:`frontend.lean`) use together, one for each process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from engine.core.call import Answer
from engine.core.messages import Flow
from frontend import asking, chunked, health
from frontend.cors import Cors
from frontend.errors import Problem
from frontend.inbox import Inbox
from frontend.lingering import Lingering
from frontend.plain import Plain, Reader
from frontend.requestid import Ids
from frontend.waiting import hint, last_stages
from frontend.writer import Writer, connection_of

if TYPE_CHECKING:
    from engine.config import Deployment
    from engine.core.call import BrokerClient
    from frontend.answer import Answering
    from frontend.gate import Gate
    from frontend.lean import LeanConnection
    from frontend.metrics import FrontendMetrics
    from frontend.tracing import Trace

HEAD_MAX: Final = 4 * 1024  # bytes of a head that is read here: each connection remembers its last one, parsed


class Shared:
    """What all connections of one process use; ``hand_over`` gives a transport and its bytes to gunicorn's side."""

    def __init__(
        self,
        deployment: Deployment,
        client: BrokerClient,
        gate: Gate,
        metrics: FrontendMetrics,
        answering: Answering,
        hand_over: Callable[[asyncio.Transport, bytes], asyncio.Protocol],
    ) -> None:
        frontend, topology = deployment.frontend, deployment.topology
        self.client = client
        self.gate = gate
        self.metrics = metrics
        self.access = metrics.access
        self.traces = metrics.traces
        self.answering = answering
        self.hand_over = hand_over
        models = asking.models(deployment.routes)
        self.pages = health.pages(topology, client, gate, speaks_oip=bool(models))
        self.reader = Reader(
            topology,
            gate.terms,
            self.pages,
            compressed=frontend.compression,
            keyed=gate.keys is not None,
            models=models,
            aliases=asking.aliases(deployment.routes),
        )
        self.writer = Writer(topology, answering)
        self.cors = Cors(frontend.cors) if frontend.cors else None
        self.body_timeout_s = frontend.body_timeout
        self.is_tls = bool(frontend.certfile)
        self.header_timeout_s = frontend.header_timeout
        self.keepalive_s = frontend.keepalive
        self.most_bytes = gate.max_request_size + chunked.OVERHEAD_MAX
        self.head_max = min(HEAD_MAX, frontend.max_header_size)
        self.connections: set[LeanConnection] = set()
        self.lingering: set[Lingering] = set()  # connections whose last answer has been written
        self.changed: Callable[[], None] = lambda: None  # told when a connection ends or falls idle
        self.empty = Inbox(gate, None)  # of connections that have no transport
        self.new_id = Ids()
        self._last_stages = [last_stages(topology, index) for index in range(len(topology.routes))]
        self.tick()

    def linger(self, transport: asyncio.Transport) -> None:
        """Nothing more is served on this connection: end it so that its client sees its last answer."""
        self.lingering.add(Lingering(transport, self.gate.unsent, self._lingered))
        self.changed()

    def _lingered(self, lingering: Lingering) -> None:
        self.lingering.discard(lingering)
        self.changed()

    def tick(self) -> None:
        """Once a second at least: the date of the answers."""
        self.writer.date = formatdate(usegmt=True).encode()

    def hint(self, route: int) -> Flow:
        """How the route gives its answers, as far as is known."""
        return hint(self.client, self._last_stages[route])

    def respond(
        self,
        plain: Plain,
        answer: Answer,
        request_id: str,
        took_s: float,
        came: int,
        trace: Trace | None,
        connection: str,
    ) -> tuple[bytes, bytes | memoryview]:
        """Head and body of the answer to a request with a body of ``came`` bytes, counted. ``connection``: what is said
        of it, if anything."""
        status, size, head, body = self.writer.answer(plain, answer, request_id, took_s, connection)
        who = ("request_id", request_id) if trace is None else trace.label
        self.metrics.count(plain.head.path, status, duration_s=took_s, request_bytes=came, response_bytes=size, who=who)
        return head, body

    def refuse(self, plain: Plain, problem: Problem, request_id: str, came: int, *, close: bool) -> bytes:
        """A refusal as bytes, counted."""
        self.metrics.count(plain.head.path, problem.status, reason=problem.reason, request_bytes=came)
        reply = self.answering.problem(problem, plain.head, request_id)
        return self.said(plain, self.writer.reply(reply, request_id, connection=connection_of(plain.more, close=close)))

    def said(self, plain: Plain, answer: bytes) -> bytes:
        """An answer, or its head, with what a browser has to be told of who may read it."""
        return answer if self.cors is None else self.cors.said(answer, plain.head)
