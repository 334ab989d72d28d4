"""The real front and stages, with arrivals and batches in time that is only counted.

:class:`World` is a broker and its workers; who comes is told to :meth:`World.arrive`, and :meth:`World.run` lets things
happen in their order. The broker is :class:`engine.core.front.FrontMachine` and :class:`engine.core.stage.StageMachine`
and has no rule of its own. A worker takes as long as its stage's curve says, a little more or less, reports its
warm-up and the time of each batch, and skips what is too late when it begins, as real ones do.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import inf
from typing import Final, TypeAlias

from engine.core import introduction
from engine.core.actions import Admit, Dispatch, Drop, Fail, Foresee, Hasten, News, Settle
from engine.core.front import FrontMachine, FrontSpec
from engine.core.member import ROUND_TRIPS
from engine.core.messages import Batch, Parts, Qos, Ready, Results, Role, Status, Submit, WorkerBeat
from engine.core.routing import FINAL, JOIN, Topology
from engine.core.stage import StageMachine, StageSpec
from engine.core.wire import MICROS, payload_sizes

HOP_S: Final = 0.0003  # a message between processes
GAP_S: Final = 0.0002  # between two batches of a worker that has the next one
BEGIN: Final = 1000.0  # the instant at which it begins
DEPLOYMENT: Final = "simulated"
FRONTEND: Final = b"f"

NO_PARTS: Final[Mapping[tuple[int, int], Sequence[float]]] = {}

Curve: TypeAlias = Callable[[int], float]  # seconds for a batch of so many
Noise: TypeAlias = Callable[[random.Random], float]  # what to multiply one batch's time with


def exact(_rng: random.Random) -> float:
    """No noise at all."""
    return 1.0


@dataclass(frozen=True)
class Works:
    """What the workers of a stage are like. ``warm``: the seconds that they timed in their warm-up, by size.
    ``slowness``: of each, in multiples of what is usual; of those beyond its end 1. ``cost``: what an item of so many
    bytes costs, where that differs; then ``curve`` and ``warm`` go by what the batch costs, all as much as its longest.
    ``away_s``: they are on other hosts, so many seconds further each way, and up to ``jitter_s`` more.
    """

    curve: Curve
    noise: Noise = exact
    warm: Mapping[int, float] = field(default_factory=dict)
    slowness: Sequence[float] = ()
    cost: Callable[[int], float] | None = None
    away_s: float = 0.0
    jitter_s: float = 0.0


@dataclass(slots=True)
class Attempt:
    """One request. ``status`` 0: no answer yet."""

    at: float
    budget_s: float
    tries: int = 0  # that are left when it fails
    first: bool = True
    status: int = 0
    answered_at: float = inf
    qos: Qos | None = None
    size: int = 1  # bytes


@dataclass(slots=True)
class Hand:
    """A worker."""

    stage: int
    key: int
    slowness: float
    lane: deque[tuple[Batch, list[float]]] = field(default_factory=deque)  # with what the items cost, if that is known
    running: bool = False
    busy_s: float = 0.0
    came_at: float = 0.0  # when the newest batch is there, and the newest results are back: nothing overtakes
    back_at: float = 0.0


@dataclass(slots=True)
class Tally:
    """What a stage has computed: of each item how long it waited there, and was computed, in seconds."""

    waited_s: list[float] = field(default_factory=list)
    computed_s: list[float] = field(default_factory=list)
    batches: Counter[int] = field(default_factory=Counter)  # by size


class World:
    """See the module."""

    def __init__(
        self,
        topology: Topology,
        stages: Sequence[StageSpec],
        works: Sequence[Works],
        *,
        front: FrontSpec,
        lag_s: float = 0.0,
        hop_s: float = HOP_S,
        gap_s: float = GAP_S,
        seed: int | str = 1,
        parts: Mapping[tuple[int, int], Sequence[float]] = NO_PARTS,
    ) -> None:
        """``works``: of each stage. ``lag_s``: how long what stages tell the front is on its way; ``hop_s``: a batch to
        its worker, and its results from there. ``parts``: by route and stage, how many elements the list has that is
        taken apart behind it, each of these numbers as often as any other; else one."""
        self.topology = topology
        self.now = BEGIN
        self.rng = random.Random(seed)
        self.attempts: list[Attempt] = []
        self.tallies = [Tally() for _ in stages]
        self.most_held = 0  # requests in the ledger at any time
        self._works = list(works)
        self._parts = parts
        self._lag_s, self._hop_s, self._gap_s = lag_s, hop_s, gap_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._wake = inf
        self.front = FrontMachine(front, topology, 1, deployment=DEPLOYMENT)
        self.front.introduce(FRONTEND, self._words(introduction.FRONTEND, "f", name="f"), self.now)
        self.stages: list[StageMachine] = []
        self.hands: dict[tuple[int, int], Hand] = {}
        for index, spec in enumerate(stages):
            stage = StageMachine(index, spec, topology, 1, deployment=DEPLOYMENT)
            self.stages.append(stage)
            for number in range(spec.num + spec.spare):
                self._hire(stage, number)
        self.front.ledger.crews = [stage.crew for stage in self.stages]
        for stage in self.stages:
            stage.crews = self.front.ledger.crews
        self._pass()

    def _words(self, kind: str, instance: str, **about: str | int) -> introduction.Introduction:
        return introduction.introduce(
            kind,
            self.topology,
            deployment=DEPLOYMENT,
            instance=instance,
            host="here",
            pid=1,
            **about,  # type: ignore[arg-type]  # the words of either kind
        )

    def _hire(self, stage: StageMachine, number: int) -> None:
        name, works = stage.spec.name, self._works[stage.index]
        words = self._words(introduction.WORKER, f"{name} {number}", stage=name, slot=number + 1)
        is_away = works.away_s > 0.0
        key = stage.introduce(words, local=not is_away, now=self.now)
        if not isinstance(key, int):
            raise ValueError(f"a worker of {name} cannot join: {key}")
        times_us = {n: round(seconds * MICROS) for n, seconds in works.warm.items()}
        tells = works.cost is not None
        most = stage.spec.policy.max_batch_size
        stage.ready(Ready(key, "application/json", times_us=times_us, tells_cost=tells, most=most), self.now)
        for _ in range(ROUND_TRIPS if is_away else 0):
            round_trip_us = round((self._hop(works) + self._hop(works)) * MICROS)
            stage.beat(WorkerBeat(key, round_trip_us=round_trip_us), self.now)
        slowness = works.slowness[number] if number < len(works.slowness) else 1.0
        self.hands[stage.index, key] = Hand(stage.index, key, slowness)

    # --- load --------------------------------------------------------------------------------------------------------

    def arrive(
        self,
        instants: Iterator[float],
        *,
        tries: int = 0,
        budget_s: float,
        qos: Qos | None = None,
        routes: Callable[[], int] = lambda: 0,
        sizes: Callable[[], int] = lambda: 1,
    ) -> None:
        """Requests come at these instants, in seconds from now on. ``routes`` says by which the next one goes,
        ``sizes`` how many bytes it has."""
        began = self.now

        def next_one() -> None:
            if (offset := next(instants, None)) is not None:
                self._at(began + offset, come)

        def come() -> None:
            self.submit(Attempt(self.now, budget_s, tries, qos=qos, size=sizes()), routes())
            next_one()

        next_one()

    def submit(self, attempt: Attempt, route: int = 0) -> None:
        """A request comes now."""
        seq = len(self.attempts)
        self.attempts.append(attempt)
        budget_us = int(attempt.budget_s * MICROS)
        qos = {} if attempt.qos is None else {seq: attempt.qos}
        self.front.submit(
            FRONTEND, Submit([seq], [route], [budget_us], [b""], qos=qos), [b"x" * attempt.size], self.now
        )

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while (at := min(self._events[0][0] if self._events else inf, self._wake)) <= end:
            self._step(at)
        self.now = end

    def finish(self) -> None:
        """Let time pass until nobody comes any more and everybody has an answer."""
        while self._events or self.front.ledger:
            self._step(min(self._events[0][0] if self._events else inf, self._wake))

    def change(self, stage: int, curve: Curve) -> None:
        """Its workers take so long from now on."""
        former = self._works[stage]
        self._works[stage] = replace(former, curve=curve)

    def answered(self, attempt: Attempt) -> None:
        """An answer has come; for whoever wants to do something about it."""

    # --- what the broker's parts and the workers do ------------------------------------------------------------------

    def _at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, what))

    def _step(self, at: float) -> None:
        self.now = max(self.now, at)
        while self._events and self._events[0][0] <= self.now:
            heappop(self._events)[2]()
        self._pass()

    def _pass(self) -> None:
        front, now = self.front, self.now
        while True:
            wake = front.expire(now)
            acted = bool(front.actions)
            front_actions = front.take_actions()
            for action in front_actions:
                if isinstance(action, Admit):
                    self.stages[action.stage].enqueue(action.items, now)
                elif isinstance(action, Hasten):
                    self.stages[action.stage].hasten(action)
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
                        self._give(self.hands[stage.index, done.worker], done)
                    elif isinstance(done, Settle):
                        self.stages[done.stage].settled(done, now)
                    elif isinstance(done, Fail | News | Foresee):
                        self._tell(done)
            for _, answers, _ in front.take_answers(self.now):
                for seq, status in zip(answers.seqs, answers.statuses, strict=True):
                    attempt = self.attempts[seq]
                    attempt.status, attempt.answered_at = status, now
                    self.answered(attempt)
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
            self.front.heard_of(letter)
        else:
            self.front.door.foresee(letter)

    def _give(self, hand: Hand, given: Dispatch) -> None:
        cost = self._works[hand.stage].cost
        costs = [cost(size) for size in payload_sizes(given.payloads)] if cost is not None else []

        def come() -> None:
            hand.lane.append((given.batch, costs))
            if not hand.running:
                self._begin(hand)

        hand.came_at = max(hand.came_at, self.now + self._hop(self._works[hand.stage]))
        self._at(hand.came_at, come)

    def _hop(self, works: Works) -> float:
        return self._hop_s + works.away_s + (works.jitter_s * self.rng.random() if works.jitter_s else 0.0)

    def _begin(self, hand: Hand) -> None:
        batch, costs = hand.lane.popleft()
        hand.running = True
        sent_at = batch.sent_ns / 1e9
        due = [sent_at + budget / MICROS > self.now for budget in batch.budgets_us]
        works, tally = self._works[hand.stage], self.tallies[hand.stage]
        most, took = self.stages[hand.stage].spec.policy.max_batch_size, 0.0
        for first in range(0, len(due), most):  # of several that came as one, one after the other
            n = size = sum(due[first : first + most])
            if costs and n:
                size = round(n * max([cost for cost, is_due in zip(costs, due, strict=True) if is_due]))
            took_one = works.curve(size) * hand.slowness * works.noise(self.rng) if n else 0.0
            took += took_one
            tally.batches[n] += 1
            tally.computed_s.extend([took_one] * n)
        hand.busy_s += took
        waited_s = self.now - sent_at
        tally.waited_s.extend(
            [us / MICROS + waited_s for us, is_due in zip(batch.queues_us, due, strict=True) if is_due]
        )

        def end() -> None:
            hand.running = False
            hand.back_at = max(hand.back_at, self.now + self._hop(works))
            self._at(hand.back_at, lambda: self._results(hand, batch, costs, due, took))
            if hand.lane:
                self._at(self.now + self._gap_s, lambda: self._begin(hand) if hand.lane and not hand.running else None)

        self._at(self.now + took, end)

    def _results(self, hand: Hand, batch: Batch, costs: list[float], due: list[bool], took: float) -> None:
        targets: dict[int, list[int]] = {}
        for index, route in enumerate(batch.routes):
            following = self.topology.following(route, hand.stage) if due[index] else (FINAL,)
            target = following[0] if len(following) == 1 else self.rng.choice(following)
            if due[index] and self.topology.split(route, hand.stage) is not None:
                target = JOIN
            targets.setdefault(target, []).append(index)
        compute_us = int(took * MICROS)
        for target, indexes in targets.items():
            if target == JOIN:
                told = self._in_parts(hand, batch, indexes, compute_us, costs)
                self.front.hub.parts(told, [b"x"] * len(told.uids), self.now)
                compute_us = 0
                continue
            results = Results(
                hand.stage,
                hand.key,
                batch.batch,
                [batch.uids[i] for i in indexes],
                [int(Status.OK if due[i] else Status.SKIPPED) for i in indexes],
                [b""] * len(indexes),
                "",
                compute_us,
                costs={place: costs[i] for place, i in enumerate(indexes) if due[i]} if costs else {},
            )
            compute_us = 0
            payloads = [b"x"] * len(indexes)
            if target == FINAL:
                self.front.results(results, payloads, self.now)
            else:
                self.stages[target].accept(results, payloads, self.now)

    def _in_parts(
        self, hand: Hand, batch: Batch, indexes: Sequence[int], compute_us: int, costs: Sequence[float]
    ) -> Parts:
        """Of requests that go on in parts, and of parts that are done."""
        told = Parts(hand.stage, hand.key, batch.batch, [], [], [], compute_us)
        for index in indexes:
            route = batch.routes[index]
            split, count = self.topology.split(route, hand.stage), 0
            if split is not None:
                known = self._parts.get((route, hand.stage), (1.0,))
                count = len(split.names) or min(int(self.rng.choice(known) + self.rng.random()), split.most)
            if costs:
                told.costs[len(told.uids)] = costs[index]
            told.uids.extend([batch.uids[index]] * (1 + count))
            told.roles.extend([int(Role.DONE if split is None else Role.FRAME), *[int(Role.PART)] * count])
            told.trails.extend([b""] * (1 + count))
            told.targets.extend([JOIN] * (1 + count))
            told.keys.extend([b""] * (1 + count))
        return told
