"""MessagePack without types: what a client sent is what ``forward`` gets."""

from __future__ import annotations

from typing import Any

import msgpack

from engine.errors import DecodingError, EncodingError
from stages.bases import as_base

__all__ = ["MsgpackMixin"]


_UNREADABLE = (ValueError, TypeError, msgpack.UnpackException)
# ExtraData, FormatError, StackError and invalid UTF-8 are ValueErrors; a map as a map's key a TypeError.


class MsgpackMixin:
    """Requests and answers in MessagePack (https://msgpack.org): binary fields need no base64."""

    resp_mime_type = "application/msgpack"
    req_mime_type = "application/msgpack"

    strict_map_key: bool = True
    """Whether keys of maps must be text or bytes. Python makes those hard to choose so that they collide; numbers and
    arrays are easy, and a map of n keys that collide takes n * n steps: 600 KB hold a worker for minutes. False, for
    clients that are trusted, takes any key."""

    def deserialize(self, data: bytes) -> Any:
        """The body decoded, arrays as tuples, as Mosec does. Raises DecodingError when it is not exactly one value."""
        try:
            return msgpack.unpackb(data, raw=False, use_list=False, strict_map_key=self.strict_map_key)
        except _UNREADABLE as error:
            raise DecodingError(_one_line(error)) from error

    def serialize(self, data: Any) -> bytes:
        """The result encoded. Raises EncodingError, which names the type that MessagePack lacks."""
        try:
            packed: bytes = msgpack.packb(data, use_bin_type=True, strict_types=True, default=_plain)
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.PackException) as error:
            raise EncodingError(_one_line(error)) from error
        return packed


def check_keys(data: bytes) -> None:
    """Raise DecodingError unless this is one value, all maps of which have keys of text or bytes."""
    try:
        msgpack.unpackb(data, raw=True, strict_map_key=True)
    except _UNREADABLE as error:
        raise DecodingError(_one_line(error)) from error


def _plain(value: Any) -> Any:
    """For what is of no plain type exactly: tuples too, which MessagePack does not have, and requests come with."""
    if isinstance(value, tuple):
        return list(tuple.__iter__(value))
    if isinstance(value, dict):
        return dict(dict.items(value))
    return list(list.__iter__(value)) if isinstance(value, list) else as_base(value)


def _one_line(error: Exception) -> str:
    return str(error) or type(error).__name__
