"""What handing an array from one process to another can cost at best: two processes, shared memory, and two pipes.

The giver copies the array into a free slot and writes the slot's number (one byte) into a pipe; the taker sums the
array in place and writes the number back. With several slots both work at once. No serving system does less than the
copy, the wake-up and the sum::

    python -m benchmarks.handover MEGABYTES SLOTS SECONDS       # prints hand-overs per second
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from typing import Any, Final, TypeAlias

import numpy as np

FLOAT_BYTES: Final = 4

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


def rate(megabytes: float, slots: int, seconds: float) -> float:
    """Hand-overs per second."""
    floats = int(megabytes * 1_000_000) // FLOAT_BYTES
    array = np.ones(floats, np.float32)
    shared = mmap.mmap(-1, array.nbytes * slots)  # anonymous and shared with the child: nothing to clean up
    views = [np.frombuffer(shared, np.float32, floats, offset=slot * array.nbytes) for slot in range(slots)]
    for view in views:
        view[:] = array  # the pages exist before the clock starts
    taker_in, giver_out = os.pipe()
    giver_in, taker_out = os.pipe()
    child = os.fork()  # nothing but numpy is loaded and no thread is running
    if child == 0:
        os.close(giver_out)
        _take(views, taker_in, taker_out)
        os._exit(0)
    os.close(taker_in)
    os.close(taker_out)
    try:
        return _give(array, views, giver_in, giver_out, seconds)
    finally:
        os.close(giver_out)  # the taker reads its end and leaves
        os.waitpid(child, 0)
        os.close(giver_in)


def _give(array: Floats, views: list[Floats], back: int, there: int, seconds: float) -> float:
    free = list(range(len(views)))
    done = 0
    began = time.monotonic()
    while (took := time.monotonic() - began) < seconds:
        while free:
            slot = free.pop()
            views[slot][:] = array
            os.write(there, bytes((slot,)))
        returned = os.read(back, 256)
        free += returned
        done += len(returned)
    return done / took


def _take(views: list[Floats], there: int, back: int) -> None:
    while data := os.read(there, 1):
        views[data[0]].sum()
        os.write(back, data)


if __name__ == "__main__":
    print(rate(float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
