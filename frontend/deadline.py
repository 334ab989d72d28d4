"""x-request-timeout: a client may ask for less time than the deployment gives, never for more. Pure."""

from __future__ import annotations

import re
from typing import Final

SECONDS: Final = b"x-request-timeout"
MILLISECONDS: Final = b"x-request-timeout-ms"

# Plain decimals: float() would also take "nan", "inf", "1e9" and "1_0".
_NUMBER: Final = re.compile(rb"^\d{1,9}(?:\.\d{0,9})?\Z")


def allowed(seconds: bytes, milliseconds: bytes, most_s: float) -> float | None:
    """Seconds for this request: the least of what the headers say (empty: nothing) and ``most_s``. None: unreadable."""
    timeout_s = most_s
    for text, unit in ((seconds, 1.0), (milliseconds, 0.001)):
        if text:
            if not _NUMBER.match(text.strip()) or not float(text) > 0:
                return None
            timeout_s = min(timeout_s, float(text) * unit)
    return timeout_s
