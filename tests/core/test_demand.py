"""How many workers a stage is said to need, beside how many it does; and that whoever goes by it does not waver."""

from __future__ import annotations

import random
from math import ceil, inf

import pytest

from engine.core.batching import Policy
from engine.core.demand import DOWN_S, UP_S, UTILISATION, WINDOW_S, Demand, Scale
from engine.core.messages import Status
from engine.core.stage import StageSpec
from tests.core.traffic import Layer, Service, line
from tests.core.twin import Twin, topology

pytestmark = pytest.mark.unmeasured

LOOK_S = 1.0


def watched(service: Service) -> list[tuple[float, float]]:
    """What the figure is as time goes on, by the seconds since now."""
    began, told = service.now, list[tuple[float, float]]()
    stage = service.stages[0]

    def look() -> None:
        stage.measure(service.now)
        told.append((service.now - began, stage.demand_workers))
        service._at(service.now + LOOK_S, look)

    look()
    return told


LAYERS = {
    "one by one": Layer(line(0, 40), workers=5, most=1),
    "short": Layer(line(0.4, 4.0), workers=1, most=1),
    "batches": Layer(line(120, 10), workers=2, most=16),
    "mostly fixed": Layer(line(300, 1.5), workers=1, most=32),
    "one of them slow": Layer(line(0, 40), workers=4, most=1, slow=1),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_it_is_right_half_a_minute_after_the_load_has_changed(layer: Layer) -> None:
    service = Service(layer, timeout_s=5.0, warm=1.0, seed=1)
    told = watched(service)
    service.arrive(service.poisson(0.1 * layer.capacity, 60.0))
    service.arrive(service.poisson(0.8 * layer.capacity, 60.0, begin=60.0))
    service.run(120.0)
    for begin, end, share in ((30.0, 60.0, 0.1), (90.0, 120.0, 0.8)):
        found = [figure for at, figure in told if begin + LOOK_S <= at <= end]
        assert found == pytest.approx([share * layer.workers] * len(found), rel=0.15)
    assert all(one.status == Status.OK for one in service.within(0.0, 115.0))


def test_small_batches_do_not_make_it_look_as_if_more_were_needed() -> None:
    """At a third of what whole batches could do all workers are busy: with more of them batches would be smaller."""
    layer = Layer(line(200, 2), workers=3, most=32)
    service = Service(layer, warm=1.0, seed=2)
    told = watched(service)
    service.arrive(service.poisson(layer.capacity / 3, 60.0))
    service.run(60.0)
    busy = sum(hand.busy_s for hand in service.hands.values()) / 60.0
    assert busy > 2.4
    assert told[-1][1] == pytest.approx(1.0, rel=0.15)


def test_what_is_too_much_asks_for_more_than_there_are() -> None:
    layer = Layer(line(0, 50), workers=2, most=1)
    service = Service(layer, timeout_s=3.0, warm=1.0)
    told = watched(service)
    service.arrive(service.poisson(3 * layer.capacity, 60.0))
    service.run(60.0)
    assert told[-1][1] > 1.3 * layer.workers  # the door lets in what can be done in time, and most of that waits


def test_of_a_stage_that_has_computed_nothing_one_worker_is_wanted() -> None:
    demand = Demand()
    for second in range(5):
        demand.look(float(second), arrived=3 * second, waiting=3 * second)
    assert demand.workers(0.0, 3.0) == UTILISATION, "one is wanted, and no more"
    assert Demand().workers(0.0, 3.0) == 0.0


def test_while_nobody_knows_how_long_an_item_takes_one_worker_is_all_that_is_tried() -> None:
    demand, scale = Demand(), Scale(0, least=0, most=8, now=0.0)
    for second in range(300):  # it loads for long
        demand.look(float(second), arrived=1, waiting=1)
        scale.look(demand.workers(0.0, 30.0), float(second), asked=True)
    assert scale.workers == 1


def test_it_is_forgotten_when_nobody_has_come_for_long() -> None:
    demand = Demand()
    for second in range(100):
        demand.look(float(second), arrived=10 * min(second, 20), waiting=0)
    assert demand.workers(0.1, 3.0) == 0.0


def figures(rates: list[float], seed: int = 1) -> list[float]:
    """The figure each second where so many items come in each, by chance, of which one keeps a worker for a second."""
    rng, demand, arrived, told = random.Random(seed), Demand(), 0, list[float]()
    for second, rate in enumerate(rates):
        at = 0.0
        while rate and (at := at + rng.expovariate(10 * rate)) < 1.0:
            arrived += 1
        demand.look(float(second), arrived, 0)
        told.append(demand.workers(0.1, 3.0))
    return told


def changes(scale: Scale, told: list[float]) -> list[tuple[int, int]]:
    """When the number of workers changes, and to what."""
    found, before = list[tuple[int, int]](), scale.workers
    for second, demand in enumerate(told):
        if (now := scale.look(demand, float(second))) != before:
            found.append((second, now))
            before = now
    return found


@pytest.mark.parametrize("load", [0.5, 0.8, 3.2, 4.0, 7.9])  # some of them where one worker more is just not needed
def test_steady_load_changes_the_number_once_or_twice_in_two_hours(load: float) -> None:
    scale = Scale(ceil(load / UTILISATION), least=1, most=20, now=0.0)
    found = changes(scale, figures([load] * 7200))
    assert len(found) <= 2
    assert all(workers >= load for _, workers in found)


def test_more_come_soon_and_go_late() -> None:
    scale = Scale(1, least=1, most=20, now=0.0)
    told = figures([0.5] * 100 + [4.0] * 900 + [0.5] * 1200)
    found = changes(scale, told)
    first = next(second for second, workers in found if workers > 1)
    assert 100 < first <= 100 + UP_S + 5
    reached = next(second for second, workers in found if workers >= 5)
    assert reached <= 100 + 2 * UP_S + 5
    assert [second for second, workers in found if workers == 1] == [
        pytest.approx(1000 + DOWN_S + UP_S, abs=15)
    ]  # fmt: skip


def test_a_burst_changes_nothing() -> None:
    scale = Scale(2, least=1, most=20, now=0.0)
    assert changes(scale, [1.2] * 300 + [9.0] * 25 + [1.2] * 300) == []


def test_it_keeps_within_its_bounds() -> None:
    scale = Scale(1, least=0, most=3, now=0.0)
    assert changes(scale, [9.0] * 60 + [0.0] * 700) == [(30, 3), (660, 0)]


# --- a stage that may be without workers ------------------------------------------------------------------------------


EMPTY = StageSpec("s0", 1, Policy(1), 2.0, 5.0, 1 << 20, may_be_empty=True)


def test_a_stage_that_may_be_empty_queues_until_a_worker_comes() -> None:
    twin = Twin(topology(), [EMPTY])
    twin.pass_time(60.0)
    assert twin.front.stages[0].absent_at == inf
    twin.submit(1, budget_s=30.0)
    twin.pass_time(20.0)
    assert not twin.answers
    for _ in range(3):
        twin.stages[0].measure(twin.now)
        twin.pass_time(1.0)
    assert twin.stages[0].demand_workers == UTILISATION
    worker = twin.worker()
    twin.finish(worker)
    assert [status for ((status, _),) in twin.answers.values()] == [Status.OK]


def test_looks_are_kept_for_the_window_and_no_longer() -> None:
    demand = Demand()
    for second in range(1000):
        demand.look(float(second), second, 0)
    assert len(demand._looks) <= WINDOW_S + 2
