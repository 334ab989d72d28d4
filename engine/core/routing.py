"""Which stage comes next. Frontends, broker and workers derive the same table from the same file.

Stages and routes travel as small integers: their positions in the broker's file. Whoever joins tells its own table by
name, and is told the broker's (:mod:`engine.core.introduction`).

A route is a graph without cycles. Its stages stand in an order in which everything that is sent on goes forward; the
position of a stage there is its *hop*, and as a request only ever moves to a later hop, its hop says where it is,
whichever way it took. After a stage comes another one, the end, or what a :class:`Fork` says of its result. Besides, a
stage may end a request at once, or send it to any stage that it could reach
(:class:`stages.ways.Done`, :class:`stages.ways.Skip`). Everybody who asks what comes next asks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import msgspec

FINAL: Final = -1  # in place of a stage: the route ends here, and results go to the egress
NOWHERE: Final = -2  # in place of one: nobody said where to


class Fork(msgspec.Struct, frozen=True, array_like=True):
    """One of several stages comes next, by the text of field ``by`` of the result. ``default``: for any other; NOWHERE:
    no other is allowed."""

    by: str
    of: tuple[tuple[str, int], ...]  # text -> stage, or FINAL
    default: int = NOWHERE

    @property
    def targets(self) -> tuple[int, ...]:
        """Each of them once."""
        default = () if self.default == NOWHERE else (self.default,)
        return tuple(dict.fromkeys((*(target for _, target in self.of), *default)))


After: TypeAlias = int | Fork


@dataclass(frozen=True)
class Route:
    """``stages``: positions of the stages that serve it; none twice, and each behind all that may come before it.
    ``after``: what comes after each of them; empty: the one that stands behind it."""

    path: str
    stages: tuple[int, ...]
    after: tuple[After, ...] = ()

    @property
    def ways(self) -> tuple[After, ...]:
        """What comes after each stage."""
        return self.after or (*self.stages[1:], FINAL)


@dataclass(frozen=True)
class Topology:
    stages: tuple[str, ...]  # names
    routes: tuple[Route, ...]

    @staticmethod
    def of(
        stages: Sequence[str],
        routes: Sequence[tuple[str, Sequence[int]]],
        after: dict[int, list[After]] | None = None,
    ) -> Topology:
        """From a table as it travels. Raises ValueError for a route through a stage that is not there, or none, or that
        leads back or nowhere."""
        made = []
        for number, (path, numbers) in enumerate(routes):
            if not numbers or not all(0 <= one < len(stages) for one in numbers):
                raise ValueError(f"route {path} through stages {list(numbers)} of {len(stages)}")
            route = Route(path, tuple(numbers), tuple((after or {}).get(number, ())))
            check(route)
            made.append(route)
        return Topology(tuple(stages), tuple(made))

    def by_name(self) -> dict[str, list[str]]:
        """Path -> names of the stages that serve it, in order."""
        return {route.path: [self.stages[stage] for stage in route.stages] for route in self.routes}

    def told_after(self) -> dict[int, list[After]]:
        """Of the routes that are no chains: what comes after each stage, as it travels."""
        return {number: list(route.after) for number, route in enumerate(self.routes) if route.after}

    def shapes(self) -> dict[str, str]:
        """Of the routes that are no chains: how they branch, in words that are equal only for equal ones."""
        return {route.path: self.way(number) for number, route in enumerate(self.routes) if route.after}

    def way(self, route: int) -> str:
        """A route in one line, for people."""
        found = self.routes[route]
        if not found.after:
            return " -> ".join(self.stage_names(route))
        return "; ".join(
            f"{self.stages[stage]} -> {self._said(after)}"
            for stage, after in zip(found.stages, found.after, strict=True)
        )

    def _said(self, after: After) -> str:
        if not isinstance(after, Fork):
            return self._name(after)
        branches = [f"{text} {self._name(target)}" for text, target in after.of]
        if after.default != NOWHERE:
            branches.append(f"else {self._name(after.default)}")
        return f"{after.by}? " + ", ".join(branches)

    def _name(self, target: int) -> str:
        return "the answer" if target == FINAL else self.stages[target]

    def edges(self, route: int) -> list[tuple[str, str, str]]:
        """Every step that a request may take by the file: from which stage to which ("": to the answer), and when, if
        not always."""
        found = []
        for stage, after in self._after[route].items():
            if not isinstance(after, Fork):
                found.append((self.stages[stage], self._edge_end(after), ""))
                continue
            for target in after.targets:
                texts = [text for text, one in after.of if one == target]
                when = [f"{after.by} = {', '.join(texts)}"] if texts else []
                when += ["else"] if target == after.default else []
                found.append((self.stages[stage], self._edge_end(target), " or ".join(when)))
        return found

    def _edge_end(self, target: int) -> str:
        return "" if target == FINAL else self.stages[target]

    @cached_property
    def _after(self) -> tuple[dict[int, After], ...]:
        return tuple(dict(zip(route.stages, route.ways, strict=True)) for route in self.routes)

    @cached_property
    def _later(self) -> tuple[dict[int, tuple[int, ...]], ...]:
        found = []
        for route, after in zip(self.routes, self._after, strict=True):
            later: dict[int, set[int]] = {}
            for stage in reversed(route.stages):
                targets = [target for target in targets_of(after[stage]) if target != FINAL]
                later[stage] = {*targets, *(one for target in targets for one in later[target])}
            order = route.stages
            found.append({stage: tuple(one for one in order if one in later[stage]) for stage in order})
        return tuple(found)

    @cached_property
    def _hop(self) -> tuple[dict[int, int], ...]:
        return tuple({stage: hop for hop, stage in enumerate(route.stages)} for route in self.routes)

    def after(self, route: int, stage: int) -> After:
        """What comes after ``stage`` on ``route``: a stage, FINAL, or one of several. KeyError when the route does not
        pass there."""
        return self._after[route][stage]

    def following(self, route: int, stage: int) -> tuple[int, ...]:
        """The same as all that it may be, FINAL among them."""
        return targets_of(self._after[route][stage])

    def later(self, route: int, stage: int) -> tuple[int, ...]:
        """Every stage that can be reached from ``stage``, in order: where it may send a request. KeyError as above."""
        return self._later[route][stage]

    def ends(self, route: int) -> tuple[int, ...]:
        """The stages behind which the answer stands."""
        return tuple(stage for stage, after in self._after[route].items() if FINAL in targets_of(after))

    def is_open(self, route: int) -> bool:
        """Whether some stage has several others to which it may send a request. Else only one ever takes its result."""
        return any(len(later) > 1 for later in self._later[route].values())

    def hop(self, route: int, stage: int) -> int:
        """Position of ``stage`` on ``route``, from 0. KeyError when the route does not pass there."""
        return self._hop[route][stage]

    def hops(self, stage: int, then: int | None = None) -> dict[int, int]:
        """:meth:`hop` of ``stage`` by route, where it passes there; with ``then``, only where that can come later."""
        return {
            route: hops[stage]
            for route, hops in enumerate(self._hop)
            if stage in hops and (then is None or then in self._later[route][stage])
        }

    def least(self, route: int, needs: Sequence[float]) -> float:
        """The least that a request needs on its way, where each stage needs so much."""
        found: dict[int, float] = {FINAL: 0.0}
        for stage in reversed(self.routes[route].stages):
            found[stage] = needs[stage] + min([found[target] for target in self.following(route, stage)])
        return found[self.routes[route].stages[0]]

    def visits(self, route: int) -> dict[int, float]:
        """How many of a route's requests pass each stage, if of several ways each is taken as often as any other."""
        first, *others = self.routes[route].stages
        found = {first: 1.0, **dict.fromkeys(others, 0.0)}
        for stage in self.routes[route].stages:
            targets = self.following(route, stage)
            for target in targets:
                if target != FINAL:
                    found[target] += found[stage] / len(targets)
        return found

    def stage_names(self, route: int) -> tuple[str, ...]:
        return tuple(self.stages[stage] for stage in self.routes[route].stages)


def targets_of(after: After) -> tuple[int, ...]:
    """All that may come next."""
    return after.targets if isinstance(after, Fork) else (after,)


def check(route: Route) -> None:
    """Raises ValueError for a route that leads back, out of itself or nowhere, or whose stages nothing leads to."""
    if len(set(route.stages)) != len(route.stages) or len(route.ways) != len(route.stages):
        raise ValueError(f"route {route.path} passes {list(route.stages)} by {list(route.ways)}")
    reached = {route.stages[0]}
    for hop, (stage, after) in enumerate(zip(route.stages, route.ways, strict=True)):
        behind = {*route.stages[hop + 1 :], FINAL}
        if stage not in reached or not targets_of(after) or not behind.issuperset(targets_of(after)):
            raise ValueError(f"route {route.path} leads from stage {stage} to {list(targets_of(after))}")
        reached.update(targets_of(after))
