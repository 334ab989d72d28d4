"""Items that cost unlike much, at the real front and stages in counted time: lengths are log-normal, and a batch takes
as long as its longest times their number says. Every run is drawn from one seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp
from random import Random

import msgspec
import pytest

from engine.broker import report
from engine.core.batching import Policy
from engine.core.front import FrontSpec
from engine.core.routing import Route, Topology
from engine.core.stage import StageSpec
from engine.simulation.world import BEGIN, GAP_S, Attempt, Works, World
from engine.status import table

pytestmark = pytest.mark.unmeasured

MEAN = 128  # tokens of a text, in the mean
USUAL = 32  # texts of a batch, if all were so long
BUDGET = USUAL * MEAN
FIXED_S, TOKEN_S = 0.005, 0.020 / BUDGET
SLO_S = 0.2
WORKERS = 2
CAPACITY = WORKERS * USUAL / (FIXED_S + TOKEN_S * BUDGET + GAP_S)  # requests/s, if nothing were padding


def curve(tokens: int) -> float:
    return FIXED_S + TOKEN_S * tokens


@dataclass
class Run:
    world: World
    requests: list[Attempt]

    @property
    def in_time(self) -> float:
        return share_in_time(self.requests)

    @property
    def long_in_time(self) -> float:
        """Of the longest twentieth."""
        return share_in_time(sorted(self.requests, key=lambda one: one.size)[-len(self.requests) // 20 :])

    @property
    def statuses(self) -> Counter[int]:
        return Counter(one.status for one in self.requests)


def share_in_time(requests: list[Attempt]) -> float:
    return sum(one.status == 200 and one.answered_at - one.at <= SLO_S for one in requests) / len(requests)


def texts(
    sigma: float,
    load: float,
    *,
    by_cost: bool,
    around: int = 0,
    seconds: float = 2.0,
    warm: bool = True,
    slo_s: float = 0.0,
) -> Run:
    """``around``: bytes of a body that are no text; the others are four to a token. ``slo_s``: the route's goal; 0: the
    deadline is."""
    rng = Random(1)
    times = {n: curve(n) for n in (MEAN, 4 * MEAN, BUDGET)} if by_cost else {n: curve(n * MEAN) for n in (1, 4, USUAL)}
    policy = Policy(4 * USUAL, max_batch_cost=BUDGET) if by_cost else Policy(USUAL)
    world = World(
        Topology(("s",), (Route("/", (0,)),)),
        [StageSpec("s", WORKERS, policy, 3.0, 10.0, 1 << 30)],
        [Works(curve, lambda drawn: drawn.uniform(0.95, 1.05), times if warm else {}, cost=lambda n: (n - around) / 4)],
        front=FrontSpec(1 << 16, 1 << 40, slos_s=(slo_s,)),
    )

    def instants() -> Iterator[float]:
        at = 0.0
        while at < seconds:
            yield at
            at += rng.expovariate(load * CAPACITY)

    def size() -> int:
        return around + max(4, round(4 * MEAN * exp(rng.gauss(-sigma * sigma / 2, sigma))))

    world.arrive(instants(), budget_s=3.0 if slo_s else SLO_S, sizes=size)
    world.finish()
    return Run(world, [one for one in world.attempts if one.at - BEGIN > 0.5])


@pytest.mark.parametrize(
    ("sigma", "load", "at_least", "by_count"), [(0.5, 0.7, 0.99, 0.8), (0.5, 0.85, 0.97, 0.7), (1.0, 0.7, 0.99, 0.5)]
)
def test_by_cost_what_is_lost_to_padding_by_count_is_answered_in_time(
    sigma: float, load: float, at_least: float, by_count: float
) -> None:
    run = texts(sigma, load, by_cost=True)
    assert run.in_time >= at_least
    assert run.long_in_time >= at_least - 0.05
    assert texts(sigma, load, by_cost=False).in_time <= by_count


def test_beyond_the_capacity_what_can_be_computed_is_in_time_and_nothing_is_computed_in_vain() -> None:
    run = texts(1.0, 1.3, by_cost=True, seconds=2.0)
    assert run.in_time >= 0.6  # 0.77 are possible if nothing were padding
    assert run.statuses[408] <= 0.01 * len(run.requests)
    assert set(run.statuses) <= {200, 408, 429}


@pytest.mark.parametrize(("slo_s", "load", "at_least"), [(SLO_S, 0.7, 0.99), (0.04, 0.4, 0.9)], ids=["goal", "tight"])
def test_a_goal_is_met_by_cost_too(slo_s: float, load: float, at_least: float) -> None:
    """A tight one has less time than for two batches of all that one may cost: 25 ms each."""
    run = texts(0.5, load, by_cost=True, slo_s=slo_s, seconds=1.5)
    in_time = [one for one in run.requests if one.status == 200 and one.answered_at - one.at <= slo_s]
    assert len(in_time) >= at_least * len(run.requests)


def test_what_texts_cost_is_learned_from_the_first_of_them() -> None:
    """Nobody has told anything before, and half of a short body is no text."""
    run = texts(0.5, 0.7, by_cost=True, around=200, warm=False)
    assert run.in_time >= 0.99
    stats = run.world.stages[0].stats
    assert 1.0 <= stats.padded_cost / stats.cost < 1.6
    assert stats.cost == pytest.approx(MEAN * len(run.world.attempts), rel=0.05)


def test_by_count_and_by_cost_are_the_same_where_all_cost_the_same() -> None:
    even = [texts(0.0, 0.9, by_cost=by_cost, seconds=1.5) for by_cost in (True, False)]
    batches = [run.world.tallies[0].batches for run in even]
    assert max(batches[0]) == max(batches[1]) == USUAL
    means = [sum(one.answered_at - one.at for one in run.requests) / len(run.requests) for run in even]
    assert means[0] == pytest.approx(means[1], rel=0.05)
    assert [run.in_time for run in even] == [1.0, 1.0]


def test_what_batches_cost_is_told_with_what_of_it_is_padding() -> None:
    run = texts(1.0, 0.5, by_cost=True, seconds=0.5)
    (machine,) = run.world.stages
    told = report.stage_status(machine, run.world.now)
    assert told.cost is not None
    assert (told.cost.by, told.cost.most) == ("workers", BUDGET)
    assert told.cost.items == pytest.approx(sum(one.size / 4 for one in run.world.attempts))
    assert told.cost.waste == pytest.approx(1 - told.cost.items / told.cost.padded, abs=1e-3)
    assert 0 < told.cost.mean <= BUDGET * 4
    values = {
        sample.name: sample.value
        for family in report.stage_families(machine, [], 0.0, "m").own
        for sample in family.samples
    }
    assert values["m_stage_cost_total"] == pytest.approx(told.cost.items)
    assert values["m_stage_cost_padded_total"] == pytest.approx(told.cost.padded)
    assert told.learned.ms.keys() >= {"1", "2", "4", "8"}  # by number of usual items
    assert told.learned.ms["8"] > told.learned.ms["1"]
    line = next(line for line in table(status_of(told)).splitlines() if "padding" in line)
    assert "of 4096 in the mean" in line


def status_of(told: report.StageStatus) -> bytes:
    return msgspec.json.encode({"name": "x", "stages": [told]})


def test_a_stage_that_goes_by_count_says_nothing_of_cost() -> None:
    (machine,) = texts(0.5, 0.5, by_cost=False, seconds=0.2).world.stages
    assert report.stage_status(machine, 2000.0).cost is None
    assert not any("cost" in family.name for family in report.stage_families(machine, [], 0.0, "m").own)
    assert (machine.stats.cost, machine.stats.priced_batches) == (0.0, 0)
