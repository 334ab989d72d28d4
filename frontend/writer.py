"""Replies as the bytes of HTTP/1.1. Pure."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from engine.core.reasons import CODE, STEP
from engine.core.routing import Topology
from engine.core.sse import phrase
from engine.core.wire import unpack_trail
from frontend import media, timing
from frontend.answer import SERVER, Answering, Reply, common

if TYPE_CHECKING:
    from engine.core.call import Answer
    from frontend.plain import More, Plain

FORMS_MOST: Final = 1024  # that are kept
NOT_PASSED: Final = 8  # beyond all codes: the request did not pass this stage

_MILLI: Final = (1000).__rtruediv__  # microseconds to milliseconds, as frontend.timing does: to the last digit


def connection_of(more: More | None, *, close: bool) -> str:
    """What an answer to such a request says of its connection, if it says anything."""
    if close:
        return "close"
    return "keep-alive" if more is not None and more.is_old else ""


def say(head: bytes, connection: str) -> bytes:
    """The head of an answer that says this of its connection as well."""
    return head.replace(b"\r\n", b"\r\nconnection: %b\r\n" % connection.encode(), 1) if connection else head


def render(
    reply: Reply, framing: list[tuple[str, str]], request_id: str, date: bytes, *, connection: str = ""
) -> bytes:
    """The head of a reply in HTTP/1.1. ``connection``: what is said of it, if anything."""
    headers = [("content-type", reply.mime), *framing, *reply.headers, *common(request_id)]
    if connection:
        headers.append(("connection", connection))
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    start = f"HTTP/1.1 {reply.status} {phrase(reply.status)}\r\n{lines}date: "
    return start.encode("latin-1") + date + b"\r\n\r\n"


def sized(reply: Reply, request_id: str, date: bytes, *, connection: str = "") -> bytes:
    """The head of a reply whose body follows it as it is."""
    return render(reply, [("content-length", str(len(reply.body)))], request_id, date, connection=connection)


def whole(reply: Reply, request_id: str, date: bytes, *, connection: str = "") -> bytes:
    """A whole reply in HTTP/1.1."""
    return sized(reply, request_id, date, connection=connection) + reply.body


class Writer:
    """Replies as the bytes of HTTP/1.1. One for all connections of a process; ``date`` is kept current by its owner."""

    def __init__(self, topology: Topology, answering: Answering) -> None:
        self.date = b""
        self._answering = answering
        self._vary = f"vary: {answering.vary}\r\n" if answering.vary else ""
        self._steps = [struct.Struct(f"<{3 * len(route.stages)}I") for route in topology.routes]
        self._results: dict[tuple[int, str, bytes, str], bytes] = {}

    def answer(
        self, plain: Plain, answer: Answer, request_id: str, took_s: float, connection: str = ""
    ) -> tuple[int, int, bytes, bytes | memoryview]:
        """Status, size of the body, head and body of an answer. ``connection``: what is said of it, if anything."""
        steps = self._steps[plain.route]
        trail, body = answer.trail, answer.body
        if answer.status != 200 or len(trail) != steps.size or answer.headers:
            reply = self._answering.result(plain.route, plain.head, answer, request_id, took_s)
            head = sized(reply, request_id, self.date, connection=connection)
            return reply.status, len(reply.body), head, reply.body
        codes = trail[::STEP].translate(CODE)  # codes_of, without a call
        if 0 in codes:
            codes = _passed(trail, codes)
        key = plain.route, answer.mime, codes, connection
        form = self._results.get(key) or self._form(key)
        size = body.nbytes if type(body) is memoryview else len(body)
        times = map(_MILLI, steps.unpack(trail))
        return 200, size, form % (size, *times, took_s * 1000, request_id.encode(), self.date), body

    def reply(self, reply: Reply, request_id: str, *, connection: str = "") -> bytes:
        """A whole reply."""
        return whole(reply, request_id, self.date, connection=connection)

    def look(self, reply: Reply, request_id: str, *, connection: str = "") -> bytes:
        """Its head."""
        return sized(reply, request_id, self.date, connection=connection)

    def begin(self, reply: Reply, request_id: str, *, is_chunked: bool, connection: str = "") -> bytes:
        """The head of a reply whose body follows in pieces."""
        framing = [("transfer-encoding", "chunked")] if is_chunked else []
        return render(reply, framing, request_id, self.date, connection=connection)

    def _form(self, key: tuple[int, str, bytes, str]) -> bytes:
        """A result with holes in it, equal to what :meth:`reply` would write: filling in one format is a third of the
        cost of building the lines. So there is a form for each of the reasons for which batches left."""
        route, mime, codes, connection = key
        names = [name.replace("%", "%%") for name in self._answering.stages[route]]
        times = [
            f"{name}-queue;dur=%.2f{timing.REASONS[code]}, {name}-batch;dur=%.2f, {name};dur=%.2f, "
            if code != NOT_PASSED
            else "%.0a%.0a%.0a"  # its times, of no length
            for name, code in zip(names, codes, strict=True)
        ]
        said = f"connection: {connection}\r\n" if connection else ""
        form = (
            f"HTTP/1.1 200 OK\r\n{said}content-type: {media.content_type(mime).replace('%', '%%')}\r\n"
            f"content-length: %d\r\n{self._vary}server-timing: {''.join(times)}total;dur=%.2f\r\n"
            f"server: {SERVER}\r\nx-request-id: %b\r\ndate: %b\r\n\r\n"
        ).encode("latin-1")
        if len(self._results) < FORMS_MOST:  # a worker may change its mime type as it likes
            self._results[key] = form
        return form


def _passed(trail: bytes, codes: bytes) -> bytes:
    """The codes with NOT_PASSED for stages that the request has not passed."""
    passed = [any(step) for step in unpack_trail(trail)]
    return bytes([code if is_passed else NOT_PASSED for code, is_passed in zip(codes, passed, strict=True)])
