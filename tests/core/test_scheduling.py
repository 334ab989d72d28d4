"""What holds of scheduling whatever a service is like: curves, workers, loads, goals, classes and clients, in counted
time, with the real front and stages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.fairness import Priority
from engine.core.messages import Qos
from tests.core.traffic import Attempt, Layer, Service, line

pytestmark = pytest.mark.unmeasured

LATE_S = 0.002  # between a deadline and the pass of the broker that finds it
CLIENTS = (b"aaaaaaaa", b"bbbbbbbb", b"")


@dataclass(frozen=True)
class Crowd:
    """``load``: of the capacity. ``budget`` and ``slo`` in whole batches; 0: none."""

    load: float
    budget: float
    slo: float
    route: int
    priority: int
    client: bytes


layers = st.builds(
    lambda fixed, each, workers, most, slow: Layer(line(fixed, each), workers, most, min(slow, workers - 1)),
    st.sampled_from([1.0, 5.0, 20.0, 100.0]),
    st.sampled_from([0.0, 0.1, 0.5, 2.0, 10.0]),
    st.integers(1, 4),
    st.sampled_from([1, 2, 8, 32]),
    st.integers(0, 1),
)
crowds = st.builds(
    Crowd,
    st.sampled_from([0.1, 0.5, 0.9, 1.5, 3.0]),
    st.sampled_from([3.0, 10.0, 50.0]),
    st.sampled_from([0.0, 1.0, 1.5, 2.5, 6.0, 100.0]),
    st.integers(0, 1),
    st.integers(0, 2),
    st.sampled_from(CLIENTS),
)


@st.composite
def services(draw: st.DrawFn) -> tuple[Service, float]:
    """A service after its load, with nobody waiting any more, and how long a whole batch takes."""
    stages = draw(st.lists(layers, min_size=1, max_size=2))
    whole_s = sum(layer.curve(layer.most) for layer in stages)
    slos = draw(st.lists(st.sampled_from([0.0, 2.5, 6.0]), min_size=2, max_size=2))
    service = Service(
        *stages,
        timeout_s=60 * whole_s,
        routes=[tuple(range(len(stages))), (0,)],
        slos_s=tuple(slo * whole_s for slo in slos),
        priorities=tuple(draw(st.sampled_from(list(Priority))) for _ in range(2)),
        capacity=draw(st.sampled_from([16, 1024])),
        warm=draw(st.sampled_from([0.0, 0.5, 1.0])),
        seed=draw(st.integers(0, 1000)),
        lag_s=draw(st.sampled_from([0.0, 0.001])),
    )
    seconds = min(30 * whole_s, 400 / service.capacity)
    for crowd in draw(st.lists(crowds, min_size=1, max_size=3)):
        qos = Qos(int(crowd.slo * whole_s * 1e6), crowd.priority, crowd.client)
        service.arrive(
            service.poisson(crowd.load * service.capacity, seconds, begin=0.01),  # when the stages are known
            budget_s=crowd.budget * whole_s,
            route=crowd.route,
            qos=qos,
        )
    service.run(seconds + 60 * whole_s)
    return service, whole_s


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(services())
def test_everybody_has_one_answer_by_the_deadline_and_nothing_is_left(found: tuple[Service, float]) -> None:
    service, _ = found
    for one in service.attempts:
        assert one.status in (200, 408, 429)
        assert one.answered_at <= one.at + one.budget_s + LATE_S
    assert not service.front.ledger
    for stage in service.stages:
        assert not stage.queue.items
        assert not any(worker.batches for worker in stage.workers.values())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(services())
def test_nobody_is_refused_who_finds_everybody_idle(found: tuple[Service, float]) -> None:
    """The first of each service, and whoever comes when all is done, however impossible what they ask for."""
    service, whole_s = found
    service.arrive(iter([0.0]), budget_s=60 * whole_s, qos=Qos(1))
    service.run(70 * whole_s)
    assert service.attempts[0].status != 429
    assert service.attempts[-1].status == 200


def test_a_stage_that_has_been_overloaded_is_not_locked_in_small_batches() -> None:
    """Spikes leave nothing behind: the same light load is served as before, in as many batches."""
    layer = Layer(line(20, 0.1), 4, 32)
    service = Service(layer, slos_s=(0.1,), warm=1.0)
    service.arrive(service.poisson(0.3 * service.capacity, 3.0))
    service.run(1.0)
    before = service.batches.total()
    service.arrive(service.poisson(5.0 * service.capacity, 0.5))
    service.run(1.0)
    between = service.batches.total()
    service.run(1.0)
    assert service.batches.total() - between <= 1.1 * before
    assert len(service.good(2.0, 2.8)) == len(service.within(2.0, 2.8))


@pytest.mark.parametrize("load", [1.2, 4.0])
def test_nobody_starves(load: float) -> None:
    """Under any load, whoever asks - with little time or much, high or low, with a token or without - is served some of
    what it asks for, all the time."""
    service = Service(
        Layer(line(5, 0.5), 2, 16),
        timeout_s=1.0,
        routes=((0,), (0,), (0,)),
        slos_s=(0.1, 0.1, 0.0),
        priorities=(Priority.HIGH, Priority.LOW, Priority.NORMAL),
        warm=1.0,
    )
    kinds = [(route, client) for route in range(3) for client in CLIENTS]
    for route, client in kinds:
        rate = load * service.capacity / len(kinds)
        service.arrive(service.poisson(rate, 3.0), route=route, qos=Qos(client=client, slo_us=0))
    service.run(5.0)

    def served(one: Attempt) -> int:
        return int(one.status == 200)

    by_time = sorted(service.within(0.5, 3.0), key=lambda one: one.at)
    for _, half in groupby(by_time, key=lambda one: int((one.at - 1000.0) * 2)):
        of_half = list(half)
        for client in CLIENTS:
            mine = [one for one in of_half if one.qos is not None and one.qos.client == client]
            assert sum(map(served, mine)) >= 0.04 * len(mine)
