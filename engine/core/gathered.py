"""The payload of a request whose parts have come together: the frame they were taken out of, and what became of each.

The broker puts payloads together that it cannot read, and the worker of the stage that gathers takes them apart again.
Bytes of parts lie one after the other behind a head that says how many belong to which; what is large, or in shared
memory, stays as it is, as further parts of the payload. So a page of two hundred small results is one frame on its way.

What no stage may send by itself is a payload that begins with MARK (:meth:`stages.compute.Codec.encode_between`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from engine.core.arena import Ref
from engine.core.wire import INLINE_MAX, Part, Payload

MARK: Final = b"\x93gathered\n"
APART: Final = -1  # in place of a length: the next of the payload's further parts
_head: Final = struct.Struct("<I")

# Lengths of a payload's parts, or of its only one; None: nothing came of it.
Entry: TypeAlias = int | list[int] | None
_decoder: Final = msgspec.msgpack.Decoder(list[Entry])


def pack(frame: Payload, slots: Sequence[Payload | None]) -> Payload:
    """``slots``: what became of each part, in order; None: it failed, and may."""
    small: list[bytes | bytearray | memoryview] = []
    large: list[Part] = []

    def entry(part: Part) -> int:
        if type(part) is not Ref and (size := memoryview(part).nbytes) <= INLINE_MAX:  # type: ignore[arg-type]  # no Ref
            small.append(part)  # type: ignore[arg-type]  # as above
            return size
        large.append(part)
        return APART

    entries: list[Entry] = [
        None if one is None else [*map(entry, one)] if type(one) is tuple else entry(one)  # type: ignore[arg-type]
        for one in (frame, *slots)
    ]
    head = msgspec.msgpack.encode(entries)
    first = b"".join([MARK, _head.pack(len(head)), head, *small])
    return (first, *large) if large else first


def is_packed(payload: Payload) -> bool:
    """Whether a payload begins as such a one does."""
    first = payload[0] if type(payload) is tuple else payload
    return type(first) is not Ref and bytes(memoryview(first)[: len(MARK)]) == MARK  # type: ignore[arg-type]  # no Ref


def unpack(payload: Payload) -> tuple[Payload, list[Payload | None]]:
    """Inverse of :func:`pack`. Raises ValueError for anything else."""
    first, *further = payload if type(payload) is tuple else (payload,)
    view = memoryview(first)  # type: ignore[arg-type]  # no Ref, or it is refused below
    begin = len(MARK) + _head.size
    if not is_packed(payload) or len(view) < begin:
        raise ValueError("not the parts of a request")
    (size,) = _head.unpack_from(view, len(MARK))
    entries = _decoder.decode(view[begin : begin + size])
    at = begin + size
    apart = iter(further)

    def part(length: int) -> Part:
        nonlocal at
        if length == APART:
            found = next(apart, None)
            if found is None:
                raise ValueError("a part of a request is missing")
            return found
        if length < 0 or at + length > len(view):
            raise ValueError("the parts of a request are longer than what came")
        at += length
        return bytes(view[at - length : at])

    def payload_of(entry: Entry) -> Payload | None:
        if entry is None:
            return None
        return tuple([part(length) for length in entry]) if isinstance(entry, list) else part(entry)

    found = [payload_of(entry) for entry in entries]
    if not found or found[0] is None or at != len(view) or next(apart, None) is not None:
        raise ValueError("not the parts of a request")
    return found[0], found[1:]
