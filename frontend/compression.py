"""gzip, zstd and deflate: which coding a body has, which one an answer gets, and how it gets it. Pure.

What is large is compressed in a thread, by who calls this: the event loop serves all the others meanwhile. Bodies of
requests are undone in :mod:`frontend.unpacking`, in a thread by slices (:mod:`frontend.body`).

zstd comes with Python 3.14, and before from ``backports.zstd``, which is that module for older ones and installed with
the package: a client that sends zstd must not depend on how its server was installed. It is imported only by processes
that compress.
"""

from __future__ import annotations

import re
import sys
import zlib
from functools import lru_cache
from typing import Final

from engine.errors import StartError
from frontend.unpacking import zstd

SMALL: Final = 1024  # bytes; below it the headers weigh as much as what is saved
INLINE_MAX: Final = 64 * 1024  # bytes; this takes gzip about a millisecond, a thread's detour a tenth of that
GZIP_LEVEL: Final = 5
ZSTD_LEVEL: Final = 3

ACCEPTED: Final = "gzip, zstd, deflate"
VARY: Final = "accept-encoding"

_FRAMES: Final = {"gzip": 31, "deflate": 15}  # zlib's window bits; deflate means its own frame (RFC 9110, 8.4.1.2)
_QVALUE: Final = re.compile(r"^(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)$")  # RFC 9110, section 12.4.2
_PACKED: Final = re.compile(
    r"^(?:audio/|video/|font/woff|image/(?!svg|bmp|x-)|application/(?:gzip|zip|zstd|x-7z-compressed|x-xz|x-bzip2)\b)"
)


def require() -> None:
    """Raise StartError unless both codings are there."""
    try:
        zstd()
    except ImportError as error:
        raise StartError(
            f"compression needs backports.zstd, which is installed with stageline as a rule: {sys.executable} -m pip "
            "install backports.zstd, or turn compression off"
        ) from error


# --- requests --------------------------------------------------------------------------------------------------------


def coding_of(content_encoding: bytes) -> str | None:
    """The one coding of a request's body: ``gzip``, ``zstd``, ``deflate``, "" for none; None when it is another, or
    several."""
    name = content_encoding.strip().lower()
    if name in (b"", b"identity"):
        return ""
    return {b"gzip": "gzip", b"x-gzip": "gzip", b"zstd": "zstd", b"deflate": "deflate"}.get(name)


# --- answers ---------------------------------------------------------------------------------------------------------


def choose(accept_encoding: bytes) -> tuple[str, bool]:
    """The coding of an answer ("" for none) and whether it must have one, whatever its size (``identity;q=0``).

    Of several that the client likes as well, zstd, which is faster, then gzip, which means the same to all. A client
    that accepts nothing gets the plain answer.
    """
    if not accept_encoding or len(accept_encoding) > 1024:  # longer ones are nobody's and would fill the cache
        return "", False
    return _choose(accept_encoding.decode("latin-1").lower())


@lru_cache(maxsize=256)
def _choose(accept: str) -> tuple[str, bool]:
    wanted: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                quality = float(value) if _QVALUE.match(value.strip()) else 0.0
        if name:
            wanted["gzip" if name == "x-gzip" else name] = quality
    others = wanted.get("*", 0.0)
    # By their names, where all else is equal: which is the order that is wanted.
    best, coding = max((wanted.get(name, others), name) for name in ("deflate", "gzip", "zstd"))
    plain = wanted.get("identity", 0.0 if wanted.get("*") == 0 else None)
    if best <= 0 or (plain is not None and plain > best):
        return "", False
    return coding, plain == 0


def is_worth(mime: str, size: int, *, forced: bool) -> bool:
    """Whether a body of this type and size should be compressed."""
    return forced or (size >= SMALL and not _PACKED.match(mime))


def pack(coding: str, body: bytes) -> bytes:
    """The body in this coding; above INLINE_MAX to be called in a thread."""
    if coding in _FRAMES:
        packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _FRAMES[coding])
        return packer.compress(body) + packer.flush()
    packed: bytes = zstd().compress(body, ZSTD_LEVEL)
    return packed
