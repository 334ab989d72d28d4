"""When does a batch leave, and why. All release rules of the project are in :func:`decide`.

A stage has one queue for all its workers. A batch leaves when a worker can take it *and* the first of these holds:

    full       max_batch_size items, max_batch_bytes or max_batch_cost are waiting
    drain      the stage is stopping: nothing more will come to wait for
    idle       a worker has nothing to do, and waiting helps nobody (``eager``): not one that would come later and be
               served sooner, for batches that are not full leave evenly spaced (:mod:`engine.core.spacing`), nor who
               was just answered and asks again (:mod:`engine.core.returns`)
    wait       the oldest item has been at this stage for max_wait
    deadline   waiting longer would make the first who is due late, going by how long a batch takes

A worker that is busy may get a batch in advance (its prefetch credit), but only one that could not grow any more, or
has waited its time, and only when the worker is about to be done: given earlier it would stop growing, or stand behind
a slow worker while others are free. With ``max_wait`` 0 nothing is past its wait in that sense, so the prefetch waits
for ``full``; so it does where most of those who are answered ask again at once, for they belong into that batch.

Where it differs when requests are due, the first of them come first. Sorting a long queue for every batch would cost
more than it gives, so it is done at most so often that it takes a twentieth of the time, and only where not everybody
gets into the batch.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from math import inf
from typing import Final

import msgspec

from engine.core.costs import UNITS_MOST
from engine.core.items import Item
from engine.core.wire import HALF_HEADER

# How long before a worker is done it is given more, in seconds: what two messages, a pass of the broker and a few
# wake-ups of threads take when all of them are busy.
AHEAD_S: Final = 0.002
BEHIND: Final = 16  # items more than a batch that are looked at for one that is in time


TOLERANCE_S: Final = 0.010  # ranks that are out of order by less are in order: requests overtake each other
SORT_EVERY_S: Final = 4e-6  # per item of the queue: twenty times what it takes to sort it
SAMPLES: Final = 16  # ranks that tell how those of a whole queue lie

METAS_MOST: Final = HALF_HEADER  # bytes of what the requests of one batch bring for their workers, headers above all


class Reason(str, Enum):
    FULL = "full"
    IDLE = "idle"
    WAIT = "wait"
    DEADLINE = "deadline"
    DRAIN = "drain"
    REPLAY = "replay"  # items under which workers died or hung, tried apart


class Taker(Enum):
    """Who could take a batch now."""

    NOBODY = "nobody"
    IDLE = "idle"  # a worker with nothing to do
    BUSY = "busy"  # only workers that compute and have room for a batch in advance


@dataclass(frozen=True)
class Policy:
    """How one stage batches. Seconds and bytes."""

    max_batch_size: int = 1
    max_batch_bytes: int = 64 << 20
    max_wait_s: float = 0.010
    eager: bool = True
    max_batch_cost: float = 0.0  # 0: all items cost the same

    @property
    def sizes(self) -> int:
        """The largest batch there can be: items, or units of what they cost."""
        return UNITS_MOST if self.max_batch_cost else self.max_batch_size


class Backlog(msgspec.Struct, frozen=True):
    """What is waiting, as far as the decision needs it."""

    count: int
    nbytes: int
    oldest: float  # when the first arrived
    first_due: float = inf  # when the first of those that come first is due
    is_whole: bool = False  # it is a whole batch by what it costs


class Decision(msgspec.Struct, frozen=True):
    """Release now for ``reason``, or look again at ``wake_at`` (monotonic seconds; inf: when something happens)."""

    reason: Reason | None
    wake_at: float = inf


# Under names of their own: to get at a member of an enumeration by its class costs a tenth of a microsecond before
# Python 3.12.
IDLE: Final = Taker.IDLE
BUSY: Final = Taker.BUSY
NOBODY: Final = Taker.NOBODY
REPLAY: Final = Reason.REPLAY

NOTHING: Final = Decision(None)
_FULL: Final = Decision(Reason.FULL)
_IDLE: Final = Decision(Reason.IDLE)
_WAIT: Final = Decision(Reason.WAIT)
_DEADLINE: Final = Decision(Reason.DEADLINE)
_DRAIN: Final = Decision(Reason.DRAIN)


def decide(
    policy: Policy,
    backlog: Backlog,
    taker: Taker,
    *,
    now: float,
    service_s: float = 0.0,
    free_at: float = 0.0,
    not_before: float = 0.0,
    spaced_until: float = 0.0,
    returns_until: float = 0.0,
    draining: bool = False,
) -> Decision:
    """Whether a batch leaves now. ``service_s`` is how long one more than there is would take, from release to results;
    ``free_at`` when a busy taker will probably be done, and ``not_before`` when it may be given a full batch: before
    that others may be free. ``spaced_until`` is when one that is not full may follow the one before it to an idle
    taker, ``returns_until`` when it goes to anybody without those who were just answered."""
    if taker is NOBODY or backlog.count == 0:
        return NOTHING
    if backlog.count >= policy.max_batch_size or backlog.nbytes >= policy.max_batch_bytes or backlog.is_whole:
        if taker is BUSY and now < not_before:
            return Decision(None, not_before)
        return _FULL
    if draining:
        return _DRAIN
    if now < returns_until:
        last_call = backlog.first_due - service_s
        return _DEADLINE if taker is IDLE and now >= last_call else Decision(None, min(returns_until, last_call))
    if taker is IDLE and policy.eager and (now >= spaced_until or not policy.max_wait_s):
        return _IDLE
    wait_over = backlog.oldest + policy.max_wait_s
    if taker is BUSY:
        wait_over = max(wait_over, free_at - AHEAD_S) if policy.max_wait_s else inf
    if now >= wait_over:
        return _WAIT
    if taker is BUSY:
        return Decision(None, wait_over)  # given to somebody who is busy it would not be done any sooner
    last_call = backlog.first_due - service_s
    if now >= last_call:
        return _DEADLINE
    if policy.eager:
        last_call = min(last_call, spaced_until)
    return Decision(None, min(wait_over, last_call))


class BatchQueue:
    """The items of one stage that wait, in order of arrival, with their bytes counted. Not thread-safe, no clock.

    ``OrderedDict``: leaving from the middle (a cancelled client) and returning to the front (a replay) are O(1), and
    so is taking from the front, which a plain dict makes linear in what was deleted there before.

    How much waits, and how much a batch may have, is told as numbers of items; where items cost unlike much
    (:class:`engine.core.costqueue.CostQueue`) as units of that.
    """

    by_cost = False

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.nbytes = 0
        self.items: OrderedDict[int, Item] = OrderedDict()  # by uid; to be looked at, not to be changed
        self.is_mixed = False  # some ranks are out of order, or were since the queue was last empty
        self._latest = -inf  # deadline of what was pushed
        self._highest = -inf  # rank of what was pushed
        self._is_sorted = True
        self._disorder = 0.0  # by how much the rank of what was pushed was before that of something before it
        self._sort_at = -inf  # not before

    def __len__(self) -> int:
        return len(self.items)

    @property
    def latest(self) -> float:
        """About the latest deadline of what was pushed since the queue was last empty."""
        return self._latest

    def __contains__(self, uid: int) -> bool:
        return uid in self.items

    def push(self, *items: Item) -> None:
        """Behind all others."""
        waiting, latest, highest = self.items, self._latest, self._highest
        if not waiting:
            latest = highest = -inf
            self.is_mixed, self._is_sorted = False, True
            self._disorder = 0.0
        nbytes = self.nbytes
        for item in items:
            request = item.request
            rank = request.rank
            if rank > highest:
                highest = rank
            elif rank < highest:
                self._disorder = max(self._disorder, highest - rank)
                if rank < highest - TOLERANCE_S:
                    self.is_mixed, self._is_sorted = True, False
            waiting[request.uid] = item
            nbytes += item.size
        if items:  # those that come together have about the same
            latest = max(latest, items[-1].request.deadline)
        self.nbytes, self._latest, self._highest = nbytes, latest, highest

    def hasten(self, uid: int, rank: float) -> None:
        """It has an earlier rank from now on, if it is here. Of requests of nobody, whose rank nobody else reads."""
        item = self.items.get(uid)
        if item is not None and rank < item.request.rank:
            item.request.rank = rank
            self.is_mixed, self._is_sorted = True, False
            self._disorder = max(self._disorder, self._highest - rank)

    def push_front(self, items: list[Item]) -> None:
        """Items that were released once come before everything else, in their old order."""
        for item in reversed(items):
            uid = item.request.uid
            self._latest = max(self._latest, item.request.deadline)
            self.items[uid] = item
            self.items.move_to_end(uid, last=False)
            self.nbytes += item.size

    def discard(self, uid: int) -> Item | None:
        """Remove an item from wherever it stands; None when it is not here."""
        item = self.items.pop(uid, None)
        if item is not None:
            self.nbytes -= item.size
        return item

    def clear(self) -> list[Item]:
        """All items, in order, removed."""
        items = list(self.items.values())
        self.items.clear()
        self.nbytes = 0
        return items

    def backlog(self, *, dues: bool) -> Backlog:
        """``dues`` false leaves out when the first is due, which can cost a look at every item of the next batch. It
        may be told early."""
        first = oldest = inf
        for item in self.items.values():
            oldest = item.arrived
            break
        if dues and self.policy.eager:
            first = self.first_due
        elif dues:
            window = islice(self.items.values(), self.policy.max_batch_size)
            first = min((item.request.due for item in window), default=inf)
        return Backlog(len(self.items), self.nbytes, oldest, first)

    def sort(self, now: float) -> None:
        """By rank, if they are not. Equal ones stay as they are."""
        if not self._is_sorted:
            self.items = OrderedDict(sorted(self.items.items(), key=_rank))
            self._is_sorted = True
            self._disorder = 0.0
            self._sort_at = now + len(self.items) * SORT_EVERY_S

    @property
    def each(self) -> float:
        """What an item counts."""
        return 1.0

    @property
    def amount(self) -> int:
        """How much waits."""
        return len(self.items)

    @property
    def top(self) -> int:
        """The most that a batch has, however large its items are."""
        return self.policy.max_batch_size

    @property
    def whole(self) -> int:
        """How much the next batch has of what waits now."""
        return self.whole_of(0)

    def whole_of(self, count: int) -> int:
        """The same of a batch of ``count`` items at most; 0: of as many as may be."""
        whole = min(len(self.items), self.most)
        return min(whole, count) if count else whole

    @property
    def most(self) -> int:
        """Items of the next batch, if there are so many: by count, and by bytes if they are as large as the mean."""
        most, room = self.policy.max_batch_size, self.policy.max_batch_bytes
        if self.nbytes <= room:
            return most
        return max(1, min(most, room * len(self.items) // self.nbytes))

    def first(self) -> Item | None:
        return next(iter(self.items.values()), None)

    @property
    def first_due(self) -> float:
        """Nobody who waits is due before; it may be early, for it goes by ranks. inf: nobody waits."""
        if not self._is_sorted:
            return min([item.request.rank for item in self.items.values()], default=inf)
        first = self.first()
        return inf if first is None else first.request.rank - self._disorder

    def sample(self) -> list[float]:
        """Ranks of some items, evenly chosen, in order."""
        step = len(self.items) // SAMPLES + 1
        return sorted([item.request.rank for item in islice(self.items.values(), 0, None, step)])

    def take(
        self, now: float, *, most: int = 0, count: int = 0, done_at: float = 0.0
    ) -> tuple[list[Item], list[Item], bool]:
        """The next batch and the items that are not worth computing any more, both removed from the queue.

        A batch holds at most ``most`` and ``count`` items (0: max_batch_size), max_batch_bytes and METAS_MOST, but
        always one item, however large. Where one of them is due before the batch would be done, at ``done_at``, nothing
        is removed but what is dead: somebody has to choose. The third of the result says so. 0: nobody knows, or has
        chosen.
        """
        batch: list[Item] = []
        dead: list[Item] = []
        most = most or self.policy.max_batch_size
        most = min(most, count) if count else most
        room = whole = self.policy.max_batch_bytes
        items = self.items
        if not self._is_sorted and len(items) > most and now >= self._sort_at:
            self.sort(now)
            items = self.items
        heads = METAS_MOST
        bound = done_at if done_at > now else now
        while items and len(batch) < most:
            uid, item = items.popitem(False)
            request = item.request
            # Item.is_due, written out: a call for every item is a tenth of what the broker does for it.
            if request.closed or request.due <= bound or request.hop != item.hop:
                if request.closed or request.deadline <= now or request.hop != item.hop:
                    dead.append(item)
                    continue
                if done_at and item.due <= bound:
                    for back in (item, *reversed(batch)):
                        items[back.request.uid] = back
                        items.move_to_end(back.request.uid, last=False)
                    self.nbytes -= sum([gone.size for gone in dead])
                    return [], dead, True
            room -= item.size
            heads -= len(request.meta)
            if (room < 0 or heads < 0) and batch:
                room += item.size
                items[uid] = item
                items.move_to_end(uid, last=False)
                break
            batch.append(item)
        self.nbytes -= whole - room
        if dead:
            self.nbytes -= sum([gone.size for gone in dead])
        return batch, dead, False

    def take_behind(
        self, first: int, now: float, *, most: int, count: int = 0, done_at: float
    ) -> tuple[list[Item], list[Item]]:
        """A batch of those who stand behind the ``first``, for a worker that will be long about it, and the items that
        are not worth computing any more, all removed from the queue. Nobody is taken who is due before ``done_at``."""
        self.sort(now)
        most = min(most, count) if count else most
        batch: list[Item] = []
        dead: list[Item] = []
        room, heads = self.policy.max_batch_bytes, METAS_MOST
        for item in islice(self.items.values(), first, first + 2 * most + BEHIND):
            request = item.request
            if request.closed or request.deadline <= now or request.hop != item.hop:
                dead.append(item)
            elif item.due > done_at:
                room -= item.size
                heads -= len(request.meta)
                if len(batch) == most or ((room < 0 or heads < 0) and batch):
                    break
                batch.append(item)
        for item in (*batch, *dead):
            self.discard(item.request.uid)
        return batch, dead


def _rank(entry: tuple[int, Item]) -> float:
    return entry[1].request.rank
