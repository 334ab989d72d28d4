"""The queue of a stage whose items cost unlike much: a batch is what belongs together. Pure.

A model pads: what a batch takes goes by its longest item times their number. So of the first items that wait, WINDOW
times as many as a batch has at most, one takes the head, which is the first by rank, and beside it those that cost most
nearly as much, the earlier first among equals, as long as the longest times their number is within what a batch may
cost. The head always goes, however much it costs: so nobody starves, and who costs unlike all others waits no longer
than until everybody before it has gone.

All that goes by numbers of items elsewhere goes by *units* of cost here (:mod:`engine.core.costs`), padding included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from math import ceil
from typing import Final

from engine.core.actions import Settle
from engine.core.batching import METAS_MOST, Backlog, BatchQueue, Policy
from engine.core.costs import UNITS, Costs, counted
from engine.core.items import Item
from engine.core.messages import Ready
from engine.core.released import Released

WINDOW: Final = 8  # of these batches; 4 pads more under load, and with 16 to look costs more than it gives
WASTE_SMOOTHING: Final = 0.05  # weight of the newest batch in the running mean of what padding adds
MEAN_SMOOTHING: Final = 0.02  # of the newest item in that of what items cost, at the least
FEW: Final = 16  # items of which the mean says nothing: one large one makes nobody wait who comes after it


class CostQueue(BatchQueue):
    """See the module; otherwise as its base."""

    by_cost = True

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.costs = Costs(policy.max_batch_cost)
        self._units = 0.0  # of all that waits
        self._mean = 0.0  # of an item lately; 0: none has come
        self._seen = 0  # items by which that is known
        self._waste = 1.0  # what a batch costs with padding, in multiples of what its items do
        self._version = 0  # of the costs by which those that wait were judged
        # What _pick has found of those that wait now: units and items that it might have, the batch, its units.
        self._next: tuple[float, int, list[Item], float] | None = None

    # --- who waits ---------------------------------------------------------------------------------------------------

    def push(self, *items: Item) -> None:
        if not self.items:
            self._units = 0.0
        self._judge(items)
        for item in items:
            self._seen += 1
            self._mean += (item.units - self._mean) * max(MEAN_SMOOTHING, 1.0 / self._seen)
        super().push(*items)

    def push_front(self, items: list[Item]) -> None:
        self._judge(items)
        super().push_front(items)

    def discard(self, uid: int) -> Item | None:
        item = super().discard(uid)
        if item is not None:
            self._next = None
            self._units -= item.units
        return item

    def clear(self) -> list[Item]:
        self._next, self._units = None, 0.0
        return super().clear()

    def sort(self, now: float) -> None:
        self._next = None
        super().sort(now)

    def _judge(self, items: Sequence[Item]) -> None:
        self._next = None
        units = self.costs.units
        for item in items:
            item.units = one = units(item)
            self._units += one

    def renew(self) -> None:
        """More is known of what items cost: judge those anew that wait."""
        if self._version != self.costs.version:
            self._version = self.costs.version
            self._units = 0.0
            self._judge(list(self.items.values()))
            if self.items:
                self._mean = self._units / len(self.items)

    # --- what items cost -------------------------------------------------------------------------------------------

    def hear_examples(self, ready: Ready) -> Mapping[int, int]:
        """What a worker's examples cost, as it says; returns how long batches of these took, by units."""
        costs = self.costs
        costs.hear(ready.costs if ready.tells_cost else None)
        self.renew()
        if not ready.tells_cost:  # they are by numbers of values, whose bytes nobody has told
            return {}
        return {costs.whole_units(cost): us for cost, us in ready.times_us.items()}

    def hear(self, batch: Released, settle: Settle) -> None:
        """What items of a batch have cost, as their worker says; else what they were taken to."""
        costs, told = self.costs, settle.costs
        pairs = [
            (item, told.get(place))
            for place, uid in enumerate(settle.uids)
            if (item := batch.items.get(uid)) is not None
        ]
        if told and costs.by_bytes:
            costs.hear({})
        elif not told and not costs.is_known and settle.compute_us:  # its worker does not count
            costs.hear(None)
        costs.learn([(item, cost) for item, cost in pairs if cost is not None])
        self.renew()
        for item, cost in pairs:
            batch.cost += (one := costs.of(item) if cost is None else cost)
            batch.costliest = max(batch.costliest, one)

    # --- how much there is -------------------------------------------------------------------------------------------

    @property
    def each(self) -> float:
        """Units of an item: of those that wait, else of those that came lately, as far as they were not FEW."""
        units = self._units / len(self.items) if self.items else self._mean * min(1.0, self._seen / FEW)
        return min(max(units * self._waste, 1.0 / UNITS), float(UNITS))

    @property
    def amount(self) -> int:
        return max(1, ceil(self._units * self._waste)) if self.items else 0

    @property
    def most(self) -> int:
        most = min(float(UNITS), super().most * self.each)
        head = self.first()
        return counted(most if head is None else max(most, head.units))

    @property
    def top(self) -> int:
        return self.most

    def whole_of(self, count: int) -> int:
        batch, units = self._pick(self._window(), UNITS, count)
        return counted(units) if batch else 0

    def backlog(self, *, dues: bool) -> Backlog:
        found = super().backlog(dues=dues)
        return Backlog(found.count, found.nbytes, found.oldest, found.first_due, self.amount >= self.most)

    # --- the next batch ----------------------------------------------------------------------------------------------

    def take(
        self, now: float, *, most: int = 0, count: int = 0, done_at: float = 0.0
    ) -> tuple[list[Item], list[Item], bool]:
        """As of the base, ``most`` in units (0: UNITS)."""
        items = self.items
        if not self._is_sorted and len(items) > self.policy.max_batch_size and now >= self._sort_at:
            self.sort(now)
            items = self.items
        # Item.is_due, written out: it is asked of every item of a window, most of which stay.
        dead = [
            item
            for item in self._window()
            if (request := item.request).closed or request.deadline <= now or request.hop != item.hop
        ]
        for item in dead:
            self.discard(item.request.uid)
        batch, padded = self._pick(self._window(), most or UNITS, count)
        if done_at and any(item.due <= max(done_at, now) for item in batch):
            return [], dead, True
        units = self._units
        for item in batch:
            self.discard(item.request.uid)
        if len(batch) > 1 and (of_items := units - self._units) > 0.0:
            self._waste += (max(1.0, padded / of_items) - self._waste) * WASTE_SMOOTHING
        return batch, dead, False

    def take_behind(
        self, first: int, now: float, *, most: int, count: int = 0, done_at: float
    ) -> tuple[list[Item], list[Item]]:
        """Here from the head on: who belongs together is in the window there."""
        batch, dead, is_tight = self.take(now, most=most, count=count, done_at=done_at)
        return ([] if is_tight else batch), dead

    def _window(self) -> list[Item]:
        """Whom a batch is chosen from."""
        usual = min(UNITS / self.each, self.policy.max_batch_size)
        return list(islice(self.items.values(), ceil(WINDOW * usual)))

    def _pick(self, window: list[Item], budget: float, count: int) -> tuple[list[Item], float]:
        """The next batch of so many units and of ``count`` items at most (0: as the stage has it), in the order of the
        queue, and its units with padding."""
        most = min(count or self.policy.max_batch_size, self.policy.max_batch_size)
        if self._next is not None:
            units_most, items_most, batch, padded = self._next
            is_as_many = most == items_most or len(batch) < items_most  # else fewer or more may be possible now
            if padded <= budget <= units_most and is_as_many and len(batch) <= most:
                return batch, padded
        if not window:
            return [], 0.0
        head = window[0]
        longest = head.units
        room, heads = self.policy.max_batch_bytes - head.size, METAS_MOST - len(head.request.meta)
        gaps = [abs(item.units - longest) for item in window]
        chosen = [0]
        for place in sorted(range(1, len(window)), key=gaps.__getitem__):
            if len(chosen) == most:
                break
            item = window[place]
            units = max(item.units, longest)
            if units * (len(chosen) + 1) > budget:
                if units == longest:  # one more of any length is too much
                    break
                continue
            if item.size > room or len(item.request.meta) > heads:
                continue
            room -= item.size
            heads -= len(item.request.meta)
            longest = units
            chosen.append(place)
        chosen.sort()
        batch = [window[place] for place in chosen]
        padded = longest * len(batch)
        self._next = (budget, most, batch, padded)
        return batch, padded


def queue_for(policy: Policy) -> BatchQueue:
    """The queue of a stage that batches so."""
    return CostQueue(policy) if policy.max_batch_cost else BatchQueue(policy)


def requeued(queue: BatchQueue, policy: Policy) -> BatchQueue:
    """What waits, to be batched so from now on."""
    if isinstance(queue, CostQueue) and policy.max_batch_cost:
        queue.costs.change(policy.max_batch_cost)
        queue.policy = policy
        queue.renew()
        return queue
    if not queue.by_cost and not policy.max_batch_cost:
        queue.policy = policy
        return queue
    other = queue_for(policy)
    items = queue.clear()
    for item in items:
        item.units = 1.0
    other.push(*items)
    return other


def padded_units(items: Sequence[Item]) -> int:
    """What a batch of these costs as Times counts it: the longest times their number."""
    return counted(max([item.units for item in items]) * len(items))
