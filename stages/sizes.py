"""The sizes of the lists that ``forward`` gets, where it is restricted to some (``batch_sizes``). Pure.

A batch between two of them is padded: its last value is repeated until the next size is reached, and what ``forward``
returns for the repeated ones is dropped unseen. Each is a copy, for ``forward`` may change what it gets. ``sizes`` are
ascending, and none means that all are allowed.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any


def padded(n: int, sizes: Sequence[int]) -> int:
    """The smallest size that takes ``n`` values; ``n`` where none does, or all are allowed."""
    at = bisect_left(sizes, n)
    return sizes[at] if at < len(sizes) else n


def at_most(n: int, sizes: Sequence[int]) -> int:
    """The largest size of at most ``n``, or the smallest of all; ``n`` where all are allowed."""
    return sizes[max(bisect_right(sizes, n) - 1, 0)] if sizes else n


def filled_up(values: Sequence[Any], size: int) -> list[Any]:
    """``size`` values: those given, at least one, and copies of the last."""
    return [*values, *(copied(values[-1]) for _ in range(size - len(values)))]


def copied(value: Any) -> Any:
    """A copy of a user's value; the value itself where it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever it says of that
        return value
