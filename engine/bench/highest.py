"""The highest rate at which a service keeps its goal, found by trying. Pure: says what to try, and is told how it went.

The rate is doubled until the goal is missed, then the gap is halved (by ratio) until it is small, and what was found is
tried once more for longer. A machine that others use too misses a goal by chance now and then, and never keeps one by
chance: so a miss is believed when it comes twice, and so is that the client cannot keep up.
"""

from __future__ import annotations

from collections.abc import Generator
from math import sqrt
from typing import Final, NamedTuple

from engine.bench.figures import Figures

GAP: Final = 1.05  # between the highest that was kept and the lowest that was missed
LEAST: Final = 0.05  # requests per second: what does less than that is not measured by rates
MOST: Final = 1e6
BACK: Final = 0.9  # what is tried next where the result was not kept for longer
BACKS: Final = 12


class Try(NamedTuple):
    """``is_last``: it is to confirm what was found, and lasts longer."""

    rate: float
    is_last: bool = False


class Found(NamedTuple):
    """``figures``: of the highest rate that was kept, also for longer; None where none was. ``missed``: of the lowest
    that was not; None where it is not the service that was the limit, but the client."""

    figures: Figures | None
    missed: Figures | None


def is_kept(figures: Figures, target: float) -> bool:
    return figures.sent > 0 and figures.share >= target


def highest(start: float, target: float) -> Generator[Try, Figures, Found]:
    """Yields what to try; is sent what came of it. ``target``: the share of requests that has to be good."""
    rate, kept, missed = start, None, None
    while missed is None or kept is None or missed.rate > GAP * kept.rate:
        found = yield Try(rate)
        if found.is_behind or not is_kept(found, target):
            found = yield Try(rate)
        if kept is None and not found.answered and not found.late:  # it fails, at whatever rate
            return Found(None, found)
        if is_kept(found, target) and not found.is_behind:
            kept = found
        elif found.is_behind and is_kept(found, target):  # the client's limit
            break
        else:
            missed = found
        if missed is None:
            rate = 2 * rate
        elif kept is None:
            rate = rate / 2
        else:
            rate = sqrt(kept.rate * missed.rate)
        if not LEAST <= rate <= MOST:
            break
    if kept is None:
        return Found(None, missed)
    rate = kept.rate
    for _ in range(BACKS):
        last = yield Try(rate, is_last=True)
        if is_kept(last, target):
            return Found(last, missed)
        missed, rate = last, rate * BACK
    return Found(None, missed)
