"""Load without sockets or waiting: a service of a few layers in the simulator, and what tests ask of it.

:class:`Service` is :class:`engine.simulation.world.World` with workers that take ``curve(n)`` seconds for n items, a
little more or less, and clients that ask again. Everything is drawn from one seed: the same run gives the same figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from engine.core.batching import Policy
from engine.core.front import FrontSpec
from engine.core.messages import Qos
from engine.core.routing import Route, Topology
from engine.core.stage import StageSpec
from engine.simulation.world import BEGIN, GAP_S, Attempt, Curve, Works, World

__all__ = ["Attempt", "Curve", "Layer", "Service", "line"]

SEEDED = (1, 2, 4, 8, 16, 32)  # sizes that workers have timed in their warm-up


def line(fixed_ms: float, item_ms: float) -> Curve:
    return lambda n: (fixed_ms + item_ms * n) / 1000


@dataclass(frozen=True)
class Layer:
    """One stage of a service."""

    curve: Curve
    workers: int = 1
    most: int = 8
    slow: int = 0  # of its workers take three times as long
    away_s: float = 0.0  # further than on one host, each way, and up to so much more
    jitter_s: float = 0.0

    @property
    def capacity(self) -> float:
        """Items per second with the batches that suit it best."""
        best = max(n / (self.curve(n) + GAP_S) for n in range(1, self.most + 1))
        return best * (self.workers - self.slow + self.slow / 3)

    def spec(self, name: str, timeout_s: float) -> StageSpec:
        return StageSpec(name, self.workers, Policy(self.most), timeout_s, 10.0, 1 << 30)

    def works(self, noise: float, warm: float) -> Works:
        times = {n: warm * self.curve(n) for n in SEEDED if warm and n <= self.most}
        slowness = [1.0] * (self.workers - self.slow) + [3.0] * self.slow

        def draw(rng: Random) -> float:
            return 1.0 + noise * rng.uniform(-1.0, 1.0)

        return Works(self.curve, draw, times, slowness, away_s=self.away_s, jitter_s=self.jitter_s)


class Service(World):
    def __init__(
        self,
        *layers: Layer,
        timeout_s: float = 3.0,
        capacity: int = 1024,
        routes: Sequence[tuple[int, ...]] = (),
        noise: float = 0.05,
        lag_s: float = 0.0,
        warm: float = 0.0,
        seed: int = 1,
        **about: Any,
    ) -> None:
        """``lag_s``: how long what stages tell the front is on its way. ``warm``: what workers have timed in their
        warm-up, in multiples of what batches take; 0: they had none. ``about``: goals, classes and clients."""
        names = tuple(f"s{index}" for index in range(len(layers)))
        ways = tuple(routes) or (tuple(range(len(layers))),)
        self.layers = layers
        self.timeout_s = timeout_s
        super().__init__(
            Topology(names, tuple(Route(f"/r{index}", way) for index, way in enumerate(ways))),
            [layer.spec(name, timeout_s) for name, layer in zip(names, layers, strict=True)],
            [layer.works(noise, warm) for layer in layers],
            front=FrontSpec(capacity, 1 << 30, **about),
            lag_s=lag_s,
            seed=seed,
        )

    @property
    def capacity(self) -> float:
        return min(layer.capacity for layer in self.layers)

    @property
    def batches(self) -> Counter[int]:
        """All that were computed, by size."""
        return sum((tally.batches for tally in self.tallies), Counter())

    def become(self, layer: Layer) -> None:
        """Of a service of one layer: its workers take another time from now on."""
        self.layers = (layer,)
        self.change(0, layer.curve)

    # --- load --------------------------------------------------------------------------------------------------------

    def arrive(  # type: ignore[override]
        self,
        instants: Iterator[float],
        *,
        tries: int = 0,
        budget_s: float = 0.0,
        route: int = 0,
        qos: Qos | None = None,
    ) -> None:
        """Requests come at these instants, in seconds from now on. ``tries``: how often each is made again when it
        fails, a fiftieth of a second later and whatever it was told."""
        super().arrive(instants, tries=tries, budget_s=budget_s or self.timeout_s, qos=qos, routes=lambda: route)

    def poisson(self, rate: float, seconds: float, *, begin: float = 0.0) -> Iterator[float]:
        """Instants of independent arrivals, ``rate`` a second."""
        at = begin + self.rng.expovariate(rate)
        while at < begin + seconds:
            yield at
            at += self.rng.expovariate(rate)

    def answered(self, attempt: Attempt) -> None:
        if attempt.status != 200 and attempt.tries:
            again = Attempt(self.now + 0.02, attempt.budget_s, attempt.tries - 1, first=False, qos=attempt.qos)
            self._at(again.at, lambda: self.submit(again))

    # --- figures -----------------------------------------------------------------------------------------------------

    def goodput(self, begin: float, end: float) -> float:
        """What arrived in this part of the run (seconds from its start) and was answered in time, as a share of what
        could be computed in it."""
        return len(self.good(begin, end)) / (end - begin) / self.capacity

    def good(self, begin: float, end: float) -> list[Attempt]:
        return [one for one in self.within(begin, end) if one.status == 200]

    def within(self, begin: float, end: float) -> list[Attempt]:
        return [one for one in self.attempts if begin <= one.at - BEGIN < end]
