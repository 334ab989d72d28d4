"""Which stage comes next. Frontends, broker and workers derive the same table from the same file.

Stages and routes travel as small integers: their positions in the broker's file. Whoever joins tells its own table by
name, and is told the broker's (:mod:`engine.core.introduction`).

A route is a graph without cycles. Its stages stand in an order in which everything that is sent on goes forward; the
position of a stage there is its *hop*, and as a request only ever moves to a later hop, its hop says where it is,
whichever way it took. After a stage comes another one, the end, or what a :class:`Fork` says of its result. Besides, a
stage may end a request at once, or send it to any stage that it could reach
(:class:`stages.ways.Done`, :class:`stages.ways.Skip`). Everybody who asks what comes next asks here.

Behind a stage a request may be in *parts* for a while (:class:`Split`): one for each element of a list, or one for each
of several branches. Each part goes its way through a *region* of stages until JOIN; when all have come there, the
request goes on as one at the stage that gathers them, which is what comes after the stage that split it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeAlias

import msgspec

FINAL: Final = -1  # in place of a stage: the route ends here, and results go to the egress
NOWHERE: Final = -2  # in place of one: nobody said where to
JOIN: Final = -3  # in place of one: a part is done, and its request goes on when all are

PARTS_MOST: Final = 4096  # of one request
NO_PARTS: Final[Mapping[int, float]] = {}


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


class Split(msgspec.Struct, frozen=True, array_like=True):
    """The result of a stage goes on in parts. With ``names`` there is one for each branch of them, which begins with
    the stage of ``heads`` in the same place, and each is the whole result. Without, ``field`` of the result is a list
    (""; the result is), of at most ``most`` elements, each of which is a part and begins at the only head.

    What the stage ``gather`` gets is, with names, the parts' results by name; without, what it would have got, but with
    the parts' results in place of the elements. ``holes``: a part that fails leaves None there; else its request fails.
    """

    heads: tuple[int, ...]
    gather: int
    names: tuple[str, ...] = ()
    field: str = ""
    holes: bool = False
    most: int = PARTS_MOST


@dataclass(frozen=True)
class Route:
    """``stages``: positions of the stages that serve it; none twice, and each behind all that may come before it.
    ``after``: what comes after each of them; empty: the one that stands behind it. ``splits``: by stage, where its
    result goes on in parts; what comes after it is the stage that gathers them."""

    path: str
    stages: tuple[int, ...]
    after: tuple[After, ...] = ()
    splits: Mapping[int, Split] = field(default_factory=dict)

    @property
    def ways(self) -> tuple[After, ...]:
        """What comes after each stage."""
        return self.after or (*self.stages[1:], FINAL)

    def regions(self) -> dict[int, int]:
        """Of each stage that sees parts: the stage that split their request, the nearest one."""
        ways = dict(zip(self.stages, self.ways, strict=True))
        found: dict[int, int] = {}

        def mark(stage: int, whose: int) -> None:
            while stage >= 0 and found.get(stage) != whose:
                found[stage] = whose
                first, *others = targets_of(ways[stage])
                for other in others:
                    mark(other, whose)
                stage = first

        for stage in self.stages:  # of regions within regions, the inner ones later
            for head in self.splits[stage].heads if stage in self.splits else ():
                mark(head, stage)
        return found


@dataclass(frozen=True)
class Topology:
    """``cached``: the stages to which values come by way of the front, and results from them, for what they would
    compute may be known there (:mod:`engine.core.memo`); and by which fields of a value: none: all of it."""

    stages: tuple[str, ...]  # names
    routes: tuple[Route, ...]
    cached: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @staticmethod
    def of(
        stages: Sequence[str],
        routes: Sequence[tuple[str, Sequence[int]]],
        after: Mapping[int, Sequence[After]] | None = None,
        splits: Mapping[int, Mapping[int, Split]] | None = None,
        cached: Mapping[int, Sequence[str]] | None = None,
    ) -> Topology:
        """From a table as it travels. Raises ValueError for a route through a stage that is not there, or none, or that
        leads back or nowhere."""
        made = []
        for number, (path, numbers) in enumerate(routes):
            if not numbers or not all(0 <= one < len(stages) for one in numbers):
                raise ValueError(f"route {path} through stages {list(numbers)} of {len(stages)}")
            route = Route(path, tuple(numbers), tuple((after or {}).get(number, ())), (splits or {}).get(number, {}))
            check(route)
            made.append(route)
        return Topology(tuple(stages), tuple(made), {stage: tuple(keys) for stage, keys in (cached or {}).items()})

    def by_name(self) -> dict[str, list[str]]:
        """Path -> names of the stages that serve it, in order."""
        return {route.path: [self.stages[stage] for stage in route.stages] for route in self.routes}

    def told_after(self) -> dict[int, list[After]]:
        """Of the routes that are no chains: what comes after each stage, as it travels."""
        return {number: list(route.after) for number, route in enumerate(self.routes) if route.after}

    def told_splits(self) -> dict[int, dict[int, Split]]:
        """Of the routes on which requests go on in parts: after which stages, as it travels."""
        return {number: dict(route.splits) for number, route in enumerate(self.routes) if route.splits}

    def told_cached(self) -> dict[int, list[str]]:
        """Which stages have a cache, by which fields, as it travels."""
        return {stage: list(fields) for stage, fields in self.cached.items()}

    def is_cached(self, route: int, stage: int) -> bool:
        """Whether what comes to ``stage`` on ``route`` may be known. Not where its result goes on in parts."""
        return stage in self.cached and stage not in self.routes[route].splits

    def shapes(self) -> dict[str, str]:
        """Of the routes that are no chains: how they branch, in words that are equal only for equal ones."""
        return {route.path: self.way(number) for number, route in enumerate(self.routes) if route.after}

    def way(self, route: int) -> str:
        """A route in one line, for people."""
        found = self.routes[route]
        if not found.after:
            return " -> ".join(self.stage_names(route))
        return "; ".join(
            f"{self.stages[stage]} -> {self._said_split(found.splits.get(stage))}{self._said(after)}"
            for stage, after in zip(found.stages, found.after, strict=True)
        )

    def _said_split(self, split: Split | None) -> str:
        if split is None:
            return ""
        if split.names:
            heads = zip(split.names, split.heads, strict=True)
            said = "all of " + ", ".join(f"{name} {self.stages[head]}" for name, head in heads)
        else:
            said = f"each of {split.field or 'them'}, at most {split.most}: {self.stages[split.heads[0]]}"
        return f"{said}{', holes' if split.holes else ''}, then "

    def _said(self, after: After) -> str:
        if not isinstance(after, Fork):
            return self._name(after)
        branches = [f"{text} {self._name(target)}" for text, target in after.of]
        if after.default != NOWHERE:
            branches.append(f"else {self._name(after.default)}")
        return f"{after.by}? " + ", ".join(branches)

    def _name(self, target: int) -> str:
        return {FINAL: "the answer", JOIN: "together"}.get(target) or self.stages[target]

    def edges(self, route: int) -> list[tuple[str, str, str]]:
        """Every step that a request may take by the file: from which stage to which ("": to the answer), and when, if
        not always."""
        found = []
        for stage, after in self._after[route].items():
            if (split := self.split(route, stage)) is not None:
                whens = split.names or (f"each of {split.field}" if split.field else "each",)
                found += [
                    (self.stages[stage], self.stages[head], when) for head, when in zip(split.heads, whens, strict=True)
                ]
                continue
            if not isinstance(after, Fork):
                found.append((self.stages[stage], self._edge_end(route, stage, after), ""))
                continue
            for target in after.targets:
                texts = [text for text, one in after.of if one == target]
                when = [f"{after.by} = {', '.join(texts)}"] if texts else []
                when += ["else"] if target == after.default else []
                found.append((self.stages[stage], self._edge_end(route, stage, target), " or ".join(when)))
        return found

    def _edge_end(self, route: int, stage: int, target: int) -> str:
        if target == JOIN:
            target = self.gather(route, stage)
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
                targets = [target for target in targets_of(after[stage]) if target >= 0]
                later[stage] = {*targets, *(one for target in targets for one in later[target])}
            order = route.stages
            found.append({stage: tuple(one for one in order if one in later[stage]) for stage in order})
        return tuple(found)

    @cached_property
    def _regions(self) -> tuple[dict[int, int], ...]:
        return tuple(route.regions() for route in self.routes)

    @cached_property
    def _hop(self) -> tuple[dict[int, int], ...]:
        return tuple({stage: hop for hop, stage in enumerate(route.stages)} for route in self.routes)

    def after(self, route: int, stage: int) -> After:
        """What comes after ``stage`` on ``route``: a stage, FINAL, or one of several. KeyError when the route does not
        pass there."""
        return self._after[route][stage]

    def following(self, route: int, stage: int) -> tuple[int, ...]:
        """The same as all that it may be, FINAL and JOIN among them. Of a stage whose result is split it is the one
        that gathers."""
        return targets_of(self._after[route][stage])

    def split(self, route: int, stage: int) -> Split | None:
        """How the result of ``stage`` goes on in parts; None: it does not."""
        return self.routes[route].splits.get(stage)

    def splits(self) -> Iterator[tuple[int, int, Split]]:
        """All of them: of which route, after which stage."""
        for number, route in enumerate(self.routes):
            for stage, split in route.splits.items():
                yield number, stage, split

    def region(self, route: int, stage: int) -> int | None:
        """The stage that splits the requests whose parts pass ``stage``; None: whole ones do."""
        return self._regions[route].get(stage)

    def gather(self, route: int, stage: int) -> int:
        """The stage that gathers what parts are at ``stage``. KeyError where whole requests are."""
        return self.routes[route].splits[self._regions[route][stage]].gather

    def gathered(self, route: int, stage: int) -> Split | None:
        """Whose parts ``stage`` gets together; None: nobody's."""
        return next((split for split in self.routes[route].splits.values() if split.gather == stage), None)

    def readers(self, route: int, stage: int) -> tuple[int, ...]:
        """The stages that by the file take what ``stage`` returns, or something of it."""
        found = [self.gather(route, stage) if one == JOIN else one for one in self.following(route, stage)]
        if (split := self.split(route, stage)) is not None:
            found = [*split.heads, *found]
        return tuple(one for one in dict.fromkeys(found) if one != FINAL)

    def later(self, route: int, stage: int) -> tuple[int, ...]:
        """Every stage that can be reached from ``stage``, in order: where it may send a request, and of a part the
        stages of its region. KeyError as above."""
        return self._later[route][stage]

    def ends(self, route: int) -> tuple[int, ...]:
        """The stages behind which the answer stands."""
        return tuple(stage for stage, after in self._after[route].items() if FINAL in targets_of(after))

    def is_open(self, route: int) -> bool:
        """Whether several may take the result of some stage: others to which it may send a request, or the front. Else
        only one ever does."""
        found = self.routes[route]
        return bool(found.splits or self.cached.keys() & set(found.stages)) or any(
            len(later) > 1 for later in self._later[route].values()
        )

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
        return self.least_from(route, needs)[self.routes[route].stages[0]]

    def least_from(self, route: int, needs: Sequence[float]) -> dict[int, float]:
        """The same from each stage on. Parts are computed all at once; of one, from a stage of its region on until its
        request is whole."""
        found: dict[int, float] = {FINAL: 0.0, JOIN: 0.0}
        for stage in reversed(self.routes[route].stages):
            found[stage] = needs[stage] + min([found[target] for target in self.following(route, stage)])
            if (split := self.split(route, stage)) is not None:
                found[stage] += max([found[head] for head in split.heads])
        return found

    def visits(self, route: int, parts: Mapping[int, float] = NO_PARTS) -> dict[int, float]:
        """What comes to each stage for one of a route's requests, if of several ways each is taken as often as any
        other. ``parts``: by the stage behind which it is taken apart, how many elements a list has there; else one."""
        first, *others = self.routes[route].stages
        found = {first: 1.0, **dict.fromkeys(others, 0.0)}
        for stage in self.routes[route].stages:
            targets = self.following(route, stage)
            for target in targets:
                if target >= 0:
                    found[target] += found[stage] / len(targets)
            if (split := self.split(route, stage)) is not None:
                for head in split.heads:
                    found[head] += found[stage] * (1.0 if split.names else parts.get(stage, 1.0))
        return found

    def stage_names(self, route: int) -> tuple[str, ...]:
        return tuple(self.stages[stage] for stage in self.routes[route].stages)


def targets_of(after: After) -> tuple[int, ...]:
    """All that may come next."""
    return after.targets if isinstance(after, Fork) else (after,)


def check(route: Route) -> None:
    """Raises ValueError for a route that leads back, out of itself or nowhere, or whose stages nothing leads to; or on
    which parts do not come together, or what is whole would."""
    if len(set(route.stages)) != len(route.stages) or len(route.ways) != len(route.stages):
        raise ValueError(f"route {route.path} passes {list(route.stages)} by {list(route.ways)}")
    reached = {route.stages[0]}
    for hop, (stage, after) in enumerate(zip(route.stages, route.ways, strict=True)):
        later = {*route.stages[hop + 1 :]}
        targets = targets_of(after)
        if stage not in reached or not targets or not {*later, FINAL, JOIN}.issuperset(targets):
            raise ValueError(f"route {route.path} leads from stage {stage} to {list(targets)}")
        reached.update(targets)
        if (split := route.splits.get(stage)) is not None:
            if not split.heads or not later.issuperset(split.heads) or targets != (split.gather,) or split.gather < 0:
                raise ValueError(f"route {route.path} splits behind stage {stage} to {list(split.heads)}")
            if len(split.names or ("each",)) != len(split.heads) or not 0 < split.most <= PARTS_MOST:
                raise ValueError(f"route {route.path} splits behind stage {stage} into {split}")
            reached.update(split.heads)
    if not {*route.stages}.issuperset(route.splits):
        raise ValueError(f"route {route.path} splits behind {list(route.splits)}")
    regions = route.regions()
    for stage, after in zip(route.stages, route.ways, strict=True):
        whose = regions.get(stage)
        for target in targets_of(after):
            is_end = (target == JOIN) if whose is not None else (target == FINAL)
            if not is_end and (target < 0 or regions.get(target) != whose):
                raise ValueError(f"route {route.path} leads from stage {stage} out of its part, or into one: {target}")
