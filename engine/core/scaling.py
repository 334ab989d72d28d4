"""How many workers the stages of one deployment shall have as their demand changes, and how that is said. Pure.

The rule for one stage is :class:`engine.core.demand.Scale`; here is what follows from there being several, and from
somebody changing numbers by hand:

* Where requests wait at a stage without any worker, the stages behind it on their way that have none begin to load as
  well: they would have to wait for each in turn.
* A number that somebody else sets, within the bounds, is the one that it goes on from, as if it had been wanted all the
  time: it holds for as long as any other number would.
* What cannot be done now, since workers are being replaced, is asked for again at the next look.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from engine.core.demand import USUAL, Scale, Windows


@dataclass(frozen=True)
class Bounds:
    """Of one stage's workers. ``fewest``: where there are any, there are so many."""

    least: int
    most: int
    fewest: int = 1


@dataclass(frozen=True)
class Change:
    """So many workers of a stage instead of those there are."""

    stage: str
    before: int
    after: int
    demand: float  # for how many there is work

    def __str__(self) -> str:
        return f"scaling {self.stage} from {self.before} to {self.after}: its demand is {self.demand:.2f} workers"


class Scaling:
    """Of one deployment; holds what is wanted of its stages. To be looked at every second or so."""

    def __init__(self, windows: Windows = USUAL) -> None:
        self._windows = windows
        self._bounds: dict[str, Bounds] = {}
        self._scales: dict[str, Scale] = {}

    def look(
        self,
        present: Mapping[str, int],
        bounds: Mapping[str, Bounds],
        demand: Mapping[str, float],
        now: float,
        *,
        asked: Collection[str] = (),
        routes: Sequence[Sequence[str]] = (),
    ) -> list[Change]:
        """What is to be changed now. ``present``: how many workers there are, or shall be, of each stage, ``bounds`` of
        those that are scaled, ``demand`` as the brokers tell it, ``asked``: where requests wait. A stage of which no
        figure is told keeps what it has."""
        # A figure may come before anybody has said that they wait; what follows on the routes is needed just so.
        awaited = {*asked, *(stage for stage in bounds if demand.get(stage))}
        woken = self._woken(present, bounds, awaited, routes)
        changes = []
        for stage, bound in bounds.items():
            scale = self._scales.get(stage)
            if scale is None or self._bounds.get(stage) != bound:
                scale = self._begin(stage, bound, present[stage], now)
            if stage not in demand:
                continue
            wanted = scale.look(demand[stage], now, asked=stage in woken)
            if wanted != present[stage]:
                changes.append(Change(stage, present[stage], wanted, demand[stage]))
        return changes

    def _begin(self, stage: str, bound: Bounds, workers: int, now: float) -> Scale:
        self._bounds[stage] = bound
        found = self._scales[stage] = Scale(
            workers, least=bound.least, most=bound.most, now=now, fewest=bound.fewest, windows=self._windows
        )
        return found

    def take(self, present: Mapping[str, int]) -> None:
        """Somebody else has set the numbers of workers: it goes on from those."""
        for stage, scale in list(self._scales.items()):
            if present.get(stage) != scale.workers:
                del self._scales[stage]

    def _woken(
        self,
        present: Mapping[str, int],
        bounds: Mapping[str, Bounds],
        asked: Collection[str],
        routes: Sequence[Sequence[str]],
    ) -> set[str]:
        """The stages without a worker that somebody waits for, or will."""
        empty = {stage for stage in bounds if not present[stage]}
        woken = empty.intersection(asked)
        for route in routes:
            for place, stage in enumerate(route):
                if stage in asked and stage in empty:
                    woken.update(empty.intersection(route[place:]))
        return woken
