"""When a stage is not fed any more because whatever it is given fails, and when it is tried again. Pure.

    closed     all is well, or what is not has a name: one item, one worker
    open       nothing is given to the stage, and requests for it are refused at once; until ``retry_at``
    trial      one batch has been given to it, to see

It opens in two cases:

* *Workers die of more than a few items.* The deaths in a row, without a batch done between them, cannot be laid to
  NAMES_MOST items; and workers that came after the first of them have died as well, so that it was not one blow to all
  of them. Single items are found and told in other ways, and while they explain it the breaker waits for that.
* *Nothing has ever been right.* None of the workers there are has computed one item successfully, and many have failed:
  a new version that does not work. Where something has succeeded before, failures may as well be the requests': those
  are answered one by one, for one client's bad requests must not cost others the service.

Deaths that are known to come from outside are not told to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from math import inf
from typing import Final

NAMES_MOST: Final = 3  # items that may kill workers at a time before it is the stage
OF_NEW_ONES: Final = 2  # deaths of workers that came after the first one
DEATHS_MOST: Final = 64  # that are remembered
FAILURES_LEAST: Final = 32  # items, before a stage that never did anything right is not fed
FAILING_LEAST_S: Final = 1.0  # and for so long

BACK_OFF_S: Final = 1.0  # before the first trial; doubled for each that fails
BACK_OFF_MOST_S: Final = 15.0


class BreakerState(str, Enum):
    CLOSED = "closed"
    OPEN = "open"
    TRIAL = "trial"


# Under names of their own, for it is asked with every batch (engine.core.worker_states).
CLOSED: Final = BreakerState.CLOSED
OPEN: Final = BreakerState.OPEN
TRIAL: Final = BreakerState.TRIAL


class Breaker:
    """See the module. A method that may open or close it says by True that it has."""

    def __init__(self) -> None:
        self.state = CLOSED
        self.reason = ""  # why it is open; of the last time while it is closed
        self.retry_at = -inf
        self.trips = 0  # how often it has opened, trials that failed not counted
        self._back_off_s = BACK_OFF_S
        self._forget()

    def _forget(self) -> None:
        self._deaths: list[frozenset[int]] = []  # what each of the dead had
        self._of_new = 0
        self._newest = 0  # key of the newest worker at the first death
        self._failures = 0
        self._failing_since = 0.0

    # --- what becomes of batches -------------------------------------------------------------------------------------

    def succeeded(self) -> bool:
        """A batch was computed, some of it rightly."""
        if self._deaths or self._failures:
            self._forget()
        if self.state is CLOSED:
            return False
        self.state = CLOSED
        self._back_off_s = BACK_OFF_S
        return True

    def failed(self, items: int, now: float, *, is_proven: bool) -> bool:
        """All of a batch failed. ``is_proven``: some worker of the stage has been right once."""
        if self.state is TRIAL:
            return self._reopen(now)
        if is_proven or self.state is OPEN:
            self._failures = 0
            return False
        if not self._failures:
            self._failing_since = now
        self._failures += items
        if self._failures < FAILURES_LEAST or now - self._failing_since < FAILING_LEAST_S:
            return False
        return self._open(f"all of {self._failures} requests failed, and none has ever succeeded", now)

    def died(self, worker: int, newest: int, uids: Iterable[int], now: float, how: str = "") -> bool:
        """Worker ``worker`` died with these items; ``newest`` is the highest key given out yet. ``how``: in words."""
        if self.state is TRIAL:
            return self._reopen(now)
        if self.state is OPEN:
            return False
        if not self._deaths:
            self._newest = newest
        self._deaths.append(frozenset(uids))
        del self._deaths[:-DEATHS_MOST]
        self._of_new += worker > self._newest
        if self._of_new < OF_NEW_ONES or can_explain(self._deaths, NAMES_MOST):
            return False
        ways = f", the last of them {how}" if how else ""
        return self._open(f"{len(self._deaths)} workers died one after the other under different requests{ways}", now)

    def unclear(self, now: float) -> None:
        """What became of the trial says nothing of the stage: its worker was killed from outside, or nobody waited for
        the items. It is tried again at once."""
        if self.state is TRIAL:
            self.state = OPEN
            self.retry_at = now

    # --- feeding -----------------------------------------------------------------------------------------------------

    def feeds(self, now: float) -> bool:
        """Whether the stage may be given a batch; while it is tried, no other one."""
        return self.state is CLOSED or (self.state is OPEN and now >= self.retry_at)

    def refuses(self, now: float) -> bool:
        """Whether what comes for the stage is refused at once."""
        return self.state is OPEN and now < self.retry_at

    def feed(self) -> None:
        """A batch is given to the stage."""
        if self.state is OPEN:
            self.state = TRIAL

    def _open(self, reason: str, now: float) -> bool:
        self.reason = reason
        self.trips += 1
        self.state = OPEN
        self.retry_at = now + self._back_off_s
        self._forget()
        return True

    def _reopen(self, now: float) -> bool:
        self._back_off_s = min(2 * self._back_off_s, BACK_OFF_MOST_S)
        self.state = OPEN
        self.retry_at = now + self._back_off_s
        return True


def can_explain(deaths: Sequence[frozenset[int]], names: int) -> bool:
    """Whether so many items would explain all deaths: each of the dead had one of them. Found greedily, the item that
    most of them had first: with so few items that errs, if at all, by taking one too many."""
    left = list(deaths)
    for _ in range(names):
        if not left:
            return True
        ((item, _),) = Counter(uid for uids in left for uid in uids).most_common(1)
        left = [uids for uids in left if item not in uids]
    return not left
