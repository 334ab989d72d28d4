"""Arrays as the tensors of the Open Inference Protocol, and back: datatypes, shapes, bytes, JSON. Pure.

Everything here comes from a client, who may say anything: a shape is compared with the bytes that are there before an
array is made of it, so that what is asked for is never larger than what was sent. Each array is a copy of its own: the
user may write into it, and behind JSON of any length the bytes of a view would lie askew three times of four.

BYTES are arrays of ``bytes`` objects. BF16, which numpy lacks, is float32 here, and rounded on its way out.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from engine.core.oip import Malformed
from engine.errors import ClientError, EncodingError

if TYPE_CHECKING:
    import numpy

# Any, here and below, where an array is meant: of numpy or of torch, either of which may not be there.
Array = Any

DIMENSIONS_MAX: Final = 32  # numpy's own limit before version 2
DIMENSION_MAX: Final = (1 << 31) - 1
SHOWN: Final = 100  # characters of a name that a client is shown

# numpy's names, in the order of bytes that the protocol has.
DTYPES: Final = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "BF16": "<u2",  # as it travels
}
BYTES: Final = "BYTES"
BF16: Final = "BF16"
DATATYPES: Final = (*DTYPES, BYTES)

_LIMITS: Final = {
    "UINT8": (0, 0xFF),
    "UINT16": (0, 0xFFFF),
    "UINT32": (0, 0xFFFFFFFF),
    "INT8": (-0x80, 0x7F),
    "INT16": (-0x8000, 0x7FFF),
    "INT32": (-0x80000000, 0x7FFFFFFF),
    "INT64": (-(1 << 63), (1 << 63) - 1),
}
_NUMPY: Final = {"b1": "BOOL", "f2": "FP16", "f4": "FP32", "f8": "FP64"} | {
    f"{kind}{size}": f"{name}{8 * size}" for kind, name in (("u", "UINT"), ("i", "INT")) for size in (1, 2, 4, 8)
}


@dataclass(frozen=True)
class Tensor:
    """What an input or output is to clients of the Open Inference Protocol: ``Tensor("FP32", [-1, 16])``.

    ``datatype``: one of the protocol's. ``shape``: of a whole request, its first dimension included; -1 for what
    varies; None for any.
    """

    datatype: str
    shape: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            raise ValueError(f"{self.datatype!r} is no datatype: one of {', '.join(DATATYPES)}")
        if self.shape is not None:
            shape = tuple(self.shape)
            if not all(type(one) is int and -1 <= one <= DIMENSION_MAX for one in shape):
                raise ValueError(f"{list(shape)} is no shape: sizes, or -1 for what varies")
            object.__setattr__(self, "shape", shape)


def shown(name: str) -> str:
    """A client's name for something, as it is shown to it again."""
    return repr(name if len(name) <= SHOWN else name[:SHOWN] + "...")


def misfit(tensor: Tensor, datatype: str, shape: Sequence[int]) -> str:
    """Why a tensor of this kind is not this one; empty where it is."""
    if datatype != tensor.datatype:
        return f"is {datatype}, and has to be {tensor.datatype}"
    own = tensor.shape
    if own is not None and (
        len(own) != len(shape) or any(-1 != one != other for one, other in zip(own, shape, strict=True))
    ):
        return f"has the shape {list(shape)}, and has to have {list(own)}"
    return ""


def datatype_of(dtype: numpy.dtype[Any]) -> str | None:
    """The protocol's name of numpy's type; None where it has none."""
    if dtype.name == "bfloat16":  # of ml_dtypes
        return BF16
    if dtype.kind in "SUO":
        return BYTES
    return _NUMPY.get(f"{dtype.kind}{dtype.itemsize}")


# --- in --------------------------------------------------------------------------------------------------------------


def check_shape(shape: Sequence[int]) -> int:
    """How many elements there are in a shape of a client's. Raises Malformed."""
    if len(shape) > DIMENSIONS_MAX or not all(0 <= one <= DIMENSION_MAX for one in shape):
        raise Malformed(f"at most {DIMENSIONS_MAX} dimensions, each from 0 to {DIMENSION_MAX}")
    return math.prod(shape)


def from_bytes(data: memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """An array of its own out of a tensor's bytes. Raises Malformed where those are not of this shape."""
    import numpy as np

    count = check_shape(shape)
    if datatype == BYTES:
        flat = _texts(data, count)
    else:
        dtype = np.dtype(DTYPES[datatype])
        if len(data) != count * dtype.itemsize:
            raise Malformed(
                f"{datatype} of the shape {list(shape)} has {count * dtype.itemsize} bytes, and {len(data)} were sent"
            )
        flat = np.frombuffer(data, dtype) if count else np.empty(0, dtype)
        if datatype == BF16:
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        elif datatype == "BOOL":
            flat = flat.view(np.uint8) != 0  # a byte that is neither 0 nor 1 is no value of numpy's
        else:
            flat = flat.astype(dtype.newbyteorder("="))  # a copy, too
    return _shaped(flat, shape)


def _texts(data: memoryview, count: int) -> Array:
    """The elements of BYTES: four bytes that say how many follow, each time."""
    import numpy as np

    if len(data) < 4 * count:
        raise Malformed(f"BYTES of {count} elements have {4 * count} bytes at least, and {len(data)} were sent")
    flat = np.empty(count, dtype=object)
    at, end = 0, len(data)
    for place in range(count):
        if at + 4 > end:
            raise Malformed(f"BYTES: the bytes end before element {place}")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length > end - at:
            raise Malformed(f"BYTES: element {place} has {length} bytes, and {end - at} are left")
        flat[place] = bytes(data[at : at + length])
        at += length
    if at != end:
        raise Malformed(f"BYTES: {end - at} bytes are left behind the last of {count} elements")
    return flat


def from_json(data: bytes | memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """An array of its own out of the JSON of a tensor, flat or as deep as its shape. Raises Malformed."""
    import numpy as np

    count = check_shape(shape)
    if datatype == BF16:
        raise Malformed("BF16 can only be sent as bytes")
    depth = _depth(data)
    if depth not in (1, len(shape)):
        raise Malformed(f"its data is {depth} lists deep, and its shape has {len(shape)} dimensions")
    try:
        values = msgspec.json.decode(data, type=_nested(datatype, depth))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"its data is no {datatype}: {error}") from None
    try:
        if datatype == BYTES:
            flat = _flat(values, shape, depth)
            array = np.empty(len(flat), dtype=object)
            array[:] = [text.encode() for text in flat]
        elif datatype in ("FP16", "FP32"):
            with np.errstate(over="raise"):
                array = np.array(values, np.float64).astype(DTYPES[datatype])
        else:
            array = np.array(values, np.dtype(DTYPES[datatype]).newbyteorder("="))
    except FloatingPointError:
        raise Malformed(f"its data has numbers that are too large for {datatype}") from None
    except (OverflowError, ValueError):
        raise Malformed(
            f"its data is not of the shape {list(shape)}, or has numbers that are none of {datatype}"
        ) from None
    if array.size != count or (depth > 1 and datatype != BYTES and array.shape != tuple(shape)):
        raise Malformed(f"its data has {array.size} elements, and the shape {list(shape)} has {count}")
    return _shaped(array, shape)


def _shaped(flat: Array, shape: Sequence[int]) -> Array:
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError):  # no element, and sizes whose product numpy does not count
        raise Malformed(f"the shape {list(shape)} is too large") from None


def _depth(data: bytes | memoryview) -> int:
    """Lists in lists that a JSON value begins with."""
    depth = 0
    for byte in bytes(data[: 4 * DIMENSIONS_MAX]):
        if byte == 0x5B:
            depth += 1
        elif byte not in b" \t\r\n":
            break
    return depth


def _nested(datatype: str, depth: int) -> Any:  # a type
    kind: Any = float
    if datatype == "BOOL":
        kind = bool
    elif datatype == BYTES:
        kind = str
    elif datatype == "UINT64":
        kind = Annotated[int, msgspec.Meta(ge=0)]
    elif (limits := _LIMITS.get(datatype)) is not None:
        kind = Annotated[int, msgspec.Meta(ge=limits[0], le=limits[1])]
    for _ in range(depth):
        kind = list[kind]
    return kind


def _flat(values: Any, shape: Sequence[int], depth: int) -> list[str]:
    """Texts in lists in lists, as one list. Raises ValueError where these are not of the shape."""
    if depth == 0:
        return [values]
    for size in shape[1:depth]:
        if any(len(value) != size for value in values):
            raise ValueError
        values = [one for value in values for one in value]
    return values  # type: ignore[no-any-return]


# --- out -------------------------------------------------------------------------------------------------------------


def array_of(value: Any, name: str, declared: Tensor | None) -> tuple[Array, str]:
    """Something out of a result as an array, and the datatype that it travels as. Raises EncodingError."""
    import numpy as np

    datatype = declared.datatype if declared is not None else None
    if not isinstance(value, np.ndarray) and hasattr(value, "detach"):  # torch's
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            datatype, value = datatype or BF16, value.float()
        value = value.numpy()
    try:
        array = value if isinstance(value, np.ndarray | np.generic) else _listed(value)
        array = np.asarray(array)
    except (ValueError, TypeError, OverflowError) as error:
        raise EncodingError(f"output {name} cannot be a tensor: {error}") from error
    own = datatype_of(array.dtype)
    if own is None or (own == BYTES) != ((datatype or own) == BYTES):
        raise EncodingError(f"output {name} is {array.dtype}, and has to be {datatype or 'a type of the protocol'}")
    if own == BF16:
        array = array.astype(np.float32)
    elif datatype not in (None, BYTES, own):
        wanted = np.dtype(np.float32 if datatype == BF16 else DTYPES[datatype])
        integers = array.dtype.kind in "iu" and wanted.kind in "iu"
        if integers and array.size and not np.iinfo(wanted).min <= array.min() <= array.max() <= np.iinfo(wanted).max:
            raise EncodingError(f"output {name} has numbers beyond {datatype}")
        if not integers and not np.can_cast(array.dtype, wanted, "same_kind"):
            raise EncodingError(f"output {name} is {array.dtype}, and has to be {datatype}")
        array = array.astype(wanted)
    return array, datatype or own


def _listed(value: Any) -> Array:
    """A value that is no array: one element has one dimension, and text stays what it is."""
    import numpy as np

    if isinstance(value, str | bytes | bool | int | float):
        value = [value]
    first = value
    while isinstance(first, list | tuple) and first:
        first = first[0]
    return np.array(value, dtype=object if isinstance(first, str | bytes) else None)


def to_bytes(array: Array, datatype: str, name: str) -> Array | bytes:
    """The bytes of a tensor; what has a buffer of its own is not copied. Raises EncodingError."""
    import numpy as np

    if datatype == BYTES:
        parts: list[bytes] = []
        for one in array.reshape(-1).tolist():
            data = one.encode() if isinstance(one, str) else one
            if not isinstance(data, bytes):
                raise EncodingError(f"output {name} has an element that is no text and no bytes: {type(one).__name__}")
            parts += (struct.pack("<I", len(data)), data)
        return b"".join(parts)
    if datatype == BF16:
        bits = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32)
        with np.errstate(over="ignore"):
            rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype("<u2")
        rounded[np.isnan(array).reshape(-1)] = 0x7FC0  # rounding may have carried it to infinity
        return rounded.view(np.uint8)
    return np.ascontiguousarray(array, DTYPES[datatype]).reshape(-1).view(np.uint8)


def to_json(array: Array, datatype: str, name: str) -> list[Any]:
    """The elements of a tensor for JSON, row by row. Raises ClientError for those that JSON cannot say."""
    import numpy as np

    instead = f"output {name} {{}}: ask for it as bytes (binary_data)"
    if datatype == BF16:
        raise ClientError(instead.format("is BF16"))
    if datatype == BYTES:
        try:
            return [one if isinstance(one, str) else str(one, "utf-8") for one in array.reshape(-1).tolist()]
        except (UnicodeDecodeError, TypeError):
            raise ClientError(instead.format("is no text")) from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ClientError(instead.format("has numbers that JSON has no words for")) from None
    return array.reshape(-1).tolist()  # type: ignore[no-any-return]
