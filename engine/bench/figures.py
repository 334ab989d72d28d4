"""What came of one run, as figures. Pure.

Latencies are those of answers that were given (status below 400), by nearest rank: each is one that a request had.
*Good* are those within the goal; refusals, failures and late answers are not, so goodput falls where a service lets
everybody wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from engine.simulation.figures import percentile

STEPS: Final = 200  # of the curve
LAG_MS: Final = 2.0  # a lag that is none
LAG: Final = 0.2  # of a latency: more than this of it is the client's own


CUT: Final = 0  # the status of what was never answered: the connection was closed, or could not be made
LATE: Final = -1  # and of what was not answered in time


class Sample(NamedTuple):
    """One request. Seconds; ``at`` from the first instant of the run."""

    at: float  # when it was to leave
    lag_s: float  # and how much later it did
    first_s: float  # from `at` to the first byte of the answer
    took_s: float  # from `at` to the last
    status: int
    nbytes: int


class Outcome(NamedTuple):
    """All of a run. ``wrong``: the beginning of the first answer by its status, where that is a failure."""

    samples: list[Sample]
    wrong: dict[int, str]
    connections: int
    waited: int  # requests for which no connection was free


@dataclass(frozen=True)
class Figures:
    """``rate``: as asked for, per second. ``throughput``, ``goodput``: answers, and good ones, per second, of those
    that came in the time that is looked at. Milliseconds."""

    rate: float
    seconds: float
    sent: int
    answered: int  # with a status below 400
    good: int
    statuses: Mapping[str, int]
    wrong: Mapping[str, str]  # the beginning of the first failure of each kind
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    first_p50_ms: float  # to the first byte of the answer
    first_p99_ms: float
    lag_p90_ms: float  # how much later than it was to leave a request left
    lag_p99_ms: float
    waited: int
    connections: int
    throughput: float
    goodput: float
    bytes_s: float
    curve_ms: Sequence[float]  # quantiles of the latency, evenly from 0 to 1

    @property
    def share(self) -> float:
        """Good ones of all that were sent."""
        return self.good / self.sent if self.sent else 0.0

    @property
    def late(self) -> int:
        """That had no answer in time."""
        return self.statuses.get(word(LATE), 0)

    @property
    def is_behind(self) -> bool:
        """The client could not keep up: its own lag is a good part of most of what it measured."""
        return self.lag_p90_ms > max(LAG_MS, LAG * self.p90_ms)

    @property
    def is_disturbed(self) -> bool:
        """It had no CPU now and then, so that its own lag is a good part of the longest latencies."""
        return self.lag_p99_ms > max(LAG_MS, LAG * self.p99_ms)

    @property
    def streams(self) -> bool:
        """Answers come in pieces, over a time that counts."""
        return self.p50_ms - self.first_p50_ms > max(1.0, 0.1 * self.p50_ms)


def word(status: int) -> str:
    return {CUT: "cut off", LATE: "no answer"}.get(status, str(status))


def figures(outcome: Outcome, rate: float, begin_s: float, end_s: float, slo_s: float) -> Figures:
    """Of the requests that were to leave between ``begin_s`` and ``end_s``: those before are a warm-up. ``slo_s`` 0:
    every answer is good."""
    samples = [one for one in outcome.samples if begin_s <= one.at < end_s]
    answers = [one for one in samples if is_answer(one)]
    took = sorted(one.took_s * 1e3 for one in answers)
    firsts = sorted(one.first_s * 1e3 for one in answers)
    lags = sorted(one.lag_s * 1e3 for one in samples)
    seconds = end_s - begin_s
    came = [one for one in outcome.samples if is_answer(one) and begin_s <= one.at + one.took_s < end_s]
    return Figures(
        rate=rate,
        seconds=seconds,
        sent=len(samples),
        answered=len(answers),
        good=_good(answers, slo_s),
        statuses={word(status): count for status, count in sorted(Counter(one.status for one in samples).items())},
        wrong={
            word(status): text for status, text in outcome.wrong.items() if any(s.status == status for s in samples)
        },
        mean_ms=sum(took) / len(took) if took else 0.0,
        p50_ms=percentile(took, 50),
        p90_ms=percentile(took, 90),
        p99_ms=percentile(took, 99),
        p999_ms=percentile(took, 99.9),
        max_ms=took[-1] if took else 0.0,
        first_p50_ms=percentile(firsts, 50),
        first_p99_ms=percentile(firsts, 99),
        lag_p90_ms=percentile(lags, 90),
        lag_p99_ms=percentile(lags, 99),
        waited=outcome.waited,
        connections=outcome.connections,
        throughput=len(came) / seconds,
        goodput=_good(came, slo_s) / seconds,
        bytes_s=sum(one.nbytes for one in came) / seconds,
        curve_ms=[percentile(took, 100 * step / STEPS) for step in range(STEPS + 1)] if took else [],
    )


def _good(answers: Sequence[Sample], slo_s: float) -> int:
    return sum(not slo_s or one.took_s <= slo_s for one in answers)


def is_answer(sample: Sample) -> bool:
    return 0 < sample.status < 400
