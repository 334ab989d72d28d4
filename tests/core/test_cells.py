"""Several brokers as one: who belongs to which, which is asked first, and how they stand together."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core import cells
from engine.core.link import View
from engine.core.messages import Flow, StageState

COUNTS = st.integers(1, 8)


@given(COUNTS, st.integers(0, 40), st.integers(1, 9))
def test_every_worker_belongs_to_one_cell_and_they_differ_by_one_at_most(count: int, workers: int, begin: int) -> None:
    shares = [cells.share(workers, count, cell, begin=begin) for cell in range(count)]
    assert sum(shares) == workers
    assert max(shares) - min(shares) <= 1


@given(COUNTS, st.integers(1, 10_000))
def test_the_parts_of_a_bound_are_enough_for_all_of_it(count: int, amount: int) -> None:
    assert amount <= count * cells.bound(amount, count) < amount + count


def test_tries_with_one_key_meet_in_one_cell_and_keys_spread() -> None:
    keys = [bytes([n]) * 32 for n in range(40)]
    found = [cells.by_key(key, 3) for key in keys]
    assert found == [cells.by_key(key, 3) for key in keys]
    assert set(found) == {0, 1, 2}


def test_whoever_has_fewest_requests_for_each_ready_worker_is_asked_first() -> None:
    assert cells.order([5, 4, 9], [2, 2, 2], 0) == [1, 0, 2]
    assert cells.order([6, 4], [4, 2], 0) == [0, 1], "twice the workers"
    assert cells.order([9, 0], [1, 0], 0) == [0, 1], "who cannot serve is asked last"
    assert sorted(cells.order([3, 2], [0, 0], 0)) == [0, 1], "and yet asked: it may come back"


def test_equals_take_turns() -> None:
    first = [cells.order([0, 0, 0], [1, 1, 1], turn)[0] for turn in range(6)]
    assert first == [0, 1, 2, 0, 1, 2]


def test_load_follows_the_ready_workers() -> None:
    pending, given = [0, 0], [0, 0]
    for turn in range(600):
        cell = cells.order(pending, [6, 3], turn)[0]
        pending[cell] += 1
        given[cell] += 1
        if turn % 3 == 0:  # each worker finishes as many as any other
            pending = [max(0, pending[0] - 2), max(0, pending[1] - 1)]
    assert 0.8 < given[0] / (2 * given[1]) < 1.2


def stage(name: str, ready: int, *, mime: str = "application/json") -> StageState:
    return StageState(name, 2, ready, 2 - ready, 3, 1, mime)


def view(*ready: int, connected: bool = True, draining: bool = False, headroom: int = 10) -> View:
    stages = tuple(stage(f"s{index}", count) for index, count in enumerate(ready))
    return View(connected, draining, headroom, stages, retry_s=1.0 + headroom)


def test_whole_cells_stand_together() -> None:
    found = cells.view_of([view(1, 2), view(2, 1, headroom=5)])
    assert (found.connected, found.draining, found.headroom, found.retry_s) == (True, False, 15, 6.0)
    assert [(one.name, one.wanted, one.ready, one.starting, one.queued) for one in found.stages] == [
        ("s0", 4, 3, 1, 6),
        ("s1", 4, 3, 1, 6),
    ]


def test_parts_of_two_cells_do_not_make_a_ready_one() -> None:
    found = cells.view_of([view(1, 0), view(0, 1)])
    assert not all(one.ready for one in found.stages)


def test_a_cell_that_is_not_whole_takes_nothing_from_one_that_is() -> None:
    found = cells.view_of([view(1, 0), view(1, 1)])
    assert [one.ready for one in found.stages] == [1, 1]
    assert found.headroom == 10


def test_who_is_not_heard_counts_for_nothing() -> None:
    found = cells.view_of([view(2, 2, connected=False, draining=True), view(1, 1)])
    assert (found.connected, found.draining, [one.ready for one in found.stages]) == (True, False, [1, 1])
    assert not cells.view_of([view(1, connected=False), view(1, connected=False)]).connected


def test_a_deployment_drains_when_all_its_cells_do() -> None:
    assert not cells.view_of([view(1, draining=True), view(1)]).draining
    assert cells.view_of([view(1, draining=True), view(1, draining=True)]).draining


def test_what_a_stage_answers_with_is_said_by_who_knows() -> None:
    unknown = StageState("s", 1, 0, 1, 0, 0, "application/json", int(Flow.UNKNOWN))
    known = StageState("s", 1, 1, 0, 0, 0, "text/plain", int(Flow.EVENTS))
    for order in ([unknown, known], [known, unknown]):
        (found,) = cells.together([[one] for one in order])
        assert (found.mime, found.flow, found.ready) == ("text/plain", int(Flow.EVENTS), 1)


@pytest.mark.parametrize("ready", [[4, 8], [1, 1, 6], [2, 3]])
@pytest.mark.parametrize("under_way", [12, 100])
def test_what_is_under_way_follows_the_workers(ready: list[int], under_way: int) -> None:
    """So many clients, each of whom asks again when it is answered; workers are alike."""
    rng = random.Random(1)
    pending = [0] * len(ready)
    served = [0] * len(ready)
    for turn in range(4000):
        chosen = cells.order(pending, ready, turn)[0]
        pending[chosen] += 1
        if sum(pending) <= under_way:
            continue
        # The next one to be done: of those that are computed, any.
        busy = [min(count, workers) for count, workers in zip(pending, ready, strict=True)]
        done = rng.choices(range(len(ready)), busy)[0]
        pending[done] -= 1
        served[done] += 1
    for count, workers in zip(served, ready, strict=True):
        assert count / sum(served) == pytest.approx(workers / sum(ready), rel=0.2)
