"""Server-sent events as bytes (WHATWG HTML, section 9.2). Pure.

A line end inside an event's text would end its field, and what follows could pose as another: so every line of it, by
any of the three line ends the standard knows, becomes a ``data`` field of its own, which the reader joins by newlines.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

MIME: Final = "text/event-stream"
COMMENT: Final = b":\n\n"  # says nothing; keeps proxies and clients from giving up an idle stream

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")

# As RFC 9110 names them; http.HTTPStatus knew the older names before Python 3.13.
_PHRASES: Final = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


def event(text: bytes) -> bytes:
    """One event with this text (UTF-8)."""
    return b"".join(b"data: %b\n" % line for line in _LINE_END.split(text)) + b"\n"


def error(status: int, message: str) -> bytes:
    """The event that ends a stream which failed: named ``error``, with the status it would have had."""
    line = " ".join(message.split())
    return f"event: error\ndata: SSE inference error: {status}: {phrase(status)}: {line}\n\n".encode()


def phrase(status: int) -> str:
    """The status's name; its number where HTTP has none."""
    try:
        return _PHRASES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"
