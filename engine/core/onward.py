"""Where the results of a stage go, lately, and how long their requests need from there on. Pure.

On a chain there is one answer, and this is no more than what the next stage says. Where a route branches, or the stage
ends requests early or sends them past others, nobody knows of a request which way it will take; what is needed on its
way is then expected to be what it was for those before it. Of this two depend: what is taken off a deadline here for
the stages to come, and how much of what waits here the door expects to come to the stage after (:attr:`Onward.goes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.core.routing import FINAL, Fork, Topology

REMEMBERED: Final = 2000.0  # results by which it goes; older ones count less and less
TOLD_ANEW: Final = 0.05  # of what was told last
LOOK_EVERY: Final = 64  # results, where they go different ways: a look costs as much as a few of them


class Onward:
    """See the module. ``later_s``: by route, what is still needed after this stage."""

    __slots__ = (
        "_by_file",
        "_following",
        "_needs_s",
        "_noted",
        "_stage",
        "_targets",
        "_topology",
        "_went",
        "goes",
        "is_open",
        "later_s",
    )

    def __init__(self, stage: int, topology: Topology) -> None:
        self._stage = stage
        self._topology = topology
        routes = [number for number, route in enumerate(topology.routes) if stage in route.stages]
        # By route: what comes next by the file, and where else something may go.
        self._following = {route: topology.following(route, stage) for route in routes}
        self._by_file = frozenset(one for following in self._following.values() for one in following)
        self._targets = {route: {*topology.later(route, stage), *self._following[route]} for route in routes}
        for route in routes:
            if is_inner(topology, stage):
                self._targets[route].add(FINAL)
        self._needs_s: dict[int, float] = {FINAL: 0.0}
        self._went: dict[int, float] = {}
        self._noted = 0
        self.is_open = any(isinstance(topology.after(route, stage), Fork) for route in routes)
        self.goes: Mapping[int, float] = {}  # what part goes to which; empty: always the same
        self.later_s = [0.0] * len(topology.routes)

    def note(self, target: int, count: int, needs_s: float) -> bool:
        """So many have gone to ``target``, where they still need so much. Whether :attr:`later_s` has changed."""
        told = self._needs_s.get(target, -1.0)
        is_new = abs(needs_s - told) > TOLD_ANEW * needs_s
        if is_new:
            self._needs_s[target] = needs_s
        if not self.is_open:
            if target in self._by_file:
                if is_new:
                    self._learn()
                return is_new
            self.is_open = True
        went = self._went
        went[target] = went.get(target, 0.0) + count
        self._noted += count
        if self._noted < LOOK_EVERY and not is_new:
            return False
        self._noted = 0
        total = sum(went.values())
        if total > REMEMBERED:
            self._went = went = {one: weight * REMEMBERED / total / 2 for one, weight in went.items()}
            total = sum(went.values())
        self.goes = {one: weight / total for one, weight in went.items()}
        self._learn()
        return True

    def _learn(self) -> None:
        """Of who has not been heard yet nothing is needed."""
        needs_s = self._needs_s
        for route, following in self._following.items():
            if not self.is_open:
                self.later_s[route] = max(needs_s.get(following[0], 0.0), 0.0)
                continue
            weights = {one: self._went.get(one, 0.0) for one in self._targets[route]}
            if total := sum(weights.values()):
                self.later_s[route] = sum([weight * needs_s.get(one, 0.0) for one, weight in weights.items()]) / total


def is_inner(topology: Topology, stage: int) -> bool:
    """Whether no route simply ends with this stage: what comes from it as an answer has left its route early."""
    return all(
        topology.after(route, stage) != FINAL for route, one in enumerate(topology.routes) if stage in one.stages
    )
