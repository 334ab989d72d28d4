"""What is told of the last seconds: rates between marks, and what a share of values stay below."""

from __future__ import annotations

import pytest

from engine.core.window import WINDOW_S, Marks, Window, of_buckets, quantiles


def test_a_rate_is_of_the_last_seconds_and_not_of_all() -> None:
    window = Window()
    for second in range(60):
        window.mark(float(second), (second * 100.0 if second < 40 else 4000.0, 0.0))
    assert window.rates(60.0, (4000.0, 30.0)) == pytest.approx([0.0, 30.0 / 11])


def test_marks_do_not_grow_with_time() -> None:
    marks: Marks[int] = Marks()
    for second in range(1000):
        marks.mark(float(second), second)
    oldest = marks.oldest(1000.0)
    assert oldest is not None
    assert 1000.0 - oldest[0] <= WINDOW_S + 1
    assert oldest[1] == int(oldest[0])


def test_nothing_is_said_of_what_is_not_known() -> None:
    window = Window()
    assert window.rates(0.0, (5.0,)) == [0.0]
    window.mark(0.0, (0.0,))
    assert window.rates(0.1, (5.0,)) == [0.0]  # too soon to mean anything
    assert window.rates(1.0, (5.0,)) == [5.0]
    assert window.rates(100.0, (5.0,)) == [0.0]  # nobody has looked for long


def test_what_is_taken_back_is_no_negative_rate() -> None:
    window = Window()
    window.mark(0.0, (3.0,))
    assert window.rates(1.0, (1.0,)) == [0.0]


def test_quantiles_go_by_weight() -> None:
    assert quantiles([], (0.5, 0.99)) == [0.0, 0.0]
    assert quantiles([(5.0, 1), (1.0, 98), (9.0, 1)], (0.5, 0.98, 0.99, 1.0)) == [1.0, 1.0, 5.0, 9.0]
    assert quantiles([(4.0, 1)], (0.0, 1.0)) == [4.0, 4.0]


def test_quantiles_of_buckets_lie_on_a_line_within_one() -> None:
    assert of_buckets((1.0, 2.0), (0, 0, 0), (0.5,)) == [0.0]
    assert of_buckets((1.0, 2.0), (10, 10, 0), (0.25, 0.5, 0.75, 1.0)) == [0.5, 1.0, 1.5, 2.0]
    assert of_buckets((1.0, 2.0), (0, 0, 4), (0.5,)) == [2.0]  # past the last bound: that much is known
    assert of_buckets((), (4,), (0.5,)) == [0.0]
