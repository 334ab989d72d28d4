"""Load without sockets or waiting: the real front and stages, arrivals and batches in time that is only counted.

:class:`Service` is the broker and its workers; who comes is told to :meth:`Service.arrive`. :meth:`Service.run` lets
things happen in their order. A worker takes ``curve(n)`` seconds for n items, a little more or less, and skips what is
too late when it begins, as real ones do. Everything is drawn from one seed: the same run gives the same figures.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from engine.core.actions import Admit, Dispatch, Drop, Fail, Foresee, News, Settle
from engine.core.batching import Policy
from engine.core.front import FrontMachine, FrontSpec
from engine.core.messages import Batch, Ready, Results, Status, Submit
from engine.core.routing import FINAL, Route, Topology
from engine.core.stage import StageMachine, StageSpec
from tests.core.twin import DEPLOYMENT, frontend_words, worker_words

HOP_S = 0.0003  # a message between processes
GAP_S = 0.0002  # between two batches of a worker that has the next one

Curve = Callable[[int], float]  # seconds for a batch of so many


def line(fixed_ms: float, item_ms: float) -> Curve:
    return lambda n: (fixed_ms + item_ms * n) / 1000


@dataclass(frozen=True)
class Layer:
    """One stage of a service."""

    curve: Curve
    workers: int = 1
    most: int = 8
    slow: int = 0  # of its workers take three times as long

    @property
    def capacity(self) -> float:
        """Items per second with the batches that suit it best."""
        best = max(n / (self.curve(n) + GAP_S) for n in range(1, self.most + 1))
        return best * (self.workers - self.slow + self.slow / 3)


@dataclass
class Attempt:
    """One request. ``status`` 0: no answer yet."""

    at: float
    budget_s: float
    tries: int = 0  # that are left when it fails
    first: bool = True
    status: int = 0
    answered_at: float = inf


@dataclass
class Hand:
    """A worker."""

    stage: int
    key: int
    factor: float
    lane: deque[Batch] = field(default_factory=deque)
    running: bool = False
    busy_s: float = 0.0


class Service:
    def __init__(
        self,
        *layers: Layer,
        timeout_s: float = 3.0,
        capacity: int = 1024,
        routes: Sequence[tuple[int, ...]] = (),
        noise: float = 0.05,
        lag_s: float = 0.0,
        warm: float = 0.0,
        seed: int = 1,
    ) -> None:
        """``lag_s``: how long what stages tell the front is on its way. ``warm``: what workers have timed in their
        warm-up, in multiples of what batches take; 0: they had none."""
        names = tuple(f"s{index}" for index in range(len(layers)))
        ways = tuple(routes) or (tuple(range(len(layers))),)
        self.topology = Topology(names, tuple(Route(f"/r{index}", way) for index, way in enumerate(ways)))
        self.layers = layers
        self.timeout_s = timeout_s
        self.now = 1000.0
        self.rng = random.Random(seed)
        self.attempts: list[Attempt] = []
        self.batches: Counter[int] = Counter()  # computed, by size
        self.most_held = 0  # requests in the ledger at any time
        self._noise = noise
        self._lag_s = lag_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._wake = inf
        self.front = FrontMachine(FrontSpec(capacity, 1 << 30), self.topology, 1, deployment=DEPLOYMENT)
        self.front.introduce(b"f", frontend_words(self.topology), self.now)
        self.stages: list[StageMachine] = []
        self.hands: dict[tuple[int, int], Hand] = {}
        for index, layer in enumerate(layers):
            spec = StageSpec(names[index], layer.workers, Policy(layer.most), timeout_s, 10.0, 1 << 30)
            stage = StageMachine(index, spec, self.topology, 1, deployment=DEPLOYMENT)
            self.stages.append(stage)
            for slot in range(layer.workers):
                words = worker_words(self.topology, names[index], slot=slot, pid=100 * index + slot)
                key = stage.introduce(words, local=True, now=self.now)
                assert isinstance(key, int)
                times_us = {n: round(warm * layer.curve(n) * 1e6) for n in (1, 2, 4, 8, 16, 32) if n <= layer.most}
                stage.ready(Ready(key, "application/json", times_us=times_us if warm else {}), self.now)
                factor = 3.0 if slot >= layer.workers - layer.slow else 1.0
                self.hands[index, key] = Hand(index, key, factor)
        self.front.crews = [stage.crew for stage in self.stages]
        for stage in self.stages:
            stage.crews = self.front.crews
        self._pass()

    @property
    def capacity(self) -> float:
        return min(layer.capacity for layer in self.layers)

    # --- load --------------------------------------------------------------------------------------------------------

    def arrive(self, instants: Iterator[float], *, tries: int = 0, budget_s: float = 0.0, route: int = 0) -> None:
        """Requests come at these instants, in seconds from now on. ``tries``: how often each is made again when it
        fails, a fiftieth of a second later and whatever it was told."""
        budget_s = budget_s or self.timeout_s
        began = self.now

        def next_one() -> None:
            if (offset := next(instants, None)) is not None:
                self._at(began + offset, come)

        def come() -> None:
            self._submit(Attempt(self.now, budget_s, tries), route)
            next_one()

        next_one()

    def poisson(self, rate: float, seconds: float, *, begin: float = 0.0) -> Iterator[float]:
        """Instants of independent arrivals, ``rate`` a second."""
        at = begin + self.rng.expovariate(rate)
        while at < begin + seconds:
            yield at
            at += self.rng.expovariate(rate)

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while True:
            at = min(self._events[0][0] if self._events else inf, self._wake)
            if at > end:
                break
            self.now = max(self.now, at)
            while self._events and self._events[0][0] <= self.now:
                heappop(self._events)[2]()
            self._pass()
        self.now = end

    # --- figures -----------------------------------------------------------------------------------------------------

    def goodput(self, begin: float, end: float) -> float:
        """What arrived in this part of the run (seconds from its start) and was answered in time, as a share of what
        could be computed in it."""
        return len(self.good(begin, end)) / (end - begin) / self.capacity

    def good(self, begin: float, end: float) -> list[Attempt]:
        return [one for one in self.within(begin, end) if one.status == 200]

    def within(self, begin: float, end: float) -> list[Attempt]:
        return [one for one in self.attempts if begin <= one.at - 1000.0 < end]

    # --- what parts and workers do -----------------------------------------------------------------------------------

    def _at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, what))

    def _submit(self, attempt: Attempt, route: int = 0) -> None:
        seq = len(self.attempts)
        self.attempts.append(attempt)
        self.front.submit(b"f", Submit([seq], [route], [int(attempt.budget_s * 1e6)], [b""]), [b"x"], self.now)

    def _pass(self) -> None:
        front, now = self.front, self.now
        while True:
            wake = front.expire(now)
            acted = bool(front.actions)
            front_actions, front.actions = front.actions, []
            for action in front_actions:
                if isinstance(action, Admit):
                    self.stages[action.stage].enqueue(action.items, now)
                elif isinstance(action, Drop):
                    self.stages[action.stage].cancel(action.uids, now)
                elif isinstance(action, Settle):
                    self.stages[action.stage].settled(action, now)
            for stage in self.stages:
                stage.tick(now)
                wake = min(wake, stage.pump(now))
                actions = stage.take_actions()
                for done in actions:
                    acted = True
                    if isinstance(done, Dispatch):
                        self._give(self.hands[stage.index, done.worker], done.batch)
                    elif isinstance(done, Settle):
                        self.stages[done.stage].settled(done, now)
                    elif isinstance(done, Fail | News | Foresee):
                        self._tell(done)
            for _, answers, _ in front.take_answers(self.now):
                for seq, status in zip(answers.seqs, answers.statuses, strict=True):
                    self._answered(self.attempts[seq], status)
            if not acted:
                break
        self.most_held = max(self.most_held, len(front.ledger))
        self._wake = max(wake, now + 1e-6)

    def _tell(self, letter: Fail | News | Foresee) -> None:
        if self._lag_s:
            self._at(self.now + self._lag_s, lambda: self._hear(letter))
        else:
            self._hear(letter)

    def _hear(self, letter: Fail | News | Foresee) -> None:
        if isinstance(letter, Fail):
            self.front.fail(letter, self.now)
        elif isinstance(letter, News):
            self.front.door.heard_of(letter)
        else:
            self.front.door.foresee(letter)

    def _answered(self, attempt: Attempt, status: int) -> None:
        assert not attempt.status
        attempt.status, attempt.answered_at = status, self.now
        if status != 200 and attempt.tries:
            again = Attempt(self.now + 0.02, attempt.budget_s, attempt.tries - 1, first=False)
            self._at(again.at, lambda: self._submit(again))

    def _give(self, hand: Hand, batch: Batch) -> None:
        def come() -> None:
            hand.lane.append(batch)
            if not hand.running:
                self._begin(hand)

        self._at(self.now + HOP_S, come)

    def _begin(self, hand: Hand) -> None:
        batch = hand.lane.popleft()
        hand.running = True
        sent_at = batch.sent_ns / 1e9
        due = [sent_at + budget / 1e6 > self.now for budget in batch.budgets_us]
        n = sum(due)
        took = self.layers[hand.stage].curve(n) * hand.factor if n else 0.0
        took *= 1.0 + self._noise * self.rng.uniform(-1.0, 1.0)
        hand.busy_s += took
        self.batches[n] += 1

        def end() -> None:
            hand.running = False
            self._at(self.now + HOP_S, lambda: self._results(hand, batch, due, took))
            if hand.lane:
                self._at(self.now + GAP_S, lambda: self._begin(hand) if hand.lane and not hand.running else None)

        self._at(self.now + took, end)

    def _results(self, hand: Hand, batch: Batch, due: list[bool], took: float) -> None:
        targets: dict[int, list[int]] = {}
        for index, route in enumerate(batch.routes):
            target = self.topology.next_stage(route, hand.stage) if due[index] else FINAL
            targets.setdefault(target, []).append(index)
        compute_us = int(took * 1e6)
        for target, indexes in targets.items():
            results = Results(
                hand.stage,
                hand.key,
                batch.batch,
                [batch.uids[i] for i in indexes],
                [int(Status.OK if due[i] else Status.SKIPPED) for i in indexes],
                [b""] * len(indexes),
                "",
                compute_us,
            )
            compute_us = 0
            payloads = [b"x"] * len(indexes)
            if target == FINAL:
                self.front.results(results, payloads, self.now)
            else:
                self.stages[target].accept(results, payloads, self.now)
