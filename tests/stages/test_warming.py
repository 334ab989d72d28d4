"""Which sizes of batches a worker is warmed up with, in which order, within which time, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import StartError
from stages import Worker
from stages.build import create, examples, forward_example, fresh
from stages.sizes import at_most, filled_up, padded
from stages.warming import BUDGET_MAX_S, BUDGET_MIN_S, WarmUp, budget_s, ranges, warm_up

Curve = Callable[[int, int], float]  # size, how often it was computed before -> seconds


def played(plan: WarmUp, curve: Curve, budget: float, *, memory: int = 1 << 30, example: int = 1) -> list[int]:
    """The sizes of all calls of a worker that takes so long and so much memory, its example's among them."""
    calls = [example]
    plan.shown(example, curve(example, 0))
    left = budget
    while (size := plan.next(left)) is not None:
        if size > memory:
            plan.ran_out(size, MemoryError())
            continue
        took = curve(size, calls.count(size))
        calls.append(size)
        left -= took
        plan.took(size, took)
    return calls


def once_50ms(size: int, before: int) -> float:
    """As on a device that chooses kernels for each size."""
    return 0.005 if before else 0.050


def always(seconds: float) -> Curve:
    return lambda _size, _before: seconds


# --- which sizes -----------------------------------------------------------------------------------------------------


def test_the_likely_sizes_go_first_and_then_those_between() -> None:
    plan = WarmUp(12)
    calls = played(plan, once_50ms, 10.0)
    assert list(dict.fromkeys(calls)) == [1, 2, 4, 8, 12, 3, 5, 6, 7, 9, 10, 11]
    assert all(calls.count(size) == 2 for size in range(1, 13))
    assert plan.left_out == []
    assert plan.told() == {"sizes": "1-12"}


def test_where_first_calls_take_no_longer_the_likely_ones_are_enough() -> None:
    calls = played(WarmUp(65_536), lambda size, _before: size / 1e7, 10.0)
    assert sorted(set(calls)) == [1 << exponent for exponent in range(17)]


def test_one_first_call_that_took_long_by_chance_brings_none_of_those_between() -> None:
    slow_once = {8: 0.2}
    calls = played(WarmUp(12), lambda size, before: 0.01 if before else slow_once.get(size, 0.01), 10.0)
    assert set(calls) == {1, 2, 4, 8, 12}


def test_a_model_that_takes_long_is_not_made_to_start_much_later() -> None:
    plan = WarmUp(32)
    calls = played(plan, lambda size, _before: 0.2 + 0.4 * size, 2.0)
    spent = sum(0.2 + 0.4 * size for size in calls[1:])
    assert set(calls) >= {1, 2}
    assert spent <= 2.0
    assert plan.left_out == [4, 8, 16, 32]
    assert plan.told() == {"sizes": "1-2", "left_out": "4, 8, 16, 32"}


def test_an_example_of_8_s_is_computed_once() -> None:
    plan = WarmUp(4)
    assert played(plan, always(8.0), 10.0) == [1]
    assert plan.times_s == {}


def test_a_slow_beginning_is_not_taken_for_what_every_size_takes() -> None:
    def curve(size: int, before: int) -> float:  # the device's own context, with the very first call
        return (1.1 if size == 2 else 0.05) if not before else 0.005

    calls = played(WarmUp(32), curve, 3.0, example=2)
    assert set(calls) >= {1, 2, 4, 8, 16, 32}


def test_what_does_not_fit_in_memory_is_tried_once_and_nothing_larger() -> None:
    plan = WarmUp(64)
    calls = played(plan, once_50ms, 10.0, memory=16)
    assert max(calls) == 16
    assert (plan.exhausted, plan.fitted) == (17, 16)  # 32 first, then those between
    assert 64 not in plan.left_out


def test_sizes_that_are_named_are_all_computed_twice_whatever_that_takes() -> None:
    plan = WarmUp(32, (1, 8, 32))
    assert played(plan, lambda _size, before: 0.01 if before else 30.0, 2.0) == [1, 1, 8, 8, 32, 32]
    assert plan.left_out == []


def test_several_examples_of_one_size_say_of_it_what_the_first_does() -> None:
    plan = WarmUp(4)
    plan.shown(1, 0.3)
    plan.shown(1, 0.5)
    assert plan.next(10.0) == 1
    plan.took(1, 0.1)
    assert (plan.tried[1].first_s, plan.tried[1].second_s) == (0.3, 0.1)


def test_times_are_told_of_the_likely_sizes_and_of_all_that_are_padded_to_one() -> None:
    plan = WarmUp(6)
    played(plan, lambda size, before: 0.01 * size if before else 0.05, 10.0, example=3)
    assert plan.times_s == pytest.approx({1: 0.01, 2: 0.02, 4: 0.04, 6: 0.06})
    plan = WarmUp(32, (1, 8, 32))
    played(plan, lambda size, before: 0.01 * size if before else 0.05, 10.0)
    assert plan.times_s == pytest.approx({1: 0.01, 2: 0.08, 8: 0.08, 9: 0.32, 32: 0.32})


def test_what_it_takes_to_make_a_batch_counts_and_so_does_its_room() -> None:
    plan = WarmUp(64)
    plan.value_s = 0.05
    assert max(played(plan, always(0.001), 2.0)) == 32
    assert plan.left_out == [64]
    plan = WarmUp(64)
    plan.most_values = 20
    assert max(played(plan, always(0.001), 2.0)) == 16
    assert plan.left_out == [32, 64]


@given(st.integers(1, 200), st.floats(0.0, 10.0), st.floats(1e-6, 5.0), st.floats(0, 1.0), st.integers(1, 300))
def test_a_plan_ends_tries_no_size_thrice_and_goes_over_its_time_by_one_call(
    most: int, budget: float, fixed: float, more: float, memory: int
) -> None:
    spent: list[float] = []

    def curve(size: int, before: int) -> float:
        spent.append((fixed + more * size) * (1 if before else 3))
        return spent[-1]

    plan = WarmUp(most)
    calls = played(plan, curve, budget, memory=memory)
    assert max(calls) <= min(most, memory)
    assert all(calls.count(size) <= 2 for size in calls)
    assert sum(spent[1:-1]) <= budget
    assert set(plan.left_out).isdisjoint(calls)


def test_the_time_is_as_long_again_as_loading_took_within_bounds() -> None:
    assert [budget_s(None, load_s, pays=True) for load_s in (0.1, 7.0, 300.0)] == [BUDGET_MIN_S, 7.0, BUDGET_MAX_S]
    assert budget_s(None, 300.0, pays=False) == BUDGET_MIN_S
    assert budget_s(60.0, 0.1, pays=False) == 60.0


def test_it_pays_until_first_calls_are_seen_to_take_no_longer() -> None:
    plan = WarmUp(8)
    assert plan.pays
    played(plan, always(0.1), 0.3)  # its example, twice: much begins with that
    assert plan.pays
    plan = WarmUp(8)
    played(plan, always(0.1), 1.0)
    assert not plan.pays
    plan = WarmUp(8)
    played(plan, once_50ms, 1.0)
    assert plan.pays


def test_sizes_that_follow_each_other_are_told_as_a_range() -> None:
    assert ranges([1, 2, 3, 8, 16, 17]) == "1-3, 8, 16-17"
    assert ranges([]) == ""


# --- padding ---------------------------------------------------------------------------------------------------------


def test_allowed_sizes_above_and_below() -> None:
    sizes = (2, 8, 32)
    assert [padded(n, sizes) for n in (1, 2, 3, 8, 32, 33)] == [2, 2, 8, 8, 32, 33]
    assert [at_most(n, sizes) for n in (1, 2, 7, 8, 100)] == [2, 2, 2, 8, 32]
    assert (padded(5, ()), at_most(5, ())) == (5, 5)


def test_a_batch_is_filled_up_with_copies_of_its_last_value_and_not_with_the_value() -> None:
    values = [{"a": [1]}, {"b": [2]}]
    full = filled_up(values, 4)
    assert full == [{"a": [1]}, {"b": [2]}, {"b": [2]}, {"b": [2]}]
    full[3]["b"].append(3)
    assert full[1:3] == [{"b": [2]}, {"b": [2]}]
    assert full[0] is values[0]
    lock = Lock()
    assert filled_up([lock], 2) == [lock, lock]  # what cannot be copied is repeated as it is


# --- workers ---------------------------------------------------------------------------------------------------------


def make(cls: type, size: int = 1, sizes: Sequence[int] = ()) -> Any:  # of the class
    return create(cls, stage="s", worker_id=3, max_batch_size=size, batch_sizes=sizes, device="cpu", args={})


def warmed(worker: Worker, asked_s: float | None = 10.0) -> WarmUp:
    plan = WarmUp(worker.max_batch_size, worker.batch_sizes)
    warm_up(worker, plan, examples(worker), asked_s=asked_s)
    return plan


class Counting(Worker):
    def __init__(self) -> None:
        self.given: list[Any] = []

    def forward(self, data: Any) -> Any:
        self.given.append(data)
        return data


def test_forward_is_called_with_each_example_and_each_is_told() -> None:
    class Several(Counting):
        example = 0
        multi_examples = (1, 2)

    worker = make(Several)
    seen: list[tuple[int, int]] = []
    warm_up(worker, WarmUp(1), examples(worker), progress=lambda done, of: seen.append((done, of)))
    assert worker.given == [0, 1, 2]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_forward_that_changes_what_it_gets_does_not_change_the_example() -> None:
    class Taking(Worker):
        example = [{"text": "a"}] * 2
        multi_examples = (example, [{"text": "b", "lock": Lock()}])  # the last one cannot be copied

        def forward(self, data: Any) -> Any:
            return [value.pop("text") for value in data]

    worker = make(Taking, 8)
    assert set(warmed(worker).tried) == {1, 2, 4, 8}
    assert Taking.example == [{"text": "a"}] * 2
    assert [forward_example(worker, fresh(worker, worker.example)) for _ in range(3)][-1] == ["a", "a"]


def test_no_example_is_no_warm_up() -> None:
    assert warmed(make(Counting, 8)).tried == {}


def test_batches_are_lists_of_the_values_of_the_example_over_and_over() -> None:
    class Several(Counting):
        example = ["a", "b", "c"]

    worker = make(Several, 8)
    warmed(worker)
    by_size = {len(data): data for data in worker.given}
    assert by_size[8] == ["a", "b", "c", "a", "b", "c", "a", "b"]
    assert by_size[1] == ["a"]


def test_an_array_is_an_example_of_as_many_values_as_it_has_rows() -> None:
    class Warm(Counting):
        example = numpy.arange(6).reshape(3, 2)

    worker = make(Warm, 4)
    assert set(warmed(worker).tried) == {1, 2, 3, 4}
    assert type(worker.given[0]) is numpy.ndarray
    assert [row.tolist() for row in worker.given[-1]] == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert {type(data) for data in worker.given[1:-2]} <= {list, numpy.ndarray}


@pytest.mark.parametrize("value", ["text", b"bytes", {"a": 1}, 7, object(), numpy.float64(1.0)])
def test_an_example_that_is_no_list_is_one_value_of_a_batch(value: Any) -> None:
    class Single(Counting):
        example = value

    worker = make(Single, 2)
    warmed(worker)
    assert worker.given[0] == [value] or type(worker.given[0][0]) is object
    assert sorted({len(data) for data in worker.given}) == [1, 2]
    assert examples(make(Single, 1)) == [value]


def test_of_values_that_are_large_only_small_batches_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.warming.VALUES_MOST", 1 << 20)

    class Large(Worker):
        example = [numpy.zeros(100_000, numpy.uint8)]

        def forward(self, data: Any) -> Any:
            return [1] * len(data)

    plan = warmed(make(Large, 32))
    assert set(plan.tried) == {1, 2, 4, 8}
    assert plan.left_out == [16, 32]


def test_only_the_examples_where_that_is_asked_for() -> None:
    class Two(Counting):
        example = ["a", "b"]

    worker = make(Two, 8)
    warmed(worker, 0.0)
    assert worker.given == [["a", "b"]]


@pytest.mark.parametrize("answer", [[1], [ValueError("bad"), 1]])
def test_wrong_results_and_exception_instances_are_failures(answer: list[Any]) -> None:
    class Wrong(Worker):
        example = (1, 2)

        def forward(self, data: Any) -> Any:
            return answer

    with pytest.raises(Exception, match=r"bad|1 results for 2"):
        warmed(make(Wrong, 8))


def test_a_size_that_fails_is_a_failure_that_names_it() -> None:
    class Even(Worker):
        example = [1, 2]

        def forward(self, data: Any) -> Any:
            if len(data) % 2:
                raise ValueError("odd")
            return data

    worker, plan = make(Even, 8), WarmUp(8)
    with pytest.raises(ValueError, match="odd"):
        warm_up(worker, plan, examples(worker), asked_s=None)
    assert plan.doing == "computing a batch of 1 made of its example (see warm_up)"
    assert set(warmed(make(Even, 8, (2, 4, 8))).tried) == {2, 4, 8}


class Roomy(Counting):
    example = list(range(6))
    room = 3

    def forward(self, data: Any) -> Any:
        if len(data) > self.room:
            raise MemoryError
        return super().forward(data)


def test_what_memory_does_not_take_is_no_failure_and_is_told() -> None:
    plan = warmed(make(Roomy, 8))  # not even its example fits
    # Whether 3 is tried as well depends on how long everything took.
    assert plan.exhausted == 4
    assert set(plan.tried) in ({1, 2}, {1, 2, 3})
    assert plan.fitted == max(plan.tried)


@pytest.mark.parametrize(("sizes", "room", "asked"), [((), 0, 10.0), ((4, 8), 3, 10.0), ((), 3, 0.0)])
def test_where_nothing_fits_in_memory_it_is_a_failure(sizes: tuple[int, ...], room: int, asked: float) -> None:
    class Full(Roomy):
        pass

    Full.room = room
    with pytest.raises(MemoryError):
        warmed(make(Full, 8, sizes), asked)


def test_examples_are_padded_to_the_sizes_there_are_and_their_results_cut() -> None:
    class Three(Counting):
        example = ["a", "b", "c"]

    worker = make(Three, 32, (1, 8, 32))
    plan = WarmUp(32, worker.batch_sizes)
    assert warm_up(worker, plan, examples(worker), asked_s=None) == ["a", "b", "c"]
    assert [len(data) for data in worker.given] == [8, 8, 1, 1, 32, 32]
    assert worker.given[0] == ["a", "b", *["c"] * 6]
    with pytest.raises(
        StartError, match=r"an example of stage s has 3 values, and the largest of its batch_sizes is 2"
    ):
        examples(make(Three, 2, (1, 2)))


def test_a_class_may_have_batch_sizes_of_its_own_as_long_as_none_are_configured() -> None:
    class Own(Counting):
        example = [1]
        batch_sizes = "whatever"

    own, plan = make(Own, 4), WarmUp(4)
    warm_up(own, plan, examples(own), asked_s=None)
    assert own.batch_sizes == "whatever"
    assert set(plan.tried) == {1, 2, 4}
    assert make(Own, 4, (2, 4)).batch_sizes == (2, 4)
