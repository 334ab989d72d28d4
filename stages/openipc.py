"""How a value travels from one stage to the next where others could reach the link: MessagePack, never pickle.

To unpickle is to run what was sent. So over tcp, until peers have to show a key, values between stages are what
MessagePack has - None, booleans, numbers, text, bytes, lists, dicts - and numpy arrays and scalars of numbers, each as
its type, its shape and its bytes. What arrives is the receiver's own. Tuples arrive as lists.
"""

from __future__ import annotations

import re
import struct
import sys
from typing import Any, Final

import msgspec

from engine.errors import EncodingError

ARRAY: Final = 1  # of MessagePack's extension types
SCALAR: Final = 2

_HOW: Final = (
    "give None, booleans, numbers, text, bytes, lists, dicts or numpy arrays of numbers, write serialize_ipc and "
    "deserialize_ipc for it, or leave [engine] bind out, for private sockets on which anything goes"
)
_NUMBERS: Final = re.compile(r"[<>|=]?[biufc][0-9]{1,2}")
_length: Final = struct.Struct("<I")


def pack(value: Any) -> bytes:
    """The value as bytes. Raises EncodingError, which names the type that cannot cross and says what to do."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # Whole in itself: whoever shows a cause in place of its error would leave out what to do.
        raise EncodingError(f"the result cannot be passed on to the next stage over tcp: {error}; {_HOW}") from None


def unpack(data: bytes) -> Any:
    """Inverse of :func:`pack`. Raises ValueError (msgspec.DecodeError is one) for anything else."""
    return _decoder.decode(data)


def _encode(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic) and value.dtype.kind in "biufc":
        head = msgspec.msgpack.encode((value.dtype.str, value.shape))
        data = _length.pack(len(head)) + head + value.tobytes()
        return msgspec.msgpack.Ext(ARRAY if isinstance(value, numpy.ndarray) else SCALAR, data)
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is not among what may")


def _decode(code: int, data: memoryview) -> Any:
    if code not in (ARRAY, SCALAR) or len(data) < _length.size:
        raise ValueError(f"an extension of type {code}")
    end = _length.size + _length.unpack_from(data)[0]
    kind, shape = _head.decode(data[_length.size : end])
    if not _NUMBERS.fullmatch(kind):
        raise ValueError(f"an array of {kind[:20]}")
    import numpy

    array = numpy.frombuffer(bytearray(data[end:]), dtype=numpy.dtype(kind)).reshape(shape)
    return array if code == ARRAY else array[()]


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_encode)
_decoder: Final = msgspec.msgpack.Decoder(ext_hook=_decode)
_head: Final = msgspec.msgpack.Decoder(tuple[str, tuple[int, ...]])
