"""The id of a request: the client's own if it is sane, else a new one. It is on every answer and every log line."""

from __future__ import annotations

import re
from random import SystemRandom
from typing import Final

HEADER: Final = b"x-request-id"

# Letters, digits and the punctuation of URLs, UUIDs and base64: nothing that a log, a shell or a header could misread.
_SANE: Final = re.compile(rb"^[A-Za-z0-9._:/+=\-]{1,128}\Z")

# The kernel's randomness has no state of ours: processes forked from one another do not repeat each other's ids.
_random = SystemRandom()


def choose(offered: bytes | None) -> str:
    """The id offered by the client, or 32 random hexadecimal digits."""
    if offered is not None and _SANE.match(offered):
        return offered.decode("ascii")
    return f"{_random.getrandbits(128):032x}"
