"""What came of crowds of requests that wanted their answers within a goal: arrivals for them, and figures. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import inf
from typing import Final

from benchmarks.crowd import Asked
from benchmarks.record import Batch
from benchmarks.stats import percentile
from engine.simulation.arrivals import Renewal

SURE: Final = 0.99  # of the requests of a while that succeed when all is well again
FEW: Final = 100  # requests that tell as much


def arrivals(rate: float, seconds: float, seed: int | str, cv: float = 1.0, begin: float = 0.0) -> list[float]:
    """Instants in seconds, from ``begin`` on and for so long: Poisson, or with another ``cv`` gaps of a gamma one."""
    ended = takewhile(lambda at: at < seconds, Renewal(rate, cv).instants(seed))
    return [begin + at for at in ended]


def mixed(*groups: Sequence[float]) -> tuple[list[float], list[int]]:
    """Arrivals of several, in order, and of which of them each is."""
    both = sorted((at, kind) for kind, group in enumerate(groups) for at in group)
    return [at for at, _ in both], [kind for _, kind in both]


def settled(asked: Iterable[Asked], begin: float, kind: int | None = None) -> list[Asked]:
    """Those of a kind that came when the load had settled."""
    return [one for one in asked if one.at >= begin and kind in (None, one.kind)]


def good(asked: Iterable[Asked], slo_s: float) -> int:
    """How many have an answer within the goal."""
    return sum(one.status == 200 and one.took <= slo_s for one in asked)


def success(asked: Sequence[Asked], slo_s: float) -> dict[str, float]:
    """As values of a row: shares of those who asked, and how long refusals took."""
    if not asked:
        return {}
    refused = [one.took * 1000 for one in asked if one.status in (429, 503)]
    values = {"success": good(asked, slo_s) / len(asked), "refused": len(refused) / len(asked)}
    values["late"] = 1.0 - values["success"] - values["refused"]
    if refused:
        values |= {"refused_p50_ms": percentile(refused, 50), "refused_p99_ms": percentile(refused, 99)}
    return values


def latencies(asked: Iterable[Asked]) -> dict[str, float]:
    """As values of a row."""
    took = [one.took * 1000 for one in asked if one.status == 200]
    if not took:
        return {}
    return {
        "mean_ms": sum(took) / len(took),
        "p50_ms": percentile(took, 50),
        "p99_ms": percentile(took, 99),
        "answered": len(took),
    }


def device_ms(batches: Iterable[Batch]) -> float | None:
    """Milliseconds of computing for each item."""
    found = list(batches)
    items = sum(batch.items for batch in found)
    return sum(batch.end_ns - batch.begin_ns for batch in found) / 1e6 / items if items else None


def counted(metrics: str, name: str) -> float:
    """The sum of a counter's samples in what ``/metrics`` says; 0.0 where there is none."""
    samples = (line.rpartition(" ") for line in metrics.splitlines())
    return sum(float(value) for head, _, value in samples if head.partition("{")[0] == name)


def recovered_s(firsts: Sequence[Asked], end: float, until: float, rate: float, slo_s: float = inf) -> float:
    """How long after ``end`` first tries succeed again for good: 99 of 100 in every half second until ``until``, or in
    as long as it takes for enough of them to come."""
    bad_at = end
    step_s = max(0.5, FEW / rate)
    for step in range(int((until - end) / step_s + 1e-6)):
        window = [one for one in firsts if end + step * step_s <= one.at < end + (step + 1) * step_s]
        if good(window, slo_s) < SURE * len(window):
            bad_at = max(one.at for one in window if not good([one], slo_s))
    return bad_at - end
