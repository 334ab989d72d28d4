"""What came of simulated runs, in figures. Pure.

Latencies count from when a request is at the frontend until its answer is, and are of answers with status 200; *in
time* is the share of all requests that got such an answer within the goal. Waits are those of the items that were
computed, in the stage's queue and before its worker begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from engine.core.messages import Status
from engine.simulation.world import Attempt, World

POINTS: Final = 200  # of the curve of latencies


def percentile(ordered: Sequence[float], q: float) -> float:
    """The smallest of ``ordered`` that at least ``q`` percent do not exceed; 0 where there are none."""
    return ordered[max(ceil(q / 100 * len(ordered)) - 1, 0)] if ordered else 0.0


@dataclass(frozen=True)
class StageFigures:
    """One stage. ``busy``: the share of its workers' time in which they compute, with batches as they are; ``load``:
    the share that it would be with those that suit them best, which tells the room there is; ``wait_p99_s`` and
    ``batch_s`` (mean) of single items."""

    name: str
    workers: int
    busy: float
    mean_batch: float
    wait_p99_s: float
    batch_s: float
    load: float = 0.0


@dataclass(frozen=True)
class Figures:
    """All runs together; ``lowest`` is the share in time of the worst of them, ``answered`` that of all that were, in
    time or not. ``curve``: latencies in seconds, evenly
    chosen from the shortest to the longest."""

    rate: float
    requests: int
    in_time: float
    lowest: float
    refused: float
    late: float
    answered: float
    p50_s: float
    p99_s: float
    stages: tuple[StageFigures, ...]
    curve: tuple[float, ...] = ()

    def meets(self, target: float) -> bool:
        """In each of the runs: chance is not to make a number of workers enough."""
        return self.lowest >= target

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(stage.workers for stage in self.stages)

    @property
    def limit(self) -> int:
        """The stage at which items wait longest: where one worker more helps most."""
        return max(range(len(self.stages)), key=lambda place: (self.stages[place].wait_p99_s, self.stages[place].busy))


@dataclass(frozen=True)
class Run:
    """One simulated run: latencies of its answers in order, how many were asked, refused and too late, and how much of
    what each stage did."""

    asked: int
    good: int
    refused: int
    latencies: list[float]
    seconds: float
    names: list[str]
    workers: list[int]
    busy_s: list[float]
    batches: list[int]
    waits: list[list[float]]
    computed_s: list[float]


def run_of(world: World, goals_s: Sequence[float], edge_s: float, *, skip: int) -> Run:
    """What came of a world that is done. ``goals_s``: of each request; ``skip``: so many of the start are left out."""
    counted = world.attempts[skip:]
    latencies = sorted([one.answered_at - one.at + edge_s for one in counted if one.status == Status.OK])
    return Run(
        asked=len(counted),
        good=sum([_is_good(one, goal_s - edge_s) for one, goal_s in zip(counted, goals_s[skip:], strict=True)]),
        refused=sum([one.status in (Status.OVERLOADED, Status.UNAVAILABLE) for one in counted]),
        latencies=latencies,
        seconds=world.attempts[-1].at - world.attempts[0].at,
        names=[stage.spec.name for stage in world.stages],
        workers=[stage.spec.num for stage in world.stages],
        busy_s=[
            sum([hand.busy_s for hand in world.hands.values() if hand.stage == stage.index]) for stage in world.stages
        ],
        batches=[tally.batches.total() - tally.batches[0] for tally in world.tallies],
        waits=[tally.waited_s for tally in world.tallies],
        computed_s=[sum(tally.computed_s) for tally in world.tallies],
    )


def _is_good(attempt: Attempt, within_s: float) -> bool:
    return attempt.status == Status.OK and attempt.answered_at - attempt.at <= within_s


def figures(runs: Sequence[Run], rate: float, capacities: Sequence[float]) -> Figures:
    """Of one run at least, all of the same service; ``capacities``: what one worker of each stage carries."""
    asked = sum(run.asked for run in runs)
    latencies = sorted(latency for run in runs for latency in run.latencies)
    good = sum(run.good for run in runs)
    refused = sum(run.refused for run in runs)
    seconds = sum(run.seconds for run in runs)
    stages = []
    for place, name in enumerate(runs[0].names):
        workers = runs[0].workers[place]
        waits = sorted(wait for run in runs for wait in run.waits[place])
        items, batches = len(waits), sum(run.batches[place] for run in runs)
        stages.append(
            StageFigures(
                name,
                workers,
                busy=min(sum(run.busy_s[place] for run in runs) / (workers * seconds), 1.0) if seconds else 0.0,
                mean_batch=items / batches if batches else 0.0,
                wait_p99_s=percentile(waits, 99),
                batch_s=sum(run.computed_s[place] for run in runs) / items if items else 0.0,
                load=rate / (workers * capacities[place]),
            )
        )
    last = len(latencies) - 1
    return Figures(
        rate=rate,
        requests=asked,
        in_time=good / asked,
        lowest=min(run.good / run.asked for run in runs),
        refused=refused / asked,
        late=(asked - refused - good) / asked,
        answered=len(latencies) / asked,
        p50_s=percentile(latencies, 50),
        p99_s=percentile(latencies, 99),
        stages=tuple(stages),
        curve=tuple(latencies[round(last * point / POINTS)] for point in range(POINTS + 1)) if latencies else (),
    )
