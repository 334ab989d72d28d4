"""Whether the thread that fetches beside ``forward`` is a help: found out by trying, again and again. Pure.

While a device or C code computes, the interpreter is free, and the next batch is fetched and decoded in time that no
one else needs. A ``forward`` that launches many short operations gives the interpreter away at each and has to win it
back: there whatever is done beside it is done at its cost, and each hand-over comes on top. Which of the two it is, no
property of the code tells, and machines differ. So a few batches are done in the one way and as many in the other, and
the quicker one is kept for a while; longer, the more often it has won.

What is compared is the time from one batch to the next while they follow each other without a pause: all that a batch
costs, wherever. Only batches of about one size are compared.
"""

from __future__ import annotations

from statistics import median
from typing import Final

TRIED: Final = 9  # batches by which a way is judged: their median
STAY_LEAST: Final = 100  # batches until the other way is tried again
STAY_MOST: Final = 3200  # with every confirmation twice as many, up to these
GAIN: Final = 0.99  # with help a batch must take less than so much of what it takes without


class Help:
    """Made and used by the main thread."""

    def __init__(self) -> None:
        self.wanted = True
        self._held = 0  # batches for which the present way is kept; 0: it is being measured
        self._stay = STAY_LEAST
        self._size = 0  # of the batches that are compared
        self._odd = 0  # batches of other sizes since the last one of that
        self._took: dict[bool, list[float]] = {True: [], False: []}  # by way
        self._skip = 1  # batches that begin while ways change

    def note(self, took_s: float, size: int) -> None:
        """A batch of so many items, from its beginning to that of the next one, which was waiting."""
        if self._held:
            self._held -= 1
            if not self._held:
                self._took = {True: [], False: []}
            return
        if self._skip:
            self._skip -= 1
            return
        if abs(size - self._size) * 8 > self._size:
            self._odd += 1
            if self._size and self._odd < TRIED:
                return
            self._size, self._took = size, {True: [], False: []}
        self._odd = 0
        took = self._took[self.wanted]
        took.append(took_s)
        if len(took) == TRIED:
            if len(self._took[not self.wanted]) == TRIED:
                self._decide()
            else:
                self._turn(not self.wanted)

    def _decide(self) -> None:
        """Both have been tried, the one that was not in use last."""
        former = not self.wanted
        better = median(self._took[True]) < GAIN * median(self._took[False])
        self._stay = min(2 * self._stay, STAY_MOST) if better is former else STAY_LEAST
        self._held = self._stay
        self._turn(better)

    def _turn(self, wanted: bool) -> None:
        if wanted is not self.wanted:
            self.wanted, self._skip = wanted, 1
