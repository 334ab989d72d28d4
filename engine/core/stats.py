"""Counting without labels, locks or allocation: what the hot path writes and a scrape reads now and then."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from engine.core.deaths import Death

SECONDS: Final = tuple(0.001 * 2**power for power in range(13))  # 1 ms to 4 s, doubling: Mosec's for batching
HOSTS_MOST: Final = 64  # that are counted by their names
OTHERS: Final = "others"
UNKNOWN: Final = "unknown"
SIZES: Final = tuple(2.0**power for power in range(10))  # 1 to 512, the buckets Mosec's dashboards know


Label: TypeAlias = tuple[str, str]  # name, text


class Histogram:
    """Cumulative buckets in the Prometheus sense; ``counts`` has one more entry than ``buckets`` (the +Inf one), and so
    has ``examples``, where any are kept: of each bucket the newest, as a label and a value."""

    __slots__ = ("buckets", "counts", "examples", "total")

    def __init__(self, buckets: Sequence[float]) -> None:
        self.buckets = tuple(buckets)
        self.counts = [0] * (len(self.buckets) + 1)
        self.total = 0.0
        self.examples: list[tuple[Label, float] | None] | None = None

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.buckets, value)] += 1
        self.total += value

    def observe_one(self, value: float, label: Label) -> None:
        """The same, of somebody who can be looked for."""
        place = bisect_left(self.buckets, value)
        self.counts[place] += 1
        self.total += value
        if self.examples is None:
            self.examples = [None] * len(self.counts)
        self.examples[place] = (label, value)

    @property
    def count(self) -> int:
        return sum(self.counts)

    @classmethod
    def sum_of(cls, parts: Collection[Histogram]) -> Histogram:
        """All that was observed by ``parts``, one at least, of equal buckets."""
        whole = cls(next(iter(parts)).buckets)
        whole.counts = [sum(column) for column in zip(*(part.counts for part in parts), strict=True)]
        whole.total = sum(part.total for part in parts)
        return whole


@dataclass(slots=True)
class LaneStats:
    """Of one worker slot; kept when the process behind it is replaced, so that label sets stay bounded."""

    batch_size: Histogram = field(default_factory=lambda: Histogram(SIZES))
    batch_wait: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # oldest item's arrival to release
    process: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # release to settled
    compute_s: float = 0.0  # from a batch's release, or the end of the one before, until its results are settled
    forward_s: float = 0.0  # in forward, as the worker says
    deaths: int = 0  # of workers in this slot that vanished without leave


@dataclass(slots=True)
class HostStats:
    """Of the workers of one host, by the name that it has."""

    compute_s: float = 0.0  # as of LaneStats


def duration_buckets(timeout_s: float) -> tuple[float, ...]:
    """Upper bounds in seconds: 1 ms, doubling until they reach ``timeout_s`` (1 ms to 4.096 s for 3 s)."""
    bounds = [0.001]
    while bounds[-1] < timeout_s:
        bounds.append(bounds[-1] * 2)
    return tuple(bounds)


@dataclass(slots=True)
class StageStats:
    """Of one stage since the broker started. ``durations``: the buckets of the time a batch takes."""

    durations: tuple[float, ...] = SECONDS
    releases: dict[str, int] = field(default_factory=dict)  # by reason
    lanes: dict[int, LaneStats] = field(default_factory=dict)  # by slot
    hosts: dict[str, HostStats] = field(default_factory=dict)  # by name
    arrived: int = 0
    cost: float = 0.0  # of items that were computed, where that is counted
    priced_batches: int = 0
    padded_cost: float = 0.0  # the same with all of a batch as costly as its costliest
    dropped: int = 0  # closed or expired before they were computed
    hopeless: int = 0  # of these: would not have been done in time
    replayed: int = 0
    failed: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # of these, by why
    deaths: Counter[Death] = field(default_factory=Counter)  # workers that vanished without leave
    gone: int = 0  # workers that had served, and have ended
    cuts: int = 0  # connections to workers that were lost
    resent: int = 0  # batches that were lost on their way
    slow: int = 0  # batches that were taken for stuck
    hedged: int = 0  # items of them that were computed elsewhere too
    narrowed: int = 0  # items that reached the time limit together and were tried apart
    poisoned: int = 0  # items that were found to kill workers
    replaced: int = 0  # workers that failed everything while their neighbours did not
    starts: int = 0  # workers that became ready
    bytes_out: int = 0  # to workers, through sockets
    bytes_in: int = 0  # from frontends and workers, through sockets
    shared_out: int = 0  # the same by reference, in shared memory
    shared_in: int = 0
    messages_dropped: dict[str, int] = field(default_factory=dict)  # by reason (engine.broker.complaints)

    def host(self, node: str) -> tuple[str, HostStats]:
        """Of a host, and the name under which it is counted: containers have a new one each time, so those that come
        when there are many are counted together."""
        name = node or UNKNOWN
        if name not in self.hosts and len(self.hosts) >= HOSTS_MOST:
            name = OTHERS
        return name, self.hosts.setdefault(name, HostStats())

    def lane(self, slot: int) -> LaneStats:
        found = self.lanes.get(slot)
        if found is None:
            found = self.lanes[slot] = LaneStats(process=Histogram(self.durations))
        return found


@dataclass(slots=True)
class FrontStats:
    """Of the front since the broker started."""

    admitted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)  # by reason
    duplicates: int = 0
    cancelled: int = 0
    expired: int = 0  # admitted, and not answered in their time
    goals: Counter[tuple[int, bool]] = field(default_factory=Counter)  # answers by route, and whether in its goal
    joined: int = 0  # tries of a request that was being computed for another try
    replayed: int = 0  # tries that were answered from memory
    split: int = 0  # requests that went on in parts
    parts: int = 0  # these
    holes: int = 0  # of these: such as failed, and were left out
    untold: int = 0  # reports that could not be made
    descriptors_spent: int = 0  # looks at which none was left
    messages_dropped: dict[str, int] = field(default_factory=dict)  # by reason (engine.broker.complaints)
    connections_refused: dict[str, int] = field(default_factory=dict)  # by reason (engine.core.keys)
