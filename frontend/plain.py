"""What a plain request is, and how answers are written to its connection: bytes in, values out, and back. Pure.

Plain is a strict subset of HTTP/1: a POST to a service route, or a look at a health page. What common clients and
proxies ask for besides is a part of it (:class:`More`): that the connection ends or is kept, HTTP/1.0, chunks,
``Expect``, codings. What is accepted here gunicorn's parser would accept too, and would understand in the same way;
that is held by two regular expressions, by a list of fields that ask for something else, and by :mod:`frontend.head`
and :mod:`frontend.gate`, which say for both what a head means and whether it may come in. :mod:`frontend.lean` hands
over what is not plain.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from engine.core import meta
from engine.core.routing import Topology
from engine.core.sse import phrase
from frontend import compression, media
from frontend import head as heads
from frontend.answer import SERVER, Answering, Reply, common
from frontend.errors import Refusal
from frontend.head import Field, Head

if TYPE_CHECKING:
    from engine.core.call import Answer
    from frontend.gate import Terms

# A request line and header fields exactly as RFC 9112 writes them, no more: single spaces, CRLF, no folding, names that
# are tokens, values without control characters. Anything else may be fine, and is gunicorn's to judge. No part can
# match the same bytes in two ways (blanks around a value are stripped later): else a hostile head could take for
# ever.
_REQUEST: Final = re.compile(rb"(POST|GET|HEAD) (/[!-~]{0,2000}) HTTP/(1\.[01])")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
FIELDS_MAX: Final = 100

# Fields that may ask for something which is done elsewhere, with what they may say here (in small letters).
_ASKING: Final[dict[bytes, frozenset[bytes]]] = {
    b"connection": frozenset({b"keep-alive", b"close"}),
    b"expect": frozenset({b"100-continue"}),
    b"http2-settings": frozenset(),
    b"te": frozenset(),
    b"trailer": frozenset(),
    b"transfer-encoding": frozenset({b"chunked"}),
    b"upgrade": frozenset(),
}

# Clients repeat themselves, line by line if not head by head. Not kept are lines that are long, those that are another
# each time, and what is nobody else's business.
LINES_KEPT: Final = 1024
_LINE_KEPT_MAX: Final = 256  # bytes
_NOT_KEPT: Final = frozenset(
    {b"authorization", b"cookie", b"idempotency-key", b"traceparent", b"tracestate", b"x-api-key", b"x-request-id"}
)


T = TypeVar("T")

_MILLI: Final = (1000).__rtruediv__  # microseconds to milliseconds, as frontend.timing does: to the last digit


class More(msgspec.Struct, frozen=True):
    """What some plain requests ask for besides an answer."""

    is_last: bool = False  # the connection ends with the answer
    is_old: bool = False  # HTTP/1.0: a body without a length ends with its connection, which is kept only if it is said
    is_chunked: bool = False  # its body; the length is not known
    expects: bool = False  # to be told that the body may come
    coding: str = ""  # of the body
    digests: bool = False  # its body is a part of what is remembered of it
    packing: str = ""  # the coding of the answer, where that is worth it
    packs_all: bool = False  # or where it is not, too
    page: str = ""  # the health page that is looked at
    is_look: bool = False  # at the head of the answer only


_NOTHING_MORE: Final = More()


class Plain(msgspec.Struct, frozen=True):
    """A plain head, understood, with the terms on which it may come in. Equal bytes mean an equal one, so a client that
    repeats itself is parsed once."""

    route: int
    head: Head
    length: int
    timeout_s: float
    meta: bytes  # engine.core.meta.pack_head
    more: More | None = None  # None: nothing


class Reader:
    """Turns head bytes into :class:`Plain`, or None for what is not plain. One for all connections of a process."""

    def __init__(
        self, topology: Topology, terms: Callable[[Head], Terms], pages: Collection[str] = (), *, compressed: bool
    ) -> None:
        """``terms`` is the gate's; ``compressed``: answers may be, where a client says so."""
        self._routes = {route.path.encode(): index for index, route in enumerate(topology.routes)}
        self._terms = terms
        self._pages = {path.encode() for path in pages}
        self._compressed = compressed
        self._requests: dict[bytes, _Request] = {}  # request lines, read
        self._fields: dict[bytes, Field] = {}  # other lines, read

    def read(self, head: bytes) -> Plain | None:
        """``head`` with the empty line at its end."""
        first, *lines = head[:-4].split(b"\r\n")
        known = self._fields
        try:
            request = self._requests.get(first) or self._read_request(first)
            if len(lines) > FIELDS_MAX:
                return None
            fields = [known.get(line) or self._read_field(line) for line in lines]
            found = heads.understand(request.method, request.version, request.path, request.query, fields)
            terms = self._terms(found)
            more = self._more(request, found, terms)
        except (_Odd, Refusal):
            return None  # refused there, before its body is read
        told = heads.told(found, undone=bool(terms.coding))
        about = meta.pack_head(request.query, told)
        return Plain(request.route, found, found.length or 0, terms.timeout_s, about, more)

    def _more(self, request: _Request, head: Head, terms: Terms) -> More | None:
        asks = head.transfer_encoding or head.expect or terms.coding or (self._compressed and head.accept_encoding)
        connection = head.connection.lower()
        digests = head.idempotency_key is not None
        if request.is_usual and not asks and not digests and connection in (b"", b"keep-alive"):
            return None
        packing, packs_all = compression.choose(head.accept_encoding) if self._compressed else ("", False)
        is_old = request.version == "1.0"
        more = More(
            is_last=connection == b"close" or (is_old and not connection),
            is_old=is_old,
            is_chunked=bool(head.transfer_encoding),
            expects=bool(head.expect),
            coding=terms.coding,
            digests=digests,
            packing=packing,
            packs_all=packs_all,
            page="" if request.method == "POST" else head.path,
            is_look=request.method == "HEAD",
        )
        # Of lists, one member: more of them may be more than was looked at.
        is_listed = b"," in connection or b"," in head.transfer_encoding
        has_body = more.is_chunked or more.expects or head.length
        if is_listed or (is_old and (more.is_chunked or more.expects)) or (more.page and has_body):
            raise _Odd
        if more.is_chunked and head.length is not None:
            raise _Odd
        return None if more == _NOTHING_MORE else more

    def _read_request(self, line: bytes) -> _Request:
        match = _REQUEST.fullmatch(line)
        if match is None:
            raise _Odd
        method, target, version = match.groups()
        path, _, query = target.partition(b"?")
        if b"#" in query or path not in (self._routes if method == b"POST" else self._pages):
            raise _Odd
        is_usual = method == b"POST" and version == b"1.1"
        route = self._routes.get(path, 0)
        request = _Request(method.decode(), path.decode(), query, version.decode(), route, is_usual)
        _keep(self._requests, line, request)
        return request

    def _read_field(self, line: bytes) -> Field:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise _Odd
        found = heads.field(match[1], match[2])
        name, value = found[0]
        if (allowed := _ASKING.get(name)) is not None and value.lower() not in allowed:
            raise _Odd
        if name not in _NOT_KEPT:
            _keep(self._fields, line, found)
        return found


class _Odd(Exception):
    """It is not plain."""


class _Request(NamedTuple):
    """A request line."""

    method: str
    path: str
    query: bytes
    version: str
    route: int
    is_usual: bool  # it asks for nothing that is in More


def _keep(kept: dict[bytes, T], line: bytes, read: T) -> None:
    if len(line) <= _LINE_KEPT_MAX:
        if len(kept) >= LINES_KEPT:
            kept.clear()
        kept[line] = read


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

    def __init__(self, topology: Topology, answering: Answering, *, compressed: bool) -> None:
        self.date = b""
        self._answering = answering
        self._vary = f"vary: {compression.VARY}\r\n" if compressed else ""
        self._steps = [struct.Struct(f"<{3 * len(route.stages)}I") for route in topology.routes]
        self._results: dict[tuple[int, str], bytes] = {}

    def answer(
        self, plain: Plain, answer: Answer, request_id: str, took_s: float
    ) -> tuple[int, int, bytes, bytes | memoryview]:
        """Status, size of the body, head and body of an answer."""
        steps = self._steps[plain.route]
        trail, body = answer.trail, answer.body
        if answer.status != 200 or len(trail) != steps.size or answer.headers:
            reply = self._answering.result(plain.route, plain.head, answer, request_id, took_s)
            return reply.status, len(reply.body), sized(reply, request_id, self.date), reply.body
        form = self._results.get((plain.route, answer.mime)) or self._form(plain.route, answer.mime)
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

    def _form(self, route: int, mime: str) -> bytes:
        """A result with holes in it, equal to what :meth:`reply` would write: filling in one format is a third of the
        cost of building the lines."""
        names = [name.replace("%", "%%") for name in self._answering.stages[route]]
        times = [f"{name}-queue;dur=%.2f, {name}-batch;dur=%.2f, {name};dur=%.2f" for name in names]
        form = (
            f"HTTP/1.1 200 OK\r\ncontent-type: {media.content_type(mime).replace('%', '%%')}\r\n"
            f"content-length: %d\r\n{self._vary}server-timing: {', '.join(times)}, total;dur=%.2f\r\n"
            f"server: {SERVER}\r\nx-request-id: %b\r\ndate: %b\r\n\r\n"
        ).encode("latin-1")
        if len(self._results) < 256:  # a worker may change its mime type as it likes
            self._results[route, mime] = form
        return form
