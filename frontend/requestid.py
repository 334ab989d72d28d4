"""The id of a request: the client's own if it is sane, else a new one. It is on every answer and every log line."""

from __future__ import annotations

import os
import re
from itertools import count
from typing import Final

HEADER: Final = b"x-request-id"

# Letters, digits and the punctuation of URLs, UUIDs and base64: nothing that a log, a shell or a header could misread.
_SANE: Final = re.compile(rb"^[A-Za-z0-9._:/+=\-]{1,128}\Z")


def sane(offered: bytes) -> str:
    """The id that a client offers, or "" if it is none."""
    return offered.decode("ascii") if _SANE.match(offered) else ""


class Ids:
    """New ids, unique over processes and time: 32 hexadecimal digits. The kernel's randomness is asked once and not for
    each request, so this must be made after the fork."""

    def __init__(self) -> None:
        self._prefix = os.urandom(12).hex()
        self._numbers = count(int.from_bytes(os.urandom(4), "big"))

    def __call__(self) -> str:
        return f"{self._prefix}{next(self._numbers) & 0xFFFFFFFF:08x}"
