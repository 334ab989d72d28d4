"""The broker without threads, sockets or time: the real machines, and a transport that is a list.

Every parcel is encoded and decoded on its way, so the twin also exercises the wire. Workers are simulated: they hold
what the lane gave them until the test lets them finish, fail, vanish or fall silent.

Frontends come in two kinds. :meth:`Twin.submit` speaks for one that has no state, with numbers of the test's choosing;
:meth:`Twin.frontend` is the real link of :mod:`engine.core.link`, whose connection can be cut, and which outlives
brokers (:meth:`Twin.broker_dies`).

With ``shared`` every payload between frontends, broker and workers lies in arenas (tests/core/memory.py), which know
what may be read: a block that was released too early is missing when its reader comes to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import msgspec

from engine.core import gathered, introduction, meta
from engine.core.actions import (
    Admit,
    Dispatch,
    Drop,
    Fail,
    Foresee,
    Forget,
    Grant,
    Hasten,
    Kill,
    News,
    Note,
    Release,
    Settle,
    ToWorker,
)
from engine.core.call import Answer, Call, StreamEvent
from engine.core.deaths import Death
from engine.core.front import FrontMachine, FrontSpec
from engine.core.introduction import FRONTEND, WORKER, Introduction, Refusal, Stranger
from engine.core.link import Link, Submission
from engine.core.messages import (
    MEMO_KEY_SIZE,
    Batch,
    Cancel,
    CancelItems,
    Consumed,
    Dismiss,
    Flow,
    FrontendBeat,
    FrontendPulse,
    Granted,
    Message,
    Parts,
    Poison,
    Qos,
    Ready,
    Results,
    Revoke,
    Role,
    Status,
    Submit,
)
from engine.core.routing import FINAL, JOIN, Route, Topology
from engine.core.stage import StageMachine, StageSpec
from engine.core.wire import AnyWords, Payload, decode, encode, micros, refs_of
from engine.errors import ProtocolError
from tests.core.memory import Memory


def topology(*routes: tuple[int, ...], stages: int = 1) -> Topology:
    names = tuple(f"s{index}" for index in range(stages))
    return Topology(names, tuple(Route(f"/r{index}", route) for index, route in enumerate(routes or ((0,),))))


DEPLOYMENT = "twins"


def part_of(batch: Batch, place: slice) -> Batch:
    """Some of its items, with their columns."""
    columns = ("uids", "routes", "budgets_us", "attempts", "metas", "queues_us", "trails")
    return msgspec.structs.replace(batch, **{name: getattr(batch, name)[place] for name in columns})


def frontend_words(topology: Topology, instance: str = "f", **changes: object) -> Introduction:
    """A frontend's introduction."""
    return introduction.introduce(
        FRONTEND,
        topology,
        deployment=DEPLOYMENT,
        instance=instance,
        host="here",
        pid=1,
        name=instance,
        **changes,  # type: ignore[arg-type]
    )


def worker_words(
    topology: Topology, stage: str, *, slot: int = 1, pid: int = 1, instance: str = "", host: str = "here"
) -> Introduction:
    """A worker's introduction."""
    return introduction.introduce(
        WORKER,
        topology,
        deployment=DEPLOYMENT,
        instance=instance or f"w{pid}",
        host=host,
        pid=pid,
        stage=stage,
        slot=slot,
    )


def ids_of(batch: Batch) -> list[str]:
    """The request ids of a batch."""
    return [meta.request_id_of(one) for one in batch.metas]


def memo_key(value: bytes) -> bytes:
    """By what a cache knows a value."""
    return hashlib.blake2b(value, digest_size=MEMO_KEY_SIZE).digest()


@dataclass
class FakeWorker:
    stage: int
    key: int
    pid: int
    lane: list[tuple[Batch, list[Payload]]] = field(default_factory=list)
    told: list[Message] = field(default_factory=list)
    batches: dict[int, int] = field(default_factory=dict)  # uid -> the batch it was last given it in
    killed: bool = False
    arena: int = 0


class Twin:
    def __init__(
        self, topology: Topology, specs: list[StageSpec], front: FrontSpec | None = None, *, shared: bool = False
    ) -> None:
        self.now = 1000.0
        self.memory = Memory() if shared else None
        self.transit: list[tuple[Results | Parts, list[Payload], int]] = []  # results that have left and not arrived
        self._frontends: dict[bytes, int] = {}  # peer -> arena
        self.topology = topology
        self.links: dict[str, FakeFrontend] = {}
        self._specs = specs
        self._front_spec = front or FrontSpec(10_000, 1 << 30)
        self._begin(epoch=7)
        self.workers: dict[tuple[int, int], FakeWorker] = {}
        self.answers: dict[tuple[bytes, int], list[tuple[int, bytes]]] = {}
        self.headers: dict[tuple[bytes, int], dict[str, str]] = {}
        self.again: list[tuple[bytes, int]] = []  # told to be submitted again
        self.speakers: dict[int, int] = {}  # by number: whose word the answer was
        self.retries_ms: dict[int, int] = {}  # by number: when it may come again
        self.computed: dict[str, int] = {}  # request id -> how often some worker finished it
        self.given: dict[tuple[int, str], int] = {}  # stage, request id -> how often a worker was given it
        self._pids = 100
        self.takes_several = False  # workers say what they take at once, and so may be handed several batches as one
        self.notes: list[str] = []  # for the log
        # Where workers send the result of a request (by its id): None: by the file, and where that branches the first.
        self.goes: Callable[[str, int, int], int | None] = lambda request_id, route, stage: None
        # How many elements the list has on which a request (by its id) goes on.
        self.elements: Callable[[str], int] = lambda request_id: 2
        self.asks: Callable[[int], int] = lambda seq: seq  # the number in the body of a request

    def _begin(self, *, epoch: int) -> None:
        self.front = FrontMachine(
            self._front_spec,
            self.topology,
            epoch,
            deployment=DEPLOYMENT,
            read=lambda payload: payload if self.memory is None else self.memory.read(payload),
        )
        self.stages = [
            StageMachine(index, spec, self.topology, epoch, deployment=DEPLOYMENT)
            for index, spec in enumerate(self._specs)
        ]
        self.front.ledger.crews = [stage.crew for stage in self.stages]
        for machine in self.stages:
            machine.crews = self.front.ledger.crews

    # --- driving -----------------------------------------------------------------------------------------------------

    def worker(
        self,
        stage: int = 0,
        *,
        ready: bool = True,
        local: bool = True,
        slot: int = 1,
        flow: Flow = Flow.WHOLE,
        instance: str = "",
        host: str = "here",
        may_rest: bool = True,
    ) -> FakeWorker:
        """``instance``: of a process that introduces itself again; else it is a new one."""
        self._pids += 1
        name = self.topology.stages[stage]
        who = worker_words(self.topology, name, slot=slot, pid=self._pids, instance=instance, host=host)
        key = self.stages[stage].introduce(who, local=local, now=self.now)
        assert isinstance(key, int)
        fake = self.workers[stage, key] = FakeWorker(stage, key, self._pids)
        if self.memory is not None:
            fake.arena = self.memory.open()
        if ready:
            most = self.stages[stage].spec.policy.max_batch_size if self.takes_several else 0
            told = Ready(key, "application/json", flow=int(flow), maps=True, may_rest=may_rest, most=most)
            self.stages[stage].ready(told, self.now)
        self.run()
        return fake

    def submit(
        self,
        n: int = 1,
        *,
        first: int = 1,
        route: int = 0,
        budget_s: float = 100.0,
        peer: bytes = b"f",
        key: bytes = b"",
        qos: Qos | None = None,
    ) -> None:
        """``key``: of KEY_SIZE bytes; of all of them, as ``qos`` is."""
        seqs = list(range(first, first + n))
        message = Submit(seqs, [route] * n, [int(budget_s * 1e6)] * n, [meta.pack(f"r{seq}") for seq in seqs])
        message.keys.update(dict.fromkeys(seqs, key) if key else {})
        message.qos.update(dict.fromkeys(seqs, qos) if qos is not None else {})
        self.introduce(peer)
        plain = [b"body%d" % self.asks(seq) for seq in seqs]
        if self.topology.is_cached(route, self.topology.routes[route].stages[0]):
            message.memos.update({seq: memo_key(body) for seq, body in zip(seqs, plain, strict=True)})
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

    def introduce(self, peer: bytes) -> None:
        """A frontend without state says who it is, unless it has."""
        if not self.front.knows(peer):
            self.front.introduce(peer, frontend_words(self.topology, peer.decode()), self.now)

    def frontend(self, name: str, *, once_only: Sequence[bool] = (), topology: Topology | None = None) -> FakeFrontend:
        """The real link of a frontend process; connected."""
        made = self.links[name] = FakeFrontend(self, name, topology or self.topology, once_only)
        made.pump()
        self.run()
        return made

    def broker_dies(self) -> None:
        """And another takes its place, which knows nobody. Workers have lost their lanes, and introduce themselves."""
        epoch = self.front.epoch + 1
        fakes = list(self.workers.values())
        self.workers.clear()
        self.transit.clear()
        if self.memory is not None:
            self.memory = Memory()
            self._frontends.clear()
        self._begin(epoch=epoch)
        for link in self.links.values():
            link.arena = None
        for fake in fakes:
            self.worker(fake.stage)
        self.run()

    def hear(self, peer: bytes, words: AnyWords, payloads: list[Payload]) -> None:
        """What the front's part does with the words of a frontend."""
        front = self.front
        if isinstance(words, Introduction):
            answer = front.introduce(peer, words, self.now)
            self.tell(peer, answer)
            if not isinstance(answer, Refusal):
                self.pulse(peer)
        elif not front.knows(peer):
            self.tell(peer, Stranger(untaken=words.seqs if isinstance(words, Submit) else []))
        elif isinstance(words, Submit):
            if self.memory is not None:
                self.memory.books.arrive([ref for payload in payloads for ref in refs_of(payload)])
            front.submit(peer, words, payloads, self.now)
        elif isinstance(words, Cancel):
            front.cancel(peer, words.seqs)
        elif isinstance(words, Poison):
            self.front.refuse_like(words, self.now)
        elif isinstance(words, Consumed):
            front.consumed(peer, words.nbytes)
        elif isinstance(words, FrontendBeat):
            front.beat(peer, words, self.now)
            self.pulse(peer)
        else:
            raise AssertionError(words)

    def pulse(self, peer: bytes) -> None:
        front = self.front
        self.tell(peer, FrontendPulse(front.door.draining, front.headroom, [view.state for view in front.stages]))

    def tell(self, peer: bytes, words: Message | introduction.FrozenWords, payloads: Sequence[Payload] = ()) -> None:
        """Words for a frontend, if there is a link by that connection."""
        for link in self.links.values():
            if link.peer == peer and not link.is_cut:
                decoded, got = decode(encode(words, payloads))
                assert link.link.handle(decoded, got, self.now)

    def go_on(self) -> bool:
        """A moment in which each stage has a worker, and whoever has a batch does it; whether somebody had one."""
        for stage in range(len(self.stages)):
            if not any(worker.stage == stage for worker in self.workers.values()):
                self.worker(stage)
        busy = [worker for worker in self.workers.values() if worker.lane]
        for worker in busy:
            if worker.lane:
                self.finish(worker)
        self.pass_time(0.05)
        return bool(busy)

    def finish(
        self,
        worker: FakeWorker,
        *,
        position: int = 0,
        statuses: dict[str, int] | None = None,
        lost: bool = False,
        twice: bool = False,
        late: bool = False,
        compute_us: int = 0,
        count: int = 0,
    ) -> Batch:
        """The worker completes the batch at ``position`` of its lane, or the first ``count`` items of it. ``lost``: its
        results never leave it; ``late``: they are on their way until :meth:`arrive`; ``compute_us``: what it says of
        its time, each parcel its share."""
        batch, payloads = worker.lane.pop(position)
        if 0 < count < len(batch.uids):
            worker.lane.insert(position, (part_of(batch, slice(count, None)), payloads[count:]))
            batch, payloads = part_of(batch, slice(count)), payloads[:count]
        targets: dict[int, list[int]] = {}
        way: dict[int, int] = {}
        request_ids = ids_of(batch)
        for index, request_id in enumerate(request_ids):
            status = (statuses or {}).get(request_id, int(Status.OK))
            self.computed[request_id] = self.computed.get(request_id, 0) + 1
            target = FINAL
            if status == Status.OK:
                route, chosen = batch.routes[index], self.goes(request_id, batch.routes[index], worker.stage)
                target = self.topology.following(route, worker.stage)[0] if chosen is None else chosen
                if chosen is None and self.topology.split(route, worker.stage) is not None:
                    target = JOIN
            way[index] = target
            cached = [one for one in self.topology.cached if self.topology.is_cached(batch.routes[index], one)]
            if status == Status.OK and (worker.stage in cached or target in cached):
                target = JOIN  # by way of the front
            targets.setdefault(target, []).append(index)
        for target, indexes in targets.items():
            plain = [self.read(payloads[i]) + b"+%d" % worker.stage for i in indexes]
            results: Results | Parts
            if target == JOIN:
                results, plain = self._in_parts(worker, batch, way, indexes, plain, compute_us // len(targets))
            else:
                results = Results(
                    worker.stage,
                    worker.key,
                    batch.batch,
                    [batch.uids[i] for i in indexes],
                    [(statuses or {}).get(request_ids[i], 200) for i in indexes],
                    [batch.trails[i] for i in indexes],
                    "application/json",
                    compute_us // len(targets),
                )
            for _ in range(0 if lost else 2 if twice else 1):
                out: list[Payload] = [*plain]
                if self.memory is not None and target != FINAL:  # the second copy is another computation's
                    out = [self.memory.put(worker.arena, one) for one in plain]
                if late:
                    self.transit.append((results, out, target))
                else:
                    self.deliver(results, out, target)
        self.run()
        return batch

    def _in_parts(
        self,
        worker: FakeWorker,
        batch: Batch,
        way: dict[int, int],
        indexes: list[int],
        values: list[bytes],
        compute_us: int,
    ) -> tuple[Parts, list[bytes]]:
        """Parts that are done, and requests that go on in parts: each is its value and a letter."""
        message = Parts(worker.stage, worker.key, batch.batch, [], [], [], compute_us, mime="application/json")
        payloads: list[bytes] = []
        for index, value in zip(indexes, values, strict=True):
            route = self.topology.routes[batch.routes[index]]
            split = route.splits.get(worker.stage) if way[index] == JOIN else None
            count = 0 if split is None else len(split.names) or self.elements(ids_of(batch)[index])
            parts = [value + b"%c" % (97 + number) for number in range(count)]
            message.uids.extend([batch.uids[index]] * (1 + count))
            message.roles.extend([Role.DONE if split is None else Role.FRAME, *[Role.PART] * count])
            message.trails.extend([batch.trails[index], *[b""] * count])
            message.targets.extend([way[index], *[JOIN] * count])
            heads = () if split is None else split.heads if split.names else split.heads * count
            goes = way[index]
            if split is not None:
                goes = split.gather
            elif goes == JOIN and self.topology.region(batch.routes[index], worker.stage) is not None:
                goes = self.topology.gather(batch.routes[index], worker.stage)
            message.keys.append(memo_key(value) if goes in self.topology.cached else b"")
            keys = zip(heads, parts, strict=True)
            message.keys.extend([memo_key(part) if head in self.topology.cached else b"" for head, part in keys])
            payloads += [value, *parts]
        return message, payloads

    def read(self, payload: Payload) -> bytes:
        """What a worker finds in a payload; of a request that was in parts what became of each, "-" for nothing."""
        if gathered.is_packed(payload):
            frame, slots = gathered.unpack(payload)
            told = [b"-" if slot is None else self.read(slot) for slot in slots]
            return self.read(frame) + b"(%b)" % b",".join(told)
        if self.memory is not None:
            return self.memory.read(payload)
        return bytes(payload)  # type: ignore[arg-type]  # no parts and no references here

    def arrive(self) -> None:
        """What is on its way gets there."""
        transit, self.transit = self.transit, []
        for results, payloads, target in transit:
            self.deliver(results, payloads, target)
        self.run()

    def deliver_failure(self, worker: FakeWorker, index: int, status: int) -> None:
        """One item of the batch that a worker has fails; the others are computed yet."""
        batch, payloads = worker.lane[0]
        told = Results(worker.stage, worker.key, batch.batch, [batch.uids[index]], [status], [b""])
        for column in (batch.uids, batch.routes, batch.metas, batch.trails, payloads):
            del column[index]
        self.deliver(told, [b"bad"], FINAL)
        self.run()

    def skip(self, worker: FakeWorker, position: int = 0) -> None:
        """The worker found the batch revoked."""
        batch, _ = worker.lane.pop(position)
        n = len(batch.uids)
        self.deliver(Results(worker.stage, worker.key, batch.batch, batch.uids, [0] * n, [b""] * n), [b""] * n, FINAL)
        self.run()

    def deliver(self, results: Results | Parts, payloads: Sequence[Payload], target: int) -> None:
        decoded, got = decode(encode(results, payloads))
        assert isinstance(decoded, Results | Parts)
        if self.memory is not None:
            try:
                self.memory.books.arrive([ref for payload in got for ref in refs_of(payload)])
            except ProtocolError:
                return  # its producer is gone, and what it computed is computed again
        if isinstance(decoded, Parts):
            self.front.hub.parts(decoded, got, self.now)
        elif target == FINAL:
            self.front.results(decoded, got, self.now)
        else:
            self.stages[target].accept(decoded, got, self.now)

    def kill(self, worker: FakeWorker, death: Death = Death.OWN) -> None:
        """The process has ended; its lane is lost."""
        worker.lane.clear()
        self.stages[worker.stage].exited(worker.key, self.now, death)
        self.run()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.run()

    def pass_seconds(self, count: int) -> None:
        """One after the other, as for whoever looks about once a second."""
        for _ in range(count):
            self.pass_time(1.0)

    # --- what the threads do -----------------------------------------------------------------------------------------

    def run(self) -> float:
        """Carry out actions until there are none; returns the next time limit."""
        while True:
            wake = self.front.expire(self.now)
            for link in self.links.values():
                link.pump()
            for machine in self.stages:
                machine.tick(self.now)
                machine.check_silence(self.now)
                wake = min(wake, self._pumped(machine))
            acted = False
            for machine in self.stages:
                actions = machine.take_actions()
                for action in actions:
                    acted = True
                    self._carry_out(machine.index, action)
            taken = self.front.take_answers(self.now)
            front_actions = self.front.take_actions()
            for front_action in front_actions:
                acted = True
                self._carry_out(-1, front_action)
            for peer, answers, payloads in taken:
                if any(link.knows(peer) for link in self.links.values()):
                    self.tell(peer, answers, payloads)
                    continue
                for seq, status, payload in zip(answers.seqs, answers.statuses, payloads, strict=True):
                    self.answers.setdefault((peer, seq), []).append((status, bytes(payload)))  # type: ignore[arg-type]
                for index, seq in enumerate(answers.seqs):
                    self.headers[peer, seq] = answers.headers.get(index, {})
                    self.speakers[seq] = answers.speakers.get(index, 0)
                    if index in answers.retries_ms:
                        self.retries_ms[seq] = answers.retries_ms[index]
            for peer, again in self.front.take_again():
                acted = True
                self.again.extend((peer, seq) for seq in again.seqs)
                self.tell(peer, again)
            if not acted:
                return wake

    def _pumped(self, machine: StageMachine) -> float:
        """Until when it is left alone. Who waits while somebody is idle waits for an instant: else for ever."""
        wake = machine.pump(self.now)
        idle = [one for one in machine.workers.values() if one.is_able and not one.batches and not one.dismissed]
        if machine.queue.items and idle and machine.fate.is_sound:
            assert wake < inf, f"{len(machine.queue.items)} wait, {len(idle)} workers have nothing to do"
        return wake

    def _carry_out(self, stage: int, action: object) -> None:
        match action:
            case Dispatch():
                message, payloads = decode(encode(action.batch, action.payloads))
                assert isinstance(message, Batch)
                for request_id in ids_of(message):
                    self.given[stage, request_id] = self.given.get((stage, request_id), 0) + 1
                fake = self.workers[stage, action.worker]
                fake.lane.append((message, payloads))
                fake.batches.update(dict.fromkeys(message.uids, message.batch))
            case ToWorker():
                assert isinstance(action.message, Dismiss | Revoke | CancelItems | Granted)
                self.workers[stage, action.worker].told.append(action.message)
            case Settle():
                self.stages[action.stage].settled(action, self.now)
            case Fail():
                self.front.fail(action, self.now)
            case News():
                self.front.heard_of(action)
            case Foresee():
                self.front.door.foresee(action)
            case Kill():
                self.workers[stage, action.worker].killed = True
            case Note():
                self.notes.append(action.text)
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
            case Hasten():
                self.stages[action.stage].hasten(action)
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
            and self.front.ledger.nbytes == 0
            and self.front.tries.keys.in_flight == self.front.tries.keys.waiting == 0
            and not self.front.ledger.gatherings.wholes
            and not len(self.front.ledger.gatherings)
            and not self.front.ledger.gatherings.nbytes
            and not len(self.front.ledger.memo)
            and not self.front.ledger.memo.waiting
            and all(not len(machine.queue) and machine.queue.nbytes == 0 for machine in self.stages)
            and all(not machine.fate.apart for machine in self.stages)
            and all(not worker.batches for machine in self.stages for worker in machine.workers.values())
            and not self.transit
            and (self.memory is None or self.memory.is_empty())
        )


class FakeFrontend:
    """A frontend process: its link, and what its requests got. ``answers``: by the test's numbers, in order."""

    def __init__(self, twin: Twin, name: str, topology: Topology, once_only: Sequence[bool]) -> None:
        self.twin = twin
        self.name = name
        self.link = Link(frontend_words(topology, name), topology, once_only=once_only, now=twin.now)
        self.is_cut = False
        self.arena: int | None = None  # the arena it fills, of the present broker
        self.answers: dict[int, list[Answer | None]] = {}
        self.events: dict[int, list[bytes]] = {}
        self.seqs: dict[int, int] = {}  # the test's number -> the link's
        self._connections = 0

    @property
    def peer(self) -> bytes:
        """What the broker calls the present connection."""
        return b"%s/%d" % (self.name.encode(), self._connections)

    def knows(self, peer: bytes) -> bool:
        """Whether it is, or was, a connection of this one."""
        return peer.startswith(self.name.encode() + b"/")

    def submit(self, number: int, *, route: int = 0, budget_s: float = 100.0, key: bytes = b"") -> None:
        """Hand in a request; its body and id are those of :meth:`Twin.submit`. Raises Unavailable."""
        body, about = b"body%d" % number, meta.pack(f"r{number}")
        call = Call(route, body, self.twin.now + budget_s, about, _Waiter(self, number), key)
        self.seqs[number] = self.link.submit(call, self.twin.now)
        self.twin.run()

    def withdraw(self, number: int) -> bool:
        withdrawn = self.link.withdraw(self.seqs[number])
        self.twin.run()
        return withdrawn

    def beat(self) -> None:
        """What it does once a second."""
        if self.link.session != -1 and not self.is_cut:
            self.twin.hear(self.peer, FrontendBeat(), [])
        self.twin.run()

    def cut(self) -> None:
        """What either side sends is lost from now on, and neither hears of it."""
        self.is_cut = True

    def heal(self) -> None:
        """A new connection to the same broker, or to the one that took its place."""
        former, self.arena = self.arena, None
        self.is_cut = False
        self._connections += 1
        self.beat()
        if former is not None and self.twin.memory is not None:
            self.twin.memory.retire(former)  # with the connection it was given to

    def pump(self) -> None:
        """Send what is owed."""
        now = self.twin.now
        while (owed := self.link.owed(now)) is not None:
            if not self.is_cut:
                words, payloads = self._parcel(owed) if isinstance(owed, Submission) else decode(encode(owed))
                self.link.left(owed, now)  # before the answer, which this twin's wires bring at once
                self.twin.hear(self.peer, words, payloads)
            else:
                self.link.left(owed, now)

    def _parcel(self, submission: Submission) -> tuple[AnyWords, list[Payload]]:
        calls, memory = submission.calls, self.twin.memory
        bodies: list[Payload] = [call.body for call in calls]
        if memory is not None and self.twin.front.knows(self.peer):  # a broker that does not gave it no arena
            if self.arena is None:
                self.arena = memory.open()
            bodies = [call.body if call.was_sent else memory.put(self.arena, bytes(call.body)) for call in calls]
        budgets = [micros(call.deadline - self.twin.now) for call in calls]
        submit = Submit([call.seq for call in calls], submission.routes, budgets, [call.meta for call in calls])
        submit.keys.update({call.seq: call.key for call in calls if call.key})
        return decode(encode(submit, bodies))


class _Waiter:
    def __init__(self, frontend: FakeFrontend, number: int) -> None:
        self._frontend = frontend
        self._number = number

    def answered(self, answer: Answer | None) -> None:
        self._frontend.answers.setdefault(self._number, []).append(answer)

    def event(self, event: StreamEvent) -> None:
        self._frontend.events.setdefault(self._number, []).append(event.data)


NEVER = inf
