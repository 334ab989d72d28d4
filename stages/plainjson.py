"""JSON in and out as services know it from the standard library, at msgspec's speed.

msgspec reads and writes what RFC 8259 allows. Services written against ``json`` meet more: ``NaN`` in a request, a
``numpy.float64`` (a ``float``) or a subclass of ``str`` in a result, ``None`` as a key. So what msgspec does not take
goes a second, slower way, and only what ``json`` refuses too is an error. One thing is not taken over: a result's NaN
or infinity is written ``null``, for ``NaN`` is JSON to Python alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from engine.errors import DecodingError, EncodingError
from stages.bases import as_base


def decode(data: bytes) -> Any:
    """The value. Raises DecodingError; for no bytes at all too."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise DecodingError(str(error)) from error


def decode_all(bodies: Sequence[bytes]) -> list[Any] | None:
    """The values of several; None where one of them needs :func:`decode`'s other way, or is an error."""
    try:
        return [*map(msgspec.json.decode, bodies)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def encode_all(results: Sequence[Any]) -> list[bytes] | None:
    """The bytes of several; None where one of them needs :func:`encode`'s other way, or is an error."""
    try:
        return [*map(_encode, results)]
    except UNENCODABLE:
        return None


def encode(data: Any) -> bytes:
    """The bytes. Raises EncodingError, which names the type that JSON lacks."""
    return encode_with(_encode, data)


def encode_with(encoder: Callable[[Any], bytes], data: Any) -> bytes:
    """The same by an encoder of msgspec's with a hook of its own."""
    try:
        return encoder(data)
    except UNENCODABLE as error:
        try:
            return _once_more(encoder, data)
        except UNENCODABLE:
            raise EncodingError(_explain(error)) from error


def _once_more(encoder: Callable[[Any], bytes], data: Any) -> bytes:
    """Keys that are no text, and text that is no UTF-8 (escaped, as ``\\ud800``): seldom enough to be slow."""
    plain = _with_text_keys(data)
    try:
        return encoder(plain)
    except UnicodeEncodeError:
        plain = json.loads(json.dumps(plain), parse_constant=lambda _name: None)
        return json.dumps(plain, separators=(",", ":")).encode()


def _with_text_keys(value: Any) -> Any:
    """The same with what ``json`` makes of keys: their characters, or the text of a number, a truth value or None."""
    if isinstance(value, dict):
        return {_text_key(key): _with_text_keys(entry) for key, entry in dict.items(value)}
    if isinstance(value, list):
        return [_with_text_keys(entry) for entry in list.__iter__(value)]
    if isinstance(value, tuple):
        return [_with_text_keys(entry) for entry in tuple.__iter__(value)]
    return value


def _text_key(key: Any) -> Any:
    if isinstance(key, str):
        return str.__str__(key)
    return json.dumps(key) if key is None or isinstance(key, float | int) else key


def _explain(error: Exception) -> str:
    text = str(error)
    if "numpy.ndarray" in text or "torch.Tensor" in text:
        return f"{text}; call .tolist() on it"
    if "numpy." in text:
        return f"{text}; call .item() on it"
    return text


UNENCODABLE: Final = (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError)
_encode: Final = msgspec.json.Encoder(enc_hook=as_base).encode
