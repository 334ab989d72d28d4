"""The search, with services whose answers are known: what is asked, and what is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from engine.simulation.figures import Figures, StageFigures
from engine.simulation.search import Counts, dealt, fewest, highest


def asked_of(carries: Sequence[float], seen: list[tuple[Counts, float]] | None = None) -> Callable[..., Figures]:
    """Stages that carry so much by the worker, and whoever is too much is late."""

    def ask(counts: Counts, rate: float) -> Figures:
        if seen is not None:
            assert (counts, rate) not in seen, "asked twice"
            seen.append((counts, rate))
        loads = [rate / (count * carried) for count, carried in zip(counts, carries, strict=True)]
        in_time = min(1.0, *(1 / load for load in loads))
        stages = [
            StageFigures(f"s{place}", count, min(load, 1.0), 1.0, load, 0.0)
            for place, (count, load) in enumerate(zip(counts, loads, strict=True))
        ]
        return Figures(rate, 1000, in_time, in_time, 1 - in_time, 0.0, in_time, 0.01, 0.02, tuple(stages))

    return ask


@pytest.mark.parametrize(
    ("carries", "rate", "expected"),
    [
        ((10.0,), 95.0, (10,)),
        ((10.0,), 1000.0, (99,)),  # 1 % may be late
        ((10.0, 20.0), 100.0, (10, 5)),
        ((10.0, 20.0, 7.0), 140.0, (14, 7, 20)),
    ],
)
def test_the_fewest_workers_are_found_stage_by_stage(carries: tuple[float, ...], rate: float, expected: Counts) -> None:
    seen: list[tuple[Counts, float]] = []
    least = tuple(int(0.7 * count) for count in expected)
    found = fewest(asked_of(carries, seen), rate, least, 0.99)
    assert found.is_met
    assert found.best.counts == expected
    assert sum(found.more.counts) == sum(expected) + 1
    assert len(seen) == found.tried or len(seen) == found.tried + 1
    assert len(seen) < 60


def test_nothing_is_looked_for_below_what_full_batches_take() -> None:
    seen: list[tuple[Counts, float]] = []
    assert fewest(asked_of((10.0,), seen), 95.0, (10,), 0.99).best.counts == (10,)
    assert [counts for counts, _ in seen] == [(10,), (11,)]


def test_a_stage_that_is_kept_stays_as_it_is() -> None:
    found = fewest(asked_of((10.0, 10.0)), 50.0, (7, 1), 0.99, kept=(True, False))
    assert found.best.counts == (7, 5)
    assert found.more.counts == (7, 6)


def test_where_a_kept_stage_cannot_carry_it_the_goal_is_not_met() -> None:
    found = fewest(asked_of((10.0, 10.0)), 50.0, (2, 1), 0.99, kept=(True, False))
    assert not found.is_met
    assert found.best.in_time == pytest.approx(0.4)


def test_a_goal_that_no_number_of_workers_meets_comes_to_an_end() -> None:
    def ask(counts: Counts, rate: float) -> Figures:
        stage = StageFigures("s", counts[0], 0.1, 1.0, 0.0, 0.0)
        return Figures(rate, 1000, 0.5, 0.5, 0.5, 0.0, 0.5, 0.01, 0.02, (stage,))

    found = fewest(ask, 100.0, (2,), 0.99)
    assert not found.is_met
    assert found.tried < 20


def test_workers_are_dealt_out_so_that_stages_carry_alike() -> None:
    assert dealt(6, (10.0, 20.0)) == (4, 2)
    assert dealt(2, (10.0, 20.0)) == (1, 1)
    assert dealt(5, (10.0, 20.0), (3, 0)) == (3, 5)
    with pytest.raises(ValueError, match="1 for 2 stages"):
        dealt(1, (10.0, 20.0))


def test_the_highest_rate_is_told_within_a_hundredth() -> None:
    found = highest(asked_of((10.0, 20.0)), (4, 2), (10.0, 20.0), 0.99)
    assert found.is_met
    assert 39.5 < found.best.rate <= 40.0
    assert found.more.rate == found.best.rate
    assert sum(found.more.counts) == 7


def test_workers_go_where_they_carry_more_than_was_thought() -> None:
    """Full batches would carry 20 a second at the second stage; the goal leaves 10."""
    found = highest(asked_of((10.0, 10.0)), (4, 2), (10.0, 20.0), 0.999)
    assert found.best.counts == (3, 3)
    assert found.best.rate == pytest.approx(30.0, rel=0.02)


def test_a_goal_that_is_missed_at_any_rate_is_said() -> None:
    assert not highest(asked_of((0.1,)), (4,), (10.0,), 0.99).is_met
