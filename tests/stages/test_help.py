"""Help beside `forward` is kept where batches follow each other quicker with it, and only there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

from stages.runtime.help import STAY_LEAST, STAY_MOST, TRIED, Help

Took = Callable[[bool], float]


def after(help: Help, batches: int, took: Took, sizes: tuple[int, ...] = (64,)) -> float:
    """The share of batches that were done with help."""
    helped = 0
    size = cycle(sizes)
    for _ in range(batches):
        helped += help.wanted
        help.note(took(help.wanted), next(size))
    return helped / batches


def test_a_device_that_waits_for_its_next_batch_is_helped() -> None:
    help = Help()
    assert after(help, 5000, lambda helped: 5.0 if helped else 5.7) > 0.98
    assert help.wanted


def test_a_forward_that_needs_the_interpreter_itself_is_left_alone() -> None:
    help = Help()
    assert after(help, 5000, lambda helped: 8.6 if helped else 5.7) < 0.02
    assert not help.wanted


def test_where_both_are_alike_there_is_no_thread() -> None:
    help = Help()
    after(help, 1000, lambda helped: 5.0)
    assert not help.wanted


def test_one_batch_that_took_long_decides_nothing() -> None:
    help = Help()
    noise = cycle([1.0] * 6 + [9.0])
    assert after(help, 5000, lambda helped: next(noise) * (5.0 if helped else 5.7)) > 0.95


def test_what_was_right_is_tried_again_and_found_out_when_it_is_no_more() -> None:
    help = Help()
    after(help, 20_000, lambda helped: 5.0 if helped else 5.7)
    assert help.wanted
    after(help, STAY_MOST + 4 * TRIED, lambda helped: 8.6 if helped else 5.7)
    assert not help.wanted


def test_a_trial_costs_less_the_more_often_it_said_the_same() -> None:
    help = Help()
    after(help, 2 * STAY_LEAST, lambda helped: 5.0 if helped else 5.7)
    early = after(help, 1000, lambda helped: 5.0 if helped else 5.7)
    after(help, 10_000, lambda helped: 5.0 if helped else 5.7)
    late = after(help, 10_000, lambda helped: 5.0 if helped else 5.7)
    assert early < late
    assert late > 0.99


def test_batches_of_other_sizes_are_not_compared() -> None:
    help = Help()
    sizes = (64, 64, 64, 64, 64, 7)  # a short one takes less, whoever helps
    after(help, 1, lambda helped: 1.0)
    assert after(help, 3000, lambda helped: 5.0 if helped else 5.7, sizes) > 0.95
    grown = (128,)
    assert after(help, 10_000, lambda helped: 17.0 if helped else 11.0, grown) < 0.4
    assert not help.wanted
