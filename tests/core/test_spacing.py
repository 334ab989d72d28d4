"""How much of what waits an idle worker takes, and when: the rules by themselves, and the real front and stages
with them in counted time, beside what the simulation that they were chosen by has told."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core import spacing
from engine.core.actions import Dispatch
from engine.core.batching import Reason
from engine.core.predict import Times
from engine.core.spacing import TIGHT, filled_until, share, spacing_s
from engine.simulation.arrivals import Renewal
from tests.core.traffic import Curve, Layer, Service, line

pytestmark = pytest.mark.unmeasured


@dataclass
class Worker:
    slowness: float = 1.0
    compared: int = 0


def known(curve: Curve, most: int = 32) -> Times:
    times = Times(most)
    times.seed({n: curve(n) for n in range(1, most + 1)})
    return times


def split(curve: Curve, waiting: int, *, wait_s: float = 0.0, price: float = 0.0, slow: float = 1.0) -> int:
    return share(known(curve), Worker(slow), Worker(), wait_s, waiting, 32, price, may_pass=slow > 1.25)


def test_one_worker_has_nothing_to_be_spaced_from_and_a_batch_outlasts_the_space_before_it() -> None:
    assert spacing_s(0.020, 1) == 0.0
    assert spacing_s(0.020, 4) == pytest.approx(0.01125)
    assert all(spacing_s(1.0, workers) <= 0.75 for workers in range(1, 100))


def test_what_takes_its_time_by_the_item_is_shared_with_somebody_who_is_idle() -> None:
    assert split(line(1, 2), 8) == 4
    assert split(line(1, 2), 64) == 32


def test_what_takes_its_time_by_the_batch_is_not() -> None:
    assert split(line(20, 0), 8, price=1.0) == 8


def test_nothing_is_left_to_somebody_who_is_busy_for_long() -> None:
    assert split(line(1, 2), 8, wait_s=0.5) == 8
    assert 4 < split(line(1, 2), 8, wait_s=0.006) < 8


def test_a_device_whose_time_is_wanted_is_given_larger_batches() -> None:
    shares = [split(line(5, 1), 8, price=price) for price in (0.0, 4.0, 1000.0)]
    assert shares[0] < 8
    assert shares == sorted(shares)
    assert shares[2] == 8


def test_a_slow_worker_is_left_alone_while_a_quick_one_is_done_sooner_all_the_same() -> None:
    assert split(line(20, 0.1), 3, wait_s=0.005, slow=3.0) == 0
    assert split(line(20, 0.1), 3, wait_s=0.100, slow=3.0) == 3


@given(waiting=st.integers(1, 200), most=st.integers(1, 32), wait=st.floats(0, 0.1), price=st.floats(0, 100))
def test_a_share_is_at_least_one_item_and_leaves_the_other_no_more_than_a_batch(
    waiting: int, most: int, wait: float, price: float
) -> None:
    count = share(known(line(2, 1), most), Worker(), Worker(), wait, waiting, most, price)
    assert 1 <= count <= min(waiting, most)
    assert min(waiting, 2 * most) - count <= most


def test_a_batch_for_a_tight_goal_waits_for_as_long_as_one_more_would_be_in_time() -> None:
    times, worker = known(line(20, 0.1)), Worker()
    whole_s = times.predict(32, worker)
    until = filled_until(times, worker, 10.0, 1.5 * whole_s, 3, 32)
    left = 10.0 - times.predict(4, worker) * times.margin
    assert left - 0.002 < until < left  # a little before the last moment
    assert filled_until(times, worker, 10.0, 1.5 * whole_s, 20, 32) < until
    assert filled_until(times, Worker(2.0), 10.0, 1.5 * whole_s, 3, 32) < until


def test_a_batch_for_a_goal_with_time_for_two_does_not() -> None:
    times, worker = known(line(20, 0.1)), Worker()
    assert not filled_until(times, worker, 10.0, TIGHT * times.predict(32, worker), 3, 32)
    assert not filled_until(Times(32), worker, 10.0, 0.001, 3, 32)  # nothing is known


def test_a_batch_that_costs_what_its_items_cost_does_not() -> None:
    assert filled_until(known(line(5, 0.5)), Worker(), 10.0, 0.025, 3, 32)
    assert not filled_until(known(line(1, 2)), Worker(), 10.0, 0.080, 3, 32)


# --- in a stage ------------------------------------------------------------------------------------------------------

FLAT = line(20, 0.1)


class Watched(Service):
    """It keeps which batches left, and sees to it that nobody waits who finds everybody idle, or anybody where batches
    are short."""

    def watch(self) -> list[Dispatch]:
        (stage,) = self.stages
        pump, left = stage.pump, []

        def watched(now: float) -> float:
            may_wait = stage.crew.is_busy and (stage.foresight.is_long or not self._idle)
            wake = pump(now)
            assert not stage.queue or may_wait or not self._idle
            assert wake > now
            left.extend(action for action in stage.actions if isinstance(action, Dispatch))
            return wake

        stage.pump = watched  # type: ignore[method-assign]
        return left

    @property
    def _idle(self) -> bool:
        return any(worker.is_able and not worker.batches for worker in self.stages[0].workers.values())


def served(
    layer: Layer, load: float, *, seconds: float = 3.0, timeout_s: float = 1.0
) -> tuple[Watched, list[Dispatch]]:
    service = Watched(layer, timeout_s=timeout_s, warm=1.0)
    left = service.watch()
    service.arrive(service.poisson(load * service.capacity, seconds))
    service.run(seconds + 2 * timeout_s)
    return service, left


def mean_ms(service: Service) -> float:
    good = service.good(0.5, 1e9)
    return 1000 * sum(one.answered_at - one.at for one in good) / len(good)


def device_ms(service: Service) -> float:
    return 1000 * sum(hand.busy_s for hand in service.hands.values()) / len(service.good(0.0, 1e9))


@pytest.mark.parametrize(
    ("fixed_ms", "item_ms", "workers", "load", "latency_ms", "computing_ms"),
    [
        (20, 0.1, 4, 0.1, 23.9, 5.4),  # eager: 24.6 and 7.0
        (20, 0.1, 4, 0.3, 25.1, 1.86),  # 28.0, 2.40
        (20, 0.1, 4, 0.7, 26.8, 0.90),  # 31.3, 1.05
        (20, 0.1, 2, 0.5, 28.0, 1.40),  # 30.4, 1.46
        (5, 0.5, 4, 0.3, 9.0, 1.87),  # 10.2, 1.99
        (5, 0.5, 4, 0.7, 16.8, 0.89),  # 17.2, 0.91
        (1, 2, 4, 0.3, 3.84, 2.98),  # 4.0, 2.95
        (5, 0.5, 1, 0.5, 14.1, 1.25),  # as eager
    ],
)
def test_latency_and_computing_are_what_was_simulated(
    fixed_ms: float, item_ms: float, workers: int, load: float, latency_ms: float, computing_ms: float
) -> None:
    service, _ = served(Layer(line(fixed_ms, item_ms), workers=workers, most=32), load)
    assert len(service.good(0.0, 1e9)) == len(service.attempts)
    assert mean_ms(service) <= 1.08 * latency_ms
    assert device_ms(service) <= 1.11 * computing_ms


def test_partial_batches_leave_evenly_spaced_and_say_that_somebody_was_idle() -> None:
    service, left = served(Layer(FLAT, workers=8, most=32), 0.25)
    fixed_s = service.stages[0].foresight.times.fixed_s
    assert 0.014 < fixed_s < 0.021
    spacing_ns = spacing_s(fixed_s, 8) * 1e9
    expected = 0.25 * service.capacity * spacing_ns / 1e9
    batches = [action.batch for action in left[len(left) // 4 :]]
    pairs = list(pairwise(batches))
    spaced = [later.sent_ns - sooner.sent_ns > 0.85 * spacing_ns for sooner, later in pairs]
    assert sum(spaced) > 0.5 * len(pairs)
    # Before its time leaves what has as many as come in that time.
    others = [len(later.uids) for (_, later), is_spaced in zip(pairs, spaced, strict=True) if not is_spaced]
    assert sum(n > 0.7 * expected for n in others) > 0.9 * len(others)
    assert sum(batch.reason == Reason.IDLE for batch in batches) > 0.95 * len(batches)


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
def test_one_client_never_waits_for_anybody(workers: int) -> None:
    """It asks anew as soon as it is answered; before it came many."""
    service = Watched(Layer(FLAT, workers=workers, most=32), warm=1.0)
    left = service.watch()
    service.arrive(service.poisson(0.5 * service.capacity, 1.0))
    service.run(1.2)
    assert not service.stages[0].crew.is_busy
    before = len(left)
    for number in range(20):
        service.arrive(iter([0.0]))
        while not service.attempts[-1].status or len(left) == before + number:
            service.run(0.001)
        batch = left[-1].batch
        assert batch.sent_ns / 1e9 == pytest.approx(service.attempts[-1].at)
        assert batch.reason == Reason.IDLE
    assert len(left) == before + 20


def test_where_batches_are_short_nobody_waits_for_whom_there_is_somebody_idle() -> None:
    service, left = served(Layer(line(0.5, 0.1), workers=4, most=32), 0.3, seconds=0.3)
    assert not service.stages[0].foresight.is_long
    assert len(left) > 300  # each of them was watched


def test_nobody_waits_past_what_a_deadline_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing takes 22 ms, and the space between two batches is up to 11: there are 4 ms for it. (To give at once
    keeps all workers busy with small batches, and so answers fewer in time.)"""
    layer = Layer(FLAT, workers=4, most=32)
    service, _ = served(layer, 0.2, timeout_s=0.027)
    assert service.stages[0].stats.releases["deadline"] > 150
    assert len(service.good(0.0, 1e9)) >= 0.85 * len(service.attempts)
    monkeypatch.setattr(spacing, "SPACING", 0.0)
    eager, _ = served(layer, 0.2, timeout_s=0.027)
    assert "deadline" not in eager.stages[0].stats.releases
    assert len(eager.good(0.0, 1e9)) <= 0.75 * len(eager.attempts)


def test_a_worker_three_times_as_slow_is_given_what_it_would_be_first_with() -> None:
    service, _ = served(Layer(FLAT, workers=4, most=32, slow=1), 0.1)
    latencies = sorted(one.answered_at - one.at for one in service.good(0.5, 1e9))
    assert latencies[int(0.99 * len(latencies))] < 0.045  # given at once: 0.106
    assert mean_ms(service) < 28  # 33


@pytest.mark.parametrize(
    ("layer", "cv", "goal", "load", "gain"),
    [
        (Layer(FLAT, workers=2, most=32), 4.0, 1.3, 0.3, 1.2),
        (Layer(line(10, 0), workers=2, most=32), 4.0, 1.5, 0.3, 1.1),
        (Layer(line(5, 0.5), workers=4, most=32), 1.0, 1.3, 0.9, 1.05),
        (Layer(line(1, 2), workers=4, most=32), 4.0, 1.5, 0.7, 1.0),  # it has nothing from batching, and is left alone
    ],
)
def test_more_are_in_time_for_a_tight_goal_where_batches_fill_for_it(
    layer: Layer, cv: float, goal: float, load: float, gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    slo_s, rate = goal * layer.curve(32), load * layer.capacity
    shares = []
    for tight in (TIGHT, 0.0):
        monkeypatch.setattr(spacing, "TIGHT", tight)
        service = Service(layer, warm=1.0, slos_s=(slo_s,))
        service.arrive(islice(Renewal(rate, cv).instants(1), 1500))
        service.finish()
        shares.append(sum(one.answered_at - one.at <= slo_s for one in service.good(0.2, 1e9)))
    assert shares[0] >= gain * shares[1]


def test_who_is_alone_waits_for_no_tight_goal_either() -> None:
    service = Service(Layer(FLAT, workers=2, most=32), warm=1.0, slos_s=(0.030,))
    for _ in range(3):
        service.arrive(iter([0.0]))
        service.run(0.1)
    assert [one.answered_at - one.at < 0.024 for one in service.attempts] == [True] * 3
