"""Which items belong together in a batch, where they cost unlike much. Here it is as much as they have bytes, of which
a batch may have 256."""

from __future__ import annotations

from random import Random

import pytest

from engine.core import costqueue
from engine.core.batching import BatchQueue, Policy
from engine.core.costqueue import FEW, WINDOW, CostQueue, padded_units, queue_for, requeued
from engine.core.costs import UNITS
from engine.core.items import Item, Request

MOST = 16


def make(uid: int, size: int, *, due: float = 100.0, meta: bytes = b"", deadline: float = 100.0) -> Item:
    return Item(Request(uid, b"f", uid, 0, deadline, due, due, meta, size), b"x" * size, size, 0.0)


def queue_of(*sizes: int, most: int = MOST, max_bytes: int = 1 << 20) -> CostQueue:
    """One whose items cost as many units as they have bytes, with uids from 0."""
    queue = CostQueue(Policy(most, max_bytes, max_batch_cost=UNITS))
    queue.costs.hear(None)
    queue.renew()
    queue.push(*[make(uid, size) for uid, size in enumerate(sizes)])
    return queue


def taken(queue: CostQueue, **about: float) -> list[int]:
    return [item.request.uid for item in queue.take(1.0, **about)[0]]  # type: ignore[arg-type]


def test_the_head_always_goes_however_much_it_costs() -> None:
    queue = queue_of(300, 10, 10)
    assert taken(queue) == [0]
    assert taken(queue) == [1, 2]
    assert taken(queue_of(200, 20, 30)) == [0]  # two would count as 400


def test_beside_the_head_go_those_that_cost_nearly_as_much() -> None:
    assert taken(queue_of(60, 10, 200, 58, 12, 64, 61)) == [0, 3, 5, 6]  # 4 times 64
    assert taken(queue_of(10, 200, 12, 60, 11, 9)) == [0, 2, 4, 5]


def test_the_longest_times_the_number_is_within_what_a_batch_may_cost() -> None:
    rng = Random(3)
    queue = queue_of(*[rng.randrange(1, 150) for _ in range(300)])
    served = 0
    while queue:
        batch, dead, is_tight = queue.take(1.0)
        assert batch
        assert not dead
        assert not is_tight
        served += len(batch)
        assert len(batch) == 1 or max(item.size for item in batch) * len(batch) <= UNITS
        assert len(batch) <= MOST
    assert served == 300
    assert (queue.amount, queue.nbytes) == (0, 0)


def test_a_longer_neighbour_that_would_be_too_much_leaves_its_place_to_shorter_ones() -> None:
    assert taken(queue_of(80, 81, 90, 70, 20)) == [0, 1, 3]


def test_a_large_one_that_came_first_says_little_of_those_who_come_next() -> None:
    """The door goes by it for those whose size at this stage nobody knows yet: a hundred small ones after a large one
    would all be refused."""
    queue = queue_of(200)
    taken(queue)
    assert queue.each <= 200 / FEW
    queue.push(*[make(uid, 2) for uid in range(1, 30)])
    while queue:
        taken(queue)
    assert queue.each == pytest.approx((200 + 29 * 2) / 30, rel=0.2)  # each counts alike, also the first


def test_among_equals_the_earlier_come_first_and_leave_in_their_order() -> None:
    queue = queue_of(*[20] * 40)
    assert taken(queue) == list(range(12))
    assert taken(queue) == list(range(12, 24))


def test_those_as_far_above_as_below_come_in_their_order() -> None:
    assert taken(queue_of(100, 110, 90)) == [0, 1]
    assert taken(queue_of(100, 90, 110)) == [0, 1]


def test_a_batch_is_chosen_out_of_a_bounded_window() -> None:
    queue = queue_of(8, *[250] * 2000, 8)
    queue.items.move_to_end(0, last=False)
    assert taken(queue) == [0]  # the other one is far behind
    near = queue_of(8, *[250] * (WINDOW - 2), 8)
    assert taken(near) == [0, WINDOW - 1]


def test_bytes_and_the_number_of_items_bound_it_as_ever() -> None:
    assert len(taken(queue_of(*[1] * 40))) == MOST
    assert taken(queue_of(*[10] * 12, max_bytes=35)) == [0, 1, 2]


def test_nobody_starves_however_unlike_the_others_it_is() -> None:
    """The first by rank goes with every batch: behind n others one waits for n batches at most, whatever comes."""
    queue = queue_of(*[10] * 20, 255, *[10] * 20)
    for number in range(1000, 1030):
        if 20 in taken(queue):
            break
        queue.push(*[make(number * 100 + more, 10) for more in range(16)])
    else:
        pytest.fail("it starves")
    assert number - 1000 <= 20


def test_who_is_due_first_is_the_head() -> None:
    queue = queue_of(*[10] * 30)
    queue.push(make(99, 200, due=5.0))
    assert taken(queue) == [99]


def test_what_nobody_waits_for_leaves_with_nothing() -> None:
    queue = queue_of(10, 11, 12)
    queue.items[1].request.closed = True
    batch, dead, _ = queue.take(1.0)
    assert [item.request.uid for item in batch] == [0, 2]
    assert [item.request.uid for item in dead] == [1]
    assert queue.amount == 0


def test_somebody_who_would_be_late_is_a_choice_and_nothing_leaves() -> None:
    queue = queue_of(10, 10)
    queue.push(make(7, 10, due=4.0))
    batch, dead, is_tight = queue.take(1.0, done_at=5.0)
    assert (batch, dead, is_tight) == ([], [], True)
    assert len(queue) == 3
    assert len(queue.take(1.0)[0]) == 3


def test_how_much_there_is_is_told_in_units_with_what_padding_usually_adds() -> None:
    queue = queue_of(64, 64)
    assert (queue.amount, queue.whole, queue.most) == (128, 128, UNITS)
    assert not queue.backlog(dues=False).is_whole
    queue.push(make(5, 64), make(6, 64))
    assert queue.backlog(dues=False).is_whole
    assert queue.each == 64
    for uid in range(100, 300, 2):
        queue.clear()
        queue.push(make(uid, 20), make(uid + 1, 60))
        assert len(queue.take(1.0)[0]) == 2  # 80 that count as 120
    queue.push(make(900, 10))
    assert queue.each == pytest.approx(15, rel=0.05)


def test_a_head_beyond_what_a_batch_may_cost_counts_as_what_it_is() -> None:
    queue = queue_of(700)
    assert (queue.whole, queue.most) == (700, 700)


def test_a_share_of_a_batch_is_chosen_alike() -> None:
    queue = queue_of(20, 100, 21, 22)
    assert taken(queue, most=66) == [0, 2, 3]


def test_of_fewer_items_than_may_be_those_nearest_to_the_head_are_chosen() -> None:
    queue = queue_of(20, 100, 21, 22)
    assert (queue.whole_of(2), queue.whole_of(3), queue.whole_of(1), queue.whole) == (42, 66, 20, 66)
    assert taken(queue, count=2) == [0, 2]
    assert taken(queue) == [1, 3]


def test_what_was_chosen_for_one_worker_is_not_taken_for_the_choice_for_another() -> None:
    rng = Random(3)
    for _ in range(300):
        sizes = [rng.choice([10, 20, 50]) for _ in range(12)]
        queue = queue_of(*sizes)
        for _ in range(6):
            count, most = rng.choice([0, 1, 2, 3, 5, 20]), rng.choice([60, 150, UNITS])
            picked, units = queue._pick(queue._window(), most, count)
            assert (picked, units) == queue_of(*sizes)._pick(list(queue.items.values()), most, count)


def test_what_waits_is_judged_by_what_is_known_now() -> None:
    queue = CostQueue(Policy(MOST, max_batch_cost=1000))
    queue.push(*[make(uid, 400) for uid in range(8)])
    assert taken(queue) == [0]  # alone, until something is known
    queue.costs.learn([(make(50, 400), 250.0)])
    queue.renew()
    assert taken(queue) == [1, 2, 3, 4]
    assert queue.amount == pytest.approx(3 * UNITS / 4)


def test_items_that_come_back_are_the_first() -> None:
    queue = queue_of(30, 30)
    back = queue.take(1.0)[0]
    queue.push(make(5, 30))
    queue.push_front(back)
    assert queue.amount == 90
    assert taken(queue) == [0, 1, 5]


def test_the_books_are_right_whatever_happens() -> None:
    rng = Random(5)
    queue, uid = queue_of(), 0
    for _ in range(2000):
        match rng.randrange(5):
            case 0 | 1:
                queue.push(*[make(uid + more, rng.randrange(1, 400), due=rng.uniform(2, 200)) for more in range(3)])
                uid += 3
            case 2:
                queue.take(1.0, most=rng.randrange(0, UNITS))
            case 3:
                queue.discard(rng.randrange(uid + 1))
            case _:
                if back := queue.take(1.0)[0]:
                    queue.push_front(back)
        assert queue.nbytes == sum(item.size for item in queue.items.values())
        assert queue._units == pytest.approx(sum(item.units for item in queue.items.values()), abs=1e-6)
        if queue:
            found = queue.whole
            assert found == padded_units(queue._pick(queue._window(), UNITS, 0)[0])
    queue.clear()
    assert queue.amount == 0


def test_without_the_key_a_stage_has_the_queue_it_had() -> None:
    plain = queue_for(Policy(8))
    assert type(plain) is BatchQueue
    assert (plain.by_cost, plain.each, plain.top) == (False, 1.0, 8)
    assert requeued(plain, Policy(4)) is plain


def test_the_key_may_come_and_go_with_those_that_wait() -> None:
    plain = queue_for(Policy(8))
    plain.push(make(1, 10), make(2, 20))
    priced = requeued(plain, Policy(8, max_batch_cost=100))
    assert isinstance(priced, CostQueue)
    assert list(priced.items) == [1, 2]
    priced.costs.hear(None)
    other = requeued(priced, Policy(8, max_batch_cost=50))
    assert other is priced
    assert priced.amount == counted_units(30, 50)
    again = requeued(priced, Policy(8))
    assert type(again) is BatchQueue
    assert [item.units for item in again.items.values()] == [1.0, 1.0]


def counted_units(cost: int, most: int) -> int:
    return -(-cost * UNITS // most)


def test_choosing_looks_at_each_of_the_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was chosen is kept until somebody comes or goes."""
    calls = []
    monkeypatch.setattr(
        costqueue, "sorted", lambda *given, **how: calls.append(1) or sorted(*given, **how), raising=False
    )
    queue = queue_of(*[20] * 100)
    whole = queue.whole
    queue.take(1.0, most=whole)
    assert len(calls) == 1
