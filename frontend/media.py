"""How words are written down as a body, and which headers of a worker may be passed on. Pure.

A client that names JSON in its Accept gets RFC 9457 problem details; everybody else, ``*/*`` included, a line of text.
Routes that speak an API with a form of its own have that: :mod:`frontend.protocols`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from engine.core.sse import phrase

TEXT: Final = "text/plain; charset=utf-8"
PROBLEM: Final = "application/problem+json"

_JSON_TYPES: Final = frozenset({PROBLEM, "application/json"})
_JSON: Final = re.compile(r"application/(?:[^;]*\+)?json\b")
_TEXT_TYPES: Final = frozenset({"text/plain", "text/*"})
_QVALUE: Final = re.compile(r"^(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)$")  # RFC 9110, section 12.4.2

_encode = msgspec.json.Encoder().encode


def is_json(mime: str) -> bool:
    """Whether a body of this type is JSON."""
    return _JSON.match(mime) is not None


def wants_problem(accept: str) -> bool:
    """Whether an Accept header asks for JSON by name, at least as much as for text by name."""
    if len(accept) > 1024:  # nobody's, and it would fill the cache
        return False
    json, text = _qualities(accept)
    return json >= text and json > 0


@lru_cache(maxsize=256)
def _qualities(accept: str) -> tuple[float, float]:
    """How much JSON and text are wanted, each by name."""
    json = text = 0.0
    for part in accept.lower().split(","):
        media_range, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                quality = float(value) if _QVALUE.match(value.strip()) else 0.0
        if media_range in _JSON_TYPES:
            json = max(json, quality)
        elif media_range in _TEXT_TYPES:
            text = max(text, quality)
    return json, text


def message(accept: bytes, status: int, detail: str, request_id: str) -> tuple[str, bytes]:
    """Content type and body of an answer that carries only words."""
    if not wants_problem(accept.decode("latin-1")):
        return TEXT, detail.encode()
    return PROBLEM, _encode(problem(status, detail, request_id))


def problem(status: int, detail: str, request_id: str) -> dict[str, object]:
    """Problem details (RFC 9457)."""
    return {
        "type": "about:blank",
        "title": phrase(status),
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }


# --- headers that come from a worker -----------------------------------------------------------------------------

_TOKEN: Final = re.compile(r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}\Z")  # RFC 9110, section 5.6.2
_VALUE: Final = re.compile(r"^[\t\x20-\x7e\x80-\xff]{0,4096}\Z")  # no line ends: they would begin a header of their own
_MIME: Final = re.compile(r"^[!#$&^_.+\-0-9A-Za-z]+/[!#$&^_.+\-0-9A-Za-z]+[\t\x20-\x7e]*\Z")

# Ours or the connection's: the framing, what describes the body we send, and what identifies the request.
_RESERVED: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "keep-alive",
        "proxy-connection",
        "server",
        "server-timing",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)


def passable(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Those of a worker's headers that a client may get, by lower-case names: well-formed ones that frame nothing; of
    one that is there twice in different letters the last, but for cookies."""
    passed: dict[str, tuple[str, str]] = {}
    for written, value in headers.items():
        name = written.lower()
        if name not in _RESERVED and _TOKEN.match(name) and _VALUE.match(value):
            passed[written if name == "set-cookie" else name] = (name, value.strip())
    return list(passed.values())


@lru_cache(maxsize=256)
def content_type(mime: str) -> str:
    """A worker's mime type, or the one that claims nothing where it is none."""
    return mime if len(mime) <= 256 and _MIME.match(mime) else "application/octet-stream"
