"""What a request is answered with: status, content type, body and headers, decided once for every way out. Pure.

Whichever connection a request came by, its :class:`Reply` is made here, from an answer of the broker's client
(:meth:`Answering.result`), from a row of the table of refusals (:meth:`Answering.problem`), or for a stream that begins
(:meth:`Answering.stream`); the connections only write it down, each in the form of its protocol. Whoever adds a header,
or a form of errors, adds it here. A reply has no framing, no date and no word about the connection: those are the
writer's.

* An answer that only says something is text, or RFC 9457 problem details for a client that names JSON in its Accept. On
  routes under ``/v1/``, whose clients are written for OpenAI's API, it is JSON unless text is asked for by name, and
  carries that API's ``error`` object beside.
* An error of the service's own that brings a body (a ``content-type`` among its headers) is passed on as it is.
* ``retry-after`` and ``retry-after-ms`` are said by whoever refuses. What a worker answers with 429 or 503 is its own
  affair, and so is when its client should come again.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final, NamedTuple

from engine.core.call import Answer
from engine.core.messages import Refused, Speaker
from engine.core.routing import Topology
from frontend import compression, media, timing
from frontend.errors import Problem
from frontend.head import Head

SERVER: Final = "stageline"

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

    def __init__(self, topology: Topology, *, compressed: bool = False) -> None:
        """``compressed``: the same request with another Accept-Encoding may be answered in another coding, and caches
        must know."""
        self.stages = [timing.labels(topology.stage_names(index)) for index in range(len(topology.routes))]
        self._vary = [("vary", compression.VARY)] if compressed else []

    def result(self, route: int, head: Head, answer: Answer, request_id: str, took_s: float) -> Reply:
        """What the broker's client brought: a result, or why there is none."""
        times = timing.header(answer.trail, self.stages[route], took_s)
        if answer.refused is not None:
            times = f"{timing.refused(answer.refused)}, {times}"
        headers = [*self._vary, (timing.HEADER, times)]
        passed = media.passable(answer.headers) if answer.headers else []
        if answer.status == 200:
            return Reply(200, media.content_type(answer.mime), bytes(answer.body), headers + passed)
        status = answer.status if 300 <= answer.status <= 599 else 500
        if status in (429, 503) and answer.speaker != _WORKER:
            headers += retry_after(answer.retry_ms / 1000 or UNKNOWN_S)
        own = own_type(answer.headers)
        if own:
            mime, body = own, bytes(answer.body)
        else:
            mime, body = media.message(head.accept, status, str(answer.body, "utf-8", "replace"), request_id, head.path)
        return Reply(status, mime, b"" if status in _BODILESS else body, headers + passed)

    def problem(self, problem: Problem, head: Head | None, request_id: str) -> Reply:
        """A refusal of this process's. ``head`` None: it could not be read."""
        accept, path = (head.accept, head.path) if head is not None else (b"", "")
        mime, body = media.message(accept, problem.status, problem.detail, request_id, path, problem.reason)
        headers = [*self._vary, *problem.headers.items()]
        if problem.status in _REFUSALS:
            headers.append((timing.HEADER, timing.refused(Refused(problem.reason))))
        if problem.retry_after_s:
            headers += retry_after(problem.retry_after_s)
        return Reply(problem.status, mime, body, headers, problem.reason)

    def stream(self, mime: str) -> Reply:
        """The head of an answer whose body is sent while it is computed."""
        # nginx would collect it otherwise.
        return Reply(200, media.content_type(mime), b"", [("cache-control", "no-cache"), ("x-accel-buffering", "no")])


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
