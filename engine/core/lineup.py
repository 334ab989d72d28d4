"""The workers of a stage in the order in which they come: who is asked first, who will be done first. Pure.

Where batches are planned one by one, or some workers are much quicker than others, each batch asks who is the quickest
of the idle, who is free first, and who else could be done sooner. To look at all of them for that is what a batch of
one costs a broker with hundreds of workers. So they stand in sorted lists, in which one is moved by bisection when it
is given something or is done, and a search ends as soon as nobody better can come.

What decides where a worker stands - its batches, ``free_at``, ``away_s``, ``slowness``, ``rank``, whether it is able -
changes in :mod:`engine.core.stage` only where :meth:`engine.core.crew.Crew.sort_in` or ``rest`` follows at once, which
place it anew. A stage of quick and equal workers has no lineup: it asks for nothing but the longest idle.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import takewhile
from math import inf
from typing import Final

from engine.core.member import CREDIT_MAX, Member

ALL: Final = 1 << 8  # above any class of speed

# A turn is one number: how many batches one has, then its class of speed. Those that are far and have some come after
# all others, by class first.
RANK: Final = 1 << 16
CLASS: Final = 1 << 8
FAR: Final = CREDIT_MAX * RANK


class Ranked:
    """Workers by a number each, the least first; of equal ones whoever was put there first."""

    __slots__ = ("_count", "_of", "rows")

    def __init__(self) -> None:
        self.rows: list[tuple[float, int, Member]] = []  # to be looked at, not to be changed
        self._of: dict[int, tuple[float, int, Member]] = {}
        self._count = 0

    def put(self, worker: Member, number: float) -> None:
        """It stands here once, behind those with the same number."""
        self.drop(worker)
        self._count += 1
        row = self._of[worker.key] = number, self._count, worker
        insort(self.rows, row)

    def drop(self, worker: Member) -> None:
        row = self._of.pop(worker.key, None)
        if row is not None:
            del self.rows[bisect_left(self.rows, row)]

    def number(self, worker: Member) -> float | None:
        """None: it is not here."""
        row = self._of.get(worker.key)
        return None if row is None else row[0]


class Lineup:
    """See the module. Seconds. *Able* are those that could be given work, now or when they are done; *ready* those of
    them that have credit for it."""

    def __init__(self, ready: Iterable[Member], able: Iterable[Member]) -> None:
        """``ready``: in the order in which they would be asked, were they alike."""
        self._turns = Ranked()  # who is ready, by turn
        self._idle = Ranked()  # who is able and has nothing, by slowness
        self._busy = Ranked()  # who is able and has batches, by when it could begin with what is sent to it then
        self._paces = Ranked()  # who is able, by slowness
        for worker in ready:
            self.place(worker, is_able=True)
        for worker in able:
            if worker.rank < 0:
                self.place(worker, is_able=True)

    def place(self, worker: Member, *, is_able: bool) -> None:
        """Its batches or its state have changed. Of those whose turn is the same it is the last now."""
        rank = worker.rank
        if rank >= CREDIT_MAX:
            self._turns.put(worker, FAR + worker.speed * CLASS + rank)
        elif rank >= 0:
            self._turns.put(worker, rank * RANK + worker.speed * CLASS)
        else:
            self._turns.drop(worker)
        if not is_able:
            for some in (self._idle, self._busy, self._paces):
                some.drop(worker)
            return
        if worker.batches:
            self._idle.drop(worker)
            self._busy.put(worker, worker.takes_at)
        else:
            self._busy.drop(worker)
            self._idle.put(worker, worker.slowness)
        if self._paces.number(worker) != worker.slowness:
            self._paces.put(worker, worker.slowness)

    def is_further(self, worker: Member) -> None:
        """How far away it is has changed."""
        if self._busy.number(worker) is not None:
            self._busy.put(worker, worker.takes_at)

    def remove(self, worker: Member) -> None:
        for some in (self._turns, self._idle, self._busy, self._paces):
            some.drop(worker)

    # --- who is asked ------------------------------------------------------------------------------------------------

    def first(self, rank: int, below: int = ALL) -> Member | None:
        """Of the ready that have so many batches - CREDIT_MAX: of those that are far and have some - the first of the
        quickest class, if that is below this one."""
        rows = self._turns.rows
        place = bisect_left(rows, (rank * RANK,))
        if place == len(rows):
            return None
        number, _, worker = rows[place]
        most = rank * RANK + below * CLASS
        return worker if number < most else None

    def free_first(self, now: float, count: int, below: int = ALL) -> Member | None:
        """Of the ready that have one batch, or are far and have some - there are ``count`` of these - who will be free
        first of those below this class. One that is overdue is not waited for."""
        if not count:
            return None
        for _, _, worker in self._busy.rows:
            if worker.rank == 1 or worker.rank >= CREDIT_MAX:
                if not worker.is_overdue(now) and (below == ALL or worker.speed < below):
                    return worker
                count -= 1
                if not count:
                    break
        return None

    # --- who could do it sooner --------------------------------------------------------------------------------------

    @property
    def least(self) -> float:
        """The slowness of the quickest that is able; inf: nobody is."""
        return self._paces.rows[0][0] if self._paces.rows else inf

    def alone(self, apart: float) -> Member | None:
        """Who is able while all others are slower by that factor at least; None: there is nobody, or there are more."""
        rows = self._paces.rows
        if not rows or (len(rows) > 1 and rows[1][0] < apart * rows[0][0]):
            return None
        return rows[0][2]

    def sooner(self, worker: Member, takes_s: float, now: float) -> Member | None:
        """Who else, with one batch at most, would be the first to be done with one that takes ``takes_s`` at a usual
        worker. Who is overdue is left out."""
        found, best = None, inf
        for slowness, _, other in self._idle.rows:
            if takes_s * slowness >= best:
                break
            if other is not worker and (done_s := other.away_s + takes_s * slowness) < best:
                found, best = other, done_s
        least_s = takes_s * self.least
        for takes_at, _, other in self._busy.rows:
            if max(takes_at - now, 0.0) + least_s >= best:
                break
            if other is worker or len(other.batches) > 1 or other.is_overdue(now):
                continue
            done_s = other.starts_at(now) - now + takes_s * other.slowness
            if done_s < best:
                found, best = other, done_s
        return found

    def quicker(self, slowness: float) -> Iterator[Member]:
        """Who is able and less slow than that, the quickest first."""
        return (row[2] for row in takewhile(lambda row: row[0] < slowness, self._paces.rows))

    def overdue_first(self, slowness: float, now: float) -> float:
        """When the first of these will be overdue that has batches and is not; inf: none."""
        first = inf
        for takes_at, _, worker in self._busy.rows:
            if takes_at >= first:
                break
            if worker.slowness < slowness and not worker.is_overdue(now):
                first = min(first, worker.overdue_at)
        return first
