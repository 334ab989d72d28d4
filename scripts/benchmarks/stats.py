"""Numbers out of samples, and the arrivals of an open loop. Pure: no clock, no global randomness."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def percentile(samples: Sequence[float], q: float) -> float:
    """The smallest sample that at least ``q`` percent of the samples do not exceed (nearest rank).

    No interpolation: a reported latency is one that a request had. Raises ValueError for no samples or ``q`` outside
    0 to 100.
    """
    if not samples:
        raise ValueError("a percentile of no samples")
    if not 0 <= q <= 100:
        raise ValueError(f"q: expected 0 to 100, got {q}")
    ordered = sorted(samples)
    return ordered[max(math.ceil(q / 100 * len(ordered)) - 1, 0)]


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the two in the middle. Raises ValueError for no samples."""
    if not samples:
        raise ValueError("a median of no samples")
    ordered = sorted(samples)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Send times in seconds from the start, in order: a Poisson process of ``rate`` per second for ``seconds``.

    The same seed gives the same times, so that every system is offered the very same load.
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError(f"rate and seconds: expected more than 0, got {rate} and {seconds}")
    draw = random.Random(seed)
    times = []
    at = draw.expovariate(rate)
    while at < seconds:
        times.append(at)
        at += draw.expovariate(rate)
    return times
