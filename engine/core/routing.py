"""Which stage comes next. Frontends, broker and workers derive the same table from the same file.

Stages and routes travel as small integers: their positions in the broker's file. Whoever joins tells its own table by
name, and is told the broker's (:mod:`engine.core.introduction`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

FINAL: Final = -1  # in place of a stage: the route ends here, and results go to the egress


@dataclass(frozen=True)
class Route:
    path: str
    stages: tuple[int, ...]  # positions of the stages that serve it, in order; none twice


@dataclass(frozen=True)
class Topology:
    stages: tuple[str, ...]  # names
    routes: tuple[Route, ...]

    @staticmethod
    def of(stages: Sequence[str], routes: Sequence[tuple[str, Sequence[int]]]) -> Topology:
        """From a table as it travels. Raises ValueError for a route through a stage that is not there, or none."""
        for path, numbers in routes:
            if not numbers or not all(0 <= number < len(stages) for number in numbers):
                raise ValueError(f"route {path} through stages {list(numbers)} of {len(stages)}")
        return Topology(tuple(stages), tuple(Route(path, tuple(numbers)) for path, numbers in routes))

    def by_name(self) -> dict[str, list[str]]:
        """Path -> names of the stages that serve it, in order."""
        return {route.path: [self.stages[stage] for stage in route.stages] for route in self.routes}

    @cached_property
    def _next(self) -> tuple[dict[int, int], ...]:
        return tuple(dict(zip(route.stages, (*route.stages[1:], FINAL), strict=True)) for route in self.routes)

    @cached_property
    def _hop(self) -> tuple[dict[int, int], ...]:
        return tuple({stage: hop for hop, stage in enumerate(route.stages)} for route in self.routes)

    def next_stage(self, route: int, stage: int) -> int:
        """The stage after ``stage`` on ``route``, or FINAL. KeyError when the route does not pass there."""
        return self._next[route][stage]

    def hop(self, route: int, stage: int) -> int:
        """Position of ``stage`` on ``route``, from 0. KeyError when the route does not pass there."""
        return self._hop[route][stage]

    def hops(self, stage: int, then: int | None = None) -> dict[int, int]:
        """:meth:`hop` of ``stage`` by route, where it passes there; with ``then``, only where that comes next."""
        return {
            route: hops[stage]
            for route, hops in enumerate(self._hop)
            if stage in hops and (then is None or self._next[route][stage] == then)
        }

    def stage_names(self, route: int) -> tuple[str, ...]:
        return tuple(self.stages[stage] for stage in self.routes[route].stages)
