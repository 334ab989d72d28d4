"""Whoever is asked for by speed or by time is the same whom a look at every worker would find, in any crew; and it is
found without that look."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from math import inf
from random import Random
from typing import Final

import pytest

from engine.core import lineup as lining
from engine.core.crew import Crew
from engine.core.lineup import ALL
from engine.core.member import CREDIT_MAX, FAR_BYTES, Member
from engine.core.released import Released
from engine.core.worker_states import WorkerState
from tests.core.traffic import Layer, Service, line

pytestmark = pytest.mark.unmeasured

SECONDS: Final = [0.0, 0.0005, 0.01, 0.1, 1.0]


class Anybody:
    """A crew in which anything happens, as its stage would let it."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.now = 1000.0
        self.numbers = count(1)
        self.in_advance = rng.random() < 0.9
        self.crew = Crew(in_advance=self.in_advance)
        self.learn()
        self.slownesses = rng.choice([[1.0], [0.98, 1.0, 1.05], [0.5, 1.0, 1.2, 3.0, 16.0]])
        for _ in range(rng.randint(0, 12)):
            self.join()

    def learn(self) -> None:
        self.batch_s = self.rng.choice([0.0, 0.0005, 0.003, 0.02, 1.0])
        self.crew.learn(self.batch_s)

    def join(self) -> None:
        rng, crew = self.rng, self.crew
        key = rng.getrandbits(40)
        worker = crew.workers[key] = Member(key, rng.randint(1, 9), 1, "", False, self.now)
        worker.slowness = rng.choice(self.slownesses)
        worker.host, worker.may_rest = rng.choice(["here", "there"]), rng.random() < 0.8
        worker.state = rng.choice([WorkerState.READY, WorkerState.READY, WorkerState.STARTING])
        crew.sort_in(worker, self.now, begins=False)

    def give(self, worker: Member) -> None:
        rng, crew = self.rng, self.crew
        number, ahead, expected_s = next(self.numbers), len(worker.batches), rng.choice(SECONDS)
        batch = Released(number, {}, self.now, "full", 1, 1, 0.0, worker.slot, ahead, expected_s)
        batch.nbytes = rng.choice([0, 0, 0, FAR_BYTES])
        batch.apart = rng.random() < 0.1
        worker.batches[number] = batch
        worker.free_at = max(worker.free_at if ahead else 0.0, self.now + worker.away_s) + expected_s
        crew.sort_in(worker, self.now, begins=not ahead)

    def take(self, worker: Member) -> None:
        rng, crew = self.rng, self.crew
        number = next(iter(worker.batches))
        del worker.batches[number]
        worker.slowness *= rng.choice([1.0, 1.0, 0.9, 1.15])
        worker.condemned = worker.condemned or rng.random() < 0.05
        worker.free_at = self.now + sum(batch.expected_s for batch in worker.batches.values())
        crew.sort_in(worker, self.now, begins=True)

    def step(self) -> None:
        rng, crew = self.rng, self.crew
        self.now += rng.choice([0.0, 0.0, 0.001, 0.05])
        what = rng.random()
        if what < 0.05 or not crew.workers:
            self.join()
            return
        worker = rng.choice(list(crew.workers.values()))
        if what < 0.4:
            chosen = rng.choice([crew.next(), crew.soonest(self.now), crew.quickest()])
            if chosen is not None:
                self.give(chosen)
        elif what < 0.65:
            if worker.batches:
                self.take(worker)
        elif what < 0.7:
            crew.remove(worker.key)
        elif what < 0.75:
            worker.state = rng.choice([WorkerState.OVERDUE, WorkerState.LEAVING])
            crew.rest(worker)
        elif what < 0.8:
            worker.state = WorkerState.READY
            crew.sort_in(worker, self.now, begins=False)
        elif what < 0.85:
            crew.hear_round_trip(worker, rng.choice([0.0, 0.01, 0.2]))
        elif what < 0.88:
            crew.hold_back(rng.randint(0, 5), rng.randint(0, 3))
        elif what < 0.92:
            list(crew.slow(self.now, rng.choice([0.01, 0.1])))
        elif what < 0.94:
            crew.rest(worker)  # it is quick at failing, say
        elif what < 0.96:
            self.learn()
        elif what < 0.98:
            crew.stop_lining_up()
        elif worker.batches:
            rng.choice(list(worker.batches.values())).revoked = True
            crew.sort_in(worker, self.now, begins=False)

    # --- by looking at everybody -------------------------------------------------------------------------------------

    def ready(self, *ranks: int) -> Iterator[Member]:
        """In the order in which they came to be so."""
        return (worker for rank in ranks for worker in self.crew._ready[rank].values())

    def soonest(self, below: int, *, is_idle: bool) -> Member | None:
        idle = [worker for worker in self.ready(0) if worker.speed < below] if is_idle else []
        if idle:
            return min(idle, key=lambda worker: worker.speed)
        if self.crew._credit < 2:
            return None
        busy = [*self.ready(1), *self.ready(*range(CREDIT_MAX, len(self.crew._ready)))]
        some = [worker for worker in busy if worker.speed < below and not worker.is_overdue(self.now)]
        return min(some, key=lambda worker: worker.free_at - worker.away_s, default=None)

    def quickest(self, below: int) -> Member | None:
        near = [[*self.ready(rank)] for rank in range(self.crew._credit)]
        for some in (*near, [*self.ready(*range(CREDIT_MAX, len(self.crew._ready)))]):
            some = [worker for worker in some if worker.speed < below]
            if some:
                return min(some, key=lambda worker: worker.speed)
        return None

    def done_s(self, worker: Member, takes_s: float) -> float:
        way_s = worker.starts_at(self.now) - self.now if worker.batches else worker.away_s
        return way_s + takes_s * worker.slowness

    def others(self, worker: Member) -> list[Member]:
        return [
            other
            for other in self.crew.workers.values()
            if other is not worker and other.is_able and len(other.batches) < 2 and not other.is_overdue(self.now)
        ]

    # --- the comparison ----------------------------------------------------------------------------------------------

    def compare(self) -> None:
        rng, crew, now = self.rng, self.crew, self.now
        below = rng.choice([ALL, ALL, 4, 8])
        for is_idle in (True, False):
            found, expected = crew.soonest(now, below, is_idle=is_idle), self.soonest(below, is_idle=is_idle)
            if found is not expected:  # of those that are free at the same instant any will do
                assert found is not None
                assert expected is not None
                assert found.batches
                assert expected.batches
                assert found.takes_at == expected.takes_at
        assert crew.quickest(below) is self.quickest(below)
        able = [worker for worker in crew.workers.values() if worker.is_able]
        assert crew.able == len(able)
        assert crew.frees() == sorted(worker.free_at if worker.batches else 0.0 for worker in able)
        assert crew.slowness == pytest.approx(len(able) / sum(1 / one.slowness for one in able) if able else 1.0)
        assert crew.lineup.least == min([one.slowness for one in able], default=inf)
        alone = [one for one in able if all(2.0 * one.slowness <= other.slowness for other in able if other is not one)]
        assert crew.lineup.alone(2.0) is (alone[0] if alone else None)
        slowness = rng.choice([0.5, 1.0, 4.0])
        quick = [one for one in able if one.slowness < slowness]
        assert {*crew.lineup.quicker(slowness)} == {*quick}
        due = [one.overdue_at for one in quick if one.batches and not one.is_overdue(now)]
        assert crew.lineup.overdue_first(slowness, now) == min(due, default=inf)
        for worker in able:
            takes_s = rng.choice(SECONDS[1:])
            found, others = crew.lineup.sooner(worker, takes_s, now), self.others(worker)
            assert (found is None) is (not others)
            if found is not None:
                assert found in others
                assert self.done_s(found, takes_s) == min(self.done_s(other, takes_s) for other in others)


@pytest.mark.parametrize("seeds", [range(begin, begin + 100) for begin in range(0, 400, 100)], ids=str)
def test_in_any_crew_the_same_are_found_as_by_a_look_at_everybody(seeds: range) -> None:
    for seed in seeds:
        anybody = Anybody(seed)
        for _ in range(120):
            anybody.step()
            anybody.compare()


class Counted(list[tuple[float, int, Member]]):
    """Rows that count how many of them are looked at."""

    looks = 0

    def __iter__(self) -> Iterator[tuple[float, int, Member]]:
        for row in super().__iter__():
            Counted.looks += 1
            yield row


@pytest.mark.parametrize(("most", "load"), [(1, 1.1), (8, 0.7), (8, 1.1)])
def test_with_more_workers_a_batch_takes_no_more_looks(most: int, load: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Looked(lining.Ranked):
        def __init__(self) -> None:
            super().__init__()
            self.rows = Counted()

    monkeypatch.setattr(lining, "Ranked", Looked)
    looks: list[float] = []
    for workers in (8, 64):
        service = Service(Layer(line(40.0, 1.0), workers=workers, most=most), capacity=10_000, warm=1.0)
        service.arrive(service.poisson(load * service.capacity, 1.0))
        Counted.looks = 0
        service.run(1.5)
        looks.append(Counted.looks / sum(service.batches.values()))
    assert looks[1] < 2.0 * max(looks[0], 2.0)


def test_stages_of_quick_and_equal_workers_keep_no_lineup() -> None:
    service = Service(Layer(line(1.0, 0.1), workers=4), warm=1.0)
    service.arrive(service.poisson(0.5 * service.capacity, 0.5))
    service.finish()
    assert service.stages[0].crew._lineup is None


def test_stages_of_long_batches_do() -> None:
    service = Service(Layer(line(20.0, 0.1), workers=4), warm=1.0)
    service.arrive(service.poisson(0.5 * service.capacity, 0.5))
    service.finish()
    assert service.stages[0].crew._lineup is not None
