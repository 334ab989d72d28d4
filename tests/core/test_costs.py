"""What an item will cost, learned from those that were computed."""

from __future__ import annotations

from random import Random

import pytest

from engine.core.costs import UNITS, UNITS_MOST, Costs, Line, counted
from engine.core.items import Item, Request


def item(size: int, route: int = 0) -> Item:
    request = Request(1, b"f", 1, route, 10.0, 10.0, 10.0, b"", size)
    return Item(request, b"", size, 0.0)


def test_a_line_is_found_from_few_items() -> None:
    line = Line()
    sizes = [100, 900, 400, 2000]
    line.learn(sizes, [7.0 + size / 4 for size in sizes])
    assert line.at(1000) == pytest.approx(257, rel=0.02)
    assert line.at(5000) == pytest.approx(1257, rel=0.02)


def test_equal_sizes_tell_of_a_slope_through_nothing() -> None:
    line = Line()
    line.learn([400] * 50, [100.0] * 50)
    assert line.at(400) == pytest.approx(100)
    assert line.at(800) == pytest.approx(200)


def test_a_cost_never_falls_with_size_and_is_never_negative() -> None:
    rng = Random(1)
    falling, offset = Line(), Line()
    sizes = [rng.randrange(100, 1000) for _ in range(200)]
    falling.learn(sizes, [1000.0 - size for size in sizes])
    assert falling.at(100) == falling.at(1000)
    offset.learn(sizes, [(size - 90) / 4 for size in sizes])  # what surrounds a text costs nothing
    assert offset.at(490) == pytest.approx(100, rel=0.02)
    assert offset.at(10) == 0.0


def test_scatter_leaves_the_mean_right() -> None:
    rng = Random(2)
    line = Line()
    for _ in range(100):
        sizes = [rng.randrange(200, 8000) for _ in range(16)]
        line.learn(sizes, [size / 4 * rng.uniform(0.7, 1.3) for size in sizes])
    assert line.at(1000) == pytest.approx(250, rel=0.15)
    assert line.at(8000) == pytest.approx(2000, rel=0.1)


def test_what_has_changed_is_found_out_within_some_hundred_items() -> None:
    line = Line()
    for slope in (0.25, 0.5):
        for _ in range(40):
            sizes = [100 * n for n in range(1, 17)]
            line.learn(sizes, [slope * size for size in sizes])
    assert line.at(1000) == pytest.approx(500, rel=0.1)


def test_before_anything_is_known_an_item_counts_as_much_as_a_batch() -> None:
    costs = Costs(4096)
    assert costs.units(item(10)) == costs.units(item(100_000)) == UNITS
    assert not costs.is_known


def test_the_examples_of_a_worker_are_a_beginning_for_every_route() -> None:
    costs = Costs(4096)
    costs.hear({40: 10.0, 4000: 1000.0})
    assert costs.of(item(400, route=3)) == pytest.approx(100, rel=0.1)
    assert costs.version == 1


def test_each_route_has_a_line_of_its_own() -> None:
    costs = Costs(4096)
    costs.learn(
        [(item(size, 0), size / 4) for size in (100, 1000)] + [(item(size, 1), size / 2) for size in (100, 1000)]
    )
    assert costs.of(item(400, 0)) == pytest.approx(100, rel=0.05)
    assert costs.of(item(400, 1)) == pytest.approx(200, rel=0.05)
    assert 90 < costs.of(item(400, 2)) < 210  # nobody knows better


def test_bytes_are_exact_where_the_class_does_not_say_what_costs() -> None:
    costs = Costs(1 << 20)
    costs.hear(None)
    assert costs.of(item(12345)) == 12345
    assert costs.units(item(1 << 19)) == UNITS / 2
    assert costs.is_known


def test_what_costs_more_than_several_batches_is_bounded() -> None:
    costs = Costs(100)
    costs.hear(None)
    assert costs.units(item(10**9)) == UNITS_MOST
    assert counted(0.0) == 1
    assert counted(UNITS_MOST + 5.5) == UNITS_MOST


def test_what_waits_is_judged_anew_whenever_twice_as_much_is_known_and_not_for_ever() -> None:
    costs = Costs(4096)
    versions = []
    for _ in range(10_000):
        costs.learn([(item(100), 25.0)])
        versions.append(costs.version)
    assert versions[:8] == [1, 2, 2, 3, 3, 3, 3, 4]
    assert versions[-1] <= 12
