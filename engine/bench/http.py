"""HTTP/1.1 as a client of a measurement needs it: a request as bytes, and answers taken as they come. Pure (RFC 9112).

Bodies are counted and not kept, but for the beginning of one that says why a request failed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

HEAD_MAX: Final = 64 << 10
KEPT: Final = 200  # bytes of a body
_HEX: Final = re.compile(rb"[0-9A-Fa-f]{1,15}")


class BadAnswer(ValueError):
    """What came is no answer."""


def request(method: str, path: str, host: str, fields: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """One request. ``fields`` come after ``host`` and before the length, unless they say these themselves."""
    given = {name.lower() for name, _ in fields}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    if "host" not in given:
        lines.insert(1, f"host: {host}")
    if "content-length" not in given and (body or method not in ("GET", "HEAD")):
        lines.append(f"content-length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


class Answer:
    """One answer, of which more and more comes. ``status`` is 0 until its head has come."""

    def __init__(self, method: str = "POST") -> None:
        self._is_head = method == "HEAD"
        self._buffer = b""
        self._left: int | None = None  # bytes to come of the body, or of its present chunk
        self._chunked = False
        self._in_chunk = False  # a chunk's end has not come
        self._trailing = False
        self.status = 0
        self.closes = False  # the connection is of no use afterwards
        self.nbytes = 0  # of the body
        self.begun = b""  # of the body

    def feed(self, data: bytes) -> bool:
        """Whether it is whole. Raises BadAnswer, also where more came than one answer."""
        self._buffer += data
        while not self.status:
            if not self._take_head():
                return False
        done = self._take_chunks() if self._chunked else self._take_plain()
        if done and self._buffer:
            raise BadAnswer("more came than the answer")
        return done

    def ended(self) -> bool:
        """The connection was closed: whether that was the end of the answer."""
        return self.status > 0 and not self._chunked and self._left is None

    def _take_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_MAX:
                raise BadAnswer("a head without an end")
            return False
        first, *lines = self._buffer[:end].split(b"\r\n")
        self._buffer = self._buffer[end + 4 :]
        version, _, rest = first.partition(b" ")
        code = rest[:3]
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not code.isdigit():
            raise BadAnswer(f"no answer of HTTP/1.1: {first[:60]!r}")
        if code.startswith(b"1"):  # there is more to come
            return True
        fields = {}
        for line in lines:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip()
        self.status = int(code)
        options = fields.get(b"connection", b"").lower()
        self.closes = b"close" in options or (version == b"HTTP/1.0" and b"keep-alive" not in options)
        if self._is_head or code in (b"204", b"304"):
            self._left = 0
        elif fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
            self._chunked, self._left = True, 0
        elif (length := fields.get(b"content-length")) is not None:
            if not length.isdigit():
                raise BadAnswer(f"a length of {length[:40]!r}")
            self._left = int(length)
        else:
            self.closes = True  # that is its end
        return True

    def _count(self, most: int) -> int:
        """Take up to so many bytes of the body; how many there were."""
        part, self._buffer = self._buffer[:most], self._buffer[most:]
        self.nbytes += len(part)
        if len(self.begun) < KEPT:
            self.begun += part[: KEPT - len(self.begun)]
        return len(part)

    def _take_plain(self) -> bool:
        if self._left is None:
            self._count(len(self._buffer))
            return False
        self._left -= self._count(self._left)
        return not self._left

    def _take_chunks(self) -> bool:
        while True:
            if self._left:
                self._left -= self._count(self._left)
                if self._left:
                    return False
                self._in_chunk = True
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                return False
            self._buffer = rest
            if self._trailing:
                if not line:
                    return True
            elif self._in_chunk:
                if line:
                    raise BadAnswer("a chunk that is longer than it says")
                self._in_chunk = False
            else:
                length = line.partition(b";")[0].strip()
                if not _HEX.fullmatch(length):
                    raise BadAnswer(f"no length of a chunk: {line[:40]!r}")
                self._left = int(length, 16)
                self._trailing = not self._left
