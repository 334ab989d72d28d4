"""The fewest workers for a rate, and the highest rate for so many workers. Pure: it asks, and does not simulate.

Stages are many, and all their numbers of workers too many to try. But which stage holds the others up is to be seen
(:attr:`engine.simulation.figures.Figures.limit`): workers are added there until the goal is met, and then taken away
again one by one wherever it is met without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from engine.simulation.figures import Figures

Counts: TypeAlias = tuple[int, ...]
Ask: TypeAlias = Callable[[Counts, float], Figures]  # so many workers by stage, asked for so many requests a second

GROWTH: Final = 8  # of so many workers one is added at a time, of more as many more
ENOUGH: Final = 4  # times the workers that full batches take, and ...
MORE: Final = 8  # ... so many: if that does not do, nothing does
FINE: Final = 0.01  # of a rate: how exactly it is told
STILL: Final = 0.05  # of what full batches carry: if not even that is carried in time, nothing is


@dataclass(frozen=True)
class Found:
    """``best`` is what was asked for, ``more`` the same with one worker more where it helps most. Where the goal cannot
    be met, ``is_met`` is false and ``best`` comes nearest to it of all that was tried."""

    best: Figures
    more: Figures
    is_met: bool
    tried: int


class _Memory:
    """Asks nothing twice."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.known: dict[tuple[Counts, float], Figures] = {}

    def __call__(self, counts: Counts, rate: float) -> Figures:
        key = counts, rate
        if key not in self.known:
            self.known[key] = self._ask(counts, rate)
        return self.known[key]


def with_one_more(figures: Figures, kept: Sequence[bool] = ()) -> Counts:
    """One worker more where it helps most. ``kept``: stages that stay as they are."""
    return _added(figures, 1, kept)


def _added(figures: Figures, count: int, kept: Sequence[bool]) -> Counts:
    counts = list(figures.counts)
    counts[limit(figures, kept)] += count
    return tuple(counts)


def limit(figures: Figures, kept: Sequence[bool] = ()) -> int:
    """The stage that holds the others up, of those that may change."""
    places = [place for place in range(len(figures.stages)) if not (kept and kept[place])]
    if not places:
        return figures.limit
    return max(places, key=lambda place: (figures.stages[place].wait_p99_s, figures.stages[place].busy))


def fewest(ask: Ask, rate: float, least: Counts, target: float, *, kept: Sequence[bool] = ()) -> Found:
    """The fewest workers with which ``target`` of the requests are answered in time. ``least``: as many as it takes in
    any case; of stages that are ``kept``, as many as there are."""
    ask = memory = _Memory(ask)
    counts = least
    figures = ask(counts, rate)
    most = tuple(ENOUGH * count + MORE for count in least)
    while not figures.meets(target):
        place = limit(figures, kept)
        if (kept and all(kept)) or counts[place] >= most[place]:
            best = max(memory.known.values(), key=lambda one: one.lowest)
            return Found(best, ask(with_one_more(best, kept), rate), is_met=False, tried=len(memory.known))
        counts = _added(figures, max(1, counts[place] // GROWTH), kept)
        figures = ask(counts, rate)
    # Where several were added at once, or to a stage that was not the one after all.
    for place in sorted(range(len(counts)), key=lambda place: -counts[place]):
        while counts[place] > least[place] and not (kept and kept[place]):
            fewer = (*counts[:place], counts[place] - 1, *counts[place + 1 :])
            if not ask(fewer, rate).meets(target):
                break
            counts = fewer
    best = ask(counts, rate)
    return Found(best, ask(with_one_more(best, kept), rate), is_met=True, tried=len(memory.known))


def hopeless(ask: Ask, rate: float, least: Counts, *, kept: Sequence[bool] = ()) -> Found:
    """What comes of it where it is known beforehand that no number of workers meets the goal."""
    best = ask(least, rate)
    return Found(best, ask(with_one_more(best, kept), rate), is_met=False, tried=2)


def dealt(devices: int, capacities: Sequence[float], kept: Sequence[int] = ()) -> Counts:
    """So many workers, dealt out so that the stages carry alike: of each stage ``capacities`` is what one worker
    carries. ``kept``: how many of a stage there are whatever is dealt (0: it is dealt to). Raises ValueError for fewer
    than one for each."""
    counts = [kept[place] if kept and kept[place] else 1 for place in range(len(capacities))]
    open_to = [place for place in range(len(capacities)) if not (kept and kept[place])]
    if devices < len(open_to):
        raise ValueError(f"{devices} for {len(open_to)} stages")
    for _ in range(devices - len(open_to)):
        counts[min(open_to, key=lambda place: counts[place] * capacities[place])] += 1
    return tuple(counts)


def highest(
    ask: Ask, counts: Counts, capacities: Sequence[float], target: float, *, kept: Sequence[bool] = ()
) -> Found:
    """The highest rate at which ``target`` of the requests are answered in time, with as many workers as ``counts``
    together: dealt out as they are, and otherwise where that carries more."""
    ask = memory = _Memory(ask)
    best = _highest(ask, counts, _ceiling(counts, capacities), target)
    if best is None:
        low = ask(counts, STILL * _ceiling(counts, capacities))
        return Found(low, low, is_met=False, tried=len(memory.known))
    seen = {counts}
    while True:
        other = _moved(best, kept)
        if other is None or other in seen:
            break
        seen.add(other)
        rate = best.rate * (1.0 + FINE)
        if rate > _ceiling(other, capacities) or not ask(other, rate).meets(target):
            break
        best = _highest(ask, other, _ceiling(other, capacities), target, from_rate=rate) or best
    return Found(best, ask(with_one_more(best, kept), best.rate), is_met=True, tried=len(memory.known))


def _ceiling(counts: Counts, capacities: Sequence[float]) -> float:
    return min(count * capacity for count, capacity in zip(counts, capacities, strict=True))


def _highest(ask: Ask, counts: Counts, ceiling: float, target: float, from_rate: float = 0.0) -> Figures | None:
    """None: not even a little is carried in time."""
    low = from_rate or STILL * ceiling
    best = ask(counts, low)
    if not best.meets(target):
        return None
    high = ceiling
    while high - low > FINE * low:
        rate = (low + high) / 2
        figures = ask(counts, rate)
        if figures.meets(target):
            low, best = rate, figures
        else:
            high = rate
    return best


def _moved(figures: Figures, kept: Sequence[bool]) -> Counts | None:
    """One worker from where it is missed least to where it is wanted most; None: there is none to give."""
    stages = figures.stages
    to = limit(figures, kept)
    givers = [
        place
        for place in range(len(stages))
        if place != to and stages[place].workers > 1 and not (kept and kept[place])
    ]
    if not givers:
        return None
    giver = min(givers, key=lambda place: stages[place].busy * stages[place].workers / (stages[place].workers - 1))
    counts = list(figures.counts)
    counts[giver] -= 1
    counts[to] += 1
    return tuple(counts)
