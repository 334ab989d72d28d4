"""Whether one service is quicker than another, or that is chance. Pure.

Both are asked the same at the same instants, in turns, round after round, so what the machine does beside them falls on
both. What counts is their ratio in each round: the logarithms of these have a mean and, by Student's t, an interval
that holds the true one with 95 %. If 1 is in there, nobody can say which one is quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import median
from typing import Final

from engine.bench.figures import Figures

# Student's t, two-sided 95 %, by degrees of freedom; beyond these 1.96 is near enough.
T95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
FEWEST: Final = 3  # rounds that say anything

MEASURES: Final[tuple[tuple[str, str, Callable[[Figures], float], bool], ...]] = (  # name, unit, figure, more is better
    ("mean", "ms", lambda figures: figures.mean_ms, False),
    ("p50", "ms", lambda figures: figures.p50_ms, False),
    ("p99", "ms", lambda figures: figures.p99_ms, False),
    ("goodput", "/s", lambda figures: figures.goodput, True),
)


@dataclass(frozen=True)
class Verdict:
    """The second's by the first's: the middle, and between what it is with 95 %. ``sure``: 1 is not in there."""

    name: str
    unit: str
    first: float  # medians
    second: float
    ratio: float
    low: float
    high: float
    more_is_better: bool

    @property
    def sure(self) -> bool:
        return not self.low <= 1.0 <= self.high

    @property
    def words(self) -> str:
        if not self.sure:
            return "no difference that these rounds can tell"
        percent = abs(self.ratio - 1) * 100
        better = (self.ratio > 1) is self.more_is_better
        amount = (
            f"{self.ratio:.3g} times" if self.ratio >= 2 else f"{percent:.3g} % {'more' if self.ratio > 1 else 'less'}"
        )
        return f"{amount}: {'better' if better else 'worse'}"


def verdicts(first: Sequence[Figures], second: Sequence[Figures]) -> list[Verdict]:
    """Of as many rounds each, three at least. A measure that is 0 in some round is left out."""
    found = []
    for name, unit, figure, more_is_better in MEASURES:
        ones, others = [figure(one) for one in first], [figure(one) for one in second]
        if not min(ones) or not min(others):
            continue
        ratio, low, high = interval([log(b / a) for a, b in zip(ones, others, strict=True)])
        found.append(Verdict(name, unit, median(ones), median(others), exp(ratio), exp(low), exp(high), more_is_better))
    return found


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Their mean, and between what the true one is with 95 %."""
    count = len(values)
    if count < FEWEST:
        raise ValueError(f"expected {FEWEST} or more, got {count}")
    mean = sum(values) / count
    deviation = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    around = (T95[count - 2] if count - 2 < len(T95) else 1.96) * deviation / sqrt(count)
    return mean, mean - around, mean + around
