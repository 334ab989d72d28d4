"""MessagePack without types: what a client sent is what ``forward`` gets."""

from __future__ import annotations

from typing import Any

import msgpack

from engine.errors import DecodingError, EncodingError
from stages.bases import as_base

__all__ = ["MsgpackMixin"]


class MsgpackMixin:
    """Requests and answers in MessagePack (https://msgpack.org): binary fields need no base64."""

    resp_mime_type = "application/msgpack"
    req_mime_type = "application/msgpack"

    def deserialize(self, data: bytes) -> Any:
        """The body decoded, arrays as tuples, as Mosec does. Raises DecodingError when it is not exactly one value."""
        try:
            return msgpack.unpackb(data, raw=False, use_list=False, strict_map_key=False)
        # ExtraData, FormatError, StackError and invalid UTF-8 are ValueErrors; a map as a map's key a TypeError.
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise DecodingError(_one_line(error)) from error

    def serialize(self, data: Any) -> bytes:
        """The result encoded. Raises EncodingError, which names the type that MessagePack lacks."""
        try:
            packed: bytes = msgpack.packb(data, use_bin_type=True, strict_types=True, default=_plain)
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.PackException) as error:
            raise EncodingError(_one_line(error)) from error
        return packed


def _plain(value: Any) -> Any:
    """For what is of no plain type exactly: tuples too, which MessagePack does not have, and requests come with."""
    if isinstance(value, tuple):
        return list(tuple.__iter__(value))
    if isinstance(value, dict):
        return dict(dict.items(value))
    return list(list.__iter__(value)) if isinstance(value, list) else as_base(value)


def _one_line(error: Exception) -> str:
    return str(error) or type(error).__name__
