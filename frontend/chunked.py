"""Bodies in chunks (RFC 9112, section 7.1): the pieces of a stream written so, and small ones of requests read. Pure.

What is read here is the plainest of it, and all in one go: a few chunks with nothing behind their sizes and no
trailers, as clients send that do not know the length of what they send. Anything else may be fine, and is gunicorn's to
judge.
"""

from __future__ import annotations

import re
from typing import Final

LAST_CHUNK: Final = b"0\r\n\r\n"
CHUNKS_MAX: Final = 64  # in one body: each time more of it comes it is read from its beginning
OVERHEAD_MAX: Final = 12 * CHUNKS_MAX + 5  # bytes of what is around them

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_BEGINNING: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,8}\r?)?")  # of that
_CRLF: Final = b"\r\n"


class Odd(Exception):
    """It is not as plain as that, or no body at all."""


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body; not empty, for that would end it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def read(data: bytes | bytearray, start: int) -> tuple[list[tuple[int, int]], int, bool]:
    """Look for a body that begins at ``start``. Where each piece of it begins and ends, how many bytes of ``data`` it
    takes, and whether all of it is there; if not, nothing new is to be found in fewer bytes than told. Raises Odd."""
    pieces: list[tuple[int, int]] = []
    at = start
    while True:
        match = _SIZE.match(data, at)
        if match is None:
            if not _BEGINNING.fullmatch(data, at):
                raise Odd
            return pieces, len(data) + 1, False
        size, begin = int(match[1], 16), match.end()
        end = begin + size
        if not _CRLF.startswith(bytes(data[end : end + 2])) or len(pieces) == CHUNKS_MAX:  # trailers, if it is the last
            raise Odd
        is_here = len(data) >= end + 2
        if not is_here:
            return pieces, max(len(data), end) + 1, False
        if not size:
            return pieces, end + 2, True
        pieces.append((begin, end))
        at = end + 2
