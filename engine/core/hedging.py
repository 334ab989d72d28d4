"""When a batch is taken for stuck, what may be computed a second time, and in what parts it is tried again.

A worker that was stopped, swaps, or hangs in user code looks like one that takes long: nobody can tell but by waiting.
So nothing here ends anything. A batch that takes several times what batches of its stage take is *suspect*: what waits
behind it goes to others at once, and its own items may be computed a second time elsewhere; whichever copy is done
first is the answer, and the other is dropped by its hop (:mod:`engine.core.items`).

Three bounds keep that from doing harm where the suspicion is wrong, because some requests simply take long:

* the *pace* is learnt with its spread, and what was suspected without cause widens it;
* second computations come out of a *budget*, a twentieth of what the stage computes;
* an item that makes workers hang gets no more than half of them (:func:`may_hedge`): the others serve everybody else.

What is tried again is tried in *parts* (:func:`part_size`): small enough that the guilty item stands alone on its last
try, large enough that its innocent neighbours still share batches. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from math import ceil, inf
from typing import Final

from engine.core.items import Item

TIMES: Final = 3.0  # what batches usually take, after which one is suspect
SPREADS: Final = 4.0  # of their mean deviation on top, as TCP has for its acknowledgements (RFC 6298)
SMOOTHING: Final = 0.125  # weight of the newest batch (likewise)

# Whatever the pace, a batch is not suspect earlier: a starved machine keeps a process waiting that long now and then.
PATIENCE_LEAST_S: Final = 0.25

# Batches that take less say nothing while patience is at its least: it would stay there.
BRIEF_S: Final = PATIENCE_LEAST_S / (TIMES + SPREADS) / 4

SHARE: Final = 0.05  # second computations for each first one, in items
SAVED_BATCHES: Final = 4  # how many full batches may be hedged at once after a quiet while


class Pace:
    """How long batches of a stage take, and from when on one is suspect. Seconds."""

    __slots__ = ("_deviation", "_mean", "patience_s")

    def __init__(self) -> None:
        self._mean = 0.0
        self._deviation = 0.0
        self.patience_s = inf  # a stage of which nothing is known is given its time limit

    def learn(self, took_s: float) -> None:
        """A batch was done. One that took very long counts as no more than twice the patience: it may have been a
        worker that was stopped for an hour."""
        if self.patience_s == inf:
            self._mean, self._deviation = took_s, took_s / 2
        else:
            took_s = min(took_s, 2 * self.patience_s)
            self._deviation += (abs(took_s - self._mean) - self._deviation) * SMOOTHING
            self._mean += (took_s - self._mean) * SMOOTHING
        self.patience_s = max(PATIENCE_LEAST_S, TIMES * self._mean + SPREADS * self._deviation)


class Budget:
    """How many items may be computed a second time: some from the start, then SHARE of what is done. ``done``: items
    that were, to be counted up."""

    __slots__ = ("_counted", "_left", "_most", "done")

    def __init__(self, max_batch_size: int) -> None:
        self.done = self._counted = 0
        self._most = float(SAVED_BATCHES * max_batch_size)
        self._left = self._most

    def spend(self, items: int) -> bool:
        """Whether there was enough; then it is spent."""
        self._left = min(self._most, self._left + SHARE * (self.done - self._counted))
        self._counted = self.done
        if items > self._left:
            return False
        self._left -= items
        return True


def may_hedge(*, stuck: int, able: int) -> bool:
    """Whether one more worker may be given what another is suspected with. ``stuck``: workers that are suspect or late,
    that one included; ``able``: those that could take a batch."""
    return 0 < able >= stuck


def part_size(items: int, tries: int) -> int:
    """How many items are tried together when ``items`` that failed together are tried again, at most ``tries`` times
    in all, the last of them one by one: all parts shrink by the same factor."""
    size: float = items ** (1 - 1 / tries)
    return ceil(size)


class Apart:
    """Items that wait to be tried again in parts of their own, each a batch. Not thread-safe, no clock.

    An item stands here at most once.
    """

    def __init__(self) -> None:
        self.parts: OrderedDict[int, list[Item]] = OrderedDict()  # in order; to be looked at, not to be changed
        self._where: dict[int, int] = {}  # uid -> part
        self._number = 0

    def __len__(self) -> int:
        """Items."""
        return len(self._where)

    def push(self, items: Iterable[Item]) -> None:
        """One more part, behind the others."""
        part = list(items)
        self._number += 1
        self.parts[self._number] = part
        for item in part:
            self._where[item.request.uid] = self._number

    def pop(self) -> list[Item]:
        """The first part. KeyError when there is none."""
        _, part = self.parts.popitem(last=False)
        for item in part:
            del self._where[item.request.uid]
        return part

    def discard(self, uid: int) -> Item | None:
        """Remove an item; None when it is not here."""
        number = self._where.pop(uid, None)
        if number is None:
            return None
        part = self.parts[number]
        found = next(item for item in part if item.request.uid == uid)
        part.remove(found)
        if not part:
            del self.parts[number]
        return found

    def clear(self) -> list[Item]:
        """All items, in order, removed."""
        items = [item for part in self.parts.values() for item in part]
        self.parts.clear()
        self._where.clear()
        return items
