"""A stage under anything: batches by count and by cost, workers near and far, reloads, deaths, cancellations, odd sizes
and costs. It never fails, hangs, asks to be looked at in the past, or loses count of what waits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from math import inf
from random import Random

import pytest

from engine.core.actions import Dispatch, Fail, Settle
from engine.core.batching import Policy
from engine.core.items import Item, Request
from engine.core.member import ROUND_TRIPS
from engine.core.messages import Batch, Ready, WorkerBeat
from engine.core.stage import StageMachine, StageSpec
from tests.core.twin import DEPLOYMENT, topology, worker_words

pytestmark = pytest.mark.unmeasured

STEPS = 150


def policy(rng: Random) -> Policy:
    return Policy(
        rng.choice([1, 2, 4, 8, 32]),
        rng.choice([64 << 20, 500]),
        rng.choice([0.0, 0.01, 0.1]),
        rng.random() < 0.8,
        rng.choice([0.0, 0.0, 100.0, 1000.0]),
    )


class Fuzzed:
    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.topology = topology()
        spec = StageSpec("s0", 2, policy(rng), 3.0, 1.0, rng.choice([1 << 30, 2000]), max_attempts=3)
        self.stage = StageMachine(0, spec, self.topology, 1, deployment=DEPLOYMENT)
        self.stage.crews = [self.stage.crew]
        self.now = 1000.0
        self.items: dict[int, Item] = {}
        self.given: list[tuple[int, Batch]] = []
        self.numbers = count(1)
        for _ in range(rng.randint(0, 3)):
            self.hire()

    def hire(self) -> None:
        rng, pid = self.rng, next(self.numbers)
        words = worker_words(self.topology, "s0", slot=rng.randint(1, 3), pid=pid)
        key = self.stage.introduce(words, local=rng.random() < 0.5, now=self.now)
        assert isinstance(key, int)
        most = self.stage.spec.policy.max_batch_size
        times_us = {n: rng.randint(1000, 60_000) for n in (1, 2, 4, 8, 32) if n <= most and rng.random() < 0.7}
        costs = {rng.randint(0, 100): rng.random() * 100}
        most = rng.choice([0, 0, 1, 3, 64])
        ready = Ready(key, "application/json", times_us=times_us, tells_cost=rng.random() < 0.5, costs=costs, most=most)
        self.stage.ready(ready, self.now)
        if rng.random() < 0.5:
            self.be_far(key)

    def be_far(self, key: int) -> None:
        """From now on it is on another host, as far as it says."""
        away_us = self.rng.choice([0, 1000, 5000, 30_000, 200_000])
        for _ in range(ROUND_TRIPS):
            self.stage.beat(WorkerBeat(key, round_trip_us=away_us), self.now)

    def come(self) -> None:
        rng, now = self.rng, self.now
        new = []
        for _ in range(rng.randint(1, 20)):
            deadline = now + rng.choice([0.01, 0.05, 0.2, 1, 5])
            due = min(deadline, now + rng.choice([0.001, 0.02, 0.1, 9]))
            rank = now + 0.3 * (due - now) if rng.random() < 0.2 else due
            uid, size = next(self.numbers), rng.choice([0, 1, 10, 100, 300])
            request = Request(uid, b"f", uid, 0, deadline, due, rank, b"", size)
            self.items[uid] = item = Item(request, b"x" * size, size, now)
            new.append(item)
        self.stage.enqueue(new, now)

    def settle(self) -> None:
        rng = self.rng
        key, batch = self.given.pop(rng.randrange(len(self.given)))
        if key not in self.stage.workers:
            return
        told = rng.random() < 0.7
        costs = {place: rng.choice([0.0, 1.0, 50.0, 1e6]) for place in range(len(batch.uids)) if told}
        good = rng.random() < 0.9
        for uid in batch.uids:
            self.items[uid].request.closed = True
        took_us = rng.choice([0, 100, 20_000, 90_000])
        failed = 0 if good else len(batch.uids)
        self.stage.settled(
            Settle(0, key, batch.batch, batch.uids, self.now, took_us, good=good, failed=failed, costs=costs), self.now
        )

    def reload(self) -> None:
        rng = self.rng
        spec = replace(self.stage.spec, policy=policy(rng), num=rng.randint(0, 3), spare=rng.randint(0, 2))
        self.stage.change(spec, self.now)

    def leave(self) -> None:
        uids = self.rng.sample(list(self.items), min(5, len(self.items)))
        for uid in uids:
            self.items[uid].request.closed = True
        if self.rng.random() < 0.6:
            self.stage.cancel(uids, self.now)

    def step(self) -> bool:
        """Whether it asked to be looked at at once although nothing was to be done."""
        rng, stage = self.rng, self.stage
        what = rng.random()
        if what < 0.4:
            self.come()
        elif what < 0.7 and self.given:
            self.settle()
        elif what < 0.74 and stage.workers:
            stage.exited(rng.choice(list(stage.workers)), self.now)
        elif what < 0.78:
            self.hire()
        elif what < 0.82:
            self.reload()
        elif what < 0.9 and self.items:
            self.leave()
        elif what < 0.94 and stage.workers:
            self.be_far(rng.choice(list(stage.workers)))
        stage.tick(self.now)
        wake = stage.pump(self.now)
        actions = stage.take_actions()
        for action in actions:
            if isinstance(action, Dispatch):
                self.given.append((action.worker, action.batch))
            elif isinstance(action, Fail):
                for uid in action.uids:
                    self.items[uid].request.closed = True
        assert stage.queue.nbytes == sum(item.size for item in stage.queue.items.values())
        assert stage.crew.in_flight == sum(worker.in_flight for worker in stage.workers.values())
        assert stage.crew.able == sum(worker.is_able for worker in stage.workers.values())
        is_past = wake <= self.now and not actions
        soon = self.now < wake < min(self.now + 2, inf) and rng.random() < 0.6
        self.now = wake if soon else self.now + rng.choice([0, 0.0005, 0.003, 0.03])
        return is_past


# 197: one that is far begins later than one that was given its batch after it.
@pytest.mark.parametrize("seeds", [*(range(begin, begin + 20) for begin in range(0, 80, 20)), [197]], ids=str)
def test_a_stage_stands_anything(seeds: Iterable[int]) -> None:
    for seed in seeds:
        fuzzed = Fuzzed(seed)
        at_once = 0
        for _ in range(STEPS):
            at_once = at_once + 1 if fuzzed.step() else 0
            assert at_once <= 3, f"seed {seed}"
