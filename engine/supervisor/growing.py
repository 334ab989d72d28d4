"""More brokers where those that there are are full: what they say is brought to the rule, and what it says carried out.

The rule is :mod:`engine.core.growth`; how it is done is :meth:`engine.supervisor.changes.Changes.grow`. Where more are
not for this supervisor to have, the log says who can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from engine.config.endpoints import length, room
from engine.config.schema import CELLS_MOST
from engine.core.growth import Grow, Growth, Room, Stay
from engine.core.processes import Child, Replace
from engine.cpus import left_s
from engine.log import get_logger
from engine.supervisor.changes import Changes, Refused
from engine.supervisor.parts import Parts

SEVERAL: Final = "several brokers carry more ([engine] cells)"

log = get_logger()


class Grower:
    """See the module."""

    def __init__(
        self,
        changes: Changes,
        parts: Parts,
        growth: Growth | None = None,
        left: Callable[[], Sequence[float]] = left_s,
    ) -> None:
        self._changes = changes
        self._parts = parts
        self._growth = growth or Growth()
        self._left = left
        self._is_growing = False

    def hear(self, broker: Child, now: float) -> Replace | None:
        """It is full: what is to be done."""
        changes = self._changes
        self._growth.hear(broker.slot, now)
        if changes.is_changing:
            return None
        match self._growth.look(changes.deployment.cells, self._room(), self._left(), now):
            case Grow(cells):
                try:
                    self._is_growing, found = True, changes.grow(cells)
                except Refused as error:  # a full disk, for instance
                    self.settle(str(error), now)
                    log.error("there is no other broker: %s", error)
                else:
                    return found
            case Stay(why):
                log.warning(
                    "the broker is full: it computes all the time, and more workers or frontends bring nothing; %s", why
                )
        return None

    def settle(self, error: str, now: float) -> None:
        """A change of the deployment is over; ``error``: why it was given up."""
        if self._is_growing and error:
            self._growth.fail(now)
        self._is_growing = False

    def _room(self) -> Room:
        deployment = self._changes.deployment
        engine, stages = deployment.engine, deployment.stages
        workers = {stage.name: stage.num for stage in stages}
        if engine.is_tcp:
            return Room(workers, 1, "those of several hosts carry more ([engine] broker)")
        if not engine.may_grow or self._parts.names:
            return Room(workers, 1, SEVERAL)
        most = CELLS_MOST
        while most > 1 and length(engine.run_dir) > room(len(stages), most):
            most -= 1
        why = (
            "there are as many as there may be"
            if most == CELLS_MOST
            else "the path of its run_dir is too long for more"
        )
        return Room(workers, most, why)
