"""How slow a client may be, with what it sends and with what it takes. Pure.

A limit on pauses alone bounds nothing: a byte now and then keeps a connection, and what is held for it, for ever. So a
client has some seconds, and for everything that it moved the time which that takes at a rate that any line has. The
whole is bounded with it: nothing takes longer than those seconds and its size at that rate.
"""

from __future__ import annotations

from typing import Final

LEAST_RATE: Final = 16 * 1024  # bytes a second: a bad mobile line has more
FRESH_S: Final = 0.5  # how long after it was made a connection is not taken for an idle one
NEW_S: Final = 5.0  # how long after it was begun an answer's client is not taken for a slow one
STALL_S: Final = 60.0  # a client that takes nothing for so long is dropped
LINGER_S: Final = 5.0  # how long what nobody wants is read and dropped, so that its sender sees the answer


def is_late(elapsed_s: float, moved: int, patience_s: float) -> bool:
    """Whether a client that moved so many bytes since ``elapsed_s`` seconds is given up."""
    return elapsed_s > patience_s + moved / LEAST_RATE


def left_s(elapsed_s: float, moved: int, patience_s: float) -> float:
    """How long the next byte may be waited for: never longer than ``patience_s``; 0 and less when it is late."""
    return min(patience_s, patience_s + moved / LEAST_RATE - elapsed_s)
