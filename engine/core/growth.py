"""When a deployment has more brokers than it began with: where those that it has are full, and more can help. Pure.

One interpreter carries some 100,000 small requests a second; on a machine with CPUs to spare a second one carries as
many again (:mod:`engine.core.cells`). But a queue of its own for each costs batching, and workers that change their
broker begin anew. So there is one until it is known to be full, and then twice as many, as long as each of them

* has a worker of every stage, and
* finds a CPU that nobody uses: where the CPUs are what is full, more brokers would only share them.

There are never fewer again: what has come once will come again, and every change costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, TypeAlias

from engine.core.fullness import AGAIN_S

FRESH_S: Final = 3.0  # a broker that is full says so every second
WATCH_S: Final = 5.0  # for so long all are full, and it is seen what the CPUs do, before anything is done
SETTLE_S: Final = 30.0  # from one change, or a try, to the next


@dataclass(frozen=True)
class Room:
    """What there is for more cells. ``workers`` of each stage; ``most``: cells that there may be here, and ``why`` no
    more, in words."""

    workers: Mapping[str, int]
    most: int
    why: str


@dataclass(frozen=True)
class Grow:
    """Have so many cells."""

    cells: int


@dataclass(frozen=True)
class Stay:
    """Nothing can be done about it, and nobody knows yet that it is so. ``why``: in words."""

    why: str


Verdict: TypeAlias = Grow | Stay


class Growth:
    """Of one deployment. Brokers are told apart by their cell, from 0."""

    def __init__(self, watch_s: float = WATCH_S) -> None:
        self._watch_s = watch_s
        self._heard: dict[int, float] = {}  # when each of them last said that it is full
        self._since = inf  # all of them have been
        self._left_s: Sequence[float] = ()  # of CPU time, then
        self._not_before = -inf
        self._said = ""
        self._said_at = -inf

    def hear(self, cell: int, now: float) -> None:
        """It is full."""
        if now - self._heard.get(cell, -inf) >= FRESH_S:
            self._since = inf  # meanwhile it was not
        self._heard[cell] = now

    def look(self, cells: int, room: Room, left_s: Sequence[float], now: float) -> Verdict | None:
        """What is to be done now that one of so many ``cells`` was heard; None: nothing yet, or again. ``left_s``: CPU
        time that nobody has used so far, of which the least counts; nothing: that cannot be seen."""
        if not all(now - self._heard.get(cell, -inf) < FRESH_S for cell in range(cells)):
            return None
        if self._since == inf:
            self._since, self._left_s = now, left_s
        watched_s = now - self._since
        if watched_s < self._watch_s or now < self._not_before:
            return None
        self._since = inf  # and what follows is watched anew
        scarce = min(room.workers, key=lambda stage: room.workers[stage])
        if room.most <= cells:
            return self._stay(room.why, now)
        if room.workers[scarce] <= cells:
            return self._stay(f"another needs a worker of every stage, and {scarce} has no more than there are", now)
        left = [later - former for later, former in zip(left_s, self._left_s, strict=False)]
        if not left:
            return self._stay("whether there is a CPU for another cannot be seen here", now)
        free = int(min(left) / watched_s)  # CPUs, of which each broker that comes takes one
        if free < 1:
            return self._stay("there is no CPU left for another", now)
        self._not_before = now + SETTLE_S
        return Grow(min(2 * cells, cells + free, room.most, room.workers[scarce]))

    def fail(self, now: float) -> None:
        """What was begun could not be done, as where a device has no room for another worker beside those it has."""
        self._not_before = now + AGAIN_S

    def _stay(self, why: str, now: float) -> Stay | None:
        """Said once, and again when it is for another reason, or has been so for long."""
        if why == self._said and now - self._said_at < AGAIN_S:
            return None
        self._said, self._said_at = why, now
        return Stay(why)
