"""What an item will cost, by its size: learned from what workers say of those that they have computed. Pure.

Computing an item takes as long as it is large, in tokens, pixels or seconds of audio, which its worker alone can count
(``cost`` of its class), and a batch is to be chosen before any worker has seen it. The broker has the item's bytes, and
of one kind of input the cost follows these closely: so each route has a *line* a + b * bytes, by least squares over the
last few hundred items. Where sizes do not differ it goes through nothing, for a slope cannot be known. It never falls.

Until something is known an item counts as much as a whole batch may, so that it goes alone; the first results tell
better. Where the class has no ``cost`` the bytes are the cost themselves, and nothing has to be learned.

Costs are counted in *units*, of which a whole batch has UNITS: finely enough for how long batches take to be learned by
them (:mod:`engine.core.predict`), whatever it is that costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from operator import mul
from typing import Final

from engine.core.items import Item

UNITS: Final = 256  # of a batch that costs all it may
UNITS_MOST: Final = 4 * UNITS  # of one item, which goes alone then
MEMORY: Final = 256.0  # items that a line goes by
STEEP: Final = 0.05  # of the mean size, squared, over the number of items: how far sizes have to differ to tell
RENEWALS: Final = 12  # what waits is judged anew whenever twice as many items are known, so often


class Line:
    """The costs of items by their sizes; see the module."""

    __slots__ = ("_n", "_x", "_xx", "_xy", "_y", "a", "b", "count")

    def __init__(self) -> None:
        self.count = 0  # items that it has learned from
        self.a = self.b = 0.0
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def at(self, size: int) -> float:
        """What an item of so many bytes costs."""
        cost = self.a + self.b * size
        return cost if cost > 0.0 else 0.0

    def learn(self, sizes: list[int], costs: list[float]) -> None:
        """Of some items; as many as there are sizes."""
        n = len(sizes)
        self.count += n
        kept = min(1.0, max(0.0, MEMORY - n) / self._n) if self._n else 0.0
        self._n = self._n * kept + n
        self._x = self._x * kept + sum(sizes)
        self._y = self._y * kept + sum(costs)
        self._xx = self._xx * kept + sum(map(mul, sizes, sizes))
        self._xy = self._xy * kept + sum(map(mul, sizes, costs))
        x, y = self._x / self._n, self._y / self._n
        spread = max(0.0, self._xx / self._n - x * x)
        together = self._xy / self._n - x * y
        ridge = STEEP * x * x / self._n
        usual = y / x if x else 0.0  # through nothing
        self.b = max(0.0, (together + ridge * usual) / (spread + ridge)) if spread + ridge else usual
        self.a = y - self.b * x


class Costs:
    """What the items of one stage cost. ``most``: what a batch may."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.version = 0  # another one whenever what waits is to be judged anew
        self.by_bytes = False
        self._lines: dict[int, Line] = {}  # by route
        self._any = Line()  # of routes of which nothing is known yet

    @property
    def is_known(self) -> bool:
        """Whether anything is."""
        return self.by_bytes or self._any.count > 0

    def change(self, most: float) -> None:
        """A batch may cost so much from now on."""
        if most != self.most:
            self.most = most
            self.version += 1

    def hear(self, examples: Mapping[int, float] | None) -> None:
        """A worker is ready: what its examples cost, by their sizes. None: its class does not say what costs."""
        if self.by_bytes is not (examples is None):
            self.by_bytes = examples is None
            self.version += 1
        if examples and not self._any.count:
            self._any.learn(list(examples), list(examples.values()))
            self.version += 1

    def learn(self, told: Iterable[tuple[Item, float]]) -> None:
        """These items have cost so much."""
        by_route: dict[int, tuple[list[int], list[float]]] = {}
        for item, cost in told:
            sizes, costs = by_route.setdefault(item.request.route, ([], []))
            sizes.append(item.size)
            costs.append(cost)
        for route, (sizes, costs) in by_route.items():
            line = self._lines.get(route)
            if line is None:
                line = self._lines[route] = Line()
            before = line.count.bit_length()
            line.learn(sizes, costs)
            self._any.learn(sizes, costs)
            if before < min(line.count.bit_length(), RENEWALS):
                self.version += 1

    def of(self, item: Item) -> float:
        """What an item will cost; what a whole batch may where nobody knows."""
        if self.by_bytes:
            return item.size
        line = self._lines.get(item.request.route, self._any)
        return line.at(item.size) if line.count else self.most

    def units(self, item: Item) -> float:
        """The same in units, UNITS_MOST at most."""
        return min(self.of(item) * UNITS / self.most, UNITS_MOST)

    def whole_units(self, cost: float) -> int:
        """What costs so much as Times counts it."""
        return counted(cost * UNITS / self.most)


def counted(units: float) -> int:
    """So many units as Times counts them: 1 to UNITS_MOST."""
    return min(max(ceil(units), 1), UNITS_MOST)
