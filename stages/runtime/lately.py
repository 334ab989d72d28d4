"""How long batches have taken lately, by size: what a broker that begins anew is told in the place of what it had
learned. Pure.

The warm-up has timed examples, at a busy time; from then on each batch counts that was computed. Where the class tells
what values cost, sizes are what batches cost: eight to an octave, which is as finely as it can be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EACH_TO: Final = 128  # sizes up to it have a mean each; of larger ones the powers of two: a message has room for 256
MOST: Final = 256  # sizes
WEIGHT: Final = 0.1  # of the newest batch


class Lately:
    """Made and added to by the main thread; others copy :attr:`times_us` at any moment."""

    def __init__(self, times_us: Mapping[int, int] | None = None) -> None:
        self.times_us = dict(times_us or {})  # by number of values

    def note(self, n: int, took_us: int) -> None:
        """A batch of ``n`` values was computed in so long."""
        if took_us > 0 and (n <= EACH_TO or not n & (n - 1)):
            self._add(n, took_us)

    def note_cost(self, cost: float, took_us: int) -> None:
        """A batch that costs so much, with padding, was computed in so long."""
        n = round(cost)
        unit = max(n.bit_length() - 4, 0)
        n = ((n >> unit) + (n >> (unit - 1) & 1 if unit else 0)) << unit
        if took_us > 0 and n > 0 and (n in self.times_us or len(self.times_us) < MOST):
            self._add(n, took_us)

    def _add(self, n: int, took_us: int) -> None:
        mean = self.times_us.get(n, took_us)
        self.times_us[n] = mean + int((took_us - mean) * WEIGHT)
