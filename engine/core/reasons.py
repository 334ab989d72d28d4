"""Why a batch left, in the low bits of a queue time: so it goes from the broker by the worker to the client with a
number that travels anyway. Pure.

The broker gives the time that an item has waited in microseconds, whose last three bits hold the code of the reason.
The worker copies the number into the item's trail (:mod:`engine.core.wire`) and need not know. It is a time still, off
by some microseconds, and nothing else to those who do not know. Whoever reads the codes must know that the broker
writes them: its welcome says so.

A code means the same for ever. A new reason gets the next one, and readers that do not know it say none.
"""

from __future__ import annotations

from typing import Final

BITS: Final = 7  # of a queue time, that hold the code
TIME: Final = ~BITS  # and that hold the time

NAMES: Final = ("", "full", "idle", "wait", "deadline", "drain", "replay", "")  # by code; "": nobody knows
CODES: Final = {name: code for code, name in enumerate(NAMES) if name}

STEP: Final = 12  # bytes of a step of a trail, which begins with the queue time, little-endian
CODE: Final = bytes(byte & BITS for byte in range(256))


def codes_of(trail: bytes) -> bytes:
    """The codes of a trail, one for each step: in C, for it is done for every answer."""
    return trail[::STEP].translate(CODE)


def without(trail: bytes) -> bytes:
    """A trail of a broker that does not tell reasons: what stands there is no code."""
    plain = bytearray(trail)
    for at in range(0, len(plain), STEP):
        plain[at] &= ~BITS & 0xFF
    return bytes(plain)
