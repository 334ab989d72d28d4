"""Replacing the workers of a running deployment without a gap: in which order new ones start and old ones go. Pure.

A :class:`Rollout` is told how its processes stand and says what to do next; it holds no process and no clock. Rules:

* *A version proves itself before anything old goes.* The first new worker of each stage that changes is started beside
  the old ones, stage after stage. When all of these are ready the rollout is *committed*: from then on the new
  configuration is that of the deployment, and what dies is started again as the new one. One that cannot start ends
  the rollout: the new workers are stopped, the old ones have never stopped serving.
* *One after the other.* After that each slot gets its new worker, which is warm before the old one is told to leave,
  and the old one has gone before the next slot's turn comes: so a machine needs room for one worker more of one stage
  (and while a version proves itself, of each), and a stage never has fewer workers than before.
* Slots that the new configuration has not are emptied last.
* Whom the new workers need, the brokers of more cells, is there before the first of them, and goes with them if the
  version does not prove itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from engine.core.processes import Slot

Worker = TypeVar("Worker")


class Standing(Enum):
    """How a process stands, as far as a rollout is concerned."""

    ABSENT = "absent"  # not started, or ended for good
    COMING = "coming"  # starting, or to be started again
    READY = "ready"
    GOING = "going"  # told to stop


class Do(Enum):
    START = "start"
    RETIRE = "retire"


class Mark(Enum):
    """What has been reached."""

    COMMIT = "commit"
    DONE = "done"


@dataclass(frozen=True)
class Step(Generic[Worker]):
    """Start or retire this worker."""

    do: Do
    worker: Worker


class Rollout(Generic[Worker]):
    """See the module. ``old`` and ``new`` map slots to workers; a slot whose worker is in both keeps it."""

    def __init__(
        self, old: Sequence[tuple[Slot, Worker]], new: Sequence[tuple[Slot, Worker]], ahead: Sequence[Worker] = ()
    ) -> None:
        """``new`` in the order in which stages and slots are to be replaced. ``ahead``: whom these need."""
        kept = {worker for _, worker in old} & {worker for _, worker in new}
        self._ahead = tuple(ahead)
        self.fresh = self._ahead + tuple(worker for _, worker in new if worker not in kept)
        self.committed = False
        self._leaving = {slot: worker for slot, worker in old if worker not in kept}
        self._turns = [(slot, worker) for slot, worker in new if worker not in kept]
        wanted = {slot for slot, _ in new}
        self._surplus = [worker for slot, worker in self._leaving.items() if slot not in wanted]
        first: dict[str, Worker] = {}
        for (stage, _), worker in self._turns:
            first.setdefault(stage, worker)
        self._proofs = list(first.values())
        self._finished = False

    def next(self, standing: Callable[[Worker], Standing]) -> list[Step[Worker] | Mark]:
        """What to do now; to be asked again whenever something has changed, until it says DONE."""
        steps: list[Step[Worker] | Mark] = []
        if self._finished:
            return steps
        if not self.committed:
            if any(standing(one) is not Standing.READY for one in self._ahead):
                return [Step(Do.START, one) for one in self._ahead if standing(one) is Standing.ABSENT]
            for worker in self._proofs:
                if (stands := standing(worker)) is not Standing.READY:
                    return [Step(Do.START, worker)] if stands is Standing.ABSENT else []
            self.committed = True
            steps.append(Mark.COMMIT)
        for slot, worker in self._turns:
            stands = standing(worker)
            if stands is Standing.ABSENT:
                return [*steps, Step(Do.START, worker)]
            if stands is not Standing.READY:
                return steps
            former = self._leaving.get(slot)
            if former is not None and (left := standing(former)) is not Standing.ABSENT:
                return steps if left is Standing.GOING else [*steps, Step(Do.RETIRE, former)]
        present = [worker for worker in self._surplus if standing(worker) is not Standing.ABSENT]
        steps += [Step(Do.RETIRE, worker) for worker in present if standing(worker) is not Standing.GOING]
        if not present:
            self._finished = True
            steps.append(Mark.DONE)
        return steps

    def give_up(self, standing: Callable[[Worker], Standing]) -> list[Step[Worker]]:
        """A new worker could not start before the commit: the new ones go."""
        assert not self.committed
        self._finished = True
        alive = (Standing.COMING, Standing.READY)
        return [Step(Do.RETIRE, worker) for worker in self.fresh if standing(worker) in alive]
