"""Whether a process in which ``forward`` was interrupted may compute on: pure, outcomes in, a step out.

An interrupt tears user code at any line: a module half imported, a lock that is held for ever, a cache half filled. So
the worker shows itself with its example before it takes the next batch, under the same time limit, and is replaced when
that fails.

A stage without an example has nothing to show, and may take minutes to load: to replace its worker for every slow
request would let one client take the stage from all others. There the next batch is the proof. One that succeeds, be it
for a single item, clears the worker. One in which nothing succeeds and ``forward`` breaks is not believed: others
compute it, and the worker is replaced; so no client is told what may be the fault of the process. And who is
interrupted three times without a success between them - a lock, most likely - is replaced too.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from stages.compute import INTERNAL, OK, Outcome

INTERRUPTS_MAX: Final = 3  # in a row, for a worker without an example


class Step(Enum):
    GO_ON = "go on"
    SHOW = "show"  # compute the example before the next batch
    LEAVE = "leave"  # once these outcomes are sent
    DISOWN = "disown"  # at once: the outcomes are not to be believed


class Trust:
    """One worker's standing. ``doubted``: it was interrupted, and has not succeeded since."""

    def __init__(self, *, has_example: bool) -> None:
        self._has_example = has_example
        self._interrupts = 0

    @property
    def doubted(self) -> bool:
        return self._interrupts > 0

    def after(self, outcomes: Sequence[Outcome], *, interrupted: bool) -> Step:
        """A batch has ended with these outcomes. To be asked where it was interrupted, or the worker is doubted."""
        if self._has_example:
            return Step.SHOW if interrupted else Step.GO_ON
        if any(outcome.status == OK for outcome in outcomes):
            self._interrupts = 0
        elif self.doubted and any(outcome is INTERNAL for outcome in outcomes):
            return Step.DISOWN
        if not interrupted:
            return Step.GO_ON
        self._interrupts += 1
        return Step.LEAVE if self._interrupts >= INTERRUPTS_MAX else Step.GO_ON
