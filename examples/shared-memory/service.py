"""An array made in one process and looked at in another, where it lies.

There is nothing to call and nothing to derive from: arrays (and torch CPU tensors, and bytes) of 64 KiB and more travel
by reference, smaller ones with the message. The sender copies once, into memory that the receiver has mapped; what
arrives is the receiver's own all the same: the kernel copies a page when it is written to.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from engine import ValidationError, Worker

LARGEST: Final = 64  # MiB
MIB: Final = 1 << 20

Array = np.ndarray[Any, np.dtype[np.float32]]


class Make(Worker):
    """``{"mib": 1..64, "seed": n}`` to a float32 array of that size."""

    example = {"mib": 1, "seed": 0}

    def __init__(self) -> None:
        self.kept: dict[int, Array] = {}

    def forward(self, data: Any) -> Array:
        mib, seed = (data.get("mib", 4), data.get("seed", 0)) if isinstance(data, dict) else (None, None)
        if not isinstance(mib, int) or not isinstance(seed, int) or not 1 <= mib <= LARGEST:
            raise ValidationError(f'expected {{"mib": 1 to {LARGEST}, "seed": an integer}}')
        array = self.kept.get(mib)
        if array is None:
            array = self.kept[mib] = np.ones(mib * MIB // 4, np.float32)
        array[0] = seed  # a buffer that is used again: what was sent before is not changed by this
        return array


class Look(Worker):
    """Reads the first and the last number: what is measured is the way, not the arithmetic."""

    def forward(self, data: Array) -> dict[str, Any]:
        first = float(data[0])
        data[0] += 1  # one page is copied, and nobody else sees it
        return {
            "mib": data.nbytes // MIB,
            "first": first,
            "written": float(data[0]),
            "last": float(data[-1]),
            "owns_its_memory": bool(data.flags.owndata),
        }
