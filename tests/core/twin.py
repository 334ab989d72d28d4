"""The broker without threads, sockets or time: the real machines, and a transport that is a list.

Every parcel is encoded and decoded on its way, so the twin also exercises the wire. Workers are simulated: they hold
what the lane gave them until the test lets them finish, fail, vanish or fall silent.

With ``shared`` every payload between frontends, broker and workers lies in arenas (tests/core/memory.py), which know
what may be read: a block that was released too early is missing when its reader comes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from engine.core.actions import Admit, Dispatch, Drop, Fail, Forget, Grant, Kill, News, Release, Settle, ToWorker
from engine.core.front import FrontMachine, FrontSpec
from engine.core.messages import (
    PROTOCOL,
    Batch,
    CancelItems,
    Dismiss,
    Flow,
    Granted,
    Hello,
    Message,
    Ready,
    Results,
    Revoke,
    Status,
    Submit,
)
from engine.core.routing import FINAL, Route, Topology
from engine.core.stage import StageMachine, StageSpec
from engine.core.wire import Payload, decode, encode, refs_of
from engine.errors import ProtocolError
from tests.core.memory import Memory


def topology(*routes: tuple[int, ...], stages: int = 1) -> Topology:
    names = tuple(f"s{index}" for index in range(stages))
    return Topology(names, tuple(Route(f"/r{index}", route) for index, route in enumerate(routes or ((0,),))))


@dataclass
class FakeWorker:
    stage: int
    key: int
    pid: int
    lane: list[tuple[Batch, list[Payload]]] = field(default_factory=list)
    told: list[Message] = field(default_factory=list)
    killed: bool = False
    arena: int = 0


class Twin:
    def __init__(
        self, topology: Topology, specs: list[StageSpec], front: FrontSpec | None = None, *, shared: bool = False
    ) -> None:
        self.now = 1000.0
        self.memory = Memory() if shared else None
        self.transit: list[tuple[Results, list[Payload], int]] = []  # results that have left and not arrived
        self._frontends: dict[bytes, int] = {}  # peer -> arena
        self.topology = topology
        self.front = FrontMachine(front or FrontSpec(10_000, 1 << 30), topology, epoch=7)
        self.stages = [
            StageMachine(index, spec, topology, self.front.ledger, epoch=7) for index, spec in enumerate(specs)
        ]
        self.workers: dict[tuple[int, int], FakeWorker] = {}
        self.answers: dict[tuple[bytes, int], list[tuple[int, bytes]]] = {}
        self.computed: dict[str, int] = {}  # request id -> how often some worker finished it
        self._pids = 100

    # --- driving -----------------------------------------------------------------------------------------------------

    def worker(
        self, stage: int = 0, *, ready: bool = True, local: bool = True, slot: int = 1, flow: Flow = Flow.WHOLE
    ) -> FakeWorker:
        self._pids += 1
        name = self.topology.stages[stage]
        hello = Hello(PROTOCOL, self.topology.fingerprint, name, slot, self._pids, "here")
        key = self.stages[stage].hello(hello, local=local, now=self.now)
        assert isinstance(key, int)
        fake = self.workers[stage, key] = FakeWorker(stage, key, self._pids)
        if self.memory is not None:
            fake.arena = self.memory.open()
        if ready:
            self.stages[stage].ready(Ready(key, "application/json", flow=int(flow), maps=True), self.now)
        self.run()
        return fake

    def submit(
        self, n: int = 1, *, first: int = 1, route: int = 0, budget_s: float = 100.0, peer: bytes = b"f"
    ) -> None:
        seqs = list(range(first, first + n))
        message = Submit(seqs, [route] * n, [int(budget_s * 1e6)] * n, [f"r{seq}" for seq in seqs], [b""] * n)
        plain = [b"body%d" % seq for seq in seqs]
        bodies: list[Payload] = list(plain)
        if self.memory is not None:
            if peer not in self._frontends:
                self._frontends[peer] = self.memory.open()
            bodies = [self.memory.put(self._frontends[peer], body) for body in plain]
        decoded, payloads = decode(encode(message, bodies))
        assert isinstance(decoded, Submit)
        if self.memory is not None:
            self.memory.books.arrive([ref for payload in payloads for ref in refs_of(payload)])
        self.front.submit(peer, decoded, payloads, self.now)
        self.run()

    def finish(
        self,
        worker: FakeWorker,
        *,
        position: int = 0,
        statuses: dict[str, int] | None = None,
        lost: bool = False,
        twice: bool = False,
        late: bool = False,
    ) -> Batch:
        """The worker completes the batch at ``position`` of its lane. ``lost``: its results never leave it; ``late``:
        they are on their way until :meth:`arrive`."""
        batch, payloads = worker.lane.pop(position)
        targets: dict[int, list[int]] = {}
        for index, request_id in enumerate(batch.request_ids):
            status = (statuses or {}).get(request_id, int(Status.OK))
            self.computed[request_id] = self.computed.get(request_id, 0) + 1
            target = self.topology.next_stage(batch.routes[index], worker.stage) if status == Status.OK else FINAL
            targets.setdefault(target, []).append(index)
        for target, indexes in targets.items():
            results = Results(
                worker.stage,
                worker.key,
                batch.batch,
                [batch.uids[i] for i in indexes],
                [(statuses or {}).get(batch.request_ids[i], 200) for i in indexes],
                [batch.trails[i] for i in indexes],
                "application/json",
            )
            plain = [self.read(payloads[i]) + b"+%d" % worker.stage for i in indexes]
            for _ in range(0 if lost else 2 if twice else 1):
                out: list[Payload] = list(plain)
                if self.memory is not None and target != FINAL:  # the second copy is another computation's
                    out = [self.memory.put(worker.arena, one) for one in plain]
                if late:
                    self.transit.append((results, out, target))
                else:
                    self.deliver(results, out, target)
        self.run()
        return batch

    def read(self, payload: Payload) -> bytes:
        """What a worker finds in a payload."""
        if self.memory is not None:
            return self.memory.read(payload)
        return bytes(payload)  # type: ignore[arg-type]  # no parts and no references here

    def arrive(self) -> None:
        """What is on its way gets there."""
        transit, self.transit = self.transit, []
        for results, payloads, target in transit:
            self.deliver(results, payloads, target)
        self.run()

    def skip(self, worker: FakeWorker, position: int = 0) -> None:
        """The worker found the batch revoked."""
        batch, _ = worker.lane.pop(position)
        n = len(batch.uids)
        self.deliver(Results(worker.stage, worker.key, batch.batch, batch.uids, [0] * n, [b""] * n), [b""] * n, FINAL)
        self.run()

    def deliver(self, results: Results, payloads: Sequence[Payload], target: int) -> None:
        decoded, got = decode(encode(results, payloads))
        assert isinstance(decoded, Results)
        if self.memory is not None:
            try:
                self.memory.books.arrive([ref for payload in got for ref in refs_of(payload)])
            except ProtocolError:
                return  # its producer is gone, and what it computed is computed again
        if target == FINAL:
            self.front.results(decoded, got, self.now)
        else:
            self.stages[target].accept(decoded, got, self.now)

    def kill(self, worker: FakeWorker) -> None:
        """The process has ended; its lane is lost."""
        worker.lane.clear()
        self.stages[worker.stage].exited(worker.key, self.now)
        self.run()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.run()

    # --- what the threads do -----------------------------------------------------------------------------------------

    def run(self) -> float:
        """Carry out actions until there are none; returns the next time limit."""
        while True:
            wake = self.front.expire(self.now)
            for machine in self.stages:
                machine.tick(self.now)
                machine.check_silence(self.now)
                wake = min(wake, machine.pump(self.now))
            acted = False
            for machine in self.stages:
                actions, machine.actions = machine.actions, []
                for action in actions:
                    acted = True
                    self._carry_out(machine.index, action)
            front_actions, self.front.actions = self.front.actions, []
            for front_action in front_actions:
                acted = True
                self._carry_out(-1, front_action)
            for peer, answers, payloads in self.front.take_answers():
                for seq, status, payload in zip(answers.seqs, answers.statuses, payloads, strict=True):
                    self.answers.setdefault((peer, seq), []).append((status, bytes(payload)))  # type: ignore[arg-type]
            if not acted:
                return wake

    def _carry_out(self, stage: int, action: object) -> None:
        match action:
            case Dispatch():
                message, payloads = decode(encode(action.batch, action.payloads))
                assert isinstance(message, Batch)
                self.workers[stage, action.worker].lane.append((message, payloads))
            case ToWorker():
                assert isinstance(action.message, Dismiss | Revoke | CancelItems | Granted)
                self.workers[stage, action.worker].told.append(action.message)
            case Settle():
                self.stages[action.stage].settled(action, self.now)
            case Fail():
                self.front.fail(action)
            case News():
                view = self.front.stages[action.stage]
                view.state, view.absent_at, view.full = action.state, action.absent_at, action.full
            case Kill():
                self.workers[stage, action.worker].killed = True
            case Forget():
                gone = self.workers.pop((stage, action.worker))
                if self.memory is not None:
                    self.memory.retire(gone.arena)
            case Release():
                assert self.memory is not None
                self.memory.release(action.refs)
            case Admit():
                self.stages[action.stage].enqueue(action.items, self.now)
            case Drop():
                self.stages[action.stage].cancel(action.uids, self.now)
            case Grant():
                self.stages[action.stage].grant(action)
            case _:
                raise AssertionError(action)

    # --- looking -----------------------------------------------------------------------------------------------------

    def answer(self, seq: int, peer: bytes = b"f") -> tuple[int, bytes]:
        (only,) = self.answers[peer, seq]
        return only

    def is_empty(self) -> bool:
        """Nothing is held anywhere."""
        return (
            not self.front.ledger
            and self.front.nbytes == 0
            and all(not len(machine.queue) and machine.queue.nbytes == 0 for machine in self.stages)
            and all(not machine.last_attempts for machine in self.stages)
            and all(not worker.batches for machine in self.stages for worker in machine.workers.values())
            and not self.transit
            and (self.memory is None or self.memory.is_empty())
        )


NEVER = inf
