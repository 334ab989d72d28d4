"""Every release rule by its name, and the queue."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.batching import AHEAD_S, METAS_MOST, Backlog, BatchQueue, Policy, Reason, Taker, decide
from engine.core.items import Item, Request

POLICY = Policy(max_batch_size=4, max_batch_bytes=1000, max_wait_s=0.010, eager=True)
LAZY = replace(POLICY, eager=False)
WAITING = Backlog(count=2, nbytes=20, oldest=100.0)


but = msgspec.structs.replace


def item(uid: int, *, size: int = 1, arrived: float = 0.0, deadline: float = 1e9) -> Item:
    request = Request(uid, b"f", uid, 0, deadline, deadline, deadline, b"", size)
    return Item(request, b"x" * size, size, arrived)


def test_full_by_count() -> None:
    assert decide(POLICY, but(WAITING, count=4), Taker.BUSY, now=100.0).reason is Reason.FULL


def test_full_by_bytes() -> None:
    assert decide(LAZY, but(WAITING, nbytes=1000), Taker.IDLE, now=100.0).reason is Reason.FULL


def test_full_is_the_reason_even_for_an_idle_worker() -> None:
    assert decide(POLICY, but(WAITING, count=9), Taker.IDLE, now=100.0).reason is Reason.FULL


def test_idle_worker_gets_what_there_is_at_once() -> None:
    assert decide(POLICY, but(WAITING, count=1), Taker.IDLE, now=100.0).reason is Reason.IDLE


def test_not_eager_waits_for_an_idle_worker_too() -> None:
    decision = decide(LAZY, WAITING, Taker.IDLE, now=100.0)
    assert decision.reason is None
    assert decision.wake_at == pytest.approx(100.010)


def test_wait_counts_from_arrival() -> None:
    assert decide(LAZY, WAITING, Taker.IDLE, now=100.0099).reason is None
    assert decide(LAZY, WAITING, Taker.IDLE, now=100.0101).reason is Reason.WAIT


def test_a_partial_batch_past_its_wait_grows_until_the_busy_worker_is_about_to_be_done() -> None:
    decision = decide(POLICY, WAITING, Taker.BUSY, now=100.011, free_at=100.050)
    assert decision.reason is None
    assert decision.wake_at == pytest.approx(100.050 - AHEAD_S)
    assert decide(POLICY, WAITING, Taker.BUSY, now=100.0485, free_at=100.050).reason is Reason.WAIT
    assert decide(POLICY, but(WAITING, count=4), Taker.BUSY, now=100.011, free_at=100.050).reason is Reason.FULL
    assert decide(POLICY, WAITING, Taker.IDLE, now=100.011, free_at=100.050).reason is Reason.IDLE


def test_busy_workers_get_a_partial_batch_in_advance_only_past_its_wait() -> None:
    assert decide(POLICY, WAITING, Taker.BUSY, now=100.005).reason is None
    assert decide(POLICY, WAITING, Taker.BUSY, now=100.011).reason is Reason.WAIT


def test_without_a_wait_busy_workers_get_only_full_batches_in_advance() -> None:
    policy = replace(POLICY, max_wait_s=0.0)
    assert decide(policy, WAITING, Taker.BUSY, now=200.0).reason is None
    assert decide(policy, WAITING, Taker.IDLE, now=200.0).reason is Reason.IDLE
    assert decide(replace(policy, eager=False), WAITING, Taker.IDLE, now=200.0).reason is Reason.WAIT


def test_deadline_releases_before_it_becomes_unreachable() -> None:
    backlog = but(WAITING, first_due=100.008)
    assert decide(LAZY, backlog, Taker.IDLE, now=100.0, service_s=0.005) == decide(
        LAZY, backlog, Taker.IDLE, now=100.001, service_s=0.005
    )
    assert decide(LAZY, backlog, Taker.IDLE, now=100.0, service_s=0.005).wake_at == pytest.approx(100.003)
    assert decide(LAZY, backlog, Taker.IDLE, now=100.0031, service_s=0.005).reason is Reason.DEADLINE


def test_drain_waits_for_nothing() -> None:
    assert decide(LAZY, WAITING, Taker.IDLE, now=100.0, draining=True).reason is Reason.DRAIN
    assert decide(POLICY, WAITING, Taker.IDLE, now=100.0, spaced_until=100.005, draining=True).reason is Reason.DRAIN


def test_a_partial_batch_follows_the_one_before_it_at_a_distance() -> None:
    decision = decide(POLICY, WAITING, Taker.IDLE, now=100.0, spaced_until=100.005)
    assert decision.reason is None
    assert decision.wake_at == 100.005
    assert decide(POLICY, WAITING, Taker.IDLE, now=100.005, spaced_until=100.005).reason is Reason.IDLE
    assert decide(POLICY, but(WAITING, count=4), Taker.IDLE, now=100.0, spaced_until=100.005).reason is Reason.FULL


def test_the_distance_is_bounded_by_the_wait_and_by_the_first_due() -> None:
    at = decide(POLICY, WAITING, Taker.IDLE, now=100.0, spaced_until=100.050).wake_at
    assert at == pytest.approx(100.010)
    assert decide(POLICY, WAITING, Taker.IDLE, now=at, spaced_until=100.050).reason is Reason.WAIT
    backlog = but(WAITING, first_due=100.008)
    at = decide(POLICY, backlog, Taker.IDLE, now=100.0, service_s=0.005, spaced_until=100.050).wake_at
    assert at == pytest.approx(100.003)
    assert decide(POLICY, backlog, Taker.IDLE, now=at, service_s=0.005, spaced_until=100.050).reason is Reason.DEADLINE


def test_who_wants_nobody_to_wait_says_so_by_the_wait() -> None:
    policy = replace(POLICY, max_wait_s=0.0)
    assert decide(policy, WAITING, Taker.IDLE, now=100.0, spaced_until=100.005).reason is Reason.IDLE


def test_the_distance_makes_no_difference_to_who_waits_for_full_batches() -> None:
    for until in (0.0, 100.001, 200.0):
        assert decide(LAZY, WAITING, Taker.IDLE, now=100.0, spaced_until=until).wake_at == pytest.approx(100.010)


@pytest.mark.parametrize("backlog", [but(WAITING, count=0), Backlog(0, 0, inf)])
def test_nothing_leaves_an_empty_queue(backlog: Backlog) -> None:
    for taker in Taker:
        assert decide(POLICY, backlog, taker, now=500.0, draining=True).reason is None


def test_nothing_leaves_without_a_taker() -> None:
    assert decide(POLICY, but(WAITING, count=100), Taker.NOBODY, now=500.0).reason is None


@given(
    count=st.integers(0, 10),
    nbytes=st.integers(0, 2000),
    waited=st.floats(0, 1),
    taker=st.sampled_from(Taker),
    eager=st.booleans(),
    wait=st.sampled_from([0.0, 0.01, 0.5]),
    left=st.floats(-1, 10),
    service=st.floats(0, 1),
    spaced=st.floats(-1, 1),
)
def test_a_decision_is_always_a_release_or_a_time_to_look_again(
    count: int,
    nbytes: int,
    waited: float,
    taker: Taker,
    eager: bool,
    wait: float,
    left: float,
    service: float,
    spaced: float,
) -> None:
    policy = Policy(4, 1000, wait, eager)
    now = 1000.0
    backlog = Backlog(count, nbytes, now - waited, now + left)
    until = now + spaced
    decision = decide(policy, backlog, taker, now=now, service_s=service, spaced_until=until)
    if decision.reason is None:
        assert decision.wake_at > now
        if count and taker is Taker.IDLE:
            # Somebody is idle and something waits: the wait is bounded, and at its end the batch does leave.
            assert decision.wake_at <= now + wait
            then = decision.wake_at + 1e-6
            assert decide(policy, backlog, taker, now=then, service_s=service, spaced_until=until).reason is not None
    else:
        assert count > 0
        assert taker is not Taker.NOBODY


# --- the queue -------------------------------------------------------------------------------------------------------


def uids(items: list[Item]) -> list[int]:
    return [one.request.uid for one in items]


def test_take_is_first_in_first_out_and_at_most_a_batch() -> None:
    queue = BatchQueue(POLICY)
    for uid in range(6):
        queue.push(item(uid))
    batch, dead, _ = queue.take(1.0)
    assert (uids(batch), dead, len(queue), queue.nbytes) == ([0, 1, 2, 3], [], 2, 2)


def test_take_respects_bytes_but_always_gives_one() -> None:
    queue = BatchQueue(POLICY)
    queue.push(item(1, size=5000))
    queue.push(item(2, size=600))
    queue.push(item(3, size=600))
    assert uids(queue.take(1.0)[0]) == [1]
    assert uids(queue.take(1.0)[0]) == [2]
    assert uids(queue.take(1.0)[0]) == [3]
    assert queue.nbytes == 0


def test_take_leaves_closed_and_late_items_out() -> None:
    queue = BatchQueue(POLICY)
    closed, late, good = item(1), item(2, deadline=5.0), item(3)
    closed.request.closed = True
    for one in (closed, late, good):
        queue.push(one)
    batch, dead, _ = queue.take(6.0)
    assert (uids(batch), uids(dead), queue.nbytes) == ([3], [1, 2], 0)


def test_an_item_whose_other_copy_went_further_is_not_computed() -> None:
    queue = BatchQueue(POLICY)
    stale = item(1)
    queue.push(stale)
    stale.request.hop = 1
    assert uids(queue.take(1.0)[1]) == [1]


def test_push_front_keeps_the_old_order() -> None:
    queue = BatchQueue(POLICY)
    queue.push(item(9))
    queue.push_front([item(1), item(2)])
    assert uids(queue.take(1.0)[0]) == [1, 2, 9]


def test_discard_from_the_middle() -> None:
    queue = BatchQueue(POLICY)
    for uid in (1, 2, 3):
        queue.push(item(uid, size=10))
    assert queue.discard(2) is not None
    assert queue.discard(2) is None
    assert (uids(queue.take(1.0)[0]), queue.nbytes) == ([1, 3], 0)


def test_backlog_looks_at_the_next_batch_only() -> None:
    queue = BatchQueue(LAZY)
    for uid, deadline in enumerate((50.0, 40.0, 60.0, 70.0, 1.0)):
        queue.push(item(uid, arrived=float(uid), deadline=deadline))
    assert queue.backlog(dues=True) == Backlog(5, 5, 0.0, 40.0)
    assert queue.backlog(dues=False).first_due == inf


@given(st.lists(st.one_of(st.floats(100.0, 100.05), st.none()), max_size=30), st.booleans())
def test_the_first_due_is_never_told_late(steps: list[float | None], sort: bool) -> None:
    """None: one is taken."""
    queue = BatchQueue(POLICY)
    for uid, step in enumerate(steps):
        if step is not None:
            queue.push(item(uid, deadline=step))
        else:
            queue.take(0.0, most=1)
    if sort:
        queue.sort(0.0)
    first = min([one.request.deadline for one in queue.items.values()], default=inf)
    assert queue.first_due <= first
    assert queue.backlog(dues=True).first_due <= first
    if queue:
        assert queue.first_due >= first - 0.010 - 1e-9


@given(st.lists(st.one_of(st.integers(1, 400), st.just(-1), st.just(-2)), max_size=60))
def test_bytes_always_add_up(steps: list[int]) -> None:
    queue = BatchQueue(POLICY)
    held: dict[int, int] = {}
    for uid, step in enumerate(steps):
        if step > 0:
            queue.push(item(uid, size=step))
            held[uid] = step
        elif step == -1:
            for taken in queue.take(1.0)[0]:
                del held[taken.request.uid]
        elif held:
            queue.discard(held.popitem()[0])
        assert (len(queue), queue.nbytes) == (len(held), sum(held.values()))


def test_a_batch_has_room_for_so_much_of_headers() -> None:
    queue = BatchQueue(Policy(100))
    for uid in range(1, 6):
        one = item(uid)
        one.request.meta = bytes(METAS_MOST // 2)
        queue.push(one)
    assert [uids(queue.take(1.0)[0]) for _ in range(3)] == [[1, 2], [3, 4], [5]]
    alone = item(9)
    alone.request.meta = bytes(METAS_MOST + 1)
    queue.push(alone)
    assert uids(queue.take(1.0)[0]) == [9]
