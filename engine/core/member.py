"""One worker as the books of its stage have it, and how many batches it may have at once. Pure.

A worker's credit is the batch it computes and one in advance, so that it need not wait for the broker when it is done.
Where batches take less time than the broker needs to hear of one and send the next (:func:`credit_for`), one would not
do: it gets as many as keep it busy for AHEAD_S. One that is *far* - a batch is longer on its way to it, and its results
back, than that - gets as many as keep it busy for that time as well, bounded by their number and their bytes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from engine.core.batching import AHEAD_S
from engine.core.introduction import NEWEST
from engine.core.items import Item
from engine.core.liveness import BEAT_S
from engine.core.messages import Flow
from engine.core.released import Released
from engine.core.stats import HostStats, LaneStats
from engine.core.window import Counts, Window
from engine.core.worker_states import READY, WorkerState

CREDIT_MAX: Final = 8  # batches; a slow one holds up no more than the others of them
FAR_MAX: Final = 64  # of a worker that is far: enough for 200 ms if they take 4
FAR_BYTES: Final = 64 << 20  # on their way or there; one batch may be larger

# A bundle: full batches that are handed over as one, which costs hardly more than a single one of them. A worker has
# two at most, one that it computes and one in advance: AHEAD_S in ``forward``, as with single batches. All in all one
# may take as long, for on busy CPUs most of that is waiting for them, which fewer messages make shorter.
BUNDLE_S: Final = AHEAD_S / 2  # in ``forward``
BUNDLE_MOST: Final = 8  # batches

# What is on its way at times takes longer than it mostly does.
SLACK: Final = 1.25
ROUND_TRIPS: Final = 5  # the newest, of which the shortest one counts


def credit_for(batch_s: float, away_s: float = 0.0) -> int:
    """How many batches a worker may have when one takes ``batch_s`` seconds (0: not known yet) and is ``away_s`` on its
    way and back."""
    if batch_s <= 0.0:
        return 2
    most = FAR_MAX if away_s else CREDIT_MAX
    return max(2, min(1 + ceil((AHEAD_S + away_s * SLACK) / batch_s), most))


def far_s(computed_s: float, away_s: float) -> float:
    """How long a batch keeps a worker that is far: as long as it computes, but for what it has to wait for the next
    one where it may not have enough of them."""
    return max(computed_s, (computed_s + away_s) / FAR_MAX)


def bundle_for(compute_s: float, batch_s: float) -> int:
    """How many full batches a worker may be handed as one where ``forward`` takes ``compute_s`` seconds for each, and a
    batch ``batch_s`` from the end of the one before (0: not known yet)."""
    if compute_s <= 0.0 or batch_s <= 0.0:
        return 1
    return max(1, min(int(BUNDLE_S / compute_s), int(AHEAD_S / batch_s), BUNDLE_MOST))


@dataclass(slots=True, eq=False)
class Member:
    key: int
    slot: int
    pid: int
    instance: str  # drawn at random by its process
    local: bool  # its process is watched by pid
    heard: float
    host: str = ""  # where that is, as it says
    linked: bool = False  # the connection by which it gets its batches is watched
    protocol: int = NEWEST
    warmup_ms: int = 0  # as it says
    maps: bool = False  # it can be given references to shared memory
    flow: int = int(Flow.UNKNOWN)  # how it gives its answers, once it is ready
    state: WorkerState = WorkerState.STARTING
    batches: OrderedDict[int, Released] = field(default_factory=OrderedDict)  # first: computing; others: in advance
    # What was given out again because it seemed to be lost on its way, by batch: it may come yet.
    late: OrderedDict[int, dict[int, Item]] = field(default_factory=OrderedDict)
    # Of a worker that streams: what it has settled, by batch.
    former: OrderedDict[int, set[int]] = field(default_factory=OrderedDict)
    bundled: int = 0  # batches that it has beyond ``batches``, for some of these are several
    missing: dict[int, float] = field(default_factory=dict)  # batches that it says it has not: since when
    missing_for_s: float = BEAT_S / 2  # and how long that may be so
    since: float = 0.0  # when it began to compute the first of them
    free_at: float = 0.0  # when it will probably have done them all, and that is known here
    away_s: float = 0.0  # how long a batch is on its way to it, and its results back, if that counts
    round_trips: deque[float] = field(default_factory=lambda: deque(maxlen=ROUND_TRIPS))  # the newest, as it says
    slowness: float = 1.0  # what it takes for a batch, in multiples of what is usual (engine.core.predict)
    compared: int = 0  # batches by which that is known
    slow: bool = False  # the batch it computes is suspect
    done_batches: int = 0
    done_items: int = 0
    families: bytes = b""
    device_bytes: int = 0  # memory of its GPU that it holds, as it says
    resident_bytes: int = 0  # memory of its process, as it says
    cpu_us: int = 0  # that its process has used, as it says
    descriptors: int = 0  # that it has open, as it says, and may have
    descriptors_most: int = 0
    began_s: float = 0.0  # when it began, in seconds of the epoch
    ready_at: float = 0.0  # since when it is ready; 0: it is not yet
    window: Window = field(default_factory=Window)  # of :meth:`counts`
    lane: LaneStats = field(default_factory=LaneStats)  # of its slot, once it is ready
    host_stats: HostStats = field(default_factory=HostStats)  # of its host, likewise
    node: str = ""  # the name of that host
    device: str = ""  # what it computes on, as it says
    most: int = 0  # values that it is given at once, at most; 0: as many as the stage
    served: bool = False  # it was ready once
    proven: bool = False  # something it computed was right
    failing: int = 0  # batches in a row of which nothing was; and what the stage had done when that began:
    good_before: int = 0
    bad_before: int = 0
    condemned: bool = False  # it is being replaced
    dismissed: bool = False
    may_rest: bool = True  # it may be held back, as it says
    spare: bool = False  # it is
    rank: int = -1  # in the crew: which of those that are ready for one more; -1: it is not

    @property
    def has(self) -> int:
        """How many batches it has, each of a bundle counted."""
        return len(self.batches) + self.bundled

    @property
    def is_able(self) -> bool:
        """It could be given work, now or when it is done with what it has."""
        return self.state is READY and not self.spare and not self.slow

    @property
    def speed(self) -> int:
        """Its class of speed, the quicker the lower: those that differ by little are alike."""
        return round(self.slowness * 4)

    @property
    def takes_at(self) -> float:
        """When what is sent to it then is there as it becomes free."""
        return self.free_at - self.away_s

    def starts_at(self, now: float) -> float:
        """When it could begin with what is sent to it now, as far as what it has is concerned."""
        return max(self.free_at if self.batches else 0.0, now + self.away_s)

    @property
    def ahead_s(self) -> float:
        """How long before it is free it is to be given more."""
        return AHEAD_S + self.away_s

    @property
    def in_flight(self) -> int:
        """Items it has."""
        return sum([len(batch.items) for batch in self.batches.values()])

    def counts(self, now: float) -> Counts:
        """What it has done so far: batches, items, seconds computed with those of the present batch, and seconds of
        CPU."""
        computing_s = max(0.0, now - self.since) if self.batches else 0.0
        return self.done_batches, self.done_items, self.lane.compute_s + computing_s, self.cpu_us / 1e6

    def patience_s(self, usual_s: float) -> float:
        """For how long a batch of its is not suspect, where one of a usual worker is not for so long."""
        return usual_s * max(1.0, self.slowness)

    def is_overdue(self, now: float) -> bool:
        """It should have done all it has by now, and by more than half the time of the last of it."""
        return now > self.free_at and bool(self.batches) and now > self.overdue_at

    @property
    def overdue_at(self) -> float:
        """From when on that is so, if it has a batch."""
        return self.free_at + self.batches[next(reversed(self.batches))].expected_s / 2
