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
