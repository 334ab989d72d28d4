"""The workers of one stage, their batches, and which of them could take another: pure bookkeeping.

A worker's credit is the batch it computes and one in advance, so that it need not wait for the broker when it is done.
Where batches take less time than the broker needs to hear of one and send the next (:func:`credit_for`), one would not
do: it gets as many as keep it busy for AHEAD_S. One that is *far* - a batch is longer on its way to it, and its results
back, than that - gets as many as keep it busy for that time as well, bounded by their number and their bytes. Where a
worker stands follows from what it has:

    idle        ready, nothing in flight; the longest idle comes first
    room        ready, has batches and credit for more; the one with the fewest comes first, then the longest so;
                those that are far after all others
    computing   has a batch, whatever its state; the first to reach its time limit comes first
    slow        computes one that takes suspiciously long: it is given nothing more until that is done

Spare workers are held back: ready, and neither idle nor with room. As soon as others are missing, or slow, they are
neither more nor less than those were, so nothing has to be started or moved when they take their place.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import ceil, inf
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

NOTHING: Final[Mapping[int, Item]] = {}

UNEVEN: Final = 1.5  # times as slow as another: more than what their speeds seem to differ by chance
CREDIT_MAX: Final = 8  # batches; a slow one holds up no more than the others of them


FAR_MAX: Final = 64  # of a worker that is far: enough for 200 ms if they take 4
FAR_BYTES: Final = 64 << 20  # on their way or there; one batch may be larger

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
    spare: bool = False  # it is held back
    rank: int = -1  # in the crew: which of those that are ready for one more; -1: it is not

    @property
    def is_able(self) -> bool:
        """It could be given work, now or when it is done with what it has."""
        return self.state is READY and not self.spare and not self.slow

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


class Crew:
    """See the module. ``in_advance`` false: nobody is given a second batch."""

    def __init__(self, *, in_advance: bool) -> None:
        self.workers: dict[int, Member] = {}
        # Those that are ready for one more, by how many they have; behind these likewise those that are far, but only
        # such as have credit. Who is idle is in the first, however far.
        self._ready: list[OrderedDict[int, Member]] = [OrderedDict() for _ in range(CREDIT_MAX + FAR_MAX)]
        self._far = 0  # how many of these are far and not idle
        self._computing: OrderedDict[int, Member] = OrderedDict()
        self._in_advance = in_advance
        self._credit = 2 if in_advance else 1
        self._batch_s = 0.0  # how long a batch takes, as far as it is known

    def change(self, *, in_advance: bool) -> None:
        """Whether anybody is given a second batch, from the next one on."""
        self._in_advance = in_advance
        self._credit = 2 if in_advance else 1

    def learn(self, batch_s: float) -> None:
        """How long a batch takes now."""
        self._batch_s = batch_s
        if self._in_advance:
            self._credit = credit_for(batch_s)

    def hear_round_trip(self, worker: Member, seconds: float) -> None:
        """How long a word to a worker on another host and its answer were on their way, this time."""
        worker.round_trips.append(seconds)
        # The least of them: in all others there may be a wait for the interpreter, which `forward` may hold.
        least = min(worker.round_trips)
        worker.away_s = least if least > AHEAD_S else 0.0

    def sort_in(self, worker: Member, now: float, *, begins: bool) -> None:
        """Put a worker where it belongs after its batches or its state changed. ``begins``: it computes another batch
        from now on."""
        key = worker.key
        was_ready = worker.rank >= 0
        if was_ready:
            self.rest(worker)
        batches = worker.batches
        count = len(batches)
        if not count:
            worker.slow = False
            self._computing.pop(key, None)
        elif begins:
            worker.since = now
            worker.slow = False
            self._computing[key] = worker
            self._computing.move_to_end(key)
        is_able = worker.state is READY and not worker.spare and not worker.slow
        rank = count if not worker.away_s else self._far_rank(worker, count)
        if is_able and 0 <= rank < (CREDIT_MAX + FAR_MAX if worker.away_s else CREDIT_MAX) and not worker.condemned:
            # While it is ready none of its batches is revoked, nor apart but the one that was given to it just now.
            for batch in reversed(batches.values()):
                if batch.apart or batch.revoked:
                    return
                if was_ready:
                    break
            worker.rank = rank
            self._ready[rank][key] = worker
            if rank >= CREDIT_MAX:
                self._far += 1

    def _far_rank(self, worker: Member, count: int) -> int:
        """Of a worker that is far: -1 without credit for another."""
        if not count:
            return 0
        if not self._in_advance or count >= credit_for(self._batch_s, worker.away_s):
            return -1
        return CREDIT_MAX + count if sum([batch.nbytes for batch in worker.batches.values()]) < FAR_BYTES else -1

    def rest(self, worker: Member) -> None:
        """Give a worker nothing more for now; what it has, it keeps."""
        if worker.rank >= 0:
            del self._ready[worker.rank][worker.key]
            if worker.rank >= CREDIT_MAX:
                self._far -= 1
            worker.rank = -1

    def hold_back(self, num: int, spare: int) -> None:
        """Give nothing more to those of the highest slots: to ``spare`` of the workers that are ready, or to as many as
        there are beyond ``num``. Whoever was held back and is needed now is given work like anybody else."""
        ready = [worker for worker in self.workers.values() if worker.state is WorkerState.READY and not worker.slow]
        ready.sort(key=_slot)
        most = max(0, min(spare, len(ready) - num))
        for place, worker in enumerate(ready):
            is_spare = place >= len(ready) - most
            if worker.spare is not is_spare:
                worker.spare = is_spare
                self.sort_in(worker, worker.since, begins=False)

    def remove(self, key: int) -> None:
        worker = self.workers.pop(key)
        self.rest(worker)
        self._computing.pop(key, None)

    def held(self, worker: int, batch: int) -> Mapping[int, Item]:
        """What of a batch this worker holds, by uid; nothing if it was never given the batch, or has settled all of it.

        Whoever gets a parcel of results asks, on another thread perhaps: each step is one operation of a dictionary.
        What it is told may be over a moment later, when the worker's death is noticed, and nothing comes of that: the
        item has then gone on by one way (its hop is advanced, or it is answered) or by the other (it is given out
        again), and what comes second finds that out. It is never too early: a batch is in the books before it leaves.
        """
        member = self.workers.get(worker)
        if member is None:
            return NOTHING
        flight = member.batches.get(batch)
        return flight.items if flight is not None else member.late.get(batch, NOTHING)

    def settle(self, worker: Member, batch: Released, uids: Sequence[int]) -> None:
        """Remember a while what a worker that streams had: its events go another way than its results to the next
        stage, and may come later."""
        former = worker.former
        former.setdefault(batch.number, set()).update(uid for uid in uids if uid in batch.items)
        if len(former) > (FAR_MAX if worker.away_s else CREDIT_MAX):
            former.popitem(last=False)

    def streams(self, worker: int, batch: int, uid: int) -> bool:
        """Whether an event of this item may be this worker's: it holds the item in this batch, or did so just now."""
        if uid in self.held(worker, batch):
            return True
        member = self.workers.get(worker)
        return member is not None and uid in member.former.get(batch, ())

    def next(self) -> Member | None:
        """Who would get the next batch: somebody idle, else whoever has the fewest and credit for more."""
        for ready in self._ready[: self._credit]:
            if ready:
                return next(iter(ready.values()))
        return next(self._far_ready(), None) if self._far else None

    def _far_ready(self) -> Iterator[Member]:
        return chain.from_iterable(ready.values() for ready in self._ready[CREDIT_MAX:])

    def soonest(self, now: float, but: Collection[int] = ()) -> Member | None:
        """The same where it is known how long batches take, and they take long: the quickest of those that are idle,
        else whoever is free first. One that should have been done long ago is not waited for. ``but``: these are left
        alone."""
        idle: Mapping[int, Member] = self._ready[0]
        busy: Mapping[int, Member] = self._ready[1]
        if but:
            idle, busy = ({key: worker for key, worker in some.items() if key not in but} for some in (idle, busy))
        if idle:
            return min(idle.values(), key=_class) if len(idle) > 1 else next(iter(idle.values()))
        if self._credit < 2:
            return None
        some = [worker for worker in busy.values() if not worker.is_overdue(now)]
        if self._far:
            some += [worker for worker in self._far_ready() if worker.key not in but and not worker.is_overdue(now)]
        return min(some, key=_takes_at, default=None)

    def quickest(self, but: Collection[int]) -> Member | None:
        """The same as :meth:`next` where some workers are much quicker than others. ``but``: these are left alone."""
        for ready in self._ready[: self._credit]:
            found = min([worker for key, worker in ready.items() if key not in but], key=_class, default=None)
            if found is not None:
                return found
        if not self._far:
            return None
        return min([worker for worker in self._far_ready() if worker.key not in but], key=_class, default=None)

    @property
    def is_uneven(self) -> bool:
        """Some take much longer than others."""
        paces = [worker.slowness for worker in self.workers.values()]
        return bool(paces) and max(paces) > UNEVEN * min(paces)

    @property
    def is_busy(self) -> bool:
        """Somebody computes."""
        return bool(self._computing)

    @property
    def able(self) -> int:
        """How many could be given work, now or when they are done with what they have."""
        return sum([worker.is_able for worker in self.workers.values()])

    def outlook(self) -> tuple[list[float], float]:
        """When each worker that can be given work will be free, in order (the past: it is), and how slow they are
        together: the harmonic mean."""
        frees: list[float] = []
        speed = 0.0
        for worker in self.workers.values():
            if worker.is_able:
                frees.append(worker.free_at if worker.batches else 0.0)
                speed += 1.0 / worker.slowness
        frees.sort()
        return frees, len(frees) / speed if speed else 1.0

    def late(self, now: float, timeout_s: float) -> Iterator[Member]:
        """Workers whose batch has taken ``timeout_s``, each given out once per batch."""
        while self._computing:
            key, worker = next(iter(self._computing.items()))
            if worker.since + timeout_s > now:
                return
            del self._computing[key]
            yield worker

    def slow(self, now: float, patience_s: float) -> Iterator[Member]:
        """Workers whose batch has taken ``patience_s``, or as many times that as they are slow, each given out once per
        batch."""
        for worker in list(self._computing.values()):
            if worker.since + patience_s > now:
                return
            if not worker.slow and worker.since + worker.patience_s(patience_s) <= now:
                worker.slow = True
                self.rest(worker)
                yield worker

    def next_late(self, timeout_s: float, patience_s: float) -> float:
        """When the next batch will have taken ``timeout_s``, or will be suspect; inf when nobody computes."""
        limit = inf
        for worker in self._computing.values():
            if worker.since + patience_s > limit:
                break
            limit = min(limit, worker.since + timeout_s)
            if not worker.slow:
                limit = min(limit, worker.since + worker.patience_s(patience_s))
        return limit


def _class(worker: Member) -> int:
    """Workers whose speeds differ by little are alike; of those the longest idle comes first."""
    return round(worker.slowness * 4)


def _slot(worker: Member) -> int:
    return worker.slot


def _takes_at(worker: Member) -> float:
    return worker.free_at - worker.away_s
