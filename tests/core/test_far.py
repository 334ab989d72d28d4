"""Workers that are far: as many batches are on their way as keep them busy, and those of this host are as ever."""

from __future__ import annotations

import pytest

from engine.core.batching import AHEAD_S
from engine.core.member import CREDIT_MAX, FAR_BYTES, FAR_MAX, ROUND_TRIPS, credit_for
from engine.core.messages import WorkerBeat
from engine.core.stage import StageSpec
from engine.simulation.world import BEGIN
from tests.core.test_fate import SPEC, busy
from tests.core.traffic import Layer, Service, line
from tests.core.twin import FakeWorker, Twin, topology

pytestmark = pytest.mark.unmeasured

EACH_WAY_S = 0.1
JITTER_S = 0.025  # each way


@pytest.mark.parametrize(
    "layer",
    [
        Layer(line(5, 0.3), workers=4, most=8),
        Layer(line(20, 2), workers=2, most=32),
        Layer(line(8, 0.5), workers=1, most=1),
        Layer(line(50, 1), workers=2, most=8),
    ],
    ids=["short", "large", "single", "long"],
)
@pytest.mark.parametrize("jitter_s", [0.0, JITTER_S])
def test_a_round_trip_of_200_ms_costs_less_than_a_tenth_of_the_capacity(layer: Layer, jitter_s: float) -> None:
    layer = Layer(layer.curve, layer.workers, layer.most, away_s=EACH_WAY_S, jitter_s=jitter_s)
    service = Service(layer, capacity=100_000)
    service.arrive(service.poisson(1.2 * service.capacity, 4.0))
    service.finish()
    done = [one for one in service.attempts if one.status == 200 and 1.5 <= one.answered_at - BEGIN < 4.0]
    assert len(done) / 2.5 / service.capacity >= 0.9
    assert {one.status for one in service.attempts} == {200}


def test_credit_covers_the_way_and_is_bounded() -> None:
    assert credit_for(1.0, 0.2) == 2
    assert credit_for(0.01, 0.2) > 0.2 / 0.01
    assert credit_for(0.0001, 0.2) == FAR_MAX
    assert credit_for(0.0, 0.2) == 2  # nothing is known yet
    assert credit_for(AHEAD_S / 1000) == CREDIT_MAX  # on this host


def far(twin: Twin, seconds: float, *, local: bool = False, slot: int = 1) -> FakeWorker:
    """A worker that says of each answer that it took so long."""
    worker = twin.worker(local=local, slot=slot)
    for _ in range(ROUND_TRIPS):
        twin.stages[0].beat(WorkerBeat(worker.key, round_trip_us=int(seconds * 1e6)), twin.now)
    return worker


def served(twin: Twin, worker: FakeWorker, batch_s: float, way_s: float = 0.0, batches: int = 20) -> None:
    """It has learned how long a batch takes."""
    for seq in range(1000, 1000 + batches):
        twin.submit(1, first=seq)
        twin.pass_time(batch_s + way_s)
        while worker.lane:
            twin.finish(worker, compute_us=int(batch_s * 1e6))


def test_what_a_worker_is_given_is_bounded_in_bytes() -> None:
    spec = StageSpec("s0", 1, SPEC.policy, 2.0, 1.0, 1 << 40)
    twin = Twin(topology(), [spec])
    worker = far(twin, 0.2)
    served(twin, worker, 0.001, 0.2)
    crew = twin.stages[0].crew
    twin.submit(64)
    member = crew.workers[worker.key]
    assert len(member.batches) > 4
    assert member.rank > 0
    next(iter(member.batches.values())).nbytes = FAR_BYTES
    crew.sort_in(member, twin.now, begins=False)
    assert crew.next() is None
    while worker.lane:
        twin.finish(worker, compute_us=1000)
    assert crew.next() is member


def test_a_process_of_this_host_has_its_credit_whatever_it_says_of_its_way() -> None:
    """Its interpreter was held while the answer was there."""
    twin = Twin(topology(), [SPEC])
    worker = far(twin, 0.2, local=True)
    assert twin.stages[0].workers[worker.key].away_s == 0.0
    served(twin, worker, 0.01)
    twin.submit(64)
    assert len(worker.lane) == 1  # and one more when it is about to be done


def test_one_late_answer_makes_nobody_far() -> None:
    twin = Twin(topology(), [SPEC])
    worker = far(twin, 0.0005)
    twin.stages[0].beat(WorkerBeat(worker.key, round_trip_us=900_000), twin.now)
    assert twin.stages[0].workers[worker.key].away_s == 0.0


def test_a_worker_that_is_far_is_given_up_as_any_other_and_all_of_it_is_computed() -> None:
    twin = Twin(topology(), [SPEC])
    worker = far(twin, 0.2)
    served(twin, worker, 0.001, 0.2)
    twin.submit(64)
    assert len(worker.lane) == 8
    twin.kill(worker)
    near = twin.worker()
    while busy(twin):
        twin.finish(near)
    assert [twin.answer(seq)[0] for seq in range(1, 65)] == [200] * 64
    assert twin.is_empty()


def test_who_has_nothing_to_do_comes_before_who_is_far_and_has() -> None:
    twin = Twin(topology(), [SPEC])
    away = far(twin, 0.2)
    served(twin, away, 0.001, 0.2)
    near = twin.worker(slot=2)
    twin.submit(8)
    twin.submit(8, first=9)
    assert (len(away.lane), len(near.lane)) == (1, 1)


def test_of_two_far_workers_neither_hands_on_to_the_other_what_both_would_be_late_with() -> None:
    twin = Twin(topology(), [SPEC])
    workers = [far(twin, 0.2), far(twin, 0.2, slot=2)]
    for seq in range(1000, 1040):
        twin.submit(1, first=seq)
        twin.pass_time(0.22)
        for worker in workers:
            while worker.lane:
                twin.finish(worker, compute_us=20_000)
    assert twin.stages[0].foresight.is_long
    assert not any(member.batches for member in twin.stages[0].crew.workers.values())
    twin.submit(3, budget_s=0.1)  # enough to compute it, and not to bring it there
    twin.run()
    assert sum(len(worker.lane) for worker in workers) <= 1  # to show how long it does take
