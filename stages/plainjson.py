"""JSON in and out as services know it from the standard library, at msgspec's speed.

msgspec reads and writes what RFC 8259 allows. Services written against ``json`` meet more: ``NaN`` in a request, a
``numpy.float64`` (a ``float``) or a subclass of ``str`` in a result, ``None`` as a key. So what msgspec does not take
goes a second, slower way through ``json``, and only what that refuses too is an error. One thing is not taken over: a
result's NaN or infinity is written ``null``, for ``NaN`` is JSON to Python alone.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from engine.errors import DecodingError, EncodingError


def decode(data: bytes) -> Any:
    """The value. Raises DecodingError; for no bytes at all too."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise DecodingError(str(error)) from error


def encode(data: Any) -> bytes:
    """The bytes. Raises EncodingError, which names the type that JSON lacks."""
    try:
        return _encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        try:
            return _through_json(data)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise EncodingError(_explain(error)) from error


def _as_base(value: Any) -> Any:
    """What a subclass of a JSON type is to ``json``. Called by msgspec for types it does not know."""
    kinds: tuple[type[Any], ...] = (str, float, int, dict, list)
    for base in kinds:
        if isinstance(value, base):
            return base(value)
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    raise TypeError(f"Encoding objects of type {name} is unsupported")


_encode = msgspec.json.Encoder(enc_hook=_as_base).encode


def _through_json(data: Any) -> bytes:
    """Keys that are no text, and text that is no UTF-8 (escaped, as ``\\ud800``): seldom enough to be slow."""
    plain = json.loads(json.dumps(data), parse_constant=lambda _name: None)
    return json.dumps(plain, separators=(",", ":")).encode()


def _explain(error: Exception) -> str:
    text = str(error)
    if "numpy.ndarray" in text or "torch.Tensor" in text:
        return f"{text}; call .tolist() on it"
    if "numpy." in text:
        return f"{text}; call .item() on it"
    return text
