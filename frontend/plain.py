"""What a plain request is, and how its answer is written: bytes in, values out. Pure.

Plain is a strict subset of HTTP/1.1: a POST to a service route with one Content-Length and nothing to negotiate. What
is accepted here gunicorn's parser would accept too, and would understand in the same way; that is held by one regular
expression and a list of fields that ask for something else. :mod:`frontend.lean` hands over what is not plain.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.core.routing import Topology
from engine.core.wire import pack_meta
from frontend import compression, media, requestid, timing

if TYPE_CHECKING:
    from engine.client import Answer
    from engine.config import Deployment
    from frontend.errors import Problem

# A request line and header fields exactly as RFC 9112 writes them, no more: single spaces, CRLF, no folding, names that
# are tokens, values without control characters. Anything else may be fine, and is gunicorn's to judge. No part can
# match the same bytes in two ways (blanks around a value are stripped later): else a hostile head could take for
# ever.
_HEAD: Final = re.compile(
    rb"POST (/[!-~]{0,2000}) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n){1,100})\r\n"
)
_FIELD: Final = re.compile(rb"([^:\r\n]+):([^\r\n]*)\r\n")
_LENGTH: Final = re.compile(rb"[0-9]{1,12}")

# Fields that ask for something which is done elsewhere.
_ELSEWHERE: Final = frozenset(
    {
        b"connection",  # but for keep-alive, the default
        b"content-encoding",
        b"expect",
        b"http2-settings",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-timeout",
        b"x-request-timeout-ms",
    }
)


@dataclass(frozen=True, slots=True)
class Head:
    """A plain head, understood. Equal bytes mean an equal head, so a client that repeats itself is parsed once."""

    route: int
    path: str
    length: int
    meta: bytes
    request_id: str  # the client's own; empty: draw one
    accept: bytes


class Reader:
    """Turns head bytes into :class:`Head`, or None for what is not plain. One for all connections of a process."""

    def __init__(self, deployment: Deployment) -> None:
        topology = deployment.topology
        self._routes = {route.path.encode(): index for index, route in enumerate(topology.routes)}
        self._paths = [route.path for route in topology.routes]
        self._limit = deployment.frontend.max_request_size
        self._elsewhere = _ELSEWHERE | ({b"accept-encoding"} if deployment.frontend.compression else frozenset())

    def read(self, head: bytes) -> Head | None:
        match = _HEAD.fullmatch(head)
        if match is None:
            return None
        path, _, query = match[1].partition(b"?")
        route = self._routes.get(path)
        if route is None or b"#" in query:
            return None
        length = -1
        accept = request_id = b""
        hosts = 0
        pairs = []
        for raw_name, raw_value in _FIELD.findall(match[2]):
            name, value = raw_name.lower(), raw_value.strip(b" \t")
            if name == b"content-length":
                if length >= 0 or not _LENGTH.fullmatch(value):
                    return None
                length = int(value)
            elif name == b"host":
                hosts += 1
            elif name == b"accept":
                accept = value
            elif name == b"x-request-id":
                request_id = value
            elif name in self._elsewhere and not (name == b"connection" and value.lower() == b"keep-alive"):
                return None
            pairs.append((name, value))
        if not 0 <= length <= self._limit or hosts != 1:
            return None
        return Head(
            route=route,
            path=self._paths[route],
            length=length,
            meta=pack_meta(query, pairs),
            request_id=requestid.choose(request_id) if request_id else "",
            accept=accept,
        )


class Writer:
    """Answers as bytes. One for all connections of a process; ``date`` is kept current by its owner. ``varies``: the
    same request with an Accept-Encoding would be answered in another coding, and caches must know."""

    def __init__(self, topology: Topology, *, varies: bool = False) -> None:
        self.date = b""
        self._vary = f"vary: {compression.VARY}\r\n" if varies else ""
        self._stages = [timing.labels(topology.stage_names(index)) for index in range(len(topology.routes))]
        self._steps = [struct.Struct(f"<{3 * len(names)}I") for names in self._stages]
        self._results: dict[tuple[int, str], bytes] = {}

    def answer(self, head: Head, answer: Answer, request_id: str, took_s: float) -> tuple[int, int, bytes]:
        """Status, size of the body, and all of an answer."""
        steps = self._steps[head.route]
        trail, body = answer.trail, answer.body
        if answer.status != 200 or len(trail) != steps.size or answer.headers:
            return self._rare(head, answer, request_id, took_s)
        form = self._results.get((head.route, answer.mime)) or self._form(head.route, answer.mime)
        size = body.nbytes if type(body) is memoryview else len(body)
        times = [us * 0.001 for us in steps.unpack(trail)]
        return 200, size, form % (size, request_id.encode(), *times, took_s * 1000, self.date) + body

    def problem(self, head: Head, problem: Problem, request_id: str, *, close: bool) -> bytes:
        """A refusal at the door."""
        kind, body = media.message(head.accept, problem.status, problem.detail, request_id)
        lines = [f"{name}: {value}" for name, value in problem.headers.items()]
        if problem.retry_after_s:
            lines.append(f"retry-after: {problem.retry_after_s}")
        if close:
            lines.append("connection: close")
        return self._join(problem.status, kind, body, request_id, lines)

    def _rare(self, head: Head, answer: Answer, request_id: str, took_s: float) -> tuple[int, int, bytes]:
        """A failure, an answer with headers of its own, or one whose trail is not whole."""
        status, body, lines = answer.status, bytes(answer.body), []
        if status == 200:
            kind = media.content_type(answer.mime)
        else:
            status = status if 400 <= status <= 599 else 500
            kind, body = media.message(head.accept, status, body.decode("utf-8", "replace"), request_id)
            if status in (429, 503):
                lines.append("retry-after: 1")
        lines.append(f"server-timing: {timing.header(answer.trail, self._stages[head.route], took_s)}")
        lines.extend(f"{name}: {value}" for name, value in media.passable(answer.headers))
        return status, len(body), self._join(status, kind, body, request_id, lines)

    def _join(self, status: int, kind: str, body: bytes, request_id: str, lines: list[str]) -> bytes:
        start = [
            f"HTTP/1.1 {status} {media.title(status)}",
            f"{self._vary}server: stageline",
            f"content-type: {kind}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            *lines,
        ]
        return "\r\n".join(start).encode("latin-1") + b"\r\ndate: " + self.date + b"\r\n\r\n" + body

    def _form(self, route: int, mime: str) -> bytes:
        """A result with holes in it: filling in one format is a third of the cost of building the lines."""
        names = [name.replace("%", "%%") for name in self._stages[route]]
        times = [f"{name}-queue;dur=%.2f, {name}-batch;dur=%.2f, {name};dur=%.2f" for name in names]
        form = (
            f"HTTP/1.1 200 OK\r\nserver: stageline\r\n{self._vary}"
            f"content-type: {media.content_type(mime).replace('%', '%%')}\r\n"
            "content-length: %d\r\nx-request-id: %b\r\n"
            f"server-timing: {', '.join(times)}, total;dur=%.2f\r\ndate: %b\r\n\r\n"
        ).encode("latin-1")
        if len(self._results) < 256:  # a worker may change its mime type as it likes
            self._results[route, mime] = form
        return form
