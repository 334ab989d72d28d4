"""What a request is answered with: status, content type, body and headers, decided once for every way out. Pure.

Whichever connection a request came by, its :class:`Reply` is made here, from an answer of the broker's client
(:meth:`Answering.result`), from a row of the table of refusals (:meth:`Answering.problem`), or for a stream that begins
(:meth:`Answering.stream`); the connections only write it down, each in the form of its protocol. Whoever adds a header,
or a form of errors, adds it here. A reply has no framing, no date and no word about the connection: those are the
writer's.

* An answer that only says something is text, or RFC 9457 problem details for a client that names JSON in its Accept. On
  routes that speak an API which has a form for errors, it has that (:mod:`frontend.protocols`).
* An error of the service's own that brings a body (a ``content-type`` among its headers) is passed on as it is, where
  clients of the route's protocol can read that. A result that brings a content type has that.
* ``retry-after`` and ``retry-after-ms`` are said by whoever refuses. What a worker answers with 429 or 503 is its own
  affair, and so is when its client should come again.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.config.schema import ANY_ORIGIN, OIP, OPENAI
from engine.core import oip, sse
from engine.core.call import Answer
from engine.core.messages import Refused, Speaker
from engine.core.routing import Topology
from frontend import compression, media, timing
from frontend.errors import Problem
from frontend.head import Head
from frontend.protocols import JSON, Protocols, openai_body, openai_event

if TYPE_CHECKING:
    from engine.config.schema import Deployment
    from frontend.hook import Hook

SERVER: Final = "stageline"

ORIGIN: Final = "origin"  # the page that asks, where not all may
UNKNOWN_S: Final = 1.0  # when to come again, where nobody knows

_REFUSALS: Final = frozenset({408, 429, 503})  # for want of room or time, whose reason is told like the broker's

_WORKER: Final = int(Speaker.WORKER)
_BODILESS: Final = frozenset({304})  # RFC 9110, section 15.4.5; informational and 204 are no failures


class Reply(NamedTuple):
    """An answer, but for what its connection adds. ``reason`` is the label of a refusal in the metrics."""

    status: int
    mime: str
    body: bytes
    headers: list[tuple[str, str]] = []  # lower-case names
    reason: str = ""


def common(request_id: str) -> list[tuple[str, str]]:
    """What every answer of this process says, whatever it is."""
    return [("server", SERVER), ("x-request-id", request_id)]


class Answering:
    """Makes replies for the routes of one deployment."""

    def __init__(
        self,
        topology: Topology,
        *,
        compressed: bool = False,
        protocols: Mapping[str, str] | None = None,
        vary: str = "",
    ) -> None:
        """``compressed``: the same request with another Accept-Encoding may be answered in another coding, and caches
        must know. ``protocols``: of routes, by path; of others nothing is known. ``vary``: what else
        answers depend on."""
        self.hook: Hook | None = None  # the service's own form of errors
        self._paths = frozenset(route.path for route in topology.routes)  # that it may be told
        self._protocols = Protocols(protocols)
        spoken = [self._protocols.of(route.path) for route in topology.routes]
        # How a stream of events ends that failed, by route: from a status and words.
        self.last_events = [openai_event if protocol == OPENAI else sse.error for protocol in spoken]
        self.stages = [timing.labels(topology.stage_names(index)) for index in range(len(topology.routes))]
        #: What answers depend on, for caches.
        self.vary = ", ".join(filter(None, (compression.VARY if compressed else "", vary)))
        self._vary = [("vary", self.vary)] if self.vary else []
        self._stream_vary = [("vary", vary)] if vary else []  # they are never compressed

    @staticmethod
    def of(deployment: Deployment) -> Answering:
        made = Answering(
            deployment.topology,
            compressed=deployment.frontend.compression,
            protocols={route.path: route.protocol for route in deployment.routes},
            vary=ORIGIN if deployment.frontend.cors and ANY_ORIGIN not in deployment.frontend.cors else "",
        )
        made._paths = frozenset(deployment.paths)
        return made

    def result(self, route: int, head: Head, answer: Answer, request_id: str, took_s: float) -> Reply:
        """What the broker's client brought: a result, or why there is none."""
        times = timing.header(answer.trail, self.stages[route], took_s)
        if answer.refused is not None:
            times = f"{timing.refused(answer.refused)}, {times}"
        headers = [*self._vary, (timing.HEADER, times)]
        passed = media.passable(answer.headers) if answer.headers else []
        if answer.status == 200:
            mime = (answer.headers and own_type(answer.headers)) or media.content_type(answer.mime)
            return Reply(200, mime, bytes(answer.body), headers + passed)
        status = answer.status if 300 <= answer.status <= 599 else 500
        if status in (429, 503) and answer.speaker != _WORKER:
            headers += retry_after(answer.retry_ms / 1000 or UNKNOWN_S)
        own = own_type(answer.headers)
        protocol = self._protocols.of(head.path)
        if own and (protocol != OIP or oip.is_error(answer.body)):
            mime, body = own, bytes(answer.body)
        else:
            said = str(answer.body, "utf-8", "replace")
            reason = answer.refused.reason if answer.refused is not None else ""
            mime, body = self._written(head.path, head.accept, status, said, request_id, reason)
        return Reply(status, mime, b"" if status in _BODILESS else body, headers + passed)

    def problem(self, problem: Problem, head: Head | None, request_id: str, path: str = "") -> Reply:
        """A refusal of this process's. ``head`` None: it could not be read, and ``path`` says where it was for, where
        that much is known."""
        accept, path = (head.accept, head.path) if head is not None else (b"", path)
        mime, body = self._written(path, accept, problem.status, problem.detail, request_id, problem.reason)
        headers = [*self._vary, *problem.headers.items()]
        if problem.status in _REFUSALS and problem.reason:
            headers.append((timing.HEADER, timing.refused(Refused(problem.reason))))
        if problem.retry_after_s:
            headers += retry_after(problem.retry_after_s)
        return Reply(problem.status, mime, body, headers, problem.reason)

    def _written(
        self, path: str, accept: bytes, status: int, said: str, request_id: str, reason: str
    ) -> tuple[str, bytes]:
        """Content type and body of what only says something."""
        if self.hook is not None:
            route = path if path in self._paths else ""
            own = self.hook.written(status, said, request_id, reason, route)
            if own is not None:
                return own
        protocol = self._protocols.of(path)
        if protocol == OPENAI:
            return JSON, openai_body(status, said, reason)
        if protocol == OIP:
            return JSON, oip.error(said)
        return media.message(accept, status, said, request_id)

    def stream(self, mime: str) -> Reply:
        """The head of an answer whose body is sent while it is computed."""
        # nginx would collect it otherwise.
        headers = [*self._stream_vary, ("cache-control", "no-cache"), ("x-accel-buffering", "no")]
        return Reply(200, media.content_type(mime), b"", headers)


def retry_after(seconds: float) -> list[tuple[str, str]]:
    """When to come again: in whole seconds, at least one, for all clients, and more precisely for those who know that
    header (OpenAI's and others' libraries)."""
    return [("retry-after", str(max(1, ceil(seconds)))), ("retry-after-ms", str(max(1, ceil(seconds * 1000))))]


def own_type(headers: Mapping[str, str]) -> str:
    """The content type of an error's own body; "" for one that only has words."""
    for name, value in headers.items():
        if name.lower() == "content-type":
            return media.content_type(value)
    return ""
