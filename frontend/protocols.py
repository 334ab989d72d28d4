"""Whose API a path speaks, and how that API writes down what went wrong. Pure.

A route says it (``protocol``). What is no route is answered as its neighbours would be: a client of OpenAI's library
that asks for what this service has not got, ``/v1/chat/completions`` beside ``/v1/embeddings``, shows the message only
if it comes in the form that it knows. So do bytes of which no path can be read, where all routes speak alike.

OpenAI's form is an object ``error`` with ``message``, ``type``, ``param`` and ``code``, all four always there, whatever
the client accepts: https://platform.openai.com/docs/guides/error-codes, and the schema ``ErrorResponse`` of its OpenAPI
document. ``code`` is a name for what happened that programs may compare, where there is one. That of the Open Inference
Protocol is an object whose one member ``error`` is text (:mod:`engine.core.oip`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engine.config.schema import OIP, OPENAI, PAGE, PLAIN, RESERVED_PATHS
from engine.core import oip, sse

JSON: Final = "application/json"

# The ``type`` of an error as OpenAI's API names it, by status; others by their class.
_OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
}
_PAGES: Final = frozenset({*(path.split("/")[1] for path in (*RESERVED_PATHS, PAGE) if path != "/")})

_encode = msgspec.json.Encoder().encode


class Protocols:
    """Of the routes of one deployment, by their paths."""

    def __init__(self, routes: Mapping[str, str] | None = None) -> None:
        self._routes = dict(routes or {})
        spoken = set(self._routes.values())
        self._speaks_oip = OIP in spoken
        self._others = spoken.pop() if len(spoken) == 1 else PLAIN  # where nothing else is known
        self._beside: dict[str, set[str]] = {}  # what is spoken below the first segment of a path
        for path, protocol in self._routes.items():
            self._beside.setdefault(path.split("/")[1], set()).add(protocol)

    def of(self, path: str) -> str:
        """What is spoken at a path, or would be; of "", where none is known."""
        known = self._routes.get(path)
        if known is not None:
            return known
        if self._speaks_oip and oip.is_about(path):
            return OIP
        segment = path.split("/", 2)[1] if path.startswith("/") else ""
        beside = self._beside.get(segment)
        if beside is not None:
            return next(iter(beside)) if len(beside) == 1 else OPENAI if OPENAI in beside else PLAIN
        return PLAIN if path == "/" or segment in _PAGES else self._others


def openai_error(status: int, message: str, code: str = "", param: str | None = None) -> dict[str, Any]:
    """The document of an error. ``Any``: a JSON document."""
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or None}}


def openai_body(status: int, message: str, code: str = "") -> bytes:
    return _encode(openai_error(status, message, code))


def openai_event(status: int, message: str) -> bytes:
    """The event that ends a stream which failed: JSON like all others of it, which is what their readers expect."""
    return b"event: error\n" + sse.event(openai_body(status, message))
