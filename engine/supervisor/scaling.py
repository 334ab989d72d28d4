"""Numbers of workers that follow the demand: what the brokers tell is brought to the rule, and what it says to the
deployment.

The rule is :mod:`engine.core.scaling`; how a number changes is :meth:`engine.supervisor.changes.Changes.resize`, and
:class:`engine.core.lifecycle.Machine` starts and ends the workers. Holds for the supervisor of a whole deployment alone
(:meth:`engine.supervisor.parts.Parts.scaled`): of a fleet nobody here knows all the workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from engine.core.demand import USUAL, Windows
from engine.core.lifecycle import Machine
from engine.core.processes import Child, Resize
from engine.core.scaling import Change, Scaling
from engine.log import get_logger
from engine.supervisor.changes import Changes, Refused

FRESH_S: Final = 5.0  # a figure that is older is not gone by; brokers tell theirs every half second
AGAIN_S: Final = 10.0  # after a change that could not be written down

log = get_logger()


class Scaler:
    """See the module."""

    def __init__(self, changes: Changes, machine: Machine, windows: Windows = USUAL) -> None:
        self._changes = changes
        self._machine = machine
        self._scaling = Scaling(windows)
        self._told: dict[Child, tuple[Mapping[str, float], float]] = {}  # figures of each broker, and since when
        self._not_before = 0.0

    def hear(self, broker: Child, figures: Mapping[str, float], now: float) -> None:
        """How many workers its stages need, as a broker has it."""
        self._told[broker] = figures, now

    def forget(self, broker: Child) -> None:
        """It has died: what it had told is not true of its successor."""
        self._told.pop(broker, None)

    def look(self, brokers: Iterable[Child], asked: Collection[str], now: float) -> Resize | None:
        """What is to be done now. ``brokers``: all of them that run; ``asked``: the stages at which requests wait."""
        bounds = self._changes.bounds
        if not bounds or now < self._not_before:
            return None
        told = [figures for broker in brokers if (figures := self._fresh(broker, now)) is not None]
        deployment = self._changes.deployment
        if len(told) < deployment.cells:
            return None
        demand = {stage: sum(figures.get(stage, 0.0) for figures in told) for stage in bounds}
        present = {stage.name: stage.num for stage in deployment.stages}
        routes = [route.stages for route in deployment.routes]
        changes = self._scaling.look(present, bounds, demand, now, asked=asked, routes=routes)
        return self._carried_out([one for one in changes if self._machine.takes(fewer=one.after < one.before)], now)

    def settle(self) -> None:
        """Somebody else has changed the deployment."""
        self._scaling.take({stage.name: stage.num for stage in self._changes.deployment.stages})

    def _fresh(self, broker: Child, now: float) -> Mapping[str, float] | None:
        figures, at = self._told.get(broker, ({}, -FRESH_S))
        return figures if now - at < FRESH_S else None

    def _carried_out(self, changes: list[Change], now: float) -> Resize | None:
        if not changes:
            return None
        try:
            return self._changes.resize({one.stage: one.after for one in changes}, "; ".join(map(str, changes)))
        except Refused as error:  # a full disk, a device that is gone: it may pass
            log.error("not scaled: %s", error)
            self._not_before = now + AGAIN_S
            return None
