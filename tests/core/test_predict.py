"""What the model of batch times makes of batches: lines, steps, slow workers, hangs, and sizes never seen."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.predict import Times, bucket


@dataclass
class Worker:
    slowness: float = 1.0
    compared: int = 0


def taught(
    times: Times,
    sizes: list[int],
    curve: Callable[[int], float],
    *,
    worker: Worker | None = None,
    noise: float = 0.0,
    began: float = 0.0,
) -> Worker:
    rng = random.Random(1)
    worker = worker or Worker()
    for step, n in enumerate(sizes):
        times.learn(n, curve(n) * (1 + noise * rng.uniform(-1, 1)), worker, began + step * 0.2, compare=False)
    return worker


def line(n: int) -> float:
    return 0.2 + 0.01 * n


def test_nothing_is_known_at_first() -> None:
    times = Times(8)
    assert not times.known
    assert times.predict(8, Worker()) == 0.0
    assert times.fit(8, 0.0, Worker()) == 8


@pytest.mark.parametrize("noise", [0.0, 0.07])
def test_a_line_is_found_also_between_the_sizes_that_were_seen(noise: float) -> None:
    times = Times(32)
    worker = taught(times, [1, 2, 8, 32, 1, 4, 16, 32] * 8, line, noise=noise)
    for n in (1, 3, 12, 20, 32):
        assert times.predict(n, worker) == pytest.approx(line(n), rel=0.06)


def test_a_step_is_found_where_it_is() -> None:
    times = Times(32)
    worker = taught(times, [4, 8, 9, 16, 32] * 12, lambda n: 0.02 if n <= 8 else 0.1)
    assert times.predict(8, worker) == pytest.approx(0.02, rel=0.3)
    assert times.predict(9, worker) == pytest.approx(0.1, rel=0.2)


def test_equal_sizes_tell_nothing_of_the_slope_and_larger_ones_are_tried() -> None:
    times = Times(32)
    worker = taught(times, [1] * 50, line)
    assert times.predict(32, worker) <= 2 * line(1)  # optimism: else nobody would ever try
    slope = taught(times, [4] * 50, line, began=100.0)
    assert times.predict(4, slope) == pytest.approx(line(4), rel=0.02)


def test_a_slow_worker_is_known_by_itself() -> None:
    times = Times(4)
    quick, slow = Worker(), Worker()
    for step in range(200):
        times.learn(4, 0.010, quick, step * 0.1)
        times.learn(4, 0.030, slow, step * 0.1)
    assert times.predict(4, quick) == pytest.approx(0.010, rel=0.15)
    assert times.predict(4, slow) == pytest.approx(0.030, rel=0.15)


def test_a_hang_is_no_measure_of_what_batches_take() -> None:
    times = Times(4)
    worker = taught(times, [4] * 50, line)
    times.learn(4, 60.0, worker, 100.0, compare=False)
    assert times.predict(4, worker) < 1.5 * line(4)


def test_what_has_become_slower_for_good_is_learned() -> None:
    times = Times(4)
    worker = taught(times, [1, 4] * 25, line)
    taught(times, [4] * 40, lambda n: 3 * line(n), worker=worker, began=100.0)
    assert times.predict(4, worker) == pytest.approx(3 * line(4), rel=0.15)


def test_what_is_told_to_others_are_sizes_that_were_seen_and_how_far_off_predictions_are() -> None:
    times = Times(64)
    assert times.seen_sizes == []
    taught(times, [1, 20, 3] * 50, line, noise=0.2)
    assert times.seen_sizes == [1, 2, 3, 4, 5, 8, 9, 16, 17, 20]
    assert 0.05 < times.error < 0.2
    taught(times, [64], line)
    assert times.seen_sizes[-2:] == [33, 64]


def test_what_fits_is_the_largest_batch_that_is_done_in_time() -> None:
    times = Times(32)
    worker = taught(times, [1, 2, 8, 32] * 10, line)
    times.learn_overhead(0.005)
    for n in (1, 7, 20):
        room = times.predict(n, worker) * times.margin
        assert times.fit(32, room, worker) == n
    assert times.fit(32, 0.1, worker) == 0
    assert times.fit(5, 100.0, worker) == 5


def test_overhead_is_part_of_a_prediction() -> None:
    times = Times(1)
    worker = taught(times, [1] * 4, lambda n: 0.010)
    times.learn_overhead(0.002)
    times.learn_overhead(-1.0)  # by clocks that were read at other instants
    assert times.predict(1, worker) == pytest.approx(0.0118)


@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(1, 300), st.floats(1e-6, 10.0)), max_size=80),
)
def test_larger_batches_never_take_less(most: int, batches: list[tuple[int, float]]) -> None:
    times, worker = Times(most), Worker()
    for step, (n, took) in enumerate(batches):
        times.learn(n, took, worker, step * 1.0)
    assert len(times.shape) == most + 1
    assert times.shape == sorted(times.shape)
    assert times.known == bool(batches)
    assert worker.slowness > 0.0
    if batches:
        assert 0 <= times.fit(most, 1.0, worker) <= most
        assert times.predict(most, worker) < 100.0


def test_buckets_are_whole_and_in_order() -> None:
    assert [bucket(n) for n in range(1, 20)] == [*range(1, 17), 16, 17, 17]
    numbers = [bucket(n) for n in range(1, 5000)]
    assert numbers == sorted(numbers)
    assert all(later - former <= 1 for former, later in pairwise(numbers))


# --- what was timed in a warm-up -------------------------------------------------------------------------------------

LIKELY = (1, 2, 4, 8, 16, 32)


def seeded(curve: Callable[[int], float], workers: int = 1) -> Times:
    times = Times(32)
    for _ in range(workers):
        times.seed({n: curve(n) for n in LIKELY})
    return times


def step(n: int) -> float:
    return 0.020 if n <= 8 else 0.100


@pytest.mark.parametrize(
    ("curve", "within"), [(line, 0.02), (lambda n: 0.002 * n, 0.02), (lambda n: 0.05, 0.02), (step, 0.1)]
)
@pytest.mark.parametrize("workers", [1, 4])
def test_after_the_warm_up_the_first_batches_are_predicted_rightly(
    curve: Callable[[int], float], within: float, workers: int
) -> None:
    times = seeded(curve, workers)
    assert times.known
    for n in LIKELY:
        assert times.predict(n, Worker()) == pytest.approx(curve(n), rel=within)
    assert times.fit(32, curve(8) * 1.1, Worker()) >= 8


def test_sizes_that_are_padded_take_what_the_next_allowed_size_takes() -> None:
    times = Times(32)
    times.seed({1: 0.004, 2: 0.010, 8: 0.010, 9: 0.050, 32: 0.050})  # batch_sizes = [1, 8, 32]
    for n, took in ((1, 0.004), (2, 0.010), (5, 0.010), (8, 0.010), (9, 0.050), (20, 0.050), (32, 0.050)):
        assert times.predict(n, Worker()) == pytest.approx(took, rel=0.2)


@pytest.mark.parametrize("off", [0.1, 0.4, 3.0, 20.0])
def test_a_warm_up_with_other_values_than_come_gives_the_curve_its_form_and_the_first_batch_its_height(
    off: float,
) -> None:
    times = seeded(lambda n: off * line(n))
    worker = taught(times, [4], line)
    for n in (1, 8, 32):
        assert times.predict(n, worker) == pytest.approx(line(n), rel=0.1)
    assert worker.slowness == 1.0


def test_a_first_batch_that_hung_is_put_right_by_the_second() -> None:
    times = seeded(line)
    worker = taught(times, [4], lambda n: 50 * line(n))
    taught(times, [4, 8], line, worker=worker, began=10.0)
    for n in (1, 4, 32):
        assert times.predict(n, worker) < 3 * line(n)


def test_batches_outweigh_what_the_warm_up_has_said_of_their_size() -> None:
    times = seeded(line)
    worker = taught(times, [8] * 4, lambda n: 1.5 * line(n))
    assert times.predict(8, worker) == pytest.approx(1.5 * line(8), rel=0.15)


def test_once_batches_were_seen_a_worker_that_starts_says_nothing_new() -> None:
    times = Times(32)
    worker = taught(times, [8], line)
    shape = times.shape
    times.seed({8: 10.0})
    assert times.shape is shape
    assert times.predict(8, worker) == pytest.approx(line(8))


@given(st.dictionaries(st.integers(0, 1 << 62), st.floats(0.0, 1e9), max_size=30), st.integers(1, 64))
def test_whatever_a_worker_says_of_its_warm_up_predictions_stay_sound(told: dict[int, float], most: int) -> None:
    times, worker = Times(most), Worker()
    times.seed(told)
    assert times.known == any(0 < n <= most and t > 0 for n, t in told.items())
    times.learn(most, 0.01, worker, 1.0)
    assert times.shape == sorted(times.shape)
    assert 0 < times.predict(most, worker) < 1e10
