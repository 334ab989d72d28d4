"""Overload of the real front and stages, in counted time: what is computed is still in time, and the others are told so
at once. Every run is drawn from one seed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.core.traffic import Attempt, Layer, Service, line

pytestmark = pytest.mark.unmeasured

SLOW = Layer(line(200, 10), workers=1, most=8)
QUICK = Layer(line(5, 0.5), workers=4, most=32)
FLAT = Layer(line(20, 0.1), workers=4, most=32)

# Layers, the time that each request has, seconds of load, and of these what is left out at the begin: nothing is known
# of a service's batches before they were seen.
SERVICES = {
    "slow": ((SLOW,), 3.0, 24.0, 4.0),
    "slow, four workers": ((Layer(line(200, 10), workers=4, most=8),), 3.0, 10.0, 2.0),
    "large items": ((Layer(line(50, 20), workers=2, most=16),), 3.0, 14.0, 4.0),
    "quick": ((QUICK,), 0.084, 0.9, 0.3),
    "quick, flat": ((FLAT,), 0.093, 0.9, 0.3),
    "without batching": ((Layer(line(20, 0), workers=1, most=1),), 3.0, 10.0, 2.0),
    "two stages, the first slow": ((SLOW, Layer(line(20, 2), workers=1, most=8)), 3.0, 20.0, 4.0),
    "two stages, the second slow": ((Layer(line(20, 2), workers=1, most=8), SLOW), 3.0, 20.0, 4.0),
    "two stages alike": ((QUICK, QUICK), 0.168, 1.5, 0.3),
}


def overloaded(name: str, load: float, *, lag_s: float = 0.0) -> tuple[Service, float, list[Attempt]]:
    """The service after its load, its goodput, and the requests that this was counted of."""
    layers, timeout_s, seconds, warm_s = SERVICES[name]
    service = Service(*layers, timeout_s=timeout_s, lag_s=lag_s, capacity=2048)
    service.arrive(service.poisson(load * service.capacity, seconds))
    service.run(seconds + timeout_s + 0.5)
    assert all(one.status for one in service.attempts)
    assert not service.front.ledger
    return service, service.goodput(warm_s, seconds), service.within(warm_s, seconds)


@pytest.mark.parametrize("load", [1.05, 1.2, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("name", SERVICES)
def test_what_can_be_computed_is_computed_in_time_however_much_comes(name: str, load: float) -> None:
    service, goodput, requests = overloaded(name, load)
    assert goodput >= 0.95
    statuses = Counter(one.status for one in requests)
    assert set(statuses) <= {200, 408, 429}
    assert statuses[408] < 0.05 * len(requests)
    assert service.front.stats.rejected.get("capacity", 0) == 0
    foretold = service.front.foretold  # of those let in: when they would be done, and were
    assert foretold.near > 0.75 * foretold.compared > 0
    if load >= 2.0:  # nearly all who are refused are told at once
        refused = [one for one in requests if one.status == 429]
        assert sum(one.answered_at == one.at for one in refused) > 0.8 * len(refused)


@pytest.mark.parametrize("name", ["slow", "quick", "two stages alike"])
def test_news_that_is_a_little_old_is_good_enough(name: str) -> None:
    """With a thread for each part the front hears of a stage a while later."""
    _, goodput, _ = overloaded(name, 1.5, lag_s=0.003)
    assert goodput >= 0.95


@pytest.mark.parametrize(
    ("layers", "timeout_s"),
    [((QUICK,), 0.084), ((SLOW,), 3.0), ((QUICK, QUICK), 0.168), ((FLAT,), 3.0)],
    ids=["quick", "slow", "two stages", "long deadline"],
)
def test_after_a_burst_with_retries_the_service_is_soon_itself_again(
    layers: tuple[Layer, ...], timeout_s: float
) -> None:
    service = Service(*layers, timeout_s=timeout_s)
    capacity = service.capacity
    service.arrive(service.poisson(0.8 * capacity, 6.0), tries=3)
    service.arrive(service.poisson(2.2 * capacity, 0.5, begin=2.0), tries=3)
    service.run(6.0 + 5 * timeout_s)
    firsts = [one for one in service.within(4.5, 6.0) if one.first]
    assert sum(one.status == 200 for one in firsts) >= 0.99 * len(firsts)
    assert service.most_held <= 1024


def test_a_worker_three_times_as_slow_gets_what_it_can_do_and_costs_nobody_anything() -> None:
    service = Service(Layer(line(20, 0.1), workers=4, most=32, slow=1), timeout_s=0.1)
    service.arrive(service.poisson(0.8 * service.capacity, 2.0))
    service.run(2.5)
    assert len(service.good(0.5, 2.0)) >= 0.99 * len(service.within(0.5, 2.0))


def test_where_deadlines_differ_the_earliest_come_first() -> None:
    service = Service(FLAT, timeout_s=1.0, capacity=8192)
    half = 0.6 * service.capacity
    service.arrive(service.poisson(half, 3.0), budget_s=0.060)
    service.arrive(service.poisson(half, 3.0), budget_s=0.9)
    service.run(4.0)
    tight = [one for one in service.within(0.5, 2.5) if one.budget_s < 0.1]
    assert sum(one.status == 200 for one in tight) >= 0.95 * len(tight)
    assert service.goodput(0.5, 2.5) >= 0.95


def test_what_cannot_be_done_in_time_by_anybody_is_no_reason_to_refuse_the_others() -> None:
    service = Service(SLOW)
    service.arrive(service.poisson(4.0, 12.0))
    service.arrive(service.poisson(20.0, 12.0), budget_s=0.1)  # it takes 0.21 s
    service.run(16.0)
    able = [one for one in service.within(2.0, 12.0) if one.budget_s > 0.1]
    assert sum(one.status == 200 for one in able) == len(able)


def test_a_stage_that_has_become_quicker_is_found_out() -> None:
    """It took twice the time that requests have; everybody was refused but those who found it idle."""
    layer = Layer(line(2000, 10), workers=1, most=8)
    service = Service(layer, timeout_s=1.0)
    service.arrive(service.poisson(20.0, 30.0))
    service.run(10.0)
    assert not service.good(0.0, 9.0)
    quick = line(100, 10)
    service.become(Layer(quick, workers=1, most=8))
    service.run(21.5)
    assert len(service.good(20.0, 30.0)) >= 0.99 * len(service.within(20.0, 30.0))


def test_a_service_that_has_become_slower_is_found_out() -> None:
    service = Service(QUICK, timeout_s=0.2)
    service.arrive(service.poisson(0.7 * service.capacity, 3.0))
    service.run(1.0)
    service.become(Layer(line(10, 1), workers=4, most=32))
    service.run(3.0)
    assert service.goodput(1.5, 3.0) >= 0.95


@pytest.mark.parametrize("workers", [1, 4])
def test_a_burst_right_after_the_start_is_told_at_once_whom_there_is_no_time_for(workers: int) -> None:
    """The first batch is done after 0.28 s; what is known until then the warm-up has told."""
    told = {}
    for warm in (0.0, 1.0):
        service = Service(Layer(line(200, 10), workers=workers, most=8), timeout_s=1.5, warm=warm)
        service.arrive(service.poisson(5 * service.capacity * 1.5 / 0.2, 0.2))
        service.run(4.0)
        refused = [one for one in service.attempts if one.status != 200]
        told[warm] = sum(one.answered_at - one.at < 0.01 for one in refused) / len(refused)
        assert len(service.attempts) - len(refused) >= 0.9 * 1.2 * service.capacity
    assert told[0.0] < 0.5, "else this tests nothing"
    assert told[1.0] > 0.95


@pytest.mark.parametrize("warm", [0.2, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("name", ["slow, four workers", "large items", "quick", "quick, flat"])
def test_a_warm_up_that_was_no_measure_of_what_comes_costs_little(name: str, warm: float) -> None:
    layers, timeout_s, _, seconds = SERVICES[name]
    service = Service(*layers, timeout_s=timeout_s, warm=warm)
    service.arrive(service.poisson(0.9 * service.capacity, seconds))
    service.run(seconds + timeout_s)
    assert len(service.good(0.0, seconds)) >= 0.9 * len(service.attempts)
