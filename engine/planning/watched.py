"""What a deployment did between two looks at its metrics: rates, shares, latencies, busy stages. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from engine.metrics import Family, unpack, unpack_sources
from engine.simulation.table import Seen

REFUSED = ("429", "503")


@dataclass(frozen=True)
class Scrape:
    """Counters of one look: answers by code, requests by path and by the upper bound in seconds of what they took, and
    seconds in ``forward`` by stage."""

    codes: Counter[str] = field(default_factory=Counter)
    buckets: dict[str, Counter[float]] = field(default_factory=dict)
    forward_s: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, answer: bytes, namespace: str) -> Scrape:
        """Out of what a broker answers when it is asked for ``metrics``. Raises ProtocolError."""
        sources = unpack_sources(answer)
        packed = [sources.broker, sources.retired, *(families for _, families in sources.frontends)]
        found = cls()
        for family in _families(packed):
            for sample in family.samples:
                if sample.name == f"{namespace}_throughput_total":
                    found.codes[sample.labels.get("code", "")] += round(sample.value)
                elif sample.name == f"{namespace}_request_duration_second_bucket":
                    own = found.buckets.setdefault(sample.labels.get("endpoint", ""), Counter())
                    own[_bound(sample.labels.get("le", ""))] += round(sample.value)
                elif sample.name == f"{namespace}_worker_forward_seconds_total":
                    found.forward_s[sample.labels.get("stage", "")] += sample.value  # type: ignore[assignment]
        return found


def _families(packed: list[bytes]) -> Iterator[Family]:
    for one in packed:
        yield from unpack(one)


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return inf


def seen_between(
    before: Scrape, after: Scrape, seconds: float, goals_s: Mapping[str, float], workers: Mapping[str, int]
) -> Seen:
    """``goals_s``: of each path. ``workers``: how many of each stage are ready."""
    codes = after.codes - before.codes
    answers = codes.total()
    by_path = {path: _less(own, before.buckets.get(path, Counter())) for path, own in after.buckets.items()}
    buckets = _sum(list(by_path.values()))
    refused = sum(codes[code] for code in REFUSED)
    good = codes["200"]
    busy = {
        stage: (after.forward_s[stage] - before.forward_s[stage]) / (max(workers.get(stage, 1), 1) * seconds)
        for stage in after.forward_s
    }
    if not answers:
        return Seen(seconds, 0.0, None, None, None, None, busy, workers)
    # Whoever was refused was so at once, and is in the lowest buckets.
    total = max(buckets.values(), default=0)
    below = sum(_below(own, goals_s[path]) for path, own in by_path.items() if path in goals_s)
    within = max(below - (total - good), 0.0) if total else None
    return Seen(
        seconds,
        rate=answers / seconds,
        in_time=None if within is None else min(within / answers, 1.0),
        refused=refused / answers,
        p50_s=_quantile(buckets, 0.50),
        p99_s=_quantile(buckets, 0.99),
        busy=busy,
        workers=workers,
    )


def _less(after: Mapping[float, int], before: Mapping[float, int]) -> dict[float, int]:
    return {bound: after[bound] - before.get(bound, 0) for bound in sorted(after)}


def _sum(parts: Sequence[Mapping[float, int]]) -> dict[float, int]:
    """Of paths: all have the same bounds."""
    return {bound: sum(part.get(bound, 0) for part in parts) for bound in (parts[0] if parts else ())}


def _below(buckets: Mapping[float, int], value: float) -> float:
    """How many took at most ``value``, where those of a bucket are spread evenly over it."""
    low, count_low = 0.0, 0
    for bound, count in buckets.items():
        if value <= bound:
            share = 1.0 if bound == inf else (value - low) / (bound - low)
            return count_low + share * (count - count_low)
        low, count_low = bound, count
    return float(count_low)


def _quantile(buckets: Mapping[float, int], share: float) -> float | None:
    """Inverse of :func:`_below`."""
    total = max(buckets.values(), default=0)
    low, count_low = 0.0, 0
    for bound, count in buckets.items():
        if count >= share * total and count > count_low:
            return low if bound == inf else low + (share * total - count_low) / (count - count_low) * (bound - low)
        low, count_low = bound, count
    return None
