"""What only the two ends of a request's way need of it: written by a frontend, read by workers, opaque in between.

The broker carries these bytes and never looks inside; so a fact about a request that user code may ask for touches two
files, this one and where it is asked for. The part that a client repeats with each of its requests (:func:`pack_head`)
is packed once and put behind what is each request's own.

    length of the id (one byte) | request id (ASCII) | head (msgpack), or nothing

How many fields a head has stands in its first byte: what few requests have is looked for there, and costs the others
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from engine.core.oip import Asked
from engine.errors import ProtocolError

ID_MAX: Final = 128  # characters of a request id

Pairs: TypeAlias = list[tuple[bytes, bytes]]

_encoder = msgspec.msgpack.Encoder()


class Traced(msgspec.Struct, frozen=True, array_like=True):
    """Whose trace a request belongs to: what W3C's ``traceparent`` and ``tracestate`` would say to who computes it."""

    parent: str
    state: str = ""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """Of an HTTP request. A new field goes last, with a default."""

    query: bytes = b""
    headers: Pairs = []
    trace: Traced | None = None  # of a request that is sampled
    asked: Asked | None = None  # of one that speaks the Open Inference Protocol


_decoder = msgspec.msgpack.Decoder(Head)
_NOTHING: Final = Head()
_UNTRACED: Final = 0x92  # how a head begins that :func:`pack_head` made: an array of two
_ASKING: Final = 0x94  # and one that :func:`asking` did
_EMPTY: Final = _encoder.encode((b"", []))
_LENGTHS: Final = [bytes([length]) for length in range(ID_MAX + 1)]


def pack_head(query: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Query string and header pairs, for :func:`pack`."""
    return _encoder.encode((query, headers))


def traced(head: bytes, trace: Traced) -> bytes:
    """What :func:`pack_head` gave, or nothing, of a request that is sampled: packed once for many, this is for one."""
    return b"\x93" + (head or _EMPTY)[1:] + _encoder.encode(trace)


def asking(head: bytes, asked: Asked) -> bytes:
    """What :func:`pack_head` or :func:`traced` gave, or nothing, of one that speaks the Open Inference Protocol."""
    head = head or _EMPTY
    untraced = b"\xc0" if head[0] == _UNTRACED else b""
    return b"".join((bytes([_ASKING]), head[1:], untraced, _encoder.encode(asked)))


def asked_of(meta: bytes) -> Asked | None:
    """What such a request asks for; None for others, at the cost of a look at one byte. Raises ProtocolError."""
    place = 1 + meta[0] if meta else 0
    return None if len(meta) <= place or meta[place] < _ASKING else head_of(meta).asked


def traced_of(meta: bytes) -> Traced | None:
    """Whose trace the request belongs to; None for most, at the cost of a look at one byte. Raises ProtocolError."""
    place = 1 + meta[0] if meta else 0
    return None if len(meta) <= place or meta[place] <= _UNTRACED else head_of(meta).trace


def pack(request_id: str, head: bytes = b"") -> bytes:
    """A request's meta. Raises ValueError for an id that is no ASCII or longer than ID_MAX."""
    length = len(request_id)
    if length > ID_MAX:
        raise ValueError(f"a request id of {length} characters")
    return _LENGTHS[length] + request_id.encode("ascii") + head


def request_id_of(meta: bytes) -> str:
    """The request's id; empty for no meta."""
    return meta[1 : 1 + meta[0]].decode("latin-1") if meta else ""


def head_of(meta: bytes) -> Head:
    """What :func:`pack_head` packed; a head without anything for no meta. Raises ProtocolError."""
    head = meta[1 + meta[0] :] if meta else b""
    if not head:
        return _NOTHING
    try:
        return _decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable request metadata: {error}") from error
