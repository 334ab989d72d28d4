"""Undoing gzip, zstd and deflate, a step at a time: what comes out is bounded, and so is the work. Pure.

A body is any number of members (gzip) or frames (zstd), one after the other, and its sender chooses everything about
them. So:

* a step takes in and gives out so many bytes at most; who calls it decides between two of them whether to go on;
* what comes out is counted as it does: a bomb costs what the limit allows and no more;
* members may be as many as the body has KiB, and some. Each costs some microseconds to begin, however small it is, and
  files of many members (bgzip's, say) have larger ones;
* a member is handed small pieces first. Whatever lies behind it in a piece is copied, and the whole rest behind each of
  many is a time that grows with the square of the body.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any, Final

STEP_IN: Final = 64 * 1024  # bytes; this takes about half a millisecond
STEP_OUT: Final = 256 * 1024  # bytes; the same
INLINE_IN: Final = 64 * 1024  # bytes of a body that is undone where it is read
INLINE_OUT: Final = 4 * INLINE_IN  # bytes of it that come out before a thread goes on; about a millisecond
FIRST_IN: Final = 8 * 1024  # bytes of a member's first piece
MEMBER_MIN: Final = 1024  # bytes of a body for each of its members
MEMBERS: Final = 16  # besides

ZSTD_WINDOW_LOG: Final = 23  # 8 MiB, the most that a receiver must have (RFC 9659)
_GZIP: Final = 31  # zlib's window bits for a gzip frame
_ZLIB: Final = 15  # and for its own, which is what "deflate" means (RFC 9110, section 8.4.1.2)


class Corrupt(Exception):
    """The body is not what its Content-Encoding says."""


class TooLarge(Exception):
    """Decompressed, the body is larger than allowed."""


class Fragmented(Exception):
    """The body has more members or frames than one of its size needs."""


class Unpacking:
    """One body on its way out of its coding. Each step may raise Corrupt, TooLarge and Fragmented; then it is over."""

    def __init__(self, coding: str, data: bytes, limit: int) -> None:
        """``coding`` is ``gzip``, ``zstd`` or ``deflate``; at most ``limit`` bytes may come out."""
        self.size = 0  # bytes that have come out
        self.copied = 0  # bytes behind a member that were copied with it: for tests
        self.done = False
        self._member = _MEMBERS[coding]
        self._data = memoryview(data)
        self._limit = limit
        self._at = 0
        self._feed = FIRST_IN
        self._frame: _GzipMember | _ZstdFrame | None = None
        self._members_left = MEMBERS + len(data) // MEMBER_MIN
        self._pieces: list[bytes] = []

    def go_on(self, most: int) -> None:
        """Steps until it is done, or about ``most`` bytes have been read or have come out."""
        in_end, out_end = self._at + most, self.size + most
        while not self.done and self._at < in_end and self.size < out_end:
            self.step()

    def step(self) -> None:
        """A bounded piece of work."""
        frame = self._frame
        if frame is None:
            if not self._members_left:
                raise Fragmented
            self._members_left -= 1
            self._feed = FIRST_IN
            frame = self._frame = self._member()
        wants = frame.wants
        fed = self._data[self._at : self._at + self._feed] if wants else self._data[:0]
        piece, unused = frame.more(fed, min(STEP_OUT, self._limit + 1 - self.size))
        self._at += len(fed) - unused
        self._feed = min(4 * self._feed, STEP_IN)
        self.copied += unused
        self.size += len(piece)
        if self.size > self._limit:
            raise TooLarge
        if piece:
            self._pieces.append(piece)
        if frame.ended:
            self._frame = None
            self.done = self._at == len(self._data)
        elif wants and not piece and not len(fed):
            raise Corrupt  # it ends in the middle

    def result(self) -> bytes:
        """All of it, once it is done."""
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def at_once(coding: str, data: bytes, limit: int) -> bytes | None:
    """All of a small body, decompressed; None where that takes longer than others should wait, or goes wrong."""
    if len(data) > INLINE_IN:
        return None
    work = Unpacking(coding, data, limit)
    try:
        work.go_on(INLINE_OUT)
    except (Corrupt, TooLarge, Fragmented):
        return None
    return work.result() if work.done else None


class _GzipMember:
    wants = True  # it keeps nothing of what it was given
    bits = _GZIP

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(self.bits)

    @property
    def ended(self) -> bool:
        return self._inflate.eof

    def more(self, data: memoryview, most: int) -> tuple[bytes, int]:
        """What comes out, and how much of ``data`` was not used."""
        inflate = self._inflate
        try:
            piece = inflate.decompress(data, most)
        except zlib.error as error:
            raise Corrupt from error
        return piece, len(inflate.unused_data) if inflate.eof else len(inflate.unconsumed_tail)


class _ZlibStream(_GzipMember):
    bits = _ZLIB


class _ZstdFrame:
    def __init__(self) -> None:
        self._module = zstd()
        options = {self._module.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
        self._frame = self._module.ZstdDecompressor(options=options)

    @property
    def wants(self) -> bool:
        wants: bool = self._frame.needs_input
        return wants

    @property
    def ended(self) -> bool:
        ended: bool = self._frame.eof
        return ended

    def more(self, data: memoryview, most: int) -> tuple[bytes, int]:
        """The same."""
        try:
            piece: bytes = self._frame.decompress(data, most)
        except self._module.ZstdError as error:
            raise Corrupt from error
        return piece, len(self._frame.unused_data) if self._frame.eof else 0


_MEMBERS: Final[dict[str, type[_GzipMember | _ZstdFrame]]] = {
    "gzip": _GzipMember,
    "zstd": _ZstdFrame,
    "deflate": _ZlibStream,
}


def zstd() -> Any:  # two modules with the same names
    """The module: Python's own from 3.14 on, ``backports.zstd`` before."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
