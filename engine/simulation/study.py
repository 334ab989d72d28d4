"""One service asked for one rate, several times, by different seeds. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from engine.core.front import FrontSpec
from engine.core.routing import Topology
from engine.core.stage import StageSpec
from engine.simulation.arrivals import Arrivals
from engine.simulation.figures import Figures, Run, figures, run_of
from engine.simulation.profile import Profile
from engine.simulation.world import World

REQUESTS: Final = 10_000  # of each run: with a quarter of them chance alone moves a p99 by a third where bursts come
SEEDS: Final = 3
START: Final = 0.1  # of as many requests again, which come first and are not counted


@dataclass(frozen=True)
class Service:
    """What is simulated, but for how many workers there are. ``front`` has the goals of the routes, one for each;
    ``timeout_s``: how long requests are waited for, whatever their goal is;
    ``shares``: of the routes, of all requests; ``parts``: see :class:`engine.simulation.world.World`."""

    topology: Topology
    front: FrontSpec
    stages: tuple[StageSpec, ...]
    profile: Profile
    timeout_s: float
    shares: tuple[float, ...] = (1.0,)
    parts: Mapping[tuple[int, int], Sequence[float]] = field(default_factory=dict)

    @property
    def slos_s(self) -> tuple[float, ...]:
        """The goals of the routes."""
        return self.front.slos_s

    @property
    def alone_s(self) -> tuple[float, ...]:
        """By route: what one request takes that is alone."""
        alone = [self.profile.of(stage.name).curve(1) + 2 * self.profile.hop_s for stage in self.stages]
        return tuple(
            [self.topology.least(number, alone) + self.profile.edge_s for number in range(len(self.topology.routes))]
        )

    def visits(self, stage: int) -> float:
        """What comes to a stage for one request in the mean: itself, or so many parts of it; less than one where some
        do not come there."""
        found = 0.0
        for route, share in enumerate(self.shares):
            means = {at: sum(known) / len(known) for (of, at), known in self.parts.items() if of == route}
            found += share * self.topology.visits(route, means).get(stage, 0.0)
        return found / sum(self.shares)

    def capacity(self, stage: int) -> float:
        """Requests of all routes per second that one worker of a stage carries, with the batches that suit it best; inf
        for one to which none come."""
        spec = self.stages[stage]
        most = self.profile.of(spec.name).best(spec.policy.max_batch_size)[1]
        visits = self.visits(stage)
        return most / visits if visits else float("inf")

    def least(self, rate: float) -> tuple[int, ...]:
        """As many workers as full batches take."""
        return tuple(int(rate / self.capacity(stage)) + 1 for stage in range(len(self.stages)))


def study(
    service: Service,
    counts: Sequence[int],
    arrivals: Arrivals,
    *,
    requests: int = REQUESTS,
    seeds: int = SEEDS,
) -> Figures:
    """``counts``: workers of each stage."""
    runs = [one(service, counts, arrivals, requests, seed) for seed in range(1, seeds + 1)]
    capacities = [service.capacity(stage) for stage in range(len(counts))]
    return figures(runs, arrivals.rate, capacities)


def one(service: Service, counts: Sequence[int], arrivals: Arrivals, requests: int, seed: int) -> Run:
    """One run. The same seed brings the same arrivals, whatever the service is."""
    specs = [replace(spec, num=count, spare=0) for spec, count in zip(service.stages, counts, strict=True)]
    world = World(
        service.topology,
        specs,
        [service.profile.of(spec.name).works(spec.policy.max_batch_size) for spec in specs],
        front=service.front,
        hop_s=service.profile.hop_s,
        seed=f"works {seed}",
        parts=service.parts,
    )
    skip = int(START * requests)
    rng = random.Random(f"routes {seed}")
    numbers = range(len(service.shares))

    goals_s: list[float] = []  # of each request

    def route() -> int:
        number = rng.choices(numbers, service.shares)[0] if len(numbers) > 1 else 0
        goals_s.append(service.slos_s[number])
        return number

    world.arrive(islice(arrivals.instants(seed), requests + skip), budget_s=service.timeout_s, routes=route)
    world.finish()
    return run_of(world, goals_s, service.profile.edge_s, skip=skip)
