"""Parcels: how messages and payloads become ZeroMQ frames and come back. Pure; the only place that knows the format.

A parcel is ``[head, frame, frame, ...]``. The head is the length of the header (u32, little-endian), the header - one
msgpack array (:mod:`engine.core.messages`) - and the payloads below ``INLINE_MAX``, one after the other: a frame of its
own costs some microseconds on each side, and a parcel may carry hundreds of small payloads. Larger payloads, and
payloads of several parts (a pickle with out-of-band buffers), are frames of their own, so that nobody copies them.
``layout[i] >= 0`` is the number of bytes of payload *i* in the head, ``layout[i] < 0`` the number of frames it takes,
negated. Parts that lie in shared memory (:class:`~engine.core.arena.Ref`) are in no frame: the header's ``refs`` says
where among the other parts they stand.

The words by which peers introduce themselves have a form of their own (:mod:`engine.core.introduction`): one frame of
JSON, which no header begins like.

Bytes come from peers that may be broken or hostile: :func:`decode` accepts exactly what :func:`encode` can produce and
raises :class:`~engine.errors.ProtocolError` for anything else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from io import BytesIO
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from engine.core import introduction
from engine.core.arena import Ref
from engine.core.introduction import FrozenWords
from engine.core.messages import OWN_HEADERS_MOST, AnyMessage, Message, Refs
from engine.errors import ProtocolError

Buffer: TypeAlias = bytes | bytearray | memoryview
Part: TypeAlias = Buffer | Ref
Payload: TypeAlias = Part | tuple[Part, ...]  # one part, or several
AnyWords: TypeAlias = AnyMessage | FrozenWords

INLINE_MAX: Final = 32 * 1024  # bytes; above it joining costs more than a frame
HEAD_ITEMS: Final = 1024  # the most items of a parcel to the broker
HEADER_MAX: Final = 16 * 1024 * 1024  # bytes; 1,000 requests with 8 KiB of HTTP headers each are half of it
# Bytes of a header that heads of requests, or headers of answers, may fill; with more there are several parcels.
# The rest of a header has some bytes per item.
HALF_HEADER: Final = HEADER_MAX // 2
WITH_HEADERS: Final = HALF_HEADER // (4 * OWN_HEADERS_MOST)  # answers of a parcel, where some bring headers
SMALL_FRAME: Final = 64 * 1024  # bytes of a question, or of anything else that carries no data
FRAMES_MAX: Final = 65_536  # frames of one parcel, and references
# Bytes of several payloads that are in no more pieces than that, for a piece that goes apart is larger than INLINE_MAX
# or has its pickle in front of it.
APART_BYTES: Final = FRAMES_MAX // 2 * INLINE_MAX

# All that decoding bytes of a broken or hostile peer may raise (a ValidationError is a DecodeError).
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_length = struct.Struct("<I")  # of the header
_LARGE_HEAD: Final = max(64 << 20, HEADER_MAX + _length.size + HEAD_ITEMS * INLINE_MAX)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)

_WHOLE: Final = frozenset({bytes})

# The struct is frozen for its readers. Where this is used it was made one line ago by the caller and has no layout yet;
# a copy (msgspec.structs.replace) would cost as much as encoding the header.
_set: Final = msgspec.structs.force_setattr

_shapes: dict[type, Shape] = {}  # by type of message


def control_frame() -> int:
    """The most bytes of a frame that says something of its sender alone: a header."""
    return HEADER_MAX + _length.size


def front_frame(max_request_size: int) -> int:
    """The most bytes of a frame that a frontend sends, be it a body or a head with the small bodies of many requests;
    with room for a running deployment to be given a larger size."""
    return max(4 * max_request_size, _LARGE_HEAD)


def egress_frame(max_response_size: int) -> int:
    """The same of a worker's to the door: an answer, an event, or a head with the small answers of many requests."""
    return max(4 * max_response_size, _LARGE_HEAD)


def intake_frame(max_queue_bytes: int) -> int:
    """The same of a worker's to the next stage, which lets so many bytes wait: values, or a head with many."""
    return max(max_queue_bytes, _LARGE_HEAD)


def parts_frame(max_queue_bytes: int) -> int:
    """The same of a worker's to the door where requests go on in parts: one that has as many bytes as may wait, behind
    others."""
    return max_queue_bytes + _LARGE_HEAD


def joined(payload: Payload) -> bytes | memoryview:
    """The bytes of a payload without references."""
    if isinstance(payload, tuple):
        return b"".join(payload)  # type: ignore[arg-type]  # see above
    return payload if isinstance(payload, bytes | memoryview) else bytes(payload)  # type: ignore[arg-type]  # as above


def are_bytes(payloads: Sequence[Payload]) -> bool:
    """Whether each of them is in one piece, and bytes: nearly always. Asked without a step for each."""
    return _WHOLE.issuperset(map(type, payloads))


def payload_size(payload: Payload) -> int:
    """Bytes of a payload over all its parts."""
    if type(payload) is tuple:
        return sum([_nbytes(part) for part in payload])
    return _nbytes(payload)  # type: ignore[arg-type]  # not a tuple here


def payload_sizes(payloads: Sequence[Payload]) -> list[int]:
    """The same of each of several; nearly always without a step for each."""
    if are_bytes(payloads):
        return [*map(len, payloads)]  # type: ignore[arg-type]  # bytes
    return [*map(payload_size, payloads)]


def refs_of(payload: Payload) -> tuple[Ref, ...]:
    """The references of a payload; nearly always none."""
    if type(payload) is tuple:
        return tuple([part for part in payload if type(part) is Ref])
    return (payload,) if type(payload) is Ref else ()


def _nbytes(part: Part) -> int:
    if type(part) is memoryview:
        return part.nbytes
    return part.length if type(part) is Ref else len(part)  # type: ignore[arg-type]  # bytes or bytearray


def encode(message: Message | FrozenWords, payloads: Sequence[Payload] = ()) -> list[Buffer]:
    """Frames of a parcel. A message with payloads must have a ``layout`` field, which is filled in here, and one whose
    payloads contain references a ``refs`` field (else this raises AttributeError). Raises ProtocolError for payloads in
    more pieces than anybody takes."""
    if not payloads:
        if not isinstance(message, Message):
            return [*introduction.encode(message)]
        header = _encoder.encode(message)
        return [_length.pack(len(header)) + header]
    if _WHOLE.issuperset(
        map(type, payloads)
    ):  # and all of them small, nearly always: then nothing is done for each of them here
        layout = [*map(len, payloads)]  # type: ignore[arg-type]  # bytes
        if max(layout) <= INLINE_MAX:
            _set(message, "layout", layout)
            header = _encoder.encode(message)
            return [b"".join([_length.pack(len(header)), header, *payloads])]  # type: ignore[list-item]  # bytes
    return _encode_any(message, payloads)


def _encode_any(message: Message | FrozenWords, payloads: Sequence[Payload]) -> list[Buffer]:
    """:func:`encode` for payloads of any kind."""
    layout: list[int] = []
    small: list[Buffer] = []
    large: list[Buffer] = []
    refs: Refs = {}
    for index, payload in enumerate(payloads):
        if type(payload) is tuple or type(payload) is Ref:
            parts: tuple[Part, ...] = payload if type(payload) is tuple else (payload,)  # type: ignore[assignment]
            rest: list[Buffer] = [part for part in parts if type(part) is not Ref]  # type: ignore[misc]  # what is left
            if len(rest) < len(parts):
                refs[index] = [
                    (at, part.arena, part.offset, part.length) for at, part in enumerate(parts) if type(part) is Ref
                ]
                if not rest or (len(rest) == 1 and 0 < _nbytes(rest[0]) <= INLINE_MAX):
                    layout.append(_nbytes(rest[0]) if rest else 0)
                    small.extend(rest)
                    continue
            layout.append(-len(rest))
            large.extend(rest)
        elif (size := _nbytes(payload)) <= INLINE_MAX:  # type: ignore[arg-type]
            layout.append(size)
            small.append(payload)  # type: ignore[arg-type]
        else:
            layout.append(-1)
            large.append(payload)  # type: ignore[arg-type]
    if len(large) >= FRAMES_MAX or (refs and sum(map(len, refs.values())) > FRAMES_MAX):
        raise ProtocolError(f"a parcel of {len(large)} frames and {sum(map(len, refs.values()))} references")
    _set(message, "layout", layout)
    if refs:
        _set(message, "refs", refs)
    header = _encoder.encode(message)
    return [b"".join((_length.pack(len(header)), header, *small)), *large]


def decode(frames: Sequence[Buffer]) -> tuple[AnyWords, list[Payload]]:
    """The message and its payloads. Raises ProtocolError for malformed, oversize or inconsistent parcels.

    Inlined payloads come back as ``bytes``; framed ones as the frame itself (or a tuple of frames), uncopied; parts in
    shared memory as a Ref, of which nothing is known but that its numbers are not negative.
    """
    if not frames or len(frames) > FRAMES_MAX:
        raise ProtocolError(f"a parcel of {len(frames)} frames")
    head = bytes(frames[0])  # no copy when it is bytes already
    if len(head) < _length.size:
        raise ProtocolError(f"a parcel that begins with {len(head)} bytes")
    (size,) = _length.unpack_from(head)
    end = _length.size + size
    if size > HEADER_MAX or end > len(head):
        if introduction.is_frozen(head) and len(frames) == 1:
            return introduction.decode(head), []
        raise ProtocolError(f"a header of {size} bytes, of which {len(head) - _length.size} have come")
    try:
        message = _decoder.decode(head[_length.size : end])
    except UNREADABLE as error:
        raise ProtocolError(f"unreadable header: {error}") from error
    kind = type(message)
    shape = _shapes.get(kind) or _shape_of(kind)
    if shape.lists is not None:
        lengths = [*map(len, shape.lists(message))]
        if lengths.count(lengths[0]) != len(lengths):
            n = fill_columns(message)
            if shape.has_layout and len(message.layout) != n:  # type: ignore[union-attr]  # it has one
                raise ProtocolError(f"{kind.__name__} of {n} items with {len(message.layout)} payloads")  # type: ignore[union-attr]
    if not shape.has_layout:
        if len(frames) != 1 or end != len(head):
            raise ProtocolError(f"{kind.__name__} with payloads")
        return message, []
    layout: list[int] = message.layout  # type: ignore[union-attr]  # as above
    payloads = _split(head, end, frames, layout)
    if shape.has_refs and message.refs:  # type: ignore[union-attr]  # as above
        _insert(payloads, layout, message.refs)  # type: ignore[union-attr]
    return message, payloads


def _insert(payloads: list[Payload], layout: list[int], refs: Refs) -> None:
    """Put references where they stand among the other parts of their payloads, of which layout 0 means none."""
    if sum(map(len, refs.values())) > FRAMES_MAX:
        raise ProtocolError("too many references")
    for index, entries in refs.items():
        if index >= len(payloads) or not entries:
            raise ProtocolError(f"{len(entries)} references for item {index} of {len(payloads)}")
        payload = payloads[index]
        parts: list[Part] = []
        if layout[index]:
            parts.extend(payload if type(payload) is tuple else (payload,))  # type: ignore[arg-type]
        last = -1
        for at, arena, offset, length in entries:
            if not last < at <= len(parts) or not length:
                raise ProtocolError(f"a reference to {length} bytes as part {at} of {len(parts)}")
            parts.insert(at, Ref(arena, offset, length))
            last = at
        payloads[index] = tuple(parts) if len(parts) > 1 else parts[0]


def _split(head: bytes, offset: int, frames: Sequence[Buffer], layout: list[int]) -> list[Payload]:
    """The payloads in the head, from ``offset`` on, and in the other frames."""
    if len(frames) == 1 and (not layout or min(layout) >= 0):  # all in the head: nearly always
        if offset + sum(layout) != len(head):
            raise ProtocolError(f"layout accounts for {offset + sum(layout)} of {len(head)} bytes")
        if len(layout) == 1:
            return [head[offset:]]
        reader = BytesIO(head)
        reader.seek(offset)
        return [*map(reader.read, layout)]
    payloads: list[Payload] = []
    frame, total = 1, len(frames)
    for entry in layout:
        if entry >= 0:
            payloads.append(head[offset : offset + entry])
            offset += entry
        elif entry == -1:
            if frame >= total:
                raise ProtocolError("layout names more frames than came")
            payloads.append(frames[frame])
            frame += 1
        else:
            end = frame - entry
            if end > total:
                raise ProtocolError("layout names more frames than came")
            payloads.append(tuple(frames[frame:end]))
            frame = end
    if offset != len(head) or frame != total:
        raise ProtocolError(f"layout accounts for {offset} of {len(head)} bytes and {frame} of {total} frames")
    return payloads


def fill_columns(message: Message) -> int:
    """Give columns that its sender left out their defaults. How many items the message is about; -1 if about none.
    Raises ProtocolError for columns of different lengths."""
    kind = type(message)
    columns = (_shapes.get(kind) or _shape_of(kind)).columns
    if not columns:
        return -1
    n = len(getattr(message, columns[0].name))
    for column in columns:
        entries = getattr(message, column.name)
        if len(entries) != n:
            if entries or column.is_needed:
                raise ProtocolError(f"{kind.__name__}.{column.name} does not have {n} entries")
            entries.extend([column.default] * n)
    return n


class Column(NamedTuple):
    """A field of a message that has an entry per item. ``is_needed``: a peer may not leave it out."""

    name: str
    default: Any
    is_needed: bool


def columns_of(kind: type) -> tuple[Column, ...]:
    """The columns of a message, as its class declares them; none for a message that is not about items."""
    fields = msgspec.inspect.type_info(kind)
    assert isinstance(fields, msgspec.inspect.StructType)
    return tuple(
        Column(field.name, extra["column"], field.required)
        for field in fields.fields
        if isinstance(field.type, msgspec.inspect.Metadata) and "column" in (extra := field.type.extra or {})
    )


class Shape(NamedTuple):
    """What is looked up once of each type of message. ``lists`` gets its columns, and its layout if it has one: all
    that must be equally long; None for a message that is not about items."""

    columns: tuple[Column, ...]
    lists: Callable[[Any], tuple[list[Any], ...]] | None
    has_layout: bool
    has_refs: bool


def _shape_of(kind: type) -> Shape:
    columns = columns_of(kind)
    fields = {field.name for field in msgspec.structs.fields(kind)}
    names = [column.name for column in columns]
    names += ["layout"] if "layout" in fields else names[:1]  # an attrgetter of two names at least returns a tuple
    lists = attrgetter(*names) if columns else None
    shape = _shapes[kind] = Shape(columns, lists, "layout" in fields, "refs" in fields)
    return shape


MICROS: Final = 1_000_000  # microseconds, the unit of every duration on the wire, in a second


def micros(seconds: float) -> int:
    """Seconds as whole microseconds, never negative."""
    return max(0, int(seconds * MICROS))


_step = struct.Struct("<III")
STEP_BYTES: Final = _step.size
_U32_MAX: Final = 2**32 - 1


def pack_step(queue_us: int, batch_us: int, compute_us: int) -> bytes:
    """One hop of a trail: microseconds in the queue, from release to ``forward``, and in ``forward``. The first of them
    comes from the broker with a code in its low bits (:mod:`engine.core.reasons`), and goes on as it is."""
    try:
        return _step.pack(queue_us, batch_us, compute_us)
    except struct.error:  # out of range: an hour and more, or clocks that disagree
        return _step.pack(*(min(max(us, 0), _U32_MAX) for us in (queue_us, batch_us, compute_us)))


def pack_steps(queues_us: Sequence[int], batch_us: int, compute_us: int) -> list[bytes]:
    """:func:`pack_step` for each item of a batch."""
    try:
        return [_step.pack(queue_us, batch_us, compute_us) for queue_us in queues_us]
    except struct.error:
        return [pack_step(queue_us, batch_us, compute_us) for queue_us in queues_us]


def unpack_trail(trail: bytes) -> list[tuple[int, int, int]]:
    """The hops of a trail in order; a torn tail is dropped, for a trail only informs."""
    whole = len(trail) - len(trail) % STEP_BYTES
    return list(_step.iter_unpack(trail[:whole]))
