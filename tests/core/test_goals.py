"""Goals: when answers are wanted, and what a service does for them, in counted time, each run from one seed."""

from __future__ import annotations

from itertools import count

import pytest

from engine.core.batching import Policy
from engine.core.front import FrontSpec
from engine.core.goals import Goals
from engine.core.messages import Qos, Ready
from engine.core.routing import Route, Topology
from engine.core.stage import StageSpec
from tests.core.traffic import Attempt, Layer, Service, line
from tests.core.twin import Twin, topology

pytestmark = pytest.mark.unmeasured

NUMBERS = count(1)
TWO = Topology(("a", "b"), (Route("/both", (0, 1)), Route("/last", (1,))))


def goals(*slos_s: float) -> Goals:
    return Goals(TWO, slos_s)


def test_a_route_without_a_goal_is_due_at_its_deadline() -> None:
    assert goals().due(0, 0.0, 10.0, 13.0) == 13.0
    assert not goals().is_set
    assert goals(0.0, 0.2).due(0, 0.0, 10.0, 13.0) == 13.0


def test_the_goal_of_a_route_is_when_its_requests_are_due_and_their_own_goes_before() -> None:
    found = goals(0.5)
    assert found.is_set
    assert found.due(0, 0.0, 10.0, 13.0) == 10.5
    assert found.due(0, 0.1, 10.0, 13.0) == 10.1
    assert found.due(0, 2.0, 10.0, 13.0) == 12.0
    assert found.due(1, 0.2, 10.0, 13.0) == 10.2
    assert found.due(0, 0.0, 10.0, 10.3) == 10.3  # nobody waits longer than until the deadline


def test_a_goal_out_of_reach_counts_for_nothing_until_it_is_within_reach_again() -> None:
    found = goals(0.100, 0.100)
    assert not found.hear(0, 0.040)
    assert found.hear(1, 0.050)  # together 90 ms, and a fifth more
    assert found.unmet == [True, False]
    assert found.least_s == [pytest.approx(0.090), pytest.approx(0.050)]
    assert found.due(0, 0.0, 10.0, 13.0) == 13.0
    assert found.due(0, 0.105, 10.0, 13.0) == 13.0  # nor is one of a request's own
    assert found.due(0, 0.2, 10.0, 13.0) == 10.2
    assert found.due(1, 0.0, 10.0, 13.0) == 10.1
    assert not found.hear(1, 0.042)  # within reach, but just so
    assert found.hear(1, 0.030)
    assert found.due(0, 0.0, 10.0, 13.0) == 10.1


def test_goals_can_be_others_from_now_on() -> None:
    found = goals(0.100)
    found.hear(0, 0.2)
    assert found.unmet == [True, False]
    found.change((0.5, 0.0))
    assert found.unmet == [False, False]
    assert found.due(0, 0.0, 10.0, 13.0) == 10.5


# --- in a service ----------------------------------------------------------------------------------------------------


def within(requests: list[Attempt], slo_s: float) -> list[Attempt]:
    return [one for one in requests if one.status == 200 and one.answered_at - one.at <= slo_s]


@pytest.mark.parametrize("load", [1.05, 3.0])
@pytest.mark.parametrize("times", [2.5, 6.0])
@pytest.mark.parametrize(
    "layer",
    [Layer(line(5, 0.5), 4, 32), Layer(line(20, 0.1), 1, 32), Layer(line(1, 2), 1, 32), Layer(line(200, 10), 4, 8)],
    ids=["usual", "flat", "steep", "slow"],
)
def test_in_overload_what_can_be_computed_is_there_within_the_goal(layer: Layer, times: float, load: float) -> None:
    whole_s = layer.curve(layer.most)
    slo_s, seconds = times * whole_s, max(0.8, 24 * whole_s)
    service = Service(layer, timeout_s=10 * slo_s, slos_s=(slo_s,), warm=1.0)
    service.arrive(service.poisson(load * service.capacity, seconds))
    service.run(seconds + 11 * slo_s)
    good = within(service.within(seconds / 4, seconds), slo_s)
    assert len(good) >= 0.93 * service.capacity * 0.75 * seconds
    assert all(one.status in (200, 429) for one in service.attempts)


def test_below_saturation_a_goal_changes_nothing() -> None:
    seen = []
    for slos_s in ((), (0.2,)):
        service = Service(Layer(line(5, 0.5), 4, 32), slos_s=slos_s, warm=1.0)
        service.arrive(service.poisson(0.6 * service.capacity, 1.0))
        service.run(2.0)
        seen.append([(one.at, one.answered_at, one.status) for one in service.attempts])
    assert seen[0] == seen[1]


def test_a_goal_that_nobody_could_meet_refuses_nobody() -> None:
    service = Service(Layer(line(20, 0.1), 2, 8), slos_s=(0.010,), warm=1.0)
    service.arrive(service.poisson(0.5 * service.capacity, 1.0))
    service.run(4.0)
    assert service.front.door.goals.unmet == [True]
    assert all(one.status == 200 for one in service.attempts)


def test_who_has_more_time_leaves_it_to_those_who_have_less() -> None:
    service = Service(Layer(line(20, 0.1), 4, 32), timeout_s=5.0, slos_s=(1.0,), warm=1.0, capacity=8192)
    half = 0.55 * service.capacity
    service.arrive(service.poisson(half, 2.0), qos=Qos(slo_us=70_000))
    service.arrive(service.poisson(half, 2.0))
    service.run(8.0)
    tight = [one for one in service.within(0.5, 2.0) if one.qos]
    assert len(within(tight, 0.070)) >= 0.95 * len(tight)


def test_who_was_begun_with_when_its_worker_died_is_not_refused_for_its_goal() -> None:
    spec = StageSpec("s0", 1, Policy(4), 30.0, 10.0, 1 << 30)
    twin = Twin(topology(), [spec], FrontSpec(100, 1 << 30, slos_s=(0.2,)))
    worker = twin.worker()
    twin.submit(3)
    twin.kill(worker)
    twin.pass_time(0.5)  # the goal is past
    twin.finish(twin.worker())
    assert [twin.answer(seq)[0] for seq in (1, 2, 3)] == [200] * 3


def test_who_waited_for_a_worker_until_its_goal_was_past_is_refused_where_others_wait() -> None:
    spec = StageSpec("s0", 1, Policy(4), 30.0, 10.0, 1 << 30)
    twin = Twin(topology(), [spec], FrontSpec(100, 1 << 30, slos_s=(0.2,)))
    worker = twin.worker()
    for _ in range(3):  # so that it is known how long batches take
        twin.submit(first=next(NUMBERS))
        twin.pass_time(0.05)
        twin.finish(worker, compute_us=50_000)
    twin.submit(first=next(NUMBERS))
    late = [next(NUMBERS) for _ in range(3)]
    for seq in late:
        twin.submit(first=seq)
    twin.pass_time(0.3)
    twin.finish(worker, compute_us=300_000)
    assert [twin.answer(seq)[0] for seq in late[:2]] == [429] * 2
    twin.finish(worker)
    assert twin.answer(late[2])[0] == 200  # alone, it costs nobody anything


@pytest.mark.parametrize("most", [1, 4])
def test_of_two_who_are_idle_the_one_that_would_be_in_time_takes_it(most: int) -> None:
    spec = StageSpec("s0", 2, Policy(most), 30.0, 10.0, 1 << 30)
    twin = Twin(topology(), [spec])
    slow, quick = twin.worker(ready=False), twin.worker(ready=False)
    for worker in (slow, quick):
        twin.stages[0].ready(Ready(worker.key, "application/json", times_us={1: 95_000, 4: 130_000}), twin.now)
    twin.run()
    workers = twin.stages[0].workers
    workers[slow.key].slowness, workers[quick.key].slowness = 1.10, 0.90
    twin.submit(budget_s=0.105)
    assert quick.lane
    assert not slow.lane
    twin.finish(quick)
    assert twin.answer(1)[0] == 200
