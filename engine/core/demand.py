"""How many workers a stage needs, as one figure that scalers of all kinds go by; and the rule by which they do. Pure.

*Demand* is what comes, and what waits, in workers. What comes keeps so many busy as it takes to compute it in whole
batches; whoever counted how many *are* busy would count up workers that share small batches, each new one making them
smaller, without end. What waits asks for as many more as would have it done within the time that its requests are
given. Both are means over WINDOW_S, made of sums that only grow: a look that comes late blurs them and is not wrong.

*Scale* is what to make of it: a fifth of each worker is kept free, more come after UP_S in which the figure asked for
them all the time, fewer after DOWN_S in which it never asked for more. That is what Kubernetes calls stabilisation, so
the same numbers stand in what ``engine render kubernetes`` writes. Only where there is no worker at all the first comes
at once: who asks waits for it. For several stages of one deployment: :mod:`engine.core.scaling`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

WINDOW_S: Final = 30.0
UTILISATION: Final = 0.8  # of each worker; what is left is for bursts and for whoever is being replaced
UP_S: Final = 30.0
DOWN_S: Final = 600.0  # models load for long, and load comes back
TARGET_LEAST_S: Final = 1.0  # a tighter goal would make a few who wait, as some always do, count for many


@dataclass(frozen=True)
class Windows:
    """For how long a figure has to hold, in seconds; tests have shorter ones."""

    up_s: float = UP_S
    down_s: float = DOWN_S


USUAL: Final = Windows()


class Demand:
    """Of one stage. Seconds."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int, float]] = deque()  # when; items that had arrived, seconds they had waited
        self._waiting = 0

    def look(self, now: float, arrived: int, waiting: int) -> None:
        """To be told about once a second: how many items have arrived so far, and how many wait."""
        looks = self._looks
        waited_s = 0.0
        if looks:
            before, _, waited_s = looks[-1]
            waited_s += (self._waiting + waiting) / 2 * (now - before)
        self._waiting = waiting
        looks.append((now, arrived, waited_s))
        while len(looks) > 2 and looks[1][0] <= now - WINDOW_S:
            looks.popleft()

    def workers(self, item_s: float, target_s: float) -> float:
        """How many are needed where one takes ``item_s`` for an item (0: nobody knows) and requests are given
        ``target_s``."""
        if len(self._looks) < 2:
            return 0.0
        began, arrived_then, waited_then = self._looks[0]
        ended, arrived, waited_s = self._looks[-1]
        past = ended - began
        if past <= 0.0:
            return 0.0
        came, waits = arrived - arrived_then, (waited_s - waited_then) / past
        if item_s <= 0.0:
            return UTILISATION if came or waits else 0.0  # one worker, to find out
        return (came / past + waits / max(target_s, TARGET_LEAST_S)) * item_s


class Scale:
    """How many workers of a stage to run, from ``least`` to ``most``, by its demand as time goes on."""

    def __init__(
        self, workers: int, *, least: int, most: int, now: float, fewest: int = 1, windows: Windows = USUAL
    ) -> None:
        """``workers`` there are now. ``fewest``: where there are any, there are so many, one for each broker."""
        self.workers = workers
        self._least, self._most, self._fewest = least, most, fewest
        self._windows = windows
        self._wants: deque[tuple[float, int]] = deque([(now, workers)])

    def look(self, demand: float, now: float, *, asked: bool = False) -> int:
        """How many there are to be from now on; to be asked every few seconds. ``asked``: somebody waits for a worker,
        whatever the figure, which may be a second old."""
        want = min(max(ceil(demand / UTILISATION), self._least, int(asked)), self._most)
        if want:
            want = max(want, self._fewest)
        wants = self._wants
        wants.append((now, want))
        while len(wants) > 2 and wants[1][0] <= now - self._windows.down_s:
            wants.popleft()
        up, down = min(self._since(now - self._windows.up_s)), max(self._since(now - self._windows.down_s))
        if want and not self.workers:
            self.workers = max(self._fewest, self._least)
        else:
            self.workers = up if up > self.workers else min(down, self.workers)
        return self.workers

    def _since(self, instant: float) -> Iterator[int]:
        """What was wanted from then on, and what was just then."""
        for at, want in reversed(self._wants):
            yield want
            if at <= instant:
                return
