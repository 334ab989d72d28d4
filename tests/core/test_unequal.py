"""A worker much slower than another costs nobody anything: with and without it, so many clients who each wait for an
answer before they ask again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.batching import BatchQueue, Policy
from engine.core.front import FrontSpec
from engine.core.items import Item
from engine.core.routing import Route, Topology
from engine.core.stage import StageSpec
from engine.simulation.world import BEGIN, Attempt, Curve, Works, World
from tests.core.test_batching import item
from tests.core.test_fate import SPEC
from tests.core.traffic import line
from tests.core.twin import Twin, topology

pytestmark = pytest.mark.unmeasured

SLOW = 16.0
ASKS_AGAIN_S = 0.0003
TIMEOUT_S = 60.0


class Loops(World):
    """So many clients of a stage of workers that are so slow."""

    def __init__(self, curve: Curve, slowness: Sequence[float], most: int, clients: int, *, warm: bool) -> None:
        spec = StageSpec("s0", len(slowness), Policy(most), TIMEOUT_S, 10.0, 1 << 30)
        times = {n: curve(n) for n in (1, 2, 4, 8, 16, 32) if warm and n <= most}
        super().__init__(
            Topology(("s0",), (Route("/", (0,)),)),
            [spec],
            [Works(curve, lambda rng: 1.0 + 0.05 * rng.uniform(-1.0, 1.0), times, slowness)],
            front=FrontSpec(1024, 1 << 30),
        )
        for number in range(clients):
            self._at(self.now + number * 1e-4, self.ask)

    def ask(self) -> None:
        self.submit(Attempt(self.now, TIMEOUT_S))

    def answered(self, attempt: Attempt) -> None:
        self._at(self.now + ASKS_AGAIN_S, self.ask)


def served(
    curve: Curve, slowness: Sequence[float], most: int, clients: int, seconds: float, *, warm: bool = True
) -> tuple[float, float]:
    """Answers a second, and what 99 of 100 of them took at most, once speeds are known."""
    world = Loops(curve, slowness, most, clients, warm=warm)
    world.run(seconds)
    begin = BEGIN + seconds / 3
    done = [one for one in world.attempts if one.at >= begin and one.status]
    assert all(one.status == 200 for one in done)
    # Who is waiting still counts as well: a slow batch that has not come back is no quick one.
    took = sorted(min(one.answered_at, world.now) - one.at for one in world.attempts if one.at >= begin)
    return len(done) / (seconds * 2 / 3), took[int(0.99 * len(took))]


SHORT, LONG, BY_THE_ITEM = line(1.0, 0.0), line(6.0, 0.3), line(1.0, 4.0)
CASES = [
    *[(SHORT, 2.5, most, clients) for most in (1, 32) for clients in (1, 4, 16, 64)],
    *[(LONG, 9.0, most, clients) for most in (1, 32) for clients in (1, 4, 16, 64)],
    (BY_THE_ITEM, 24.0, 32, 64),
]


@pytest.mark.parametrize(("curve", "seconds", "most", "clients"), CASES)
def test_beside_a_quick_worker_a_slow_one_costs_nobody_anything(
    curve: Curve, seconds: float, most: int, clients: int
) -> None:
    rate, took_s = served(curve, [1.0], most, clients, seconds)
    both, took_of_both_s = served(curve, [1.0, SLOW], most, clients, seconds)
    assert both >= 0.95 * rate
    assert took_of_both_s <= 1.3 * took_s


@pytest.mark.parametrize("slow", [2.0, 3.0, 5.0])
def test_what_a_slow_worker_can_do_is_done(slow: float) -> None:
    curve = line(6.0, 0.3)
    alone, _ = served(curve, [1.0], 8, 64, 6.0)
    both, _ = served(curve, [1.0, slow], 8, 64, 6.0)
    assert both >= 0.97 * (1.0 + 1.0 / slow) * alone


def test_without_a_warm_up_it_is_found_out_by_what_comes() -> None:
    rate, took_s = served(line(6.0, 0.3), [1.0], 1, 4, 12.0, warm=False)
    both, took_of_both_s = served(line(6.0, 0.3), [1.0, SLOW], 1, 4, 12.0, warm=False)
    assert both >= 0.95 * rate
    assert took_of_both_s <= 1.3 * took_s


def test_a_worker_that_is_alone_is_given_everything_however_slow() -> None:
    world = Loops(line(2.0, 0.0), [1.0, SLOW], 1, 8, warm=True)
    world.run(2.0)
    stage = world.stages[0]
    quick = min(stage.workers.values(), key=lambda worker: worker.slowness)
    stage.leave(quick.key, world.now)
    before = len(world.attempts)
    world.run(2.0)
    assert len(world.attempts) - before == pytest.approx(2.0 / 0.032, rel=0.2)


@pytest.mark.parametrize("took_us", [1_000, 20_000])
@pytest.mark.parametrize("slowness", [(0.37, 0.2), (0.12, 0.02)])
def test_of_two_idle_ones_of_one_class_of_speed_none_is_left_to_the_other(
    slowness: tuple[float, float], took_us: int
) -> None:
    """Where a third, much slower one has gone, that is how these two may be left, the slower of them first in turn."""
    twin = Twin(topology(), [SPEC])
    workers = [twin.worker(slot=slot) for slot in (1, 2)]

    def ask(seq: int) -> bool:
        twin.submit(1, first=seq)
        given = [worker for worker in workers if worker.lane]
        for worker in given:
            twin.pass_time(took_us / 1e6)
            twin.finish(worker, compute_us=took_us)
            twin.pass_time(0.02)
        return bool(given)

    assert all(ask(seq) for seq in range(1, 101))
    (stage,) = twin.stages
    members = [*stage.workers.values()]
    for member, slow in zip(members, slowness, strict=True):
        member.slowness = slow
        stage.crew.sort_in(member, twin.now, begins=False)
    assert len({member.speed for member in members}) == 1
    assert stage.foresight.times.known
    stage.foresight.is_uneven = True
    assert all(ask(seq) for seq in range(101, 111))


# --- who stands behind so many others ---------------------------------------------------------------------------------


def waiting(count: int, nbytes: int = 1000) -> BatchQueue:
    queue = BatchQueue(Policy(8, nbytes))
    queue.push(*[item(uid, size=10, deadline=10.0 + uid) for uid in range(count)])
    return queue


def uids(items: Sequence[Item]) -> list[int]:
    return [item.request.uid for item in items]


def test_a_batch_from_behind_others_leaves_these_in_their_order() -> None:
    queue = waiting(10)
    batch, dead = queue.take_behind(3, 0.0, most=4, done_at=1.0)
    assert (uids(batch), dead, len(queue), queue.nbytes) == ([3, 4, 5, 6], [], 6, 60)
    rest, _, _ = queue.take(0.0, most=8)
    assert uids(rest) == [0, 1, 2, 7, 8, 9]


def test_who_would_be_late_is_passed_over_and_who_is_gone_is_taken_out() -> None:
    queue = waiting(10)
    first, second, *_ = queue.items.values()
    second.request.closed = True
    batch, dead = queue.take_behind(1, 0.0, most=2, done_at=14.5)
    assert (uids(batch), uids(dead)) == ([5, 6], [1])
    assert uids([first]) == [0]


def test_a_batch_from_behind_is_bounded_in_bytes_but_for_one_item() -> None:
    assert uids(waiting(10, nbytes=25).take_behind(2, 0.0, most=8, done_at=0.0)[0]) == [2, 3]
    assert uids(waiting(10, nbytes=5).take_behind(2, 0.0, most=8, done_at=0.0)[0]) == [2]
    assert waiting(2).take_behind(2, 0.0, most=8, done_at=0.0) == ([], [])


def test_a_batch_from_behind_has_no_more_than_its_worker_is_given_at_once() -> None:
    assert uids(waiting(10).take_behind(2, 0.0, most=8, count=3, done_at=0.0)[0]) == [2, 3, 4]


@pytest.mark.parametrize(("slow_us", "least"), [(120, 40), (12_000, 0)])
def test_where_batches_take_next_to_nothing_nobody_is_the_slow_one(slow_us: int, least: int) -> None:
    """Of one that is told apart by chance nothing more is learned while requests come one by one: it would rest for
    ever."""
    twin = Twin(topology(), [SPEC])
    workers = [(twin.worker(slot=1), 30), (twin.worker(slot=2), slow_us)]
    given = Counter[int]()
    for seq in range(1, 301):
        twin.submit(1, first=seq)
        ((worker, took_us),) = ((one, us) for one, us in workers if one.lane)
        given[took_us] += seq > 200
        twin.pass_time(took_us / 1e6)
        twin.finish(worker, compute_us=took_us)
        twin.pass_time(0.02)
    assert given[slow_us] >= least
    assert least or given[slow_us] < 10


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_nobody_waits_for_ever_while_somebody_is_idle(data: st.DataObject) -> None:
    """Whatever is known of their speeds, whoever goes, in whatever order they are done (:meth:`Twin._pumped`)."""
    draw = data.draw
    policy = Policy(draw(st.sampled_from([1, 4, 8])), 1 << 20, draw(st.sampled_from([0.0, 0.01])), draw(st.booleans()))
    twin = Twin(topology(), [replace(SPEC, policy=policy, timeout_s=600.0)])
    (stage,) = twin.stages
    batch_s = draw(st.sampled_from([0.0005, 0.003, 0.05]))
    stage.foresight.seed({n: int(batch_s * 1e6 * (1 + n / 8)) for n in (1, 2, 4, 8) if n <= policy.max_batch_size})
    workers = [twin.worker(slot=slot) for slot in range(1, 1 + draw(st.integers(1, 5)))]
    for member in stage.workers.values():
        member.slowness = draw(st.sampled_from([0.02, 0.12, 0.2, 0.37, 0.9, 1.0, 1.3, 3.0, 16.0]))
        stage.crew.sort_in(member, twin.now, begins=False)
    stage.foresight.is_uneven = draw(st.booleans())
    asked = 0
    for _ in range(draw(st.integers(1, 12))):
        count = draw(st.integers(0, 20))
        twin.submit(count, first=asked + 1)
        asked += count
        busy = [worker for worker in workers if worker.lane]
        what = draw(st.sampled_from(["finish", "finish", "time", "die"]))
        if what == "finish" and busy:
            worker = draw(st.sampled_from(busy))
            slowness = stage.workers[worker.key].slowness
            twin.pass_time(batch_s * slowness)
            twin.finish(worker, compute_us=max(1, int(batch_s * slowness * 1e6)))
        elif what == "time":
            twin.pass_time(draw(st.sampled_from([0.0001, 0.002, 0.02])))
        elif what == "die" and len(workers) > 1 and (idle := [worker for worker in workers if not worker.lane]):
            gone = draw(st.sampled_from(idle))
            workers.remove(gone)
            twin.kill(gone)
    for _ in range(asked + 10):
        for worker in [worker for worker in workers if worker.lane]:
            twin.finish(worker, compute_us=max(1, int(batch_s * 1e6)))
        if twin.is_empty():
            break
        twin.pass_time(0.01)
    assert twin.is_empty()
    assert {twin.answer(seq)[0] for seq in range(1, asked + 1)} <= {200, 429}
