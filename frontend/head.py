"""What the head of a request means, for every way by which requests come: fields in, a value or a refusal out. Pure.

Parsing bytes is the connection's business; what the fields *say* is read here and nowhere else, so that the same bytes
mean the same to both servers, over HTTP/1.1 and HTTP/2, whole or in pieces.

* A field that admits one value (RFC 9110, section 5.3) and stands there twice is ambiguous: 400.
* A field whose name has an underscore is dropped, as proxies do: many a gateway takes ``X_User`` for ``X-User``, and
  what a proxy in front has checked is only the latter.
* A target in absolute form is taken for its path (RFC 9112, section 3.2.2).
* A WebSocket handshake is refused: there is nothing here to talk to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from frontend import errors, requestid
from frontend.errors import Refusal

Pair: TypeAlias = tuple[bytes, bytes]
Fields: TypeAlias = Sequence[Pair]
Field: TypeAlias = tuple[Pair, int]  # as it is told to services, and what it is to us: one of these
USUAL, ONCE, LISTED, DROPPED = range(4)

# Of the fields that are read here or by services, those whose definitions allow one value.
SINGLE: Final = frozenset(
    {
        b"authorization",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"idempotency-key",
        b"origin",
        b"traceparent",
        b"x-api-key",
        b"x-priority",
        b"x-request-id",
        b"x-request-timeout",
        b"x-request-timeout-ms",
        b"x-slo",
        b"x-slo-ms",
    }
)

_ABSOLUTE: Final = re.compile(r"^https?://[^/?#]*", re.IGNORECASE)


class Head(msgspec.Struct, frozen=True):
    """A head, understood. ``fields`` are what a service may be told: lower-case names, values without blanks around."""

    path: str  # percent-decoded
    query: bytes
    fields: list[tuple[bytes, bytes]]
    length: int | None = None  # of the body; None: not declared
    transfer_encoding: bytes = b""
    content_encoding: bytes = b""  # all of them, as one list
    accept: bytes = b""
    accept_encoding: bytes = b""
    connection: bytes = b""
    expect: bytes = b""
    timeout: bytes = b""  # x-request-timeout, as it came
    timeout_ms: bytes = b""
    slo: bytes = b""  # x-slo, as it came, like the next two
    slo_ms: bytes = b""
    priority: bytes = b""
    token: bytes = b""  # what its client authenticates with, as it came
    origin: bytes = b""  # of the page that asks, from a browser
    request_id: str = ""  # the client's own, if it is sane
    idempotency_key: bytes | None = None  # as it came


def read(method: str, version: str, path: str, query: bytes, fields: Fields) -> Head:
    """Understand a head. ``version`` is ``1.0``, ``1.1`` or ``2``; ``path`` the target without its query,
    percent-decoded. Raises Refusal: 400, or 404 for a path that no address can have."""
    return understand(method, version, path, query, [field(name, value) for name, value in fields])


def field(name: bytes, value: bytes) -> Field:
    """One field of a head, as it came. Equal ones mean the same whatever stands beside them, so it may be kept."""
    name, value = name.lower(), value.strip(b" \t")
    if name in SINGLE:
        return (name, value), ONCE
    if b"_" in name:
        return (name, value), DROPPED
    return (name, value), LISTED if name in _LISTS else USUAL


def understand(method: str, version: str, path: str, query: bytes, fields: Sequence[Field]) -> Head:
    """The same as :func:`read`, of fields that have been looked at each for itself."""
    told: list[Pair] = []
    single: dict[bytes, bytes] = {}
    lists: dict[bytes, bytes] = {}
    more: dict[bytes, list[bytes]] = {}
    for pair, kind in fields:
        if kind:
            name, value = pair
            if kind == ONCE:
                if name in single:
                    raise Refusal(errors.TWICE)
                single[name] = value
            elif kind == DROPPED:
                continue
            elif name in lists:
                more.setdefault(name, []).append(value)
            else:
                lists[name] = value
        told.append(pair)
    for name, values in more.items():  # once: to add each to what was there looks at all of it again
        lists[name] = b", ".join([lists[name], *values])
    if version == "1.1" and b"host" not in single:
        raise Refusal(errors.NO_HOST)
    length = None
    if b"content-length" in single and (length := length_of(single[b"content-length"])) is None:
        raise Refusal(errors.BAD_LENGTH)
    get = lists.get
    if (
        b"upgrade" in lists
        and lists[b"upgrade"].lower() == b"websocket"
        and b"upgrade" in get(b"connection", b"").lower()
    ):
        raise Refusal(errors.WEBSOCKET)
    return Head(
        path=_origin_form(path, method),
        query=query,
        fields=told,
        length=length,
        transfer_encoding=get(b"transfer-encoding", b""),
        content_encoding=get(b"content-encoding", b""),
        accept=get(b"accept", b""),
        accept_encoding=get(b"accept-encoding", b""),
        connection=get(b"connection", b""),
        expect=single.get(b"expect", b""),
        timeout=single.get(b"x-request-timeout", b""),
        timeout_ms=single.get(b"x-request-timeout-ms", b""),
        slo=single.get(b"x-slo", b""),
        slo_ms=single.get(b"x-slo-ms", b""),
        priority=single.get(b"x-priority", b""),
        token=single.get(b"authorization") or single.get(b"x-api-key", b""),
        origin=single.get(b"origin", b""),
        request_id=requestid.sane(single.get(b"x-request-id", b"")),
        idempotency_key=single.get(b"idempotency-key"),
    )


def length_of(value: bytes) -> int | None:
    """What Content-Length says; None: nothing. Digits alone: no sign, no blanks, no number that int() does not take."""
    return int(value) if value.isdigit() and len(value) <= 18 else None


def told(head: Head, *, undone: bool, keyed: bool = False) -> list[tuple[bytes, bytes]]:
    """What the service is told of a request's headers: nothing of a coding of its body that has been ``undone``, nor of
    the API key by which it came in, where there are such (``keyed``)."""
    if keyed:
        dropped = _KEY_AND_CODING if undone else _KEY
        return [pair for pair in head.fields if pair[0] not in dropped]
    return [pair for pair in head.fields if pair[0] != b"content-encoding"] if undone else head.fields


def sends_little(fields: Fields, most: int) -> bool:
    """Whether a request sends a body, of at most ``most`` bytes as far as it says, and without asking first. Of any
    head, readable or not."""
    sends = False
    for name, value in fields:
        if name == b"expect" and value.lower() == b"100-continue":
            return False
        if name == b"content-length":
            length = length_of(value)
            if length is None or length > most:
                return False
            sends = True
        elif name == b"transfer-encoding":
            sends = True
    return sends


_KEY: Final = frozenset({b"authorization", b"x-api-key"})
_KEY_AND_CODING: Final = _KEY | {b"content-encoding"}
_LISTS: Final = frozenset(
    {b"accept", b"accept-encoding", b"connection", b"content-encoding", b"transfer-encoding", b"upgrade"}
)


def _origin_form(path: str, method: str) -> str:
    if path.startswith("/"):
        if path.startswith("//"):  # an empty first segment; routers that skip it would serve one thing at two addresses
            raise Refusal(errors.NOT_FOUND)
        return path
    match = _ABSOLUTE.match(path)
    if match is None:  # authority or asterisk form: of methods that are not served
        raise Refusal(errors.WRONG_METHOD if method in ("CONNECT", "OPTIONS") else errors.BAD_REQUEST)
    return _origin_form(path[match.end() :] or "/", method)
