"""Small arrays from one stage to the next: a whole batch of them in a few calls, where pickle needs several per item.

A value that is a numpy array or a dense torch tensor on the CPU, or a dict with text keys of nothing else, travels as
its *head* - for each array its key, type and shape - and the bytes of its arrays, one behind the other. Values of equal
heads, as batches mostly have them, are taken apart together. Whatever else a value is, or has about it (subclasses,
other kinds of numbers, gradients, another order than C, arrays large enough to travel apart), is left to pickle:
these functions return None then. What arrives is the receiver's own.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from engine.core.arena import SHARED_MIN
from engine.core.wire import Buffer, Payload, are_bytes

MAGIC: Final = 1  # of the first byte; a pickle begins with 0x80
ARRAYS_MOST: Final = 32  # of a dict
TOGETHER_MOST: Final = 64 * 1024  # bytes of a batch's arrays in one piece: whoever keeps one of them keeps all
KEPT_MOST: Final = 1024  # heads that are remembered: sequences of every length have one each

_start: Final = struct.Struct("<BxH")  # magic, and the bytes of the whole head
_NUMBERS: Final = "biufc"  # kinds of numpy's types
_NUMPY: Final = 0
_TORCH: Final = 1


class Field(msgspec.Struct, array_like=True, frozen=True):
    """One array. ``key`` None: it is the value itself."""

    key: str | None
    library: int
    kind: str  # as numpy writes it: "<f4"
    shape: tuple[int, ...]


class _Part(NamedTuple):
    """Where one array lies in a payload, and what it is."""

    key: str | None
    is_torch: bool
    dtype: Any
    shape: tuple[int, ...]
    at: int
    end: int


class _Layout(NamedTuple):
    """A head, read."""

    size: int  # of the payload
    parts: tuple[_Part, ...]
    keys: tuple[str | None, ...]


_heads: dict[Any, bytes] = {}  # by what they say
_layouts: dict[bytes, _Layout] = {}  # by head
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Field])


def pack(value: Any) -> bytes | None:
    """The value as bytes; None where it is not of this kind."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if type(value) is numpy.ndarray:  # most of all
        if not _is_plain(value):
            return None
        what: Any = value.dtype, value.shape
        head = _heads.get(what) or _make_head(what, [(None, _NUMPY, value)])
        data: bytes = value.tobytes()
        return head + data
    if type(value) is dict:
        if not 0 < len(value) <= ARRAYS_MOST:
            return None
        entries: list[tuple[Any, int, Any]] = [(key, *_array_of(entry, numpy)) for key, entry in value.items()]
        if any(array is None or type(key) is not str for key, _, array in entries):
            return None
        if sum(array.nbytes for _, _, array in entries) >= SHARED_MIN:
            return None
    else:
        library, array = _array_of(value, numpy)
        if array is None:
            return None
        entries = [(None, library, array)]
    what = tuple((key, library, array.dtype, array.shape) for key, library, array in entries)
    head = _heads.get(what) or _make_head(what, entries)
    return b"".join([head, *(array.tobytes() for _, _, array in entries)])


def unpack(data: Buffer) -> Any:
    """Inverse of :func:`pack`. Raises ValueError for anything else."""
    data = bytes(data)  # no copy when it is bytes already
    layout = _layout_of(data)
    if len(data) != layout.size:
        raise ValueError(f"arrays of {layout.size} bytes in {len(data)}")
    arrays = [_array(bytearray(data[part.at : part.end]), part) for part in layout.parts]
    return arrays[0] if layout.parts[0].key is None else dict(zip(layout.keys, arrays, strict=True))


def is_packed(payload: Payload) -> bool:
    """Whether it was made by :func:`pack`."""
    return isinstance(payload, bytes | memoryview) and len(payload) > 0 and payload[0] == MAGIC


def unpack_all(payloads: Sequence[Payload]) -> list[Any] | None:
    """The values of payloads that have equal heads; None where they have not. Raises what :func:`unpack` raises."""
    first = payloads[0]
    if type(first) is not bytes or not is_packed(first):
        return None
    layout = _layout_of(first)
    head = first[: _start.unpack_from(first)[1]]
    if not are_bytes(payloads) or set(map(len, payloads)) != {layout.size}:  # type: ignore[arg-type]  # bytes
        return None
    import numpy

    table = numpy.frombuffer(b"".join(payloads), dtype=numpy.uint8).reshape(len(payloads), layout.size)  # type: ignore[arg-type]  # bytes, all of them
    if not (table[:, : len(head)] == numpy.frombuffer(head, dtype=numpy.uint8)).all():
        return None
    columns = [_column(table, part) for part in layout.parts]
    if layout.parts[0].key is None:
        return columns[0]
    return [dict(zip(layout.keys, values, strict=True)) for values in zip(*columns, strict=True)]


# --- inside ----------------------------------------------------------------------------------------------------------


def _is_plain(array: Any) -> bool:
    dtype = array.dtype
    return (
        dtype.kind in _NUMBERS
        and dtype.isbuiltin == 1
        and 0 < array.nbytes < SHARED_MIN
        and array.ndim > 0
        and bool(array.flags.c_contiguous)
        and dtype.metadata is None
    )


def _array_of(value: Any, numpy: Any) -> tuple[int, Any]:
    """Whose array it is, and as numpy's; None in its place where it is none, or not a plain one."""
    if type(value) is numpy.ndarray:
        return _NUMPY, value if _is_plain(value) else None
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not getattr(torch, "Tensor", None):  # it may be half imported
        return _NUMPY, None
    if (
        value.device.type != "cpu"
        or value.layout is not torch.strided
        or value.requires_grad
        or value.is_conj()
        or value.is_neg()
    ):
        return _TORCH, None
    try:
        array = value.numpy()
    except (TypeError, RuntimeError):  # a type that numpy has not: bfloat16
        return _TORCH, None
    return _TORCH, array if _is_plain(array) else None


def _make_head(what: Any, entries: Sequence[tuple[str | None, int, Any]]) -> bytes:
    fields = [Field(key, library, array.dtype.str, array.shape) for key, library, array in entries]
    body = _encoder.encode(fields)
    head = _start.pack(MAGIC, _start.size + len(body)) + body
    if len(_heads) >= KEPT_MOST:
        _heads.clear()
    _heads[what] = head
    return head


def _layout_of(data: bytes) -> _Layout:
    try:
        magic, size = _start.unpack_from(data)
        head = data[:size]
        layout = _layouts.get(head)
        if layout is None:
            if magic != MAGIC:
                raise ValueError("no arrays")
            layout = _read(head)
    except (struct.error, msgspec.DecodeError, TypeError) as error:
        raise ValueError(f"arrays that cannot be read: {error}") from error
    return layout


def _read(head: bytes) -> _Layout:
    import numpy

    parts = []
    at = len(head)
    for field in _decoder.decode(head[_start.size :]):
        dtype = numpy.dtype(field.kind)
        if dtype.kind not in _NUMBERS:
            raise ValueError(f"an array of {field.kind[:20]}")
        end = at + dtype.itemsize * int(numpy.prod(field.shape, dtype=numpy.int64))
        parts.append(_Part(field.key, field.library == _TORCH, dtype, field.shape, at, end))
        at = end
    if not parts:
        raise ValueError("no array")
    if len(_layouts) >= KEPT_MOST:
        _layouts.clear()
    layout = _layouts[head] = _Layout(at, tuple(parts), tuple(part.key for part in parts))
    return layout


def _array(data: bytearray, part: _Part) -> Any:
    import numpy

    array = numpy.frombuffer(data, dtype=part.dtype).reshape(part.shape)
    return _of_torch(array) if part.is_torch else array


def _column(table: Any, part: _Part) -> list[Any]:
    """One array of each row."""
    column = table[:, part.at : part.end]
    if column.nbytes <= TOGETHER_MOST:
        arrays = [*column.copy().view(part.dtype).reshape(len(table), *part.shape)]
    else:
        arrays = [row.copy() for row in column.view(part.dtype).reshape(len(table), *part.shape)]
    return [*map(_of_torch, arrays)] if part.is_torch else arrays


def _of_torch(array: Any) -> Any:
    import torch

    return torch.from_numpy(array)
