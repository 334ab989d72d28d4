"""Whose pages may ask from a browser and read the answers: CORS (WHATWG Fetch, section 3.2). Pure.

A browser says with ``Origin`` whose page asks. Where that one may (``[frontend] cors``) an answer says so, whatever it
is, so that scripts read errors too. Before a request that no form could send - JSON, with a token - a browser asks
whether it may be made (*preflight*), without the token; that is answered here and nowhere else, and says what the
browser wants to hear: whether there is such a path and method is for the request to find out.

Credentials that a browser adds by itself, cookies, are never asked for: a page that has a token sends it on its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from engine.config.schema import ANY_ORIGIN
from engine.core.oip import LENGTH
from frontend.answer import ORIGIN, Reply
from frontend.head import Head

_ANY: Final = ANY_ORIGIN.encode()
MAX_AGE_S: Final = 7200  # more Chromium does not keep
EXPOSED: Final = ", ".join(
    ("idempotent-replayed", "retry-after", "retry-after-ms", "server-timing", "www-authenticate", "x-request-id",
     "x-should-retry", LENGTH)
)  # fmt: skip

_METHODS: Final = frozenset({b"DELETE", b"GET", b"HEAD", b"PATCH", b"POST", b"PUT"})
_NAMES: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z, ]{0,4096}")

Lines = list[tuple[str, str]]


class Cors:
    """For one deployment."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = ANY_ORIGIN in origins
        self._lines: dict[bytes, Lines] = {
            origin.encode(): [
                ("access-control-allow-origin", origin), ("access-control-expose-headers", EXPOSED)
            ]
            for origin in ([ANY_ORIGIN] if self._any else origins)
        }  # fmt: skip
        self._bytes = {
            origin: "".join(f"\r\n{name}: {value}" for name, value in lines).encode()
            for origin, lines in self._lines.items()
        }

    @property
    def vary(self) -> str:
        """What answers depend on, that caches must know."""
        return "" if self._any else ORIGIN

    def lines(self, head: Head) -> Lines:
        """Of any answer to such a request."""
        if not head.origin:
            return []
        return self._lines.get(_ANY if self._any else head.origin, [])

    def said(self, answer: bytes, head: Head) -> bytes:
        """An answer in HTTP/1.1, or its head, that says the same."""
        if not head.origin:
            return answer
        lines = self._bytes.get(_ANY if self._any else head.origin)
        return answer if lines is None else answer.replace(b"\r\n", lines + b"\r\n", 1)

    def preflight(self, method: str, head: Head) -> Reply | None:
        """The answer to one; None: it is none, or of a page that may not ask, whose browser sees that by what is not
        said."""
        if method != "OPTIONS" or not head.origin:
            return None
        lines = self.lines(head)
        asked = dict(head.fields)
        wanted = asked.get(b"access-control-request-method", b"")
        names = asked.get(b"access-control-request-headers", b"")
        if not lines or wanted not in _METHODS or not _NAMES.fullmatch(names):
            return None
        headers = [
            lines[0],
            ("access-control-allow-methods", wanted.decode()),
            *([("access-control-allow-headers", names.decode())] if names else []),
            ("access-control-max-age", str(MAX_AGE_S)),
            ("vary", ", ".join(filter(None, (self.vary, "access-control-request-headers"))))
        ]  # fmt: skip
        return Reply(200, "text/plain; charset=utf-8", b"", headers)


def varied(headers: list[tuple[bytes, bytes]], vary: str) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that depends on ``vary`` too; one that no cache keeps needs not say so."""
    if not vary or any(name == b"cache-control" and b"no-store" in value for name, value in headers):
        return headers
    for at, (name, value) in enumerate(headers):
        if name == b"vary":
            if vary.encode() in value:
                return headers
            return [*headers[:at], (name, value + b", " + vary.encode()), *headers[at + 1 :]]
    return [*headers, (b"vary", vary.encode())]
