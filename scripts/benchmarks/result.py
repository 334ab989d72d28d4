"""What is measured, as values: rows, cases, targets; and what is concluded from rows: medians and ratios. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from benchmarks.stats import median

if TYPE_CHECKING:
    from benchmarks.bench import Bench

OURS: Final = "stageline"
PEER: Final = "mosec"  # what ratios are taken to

Point: TypeAlias = Mapping[str, float | str]


@dataclass(frozen=True)
class Row:
    """One measurement: of one system, in one repeat, at one point of the case. A value that was not there is absent."""

    system: str
    repeat: int
    point: Point
    values: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {"system": self.system, "repeat": self.repeat, "point": dict(self.point), "values": dict(self.values)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Row:
        return cls(told["system"], told["repeat"], told["point"], told["values"])


@dataclass(frozen=True)
class Metric:
    """A value of rows: its key, how a table calls it (with its unit), which direction is good, digits shown.

    With ``to`` it is shown by that system's value: a ratio of medians.
    """

    key: str
    label: str
    better: Literal["higher", "lower", "neither"] = "lower"
    digits: int = 2
    to: str = ""


@dataclass(frozen=True)
class Picture:
    """One drawing: ``metric`` over the case's ``x``, a line per system, one panel per value of the other point keys."""

    metric: str
    x: str
    title: str
    log_x: bool = True
    log_y: bool = False


class Summary:
    """Medians over the repeats of one case."""

    def __init__(self, rows: Iterable[Row]) -> None:
        groups: dict[tuple[str, tuple[tuple[str, float | str], ...]], list[Row]] = {}
        for row in rows:
            groups.setdefault((row.system, tuple(sorted(row.point.items()))), []).append(row)
        self._medians: dict[tuple[str, tuple[tuple[str, float | str], ...]], dict[str, float]] = {}
        self._samples: dict[tuple[str, tuple[tuple[str, float | str], ...]], dict[str, list[float]]] = {}
        for key, group in groups.items():
            samples: dict[str, list[float]] = {}
            for row in group:
                for name, value in row.values.items():
                    samples.setdefault(name, []).append(value)
            self._samples[key] = samples
            self._medians[key] = {name: median(values) for name, values in samples.items()}

    @property
    def systems(self) -> list[str]:
        """In the order they were first measured, ours first."""
        seen = dict.fromkeys(system for system, _ in self._medians)
        return sorted(seen, key=lambda system: system != OURS)

    def points(self) -> list[Point]:
        """Every point that any system has, in the order measured."""
        return [dict(point) for point in dict.fromkeys(point for _, point in self._medians)]

    def value(self, system: str, point: Point, metric: str) -> float | None:
        """The median, or None where it was not measured."""
        return self._medians.get((system, tuple(sorted(point.items()))), {}).get(metric)

    def spread(self, system: str, point: Point, metric: str) -> tuple[float, float] | None:
        """The smallest and the largest over the repeats."""
        samples = self._samples.get((system, tuple(sorted(point.items()))), {}).get(metric)
        return (min(samples), max(samples)) if samples else None

    def ours(self, metric: str, where: Callable[[Point], bool] = lambda point: True) -> list[float]:
        """Our medians at these points, as far as there are."""
        found = [self.value(OURS, point, metric) for point in self.points() if where(point)]
        return [value for value in found if value is not None]

    def ratio(self, point: Point, metric: str, *, to: str = PEER, of: str = OURS) -> float | None:
        """``of``'s median by ``to``'s, or None where either is missing or the divisor is 0."""
        return divided(self.value(of, point, metric), self.value(to, point, metric))


def divided(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


@dataclass(frozen=True)
class Target:
    """A claim to hold: ``measure`` gives one number out of a summary, which is to be at most or at least ``bound``."""

    claim: str
    bound: float
    measure: Callable[[Summary], float | None]
    at_least: bool = False
    unit: str = "x"

    def met(self, summary: Summary) -> bool | None:
        """Whether it holds; None when it was not measured."""
        found = self.measure(summary)
        if found is None:
            return None
        return found >= self.bound if self.at_least else found <= self.bound


def worst(
    metrics: Sequence[str], where: Callable[[Point], bool], *, to: str = PEER, highest: bool = True
) -> Callable[[Summary], float | None]:
    """The worst ratio to ``to`` of any of the metrics at any of the points: the highest, or the lowest."""

    def measure(summary: Summary) -> float | None:
        found = [
            ratio
            for point in summary.points()
            if where(point)
            for metric in metrics
            if (ratio := summary.ratio(point, metric, to=to)) is not None
        ]
        if not found:
            return None
        return max(found) if highest else min(found)

    return measure


def at(**values: float | str) -> Callable[[Point], bool]:
    """Whether a point has these values."""
    return lambda point: all(point[key] == value for key, value in values.items())


def anywhere(_point: Point) -> bool:
    """Every point."""
    return True


def grown(metric: str, start: Point, end: Point) -> Callable[[Summary], float | None]:
    """Ours at ``end`` by ours at ``start``."""
    return lambda summary: divided(summary.value(OURS, end, metric), summary.value(OURS, start, metric))


def nothing() -> None:
    """What most cases need beside what every case needs."""


@dataclass(frozen=True)
class Case:
    """One part of the benchmark; ``scripts/bench NAME`` runs it.

    ``run`` yields rows as they are measured. ``by`` are the keys of its points, ``seconds`` the default length of one
    measurement, chosen so that the whole case takes less than two minutes with its ``repeats``. ``missing`` says what
    this machine lacks for the case, which is skipped then, or None.
    """

    name: str
    group: str
    title: str
    about: str
    by: tuple[str, ...]
    metrics: tuple[Metric, ...]
    run: Callable[[Bench], Iterator[Row]]
    seconds: float
    repeats: int = 3
    pictures: tuple[Picture, ...] = ()
    targets: tuple[Target, ...] = ()
    missing: Callable[[], str | None] = nothing
