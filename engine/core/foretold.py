"""Is the door right about when a request will be done? Of some of those that it lets in while it foresees their time it
keeps what it foresaw, and compares when they are answered. Pure.

Only while somebody has to wait is anything foreseen (:meth:`engine.core.admission.Admission.done_at`), so nothing is
done here at other times. Who was to be in time and is refused at a stage, or whose time passes, counts as foreseen
wrongly; whose client leaves, not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable
from typing import Final

from engine.core.trace import KEPT, is_near

EVERY: Final = 8  # of those that are let in with a prediction, one is looked at
MOST: Final = 1024  # that are looked at together


class Foretold:
    """See the module. Not thread-safe. Counters are since the start, ``recent`` are the last KEPT comparisons."""

    __slots__ = ("compared", "near", "recent", "waiting")

    def __init__(self) -> None:
        # By uid: when it was let in, and in how long it is to be done.
        self.waiting: dict[int, tuple[float, float]] = {}
        self.compared = 0
        self.near = 0  # of these: within NEAR of what it took
        self.recent: deque[tuple[float, float]] = deque(maxlen=KEPT)  # seconds foreseen and taken; 0: it was not done

    def note(self, uid: int, needs_s: float, now: float) -> None:
        """A request is let in, and is to be done in so long: those whose uid is a multiple of EVERY are kept."""
        if not uid % EVERY and len(self.waiting) < MOST:
            self.waiting[uid] = now, needs_s

    def came(self, uids: Iterable[int], open_ones: Container[int], now: float) -> None:
        """Results of these have come; answered are those that are not open any more."""
        for uid in uids:
            if uid in self.waiting and uid not in open_ones:
                let_in, needs_s = self.waiting.pop(uid)
                self._compare(needs_s, max(now - let_in, 1e-9))

    def missed(self, uid: int) -> None:
        """It was not done in its time."""
        known = self.waiting.pop(uid, None)
        if known is not None:
            self._compare(known[1], 0.0)

    def _compare(self, needs_s: float, took_s: float) -> None:
        self.compared += 1
        self.near += took_s > 0.0 and is_near(needs_s, took_s)
        self.recent.append((needs_s, took_s))
