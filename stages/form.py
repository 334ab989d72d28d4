"""Forms out of the bytes of a request: ``multipart/form-data`` (RFC 7578), in which files come as they are, and
``application/x-www-form-urlencoded``, which has none. Pure.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.errors import DecodingError

PARTS_MOST: Final = 1000
MULTIPART: Final = "multipart/form-data"
URLENCODED: Final = "application/x-www-form-urlencoded"


class File(msgspec.Struct, frozen=True):
    """A file of a form. ``filename`` is the client's word, without folders: never a place to write to."""

    data: bytes
    filename: str = ""
    content_type: str = ""


def form_of(body: bytes, content_type: str) -> dict[str, list[str | File]]:
    """The fields of a form, each with all its values in order. Raises DecodingError."""
    from email.message import Message  # here and below: every worker loads this module, and few have forms

    kind = Message()
    kind["content-type"] = content_type
    if kind.get_content_type() == URLENCODED:
        return _urlencoded(body)
    boundary = kind.get_boundary()
    if kind.get_content_type() != MULTIPART or not boundary:
        raise DecodingError(f"expected {MULTIPART} with a boundary, or {URLENCODED}, by content-type")
    return _multipart(body, boundary)


def _urlencoded(body: bytes) -> dict[str, list[str | File]]:
    from urllib.parse import parse_qsl

    found: dict[str, list[str | File]] = {}
    try:
        text = body.decode("ascii")
        how: dict[str, Any] = {"keep_blank_values": True, "strict_parsing": bool(text), "errors": "strict"}
        pairs = parse_qsl(text, max_num_fields=PARTS_MOST, **how)
    except ValueError as error:  # among them UnicodeDecodeError
        raise DecodingError(f"not a form: {error}") from error
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _multipart(body: bytes, boundary: str) -> dict[str, list[str | File]]:
    import multipart  # type: ignore[import-untyped]

    found: dict[str, list[str | File]] = {}
    segment: Any = None
    pieces: list[bytes] = []
    try:
        with multipart.PushMultipartParser(
            boundary, content_length=len(body), max_segment_count=PARTS_MOST, strict=True
        ) as parser:
            for event in parser.parse(body):
                if isinstance(event, multipart.MultipartSegment):
                    segment, pieces = event, []
                elif event is not None:
                    pieces.append(bytes(event))
                else:
                    found.setdefault(segment.name or "", []).append(_value(segment, b"".join(pieces)))
    except multipart.MultipartError as error:
        raise DecodingError(f"not a form: {error}") from error
    return found


def _value(segment: Any, data: bytes) -> str | File:
    if segment.filename is not None:
        name = segment.filename.replace("\\", "/").rpartition("/")[2]
        return File(data, name, segment.content_type or "")
    try:
        return data.decode(segment.charset or "utf-8")
    except (UnicodeDecodeError, LookupError) as error:
        raise DecodingError(f"the field {segment.name!r} is no text: {error}") from error
