"""When answers are wanted: the goal of each route, and what a request asks for itself. Pure; one at the door.

A goal (``slo``) says within what time answers are worth having. Where a request has one, every rule of scheduling goes
by the instant at which that ends (``Request.due``): in which order requests come, who is left out, who is refused at
the door. Its deadline stays what it is, the time after which nobody waits any more.

A goal below what one request takes that is served alone, with a little room, is out of reach: to hold on to it would be
to refuse everybody. Such a goal counts for nothing until it is within reach again, which whoever looks is told
(:attr:`Goals.unmet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.core.routing import Topology

ROOM: Final = 1.2  # of what one request takes alone, in a goal that is within reach
ROOM_AGAIN: Final = 1.3  # in one that has been out of reach


class Goals:
    """See the module. ``slos_s``: of each route, in seconds; 0 or left out: none."""

    def __init__(self, topology: Topology, slos_s: Sequence[float] = ()) -> None:
        self._routes = [route.stages for route in topology.routes]
        self._topology = topology
        self._alone_s = [0.0] * len(topology.stages)
        self.least_s = [0.0] * len(self._routes)  # what one request takes alone, by route; 0: nothing is known yet
        # By route and stage: the same from there on (:meth:`engine.core.routing.Topology.least_from`).
        self.rest_s = [topology.least_from(route, self._alone_s) for route in range(len(self._routes))]
        self.change(slos_s)

    def change(self, slos_s: Sequence[float]) -> None:
        """Others from now on."""
        self.slos_s = [*slos_s, *[0.0] * (len(self._routes) - len(slos_s))]
        self.is_set = any(self.slos_s)
        self.unmet = [False] * len(self._routes)
        self._judge()

    def hear(self, stage: int, alone_s: float) -> bool:
        """One request alone takes so long at a stage; 0: unknown. Whether :attr:`unmet` has changed."""
        self._alone_s[stage] = alone_s
        for route, stages in enumerate(self._routes):
            if stage in stages:
                self.rest_s[route] = self._topology.least_from(route, self._alone_s)
                self.least_s[route] = self.rest_s[route][stages[0]]
        before = self.unmet
        self._judge()
        return self.unmet != before

    def due(self, route: int, slo_s: float, now: float, deadline: float) -> float:
        """When the answer is wanted to a request that comes now: by its own goal (0: it has none), or its route's."""
        if slo_s:
            if slo_s < ROOM * self.least_s[route]:
                return deadline
        elif self.unmet[route]:
            return deadline
        else:
            slo_s = self.slos_s[route]
        return min(now + slo_s, deadline) if slo_s else deadline

    def _judge(self) -> None:
        self.unmet = [
            0.0 < slo_s < least_s * (ROOM_AGAIN if was_unmet else ROOM)
            for slo_s, least_s, was_unmet in zip(self.slos_s, self.least_s, self.unmet, strict=True)
        ]
