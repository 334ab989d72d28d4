"""The workers of one stage, their batches, and which of them could take another: pure bookkeeping.

How many batches each may have is told in :mod:`engine.core.member`. Where a worker stands follows from what it has:

    idle        ready, nothing in flight; the longest idle comes first
    room        ready, has batches and credit for more; the one with the fewest comes first, then the longest so;
                those that are far after all others
    computing   has a batch, whatever its state; the first to reach its time limit comes first
    slow        computes one that takes suspiciously long: it is given nothing more until that is done

Spare workers are held back: ready, and neither idle nor with room. As soon as others are missing, or slow, they are
neither more nor less than those were, so nothing has to be started or moved when they take their place.

Whoever asks by speed or time asks the :class:`engine.core.lineup.Lineup`, which is made when somebody first does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import inf
from typing import Final

from engine.core.batching import AHEAD_S
from engine.core.items import Item
from engine.core.lineup import ALL, Lineup
from engine.core.member import BUNDLE_MOST, CREDIT_MAX, FAR_BYTES, FAR_MAX, Member, credit_for
from engine.core.released import Released
from engine.core.worker_states import READY

NOTHING: Final[Mapping[int, Item]] = {}

UNEVEN: Final = 1.5  # times as slow as another: more than what their speeds seem to differ by chance


class Crew:
    """See the module. ``in_advance`` false: nobody is given a second batch."""

    def __init__(self, *, in_advance: bool) -> None:
        self.workers: dict[int, Member] = {}
        self.in_flight = 0  # items that they have; whoever gives them some, or takes it, counts
        self._able: dict[int, Member] = {}  # those that could be given work, now or when they are done
        self._lineup: Lineup | None = None
        # Those that are ready for one more, by how many they have; behind these likewise those that are far, but only
        # such as have credit. Who is idle is in the first, however far.
        self._ready: list[OrderedDict[int, Member]] = [OrderedDict() for _ in range(CREDIT_MAX + FAR_MAX)]
        self._far = 0  # how many of these are far and not idle
        self._computing: OrderedDict[int, Member] = OrderedDict()  # in the order in which they began
        self._newest = -inf  # when the last of them did
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

    @property
    def credit(self) -> int:
        """How many batches a worker may have that is not far."""
        return self._credit

    def hear_round_trip(self, worker: Member, seconds: float) -> None:
        """How long a word to a worker on another host and its answer were on their way, this time."""
        worker.round_trips.append(seconds)
        # The least of them: in all others there may be a wait for the interpreter, which `forward` may hold.
        least = min(worker.round_trips)
        away_s = least if least > AHEAD_S else 0.0
        if away_s != worker.away_s:
            worker.away_s = away_s
            if self._lineup is not None:
                self._lineup.is_further(worker)

    def sort_in(self, worker: Member, now: float, *, begins: bool) -> None:
        """Put a worker where it belongs after its batches or its state changed. ``begins``: it computes another batch
        from now on."""
        key = worker.key
        was_ready = worker.rank >= 0
        if was_ready:
            self._be_unready(worker)
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
            if now < self._newest:  # one that is far begins when it will have it, and has been put here before
                self._put_behind(now, key)
            else:
                self._newest = now
        is_able = worker.state is READY and not worker.spare and not worker.slow
        if worker.away_s:
            rank = self._far_rank(worker, count)
        else:
            rank = count if not worker.bundled else _bundled_rank(count + worker.bundled)
        if is_able and 0 <= rank < (CREDIT_MAX + FAR_MAX if worker.away_s else CREDIT_MAX) and not worker.condemned:
            # While it is ready none of its batches is revoked, nor apart but the one that was given to it just now.
            for batch in reversed(batches.values()):
                if batch.apart or batch.revoked:
                    break
                if was_ready:
                    self._be_ready(worker, rank)
                    break
            else:
                self._be_ready(worker, rank)
        self._stand(worker, is_able=is_able)

    def _be_ready(self, worker: Member, rank: int) -> None:
        worker.rank = rank
        self._ready[rank][worker.key] = worker
        if rank >= CREDIT_MAX:
            self._far += 1

    def _be_unready(self, worker: Member) -> None:
        del self._ready[worker.rank][worker.key]
        if worker.rank >= CREDIT_MAX:
            self._far -= 1
        worker.rank = -1

    def _stand(self, worker: Member, *, is_able: bool) -> None:
        """All changes of where a worker stands go through here."""
        if is_able:
            self._able[worker.key] = worker
        else:
            self._able.pop(worker.key, None)
        if self._lineup is not None:
            self._lineup.place(worker, is_able=is_able)

    def _put_behind(self, since: float, key: int) -> None:
        """Whoever begins later than the newest of those that compute stands behind it."""
        computing, later = self._computing, []
        for other in reversed(computing.values()):
            if other.key != key:
                if other.since <= since:
                    break
                later.append(other.key)
        for other_key in reversed(later):
            computing.move_to_end(other_key)

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
            self._be_unready(worker)
        self._stand(worker, is_able=worker.is_able)

    def hold_back(self, num: int, spare: int) -> None:
        """Give nothing more to those of the highest slots: of each host to ``spare`` of its workers that are ready, or
        to as many as there are beyond ``num``. Whoever was held back and is needed now is given work like anybody else.

        Slots repeat from host to host, and each supervisor keeps its own spares, or none: workers that were asked for
        by their number are all to work, as they say themselves."""
        hosts: dict[str, list[Member]] = {}
        for worker in self.workers.values():
            if worker.state is READY and not worker.slow:
                hosts.setdefault(worker.host, []).append(worker)
        for ready in hosts.values():
            ready.sort(key=_slot)
            able = [worker.key for worker in ready if worker.may_rest]
            spares = able[max(0, len(able) - max(0, min(spare, len(ready) - num))) :]
            for worker in ready:
                is_spare = worker.key in spares
                if worker.spare is not is_spare:
                    worker.spare = is_spare
                    self.sort_in(worker, worker.since, begins=False)

    def remove(self, key: int) -> None:
        worker = self.workers.pop(key)
        if worker.rank >= 0:
            self._be_unready(worker)
        self._able.pop(key, None)
        self._computing.pop(key, None)
        self.in_flight -= worker.in_flight
        if self._lineup is not None:
            self._lineup.remove(worker)

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

    @property
    def lineup(self) -> Lineup:
        """The workers by speed and by when they will be free. To be asked for anew each time."""
        if self._lineup is None:
            ready = chain.from_iterable(some.values() for some in self._ready)
            self._lineup = Lineup(ready, self._able.values())
        return self._lineup

    def stop_lining_up(self) -> None:
        """Nobody asks for that lately."""
        self._lineup = None

    def soonest(self, now: float, below: int = ALL, *, is_idle: bool = True) -> Member | None:
        """The same as :meth:`next` where it is known how long batches take, and they take long: the quickest of those
        that are idle, else whoever is free first. One that should have been done long ago is not waited for. ``below``:
        only of quicker classes of speed than this one; ``is_idle`` false: none of the idle."""
        lineup = self.lineup
        if is_idle and (worker := lineup.first(0, below)) is not None:
            return worker
        if self._credit < 2:
            return None
        return lineup.free_first(now, len(self._ready[1]) + self._far, below)

    def quickest(self, below: int = ALL) -> Member | None:
        """The same as :meth:`next` where some workers are much quicker than others."""
        lineup = self.lineup
        for rank in range(self._credit):
            if self._ready[rank] and (worker := lineup.first(rank, below)) is not None:
                return worker
        return lineup.first(CREDIT_MAX, below) if self._far else None

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
        return len(self._able)

    @property
    def slowness(self) -> float:
        """How slow these are together: the harmonic mean."""
        able = self._able
        return len(able) / sum([1.0 / worker.slowness for worker in able.values()]) if able else 1.0

    def frees(self) -> list[float]:
        """When each of these will be free, in order (the past: it is)."""
        return sorted([worker.free_at if worker.batches else 0.0 for worker in self._able.values()])

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
        ripe: list[Member] = []
        for worker in self._computing.values():
            if worker.since + patience_s > now:
                break
            ripe.append(worker)
        for worker in ripe:
            if not worker.slow and worker.since + worker.patience_s(patience_s) <= now:
                worker.slow = True
                self.rest(worker)
                yield worker

    def next_late(self, timeout_s: float, patience_s: float, now: float) -> float:
        """When the next batch will have taken ``timeout_s``, or may be suspect; inf when nobody computes."""
        limit = inf
        for worker in self._computing.values():
            ripe_at = worker.since + patience_s
            limit = min(limit, worker.since + timeout_s)
            if ripe_at > now or ripe_at > limit:  # whoever comes now began later
                return min(limit, ripe_at)
            if not worker.slow:
                limit = min(limit, worker.since + worker.patience_s(patience_s))
        return limit


def _bundled_rank(count: int) -> int:
    """Of a worker that has so many batches, some of them as bundles: there may be room for another."""
    return min(count, CREDIT_MAX - 1) if count < 2 * BUNDLE_MOST else CREDIT_MAX


def _slot(worker: Member) -> int:
    return worker.slot
