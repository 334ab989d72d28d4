"""Where a result goes that does not simply go on: what ``forward`` may return for an item in place of its result, and
what the branches of its route say. Pure.

A :class:`Way` is one route as one stage sees it. What user code names is looked for there, by the names of the file;
what is not found there is :class:`WrongWay`, of which the client learns no more than that the service is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Final

from engine.config.forms import nearest
from engine.core.routing import FINAL, JOIN, NOWHERE, Fork, Split, Topology

# The protocol from which on a broker takes results that do not come from the stage before, or the last one.
KNOWN_SINCE: Final = 3


@dataclass(frozen=True, slots=True)
class Done:
    """In place of a result: the answer, at once. No stage behind this one sees the request.

    ``result`` is encoded by this stage's ``serialize``, as that of a route's last stage is, and its type is this
    stage's ``resp_mime_type``. For a part of a request it is what becomes of this part: no stage behind this one sees
    it but the one that gathers.
    """

    result: Any


@dataclass(frozen=True, slots=True)
class Skip:
    """In place of a result: go on at stage ``to``, a later one of the route, with ``value``. The stages in between do
    not see the request."""

    value: Any
    to: str = field(kw_only=True)


class WrongWay(Exception):
    """A result leads nowhere; for the log."""


@dataclass(frozen=True)
class Way:
    """``first``: the route begins here; ``after``: the stage that comes next, FINAL or JOIN; with a ``fork`` that says,
    and ``branches`` are what it has by text. ``later``: the stages that it could go to, by name; ``receivers``: those
    of them that gather. ``is_told``: the broker takes results from out of the order. ``split``: how results go on in
    parts; ``in_parts``: what comes here is a part, and ``into`` the stage that gathers it; ``gathers``: whose parts
    have come together in what does. ``is_cached``: this stage has a cache; ``known``: other stages that have one, and
    by which fields they know values.
    """

    path: str
    stage: str
    first: bool
    after: int
    fork: Fork | None = None
    branches: Mapping[str, int] = field(default_factory=dict)
    later: Mapping[str, int] = field(default_factory=dict)
    is_told: bool = True
    last: bool = False  # the route ends here
    split: Split | None = None
    in_parts: bool = False
    gathers: Split | None = None
    receivers: frozenset[int] = frozenset()
    is_cached: bool = False
    known: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    into: int = NOWHERE

    def by_front(self, target: int) -> bool:
        """Whether a result that goes there goes by way of the broker's front."""
        return target == JOIN or self.is_cached or target in self.known

    def of_skip(self, skip: Skip) -> int:
        """The stage that a Skip names. Raises WrongWay."""
        target = self.later.get(skip.to) if isinstance(skip.to, str) else None
        if target is None:
            names = list(self.later)
            name = str(skip.to)[:100] if isinstance(skip.to, str) else f"a {type(skip.to).__name__}"
            known = f"expected one of {', '.join(names)}" if names else "no stage follows"
            raise WrongWay(
                f"stage {self.stage} returned Skip(to={name!r}) on route {self.path}: {known}{nearest(name, names)}"
            )
        self.be_told("Skip")
        return target

    def be_told(self, what: str) -> None:
        """Raises WrongWay where the broker would take it for a mistake."""
        if not self.is_told:
            raise WrongWay(f"stage {self.stage} returned a {what}: the broker is of an older version that has none")

    def of_value(self, value: Any) -> int:
        """Where a plain result goes. Raises WrongWay."""
        fork = self.fork
        if fork is None:
            return self.after
        text = text_of(value, fork.by)
        target = fork.default if text is None else self.branches.get(text, fork.default)
        if target == NOWHERE:
            found = "has no such field" if text is None else "names no branch there"
            raise WrongWay(
                f'route {self.path} branches behind stage {self.stage} by "{fork.by}", and its result {found}: '
                f"expected one of {', '.join(self.branches)}; a default takes all others"
            )
        return target


def way_of(topology: Topology, route: int, stage: int, *, is_told: bool = True) -> Way:
    """One route as a stage of it sees it."""
    found, after = topology.routes[route], topology.after(route, stage)
    fork = after if isinstance(after, Fork) else None
    in_parts = topology.region(route, stage) is not None
    return Way(
        path=found.path,
        stage=topology.stages[stage],
        first=found.stages[0] == stage,
        after=topology.following(route, stage)[0],
        fork=fork,
        branches=dict(fork.of) if fork is not None else {},
        later={topology.stages[one]: one for one in topology.later(route, stage)},
        is_told=is_told,
        last=after == FINAL,
        split=topology.split(route, stage),
        in_parts=in_parts,
        into=topology.gather(route, stage) if in_parts else NOWHERE,
        gathers=topology.gathered(route, stage),
        is_cached=topology.is_cached(route, stage),
        known={
            one: fields
            for one, fields in topology.cached.items()
            if one != stage and one in found.stages and topology.is_cached(route, one)
        },
        receivers=frozenset(one for one in topology.later(route, stage) if topology.gathered(route, one) is not None),
    )


def text_of(value: Any, by: str) -> str | None:
    """A field of a mapping, or an attribute of anything else, as the text that a branch is called by: strings, whole
    numbers, and ``true`` and ``false``. None: it has no such field, or something else there."""
    found: Any = value.get(by) if isinstance(value, Mapping) else getattr(value, by, None)
    if isinstance(found, str):
        return str.__str__(found)  # of an enumeration, too
    if isinstance(found, bool):
        return "true" if found else "false"
    try:
        return str(index(found))
    except TypeError:
        return None


def plain(results: Sequence[Any]) -> list[Any]:
    """The values of results, whichever way they go."""
    return [unwrapped(result) for result in results]


def unwrapped(result: Any) -> Any:
    """What a Done or a Skip holds; any other result as it is."""
    if isinstance(result, Done):
        return result.result
    return result.value if isinstance(result, Skip) else result


def goes_to(topology: Topology, route: int, stage: int, result: Any) -> int:
    """The stage to which a result of ``stage`` goes as it is, or FINAL; JOIN, of a part that is done, and of one that
    is split; NOWHERE for what names none."""
    way = way_of(topology, route, stage)
    try:
        if isinstance(result, Done):
            return JOIN if way.in_parts else FINAL
        if way.split is not None and not isinstance(result, Skip):
            return JOIN
        return way.of_skip(result) if isinstance(result, Skip) else way.of_value(result)
    except WrongWay:
        return NOWHERE
