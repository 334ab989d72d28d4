"""The pictures of docs/scheduling.md: what the rules of scheduling do, in counted time, by the simulator.

    PYTHONPATH=scripts python -m benchmarks.rules [FOLDER]

One stage whose batches take 5 ms and 0.5 ms more for each item (20 and 0.1 ms below saturation), at most 32 to a batch,
four workers; arrivals are independent of each other. Takes a minute or two; the same figures each time.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.stats import percentile
from engine.core.batching import Policy
from engine.core.front import FrontSpec
from engine.core.messages import Qos
from engine.core.routing import Route, Topology
from engine.core.stage import StageSpec
from engine.simulation.picture import Line, Mark, chart
from engine.simulation.world import BEGIN, GAP_S, Attempt, Works, World

MOST, WORKERS = 32, 4
TIMEOUT_S: Final = 3.0
SECONDS: Final = 3.0  # of each run, the first of them not counted
WARM_S: Final = 1.0
TOPOLOGY: Final = Topology(("encode",), (Route("/inference", (0,)),))


@dataclass(frozen=True)
class Times:
    """Of batches, in seconds."""

    fixed_s: float
    each_s: float

    def __call__(self, n: int) -> float:
        return self.fixed_s + self.each_s * n

    @property
    def capacity(self) -> float:
        """Items per second."""
        return WORKERS * MOST / (self(MOST) + GAP_S)


USUAL: Final = Times(0.005, 0.0005)
FLAT: Final = Times(0.020, 0.0001)
WHOLE_S: Final = USUAL(MOST)


def simulated(
    loads: dict[bytes, float], takes: Times = USUAL, *, slo_s: float = 0.0, policy: Policy | None = None
) -> list[Attempt]:
    """Requests of so many times the capacity, by client, with their answers."""
    rng = random.Random(1)
    world = World(
        TOPOLOGY,
        [StageSpec("encode", WORKERS, policy or Policy(MOST), TIMEOUT_S, TIMEOUT_S, 1 << 30)],
        [Works(takes, lambda rng: rng.uniform(0.95, 1.05), {n: takes(n) for n in (1, 2, 4, 8, 16, 32)})],
        front=FrontSpec(1 << 20, 1 << 40, slos_s=(slo_s,)),
    )
    for client, load in loads.items():
        world.arrive(_poisson(rng.random(), load * takes.capacity), budget_s=TIMEOUT_S, qos=Qos(client=client))
    world.run(SECONDS + TIMEOUT_S)
    return [one for one in world.attempts if one.at >= BEGIN + WARM_S]


def _poisson(seed: float, rate: float) -> Iterator[float]:
    rng, at = random.Random(seed), 0.0
    while (at := at + rng.expovariate(rate)) < SECONDS:
        yield at


def _in_time(requests: list[Attempt], within_s: float) -> list[Attempt]:
    return [one for one in requests if one.status == 200 and one.answered_at - one.at <= within_s]


def overload() -> str:
    """What is answered in time, however much comes."""
    loads = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0)
    lines = []
    for name, slo_s in (("goal of 6 whole batches", 6 * WHOLE_S), ("goal of 2.5", 2.5 * WHOLE_S)):
        points = []
        for load in loads:
            good = _in_time(simulated({b"": load}, slo_s=slo_s), slo_s)
            points.append((load, 100 * len(good) / (SECONDS - WARM_S) / USUAL.capacity))
        lines.append(Line(name, points))
    return chart(
        "Answers within the goal, however much comes",
        "requests, in multiples of what the stage can compute",
        "answers in time, % of what it can compute",
        lines,
        [Mark("all that can be computed", y=100.0)],
    )


def light() -> str:
    """What spacing and sharing do where everybody can be served."""
    loads = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    lines = []
    for name, policy in (("spaced", Policy(MOST)), ("not spaced", Policy(MOST, max_wait_s=0.0))):
        points = []
        for load in loads:
            took = sorted(one.answered_at - one.at for one in simulated({b"": load}, FLAT, policy=policy))
            points.append((100 * load, 1000 * percentile(took, 99)))
        lines.append(Line(f"p99, {name}", points))
    return chart("Below saturation, where most of a batch's time is fixed", "load, %", "latency, ms", lines)


def flood() -> str:
    """One client asks for more and more; two others for a tenth of what can be computed each."""
    slo_s = 4 * WHOLE_S
    mine: list[tuple[float, float]] = []
    others: list[tuple[float, float]] = []
    for load in (0.3, 0.5, 0.7, 0.9, 1.1, 1.5, 2.0, 3.0):
        found = simulated({b"a": load, b"b": 0.1, b"c": 0.1}, slo_s=slo_s)
        for points, clients in ((mine, b"a"), (others, b"bc")):
            of_these = [one for one in found if one.qos is not None and one.qos.client in clients]
            points.append((load, 100 * len(_in_time(of_these, slo_s)) / len(of_these)))
    return chart(
        "One client floods the service",
        "what it asks for, in multiples of what can be computed",
        "requests answered within the goal, %",
        [Line("the two others, a tenth each", others), Line("the client that floods", mine)],
    )


PICTURES: Final = {"scheduling-overload.svg": overload, "scheduling-light.svg": light, "scheduling-flood.svg": flood}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"))
    folder: Path = parser.parse_args().folder
    for name, draw in PICTURES.items():
        (folder / name).write_text(draw(), encoding="utf-8")
        print(folder / name, flush=True)


if __name__ == "__main__":
    main()
