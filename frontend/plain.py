"""What a plain request is: bytes in, values out. Pure.

Plain is a strict subset of HTTP/1: a POST to a service route, or a look at a health page. What common clients and
proxies ask for besides is a part of it (:class:`More`): that the connection ends or is kept, HTTP/1.0, chunks,
``Expect``, codings. What is accepted here gunicorn's parser would accept too, and would understand in the same way;
that is held by two regular expressions, by a list of fields that ask for something else, and by :mod:`frontend.head`
and :mod:`frontend.gate`, which say for both what a head means and whether it may come in. :mod:`frontend.lean` hands
over what is not plain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from engine.core import meta
from engine.core.messages import Qos
from engine.core.routing import Topology
from frontend import compression
from frontend import head as heads
from frontend.errors import Refusal
from frontend.head import Field, Head
from frontend.shapes import VALUE, Shape, Shapes

if TYPE_CHECKING:
    from frontend.gate import Terms

# A request line and header fields exactly as RFC 9112 writes them, no more: single spaces, CRLF, no folding, names that
# are tokens, values without control characters. Anything else may be fine, and is gunicorn's to judge. No part can
# match the same bytes in two ways (blanks around a value are stripped later): else a hostile head could take for
# ever.
_REQUEST: Final = re.compile(rb"(POST|GET|HEAD) (/[!-~]{0,2000}) HTTP/(1\.[01])")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):" + VALUE)
FIELDS_MAX: Final = 100

# Fields that may ask for something which is done elsewhere, with what they may say here (in small letters).
_ASKING: Final[dict[bytes, frozenset[bytes]]] = {
    b"connection": frozenset({b"keep-alive", b"close"}),
    b"expect": frozenset({b"100-continue"}),
    b"http2-settings": frozenset(),
    b"prefer": frozenset(),
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
    model: str = ""  # of the Open Inference Protocol, that is asked

    @property
    def is_easy(self) -> bool:
        """Nothing has to be done about the body before it is passed on."""
        return not (self.is_chunked or self.expects or self.coding or self.digests or self.model)


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
    qos: Qos | None = None


class Reader:
    """Turns head bytes into :class:`Plain`, or None for what is not plain. One for all connections of a process."""

    def __init__(
        self,
        topology: Topology,
        terms: Callable[[Head], Terms],
        pages: Collection[str] = (),
        *,
        compressed: bool,
        keyed: bool = False,
        models: Mapping[str, str] = MappingProxyType({}),
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """``terms`` is the gate's; ``compressed``: answers may be, where a client says so; ``keyed``: requests come
        in by API keys, of which services are not told; ``models`` and ``aliases``: see :mod:`frontend.asking`."""
        self._keyed = keyed
        self._routes = {route.path.encode(): index for index, route in enumerate(topology.routes)}
        self._models = models
        self._aliases = {path.encode(): route.encode() for path, route in aliases.items()}
        self._terms = terms
        self._pages = {path.encode() for path in pages}
        self._compressed = compressed
        self._shapes = Shapes()
        self._shape: Shape | None = None  # of the head that was read last
        self._last = b""  # the head that was understood last
        self._known: tuple[Plain, Shape | None]  # what it means
        self._requests: dict[bytes, _Request] = {}  # request lines, read
        self._fields: dict[bytes, Field] = {}  # other lines, read

    def like(self, head: bytes, shape: Shape | None) -> tuple[Plain | None, Shape | None]:
        """The same as :meth:`read`, quicker where ``shape`` is that of its client's last one (None: nobody knows), and
        the shape of this one."""
        if head == self._last:
            return self._known
        shape = shape or self._shape
        if shape is not None and (found := shape.read(head)) is not None:
            try:
                plain = _plain(shape.route, found, self._terms(found), shape.more, keyed=self._keyed)
            except Refusal:
                return None, shape
        elif (read := self.read(head)) is not None:
            plain, shape = read, self._shape
        else:
            return None, self._shape
        if shape is not None or (plain.more is not None and plain.more.page):  # else it is to be read again for one
            self._last, self._known = head, (plain, shape)
        return plain, shape

    def read(self, head: bytes) -> Plain | None:
        """``head``, with the empty line at its end, word for word."""
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
        if request.path == "/" and b"text/html" in found.accept.lower():
            return None  # of a browser, which may be led elsewhere
        plain = _plain(request.route, found, terms, more, keyed=self._keyed)
        self._shape = self._shapes.of(plain, first, lines, fields)
        return plain

    def _more(self, request: _Request, head: Head, terms: Terms) -> More | None:
        asks = head.transfer_encoding or head.expect or terms.coding or (self._compressed and head.accept_encoding)
        connection = head.connection.lower()
        digests = head.idempotency_key is not None
        model = self._models.get(head.path, "")
        if request.is_usual and not asks and not digests and not model and connection in (b"", b"keep-alive"):
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
            model=model,
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
        path = self._aliases.get(path, path)
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


def _plain(route: int, head: Head, terms: Terms, more: More | None, *, keyed: bool) -> Plain:
    about = meta.pack_head(head.query, heads.told(head, undone=bool(terms.coding), keyed=keyed))
    return Plain(route, head, head.length or 0, terms.timeout_s, about, more, terms.qos)


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
