"""The broker's real parts, mailboxes, ledger and arenas on real threads that are interrupted everywhere: every request
gets one answer, and nothing is left behind. What is random is who does what when; the outcome may not be."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from engine import admin, transport
from engine.broker.loop import Part, PartThread
from engine.broker.poll import Poll
from engine.broker.service import Broker
from engine.config import Deployment
from engine.core import wire
from engine.core.actions import Settle
from engine.core.arena import SHARED_MIN
from engine.core.batching import Policy
from engine.core.introduction import FRONTEND, introduce
from engine.core.member import CREDIT_MAX
from engine.core.messages import (
    Answers,
    Batch,
    Bye,
    Cancel,
    FrontendPulse,
    Results,
    Submit,
    Welcome,
)
from engine.core.placement import MANY_CPUS, broker_threads
from engine.core.routing import FINAL
from engine.core.stage import StageSpec
from engine.memory import Store
from tests.core.twin import Twin, topology
from tests.engine.test_broker import CAP_S, Worker, comes, deploy, running, status_of, until

ROUTES = ((0, 1), (1,), (0, 1, 2))
FICKLE = 2  # of these: its workers send results on as they like, and copies of one to two stages
REQUESTS = 1500
ROOM = 512  # requests under way: half of what the door takes, so that none is refused however slow the machine is
LARGE = b"L" * SHARED_MIN
SPEC = StageSpec("s0", 1, Policy(1), timeout_s=2.0, kill_after_s=60.0, max_queue_bytes=1 << 20)


class Played(Worker):
    """A worker in a thread of its own that answers, errs, repeats itself, holds back, and dies."""

    def __init__(self, deployment: Deployment, stage: int, slot: int, seed: int) -> None:
        super().__init__(deployment, stage, pid=None, slot=slot)
        self.random = random.Random(seed)
        self.calm = threading.Event()  # from now on it only answers
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.held: list[tuple[Batch, list[wire.Payload]]] = []
        self.thread = threading.Thread(target=self._main, name=f"played-{stage}-{slot}")

    def _main(self) -> None:
        try:
            self.join()
            while not self.stop.is_set():
                self._turn()
        except BaseException as error:  # told by the test's own thread
            self.error = error

    def _turn(self) -> None:
        assert self.lane is not None
        while transport.recv(self.control) is not None:
            pass  # pulses, cancellations, revocations: it computes all the same
        comes(self.lane, 0.001)
        if (frames := transport.recv(self.lane)) is not None:
            message, payloads = wire.decode(frames)
            assert isinstance(message, Batch)
            self.held.append((message, payloads))
        if not self.held:
            return
        act = "answer" if self.calm.is_set() else self.random.choice(("answer",) * 8 + ("twice", "err", "hold", "die"))
        if act == "hold" and len(self.held) < 2:
            return
        if act == "die":
            self.held.clear()
            self.send(Bye(self.key))
            self.join()  # as another worker, on another lane
            return
        batch, payloads = self.held.pop(0)
        for _ in range(2 if act == "twice" else 1):
            self._push(batch, payloads, guilty=batch.uids[0] if act == "err" else -1)

    def _push(self, batch: Batch, payloads: list[wire.Payload], guilty: int) -> None:
        targets: dict[int, list[int]] = {}
        for index, (uid, route) in enumerate(zip(batch.uids, batch.routes, strict=True)):
            target = self.topology.following(route, self.stage)[0]
            if route == FICKLE:
                target = self.random.choice((target, *self.topology.later(route, self.stage), FINAL))
            target = FINAL if uid == guilty else target
            targets.setdefault(target, []).append(index)
        for target, indexes in targets.items():
            results = Results(
                self.stage,
                self.key,
                batch.batch,
                [batch.uids[i] for i in indexes],
                [422 if batch.uids[i] == guilty else 200 for i in indexes],
                [batch.trails[i] for i in indexes],
                "text/plain",
            )
            mark = b"+%d" % self.stage
            self.push(results, [bytes(payloads[i]) + mark for i in indexes], target)  # type: ignore[arg-type]

    def receive(self) -> wire.AnyWords:
        """The welcome: what was said to its former self may come before it."""
        while not isinstance(message := super().receive(), Welcome):
            pass
        return message

    def close(self) -> None:
        self.stop.set()
        self.thread.join(CAP_S)
        super().close()


class Crowd:
    """A frontend's socket, and what came back."""

    def __init__(self, deployment: Deployment, seed: int) -> None:
        self.random = random.Random(seed)
        self.ctx = transport.context()
        self.sock = transport.dealer(self.ctx, transport.reaching(deployment).front)
        self.who = introduce(
            FRONTEND,
            deployment.topology,
            deployment=deployment.engine.name,
            instance="crowd",
            host=transport.host_token(),
            pid=os.getpid(),
        )
        self.store: Store | None = None
        self.sent: dict[int, tuple[int, bytes, float]] = {}  # route, body, time limit
        self.cancelled: set[int] = set()
        self.answers: dict[int, list[tuple[int, bytes]]] = {}

    def meet(self) -> None:
        until(lambda: transport.send(self.sock, wire.encode(self.who)), "a connection")
        until(lambda: self.receive() or self.store is not None, "an arena")

    def receive(self) -> None:
        while (frames := transport.recv(self.sock)) is not None:
            message, payloads = wire.decode(frames)
            if isinstance(message, Answers):
                for seq, status, payload in zip(message.seqs, message.statuses, payloads, strict=True):
                    self.answers.setdefault(seq, []).append((status, bytes(payload)))  # type: ignore[arg-type]
            elif isinstance(message, FrontendPulse) and message.memory is not None and self.store is None:
                self.store = Store(message.memory)

    def ask(self, count: int) -> None:
        submit = Submit([], [], [], [])
        bodies: list[wire.Payload] = []
        for _ in range(count):
            seq, route = len(self.sent) + 1, self.random.randrange(len(ROUTES))
            limit = self.random.choice((0.02, CAP_S, CAP_S, CAP_S))
            body = LARGE + b"%d" % seq if self.random.random() < 0.1 else b"body%d" % seq
            self.sent[seq] = route, body, limit
            for column, value in zip(
                (submit.seqs, submit.routes, submit.budgets_us, submit.metas),
                (seq, route, int(limit * 1e6), b""),
                strict=True,
            ):
                column.append(value)  # type: ignore[attr-defined]
            shared = self.store.put(body) if self.store is not None and len(body) >= SHARED_MIN else None
            bodies.append(shared or body)
        frames = wire.encode(submit, bodies)
        until(lambda: transport.send(self.sock, frames), "the connection")

    def leave(self, seq: int) -> None:
        self.cancelled.add(seq)
        until(lambda: transport.send(self.sock, wire.encode(Cancel([seq]))), "the connection")

    def owed(self) -> list[int]:
        self.receive()
        return [seq for seq in self.sent if seq not in self.answers and seq not in self.cancelled]

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
        self.sock.close()
        self.ctx.term()


@contextmanager
def often_interrupted() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def left(broker: Broker) -> list[str]:
    """What the broker still holds."""
    front = broker.front.machine
    held = {"ledger": len(front.ledger), "bytes": front.ledger.nbytes, "shared": broker.arenas.usage()[1]}
    for part in broker.stages:
        machine, name = part.machine, part.machine.spec.name
        held[f"{name} queue"] = len(machine.queue) + machine.queue.nbytes + len(machine.fate.apart)
        held[f"{name} in flight"] = sum(len(worker.batches) for worker in list(machine.workers.values()))
        held[f"{name} letters"] = len(part.mailbox.letters)
    return [f"{name}: {count}" for name, count in held.items() if count]


@pytest.mark.parametrize("seed", range(3))
def test_one_answer_each_and_nothing_left_whatever_threads_do(threads: str, seed: int) -> None:
    folder = tempfile.mkdtemp(prefix="sl-", dir="/tmp")
    deployment = deploy(folder, stages=3, threads=threads, routes=ROUTES)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.enter_context(often_interrupted())
        broker = stack.enter_context(running(deployment))
        assert broker.threads == threads
        crowd = Crowd(deployment, seed)
        stack.callback(crowd.close)
        workers = [Played(deployment, stage, slot, 10 * stage + slot) for stage in range(3) for slot in (1, 2)]
        for one in workers:
            stack.callback(one.close)
            one.thread.start()
        crowd.meet()
        until(lambda: all(stage["ready"] == 2 for stage in status_of(deployment)["stages"]), "six workers")
        while len(crowd.sent) < REQUESTS:
            until(lambda: len(crowd.owed()) < ROOM, "room for more: a slow machine is no reason to refuse any")
            crowd.ask(crowd.random.randint(1, 16))
            if crowd.random.random() < 0.3:
                crowd.leave(crowd.random.randint(1, len(crowd.sent)))
            if crowd.random.random() < 0.05:
                admin.ask(deployment, "metrics", CAP_S)
            crowd.receive()
            time.sleep(0)  # others' turn
        for one in workers:
            one.calm.set()
        until(lambda: not crowd.owed(), "every answer")
        until(lambda: not left(broker), "nothing to be left")
        crowd.receive()
        assert not [one.error for one in workers if one.error is not None]
        assert not broker.failed.is_set()
    for seq, (route, body, limit) in crowd.sent.items():
        given = crowd.answers.get(seq, [])
        assert len(given) == 1 or (not given and seq in crowd.cancelled), (seq, given)
        for status, text in given:
            if status == 200 and route == FICKLE:
                path = [int(part) for part in text.removeprefix(body).split(b"+")[1:]]
                assert path[0] == 0, (seq, path)
                assert path == sorted({*path}), (seq, path)
            elif status == 200:
                assert text == body + b"".join(b"+%d" % stage for stage in ROUTES[route])
            else:
                # 500: workers died under it time and again
                assert status in (422, 500) or (status == 408 and limit < CAP_S), (seq, status, text)


@pytest.mark.parametrize(
    ("asked", "cpus", "serves_hosts", "expected"),
    [
        ("auto", MANY_CPUS, True, "stage"),
        ("auto", MANY_CPUS - 0.5, True, "one"),
        ("auto", 0.5, True, "one"),
        ("auto", 64, False, "one"),
        ("one", 64, True, "one"),
        ("stage", 1, False, "stage"),
    ],
)
def test_what_carries_the_broker(asked: str, cpus: float, serves_hosts: bool, expected: str) -> None:
    assert broker_threads(asked, cpus, serves_hosts=serves_hosts) == expected


def test_what_carries_it_is_told(deployment: Deployment, threads: str) -> None:
    with running(deployment) as broker:
        assert status_of(deployment)["threads"] == threads
        names = {thread.name for thread in threading.enumerate()}
        assert ({"front", "stage s0"} <= names) is (threads == "stage")
        assert ("broker" in names) is (threads == "one")
        assert broker.threads == threads


# --- who is woken, and when ------------------------------------------------------------------------------------------


class Busy(Part[str]):
    """A part that says what it was given, and does as it is told when it is."""

    def __init__(self, does: Callable[[Busy], None] = lambda _: None) -> None:
        super().__init__({})
        self.heard: list[str] = []
        self.resting = False
        self._does = does

    def open(self, poll: Poll) -> None:
        pass

    def is_idle(self) -> bool:
        return self.resting

    def work(self, now: float) -> float:
        for letter in self.mailbox.take():
            self.heard.append(letter)
            if letter == "go":
                self._does(self)
        return now + CAP_S


@contextmanager
def carried(*parts: Busy) -> Iterator[list[PartThread]]:
    """Each part on a thread of its own."""
    threads = [PartThread(f"busy-{index}", [part], lambda: None) for index, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        assert all(thread.stop(CAP_S) for thread in threads)


def asleep(part: Busy) -> bool:
    """For long: not in the look around with which a thread begins."""
    return part.wake > 0 and part.mailbox.bell is not None and part.mailbox.bell.asleep and not part.mailbox.letters


def test_a_thread_is_woken_once_for_all_letters_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Busy()
    rung: list[int] = []

    def write(part: Busy) -> None:
        for number in range(100):
            part._post(receiver.mailbox, f"{number}")
        rung.append(len(receiver.heard))  # nobody was woken in the middle of it

    sender = Busy(write)
    monkeypatch.setattr("engine.broker.loop.LONGEST_POLL_S", CAP_S)
    with carried(sender, receiver) as threads:
        until(lambda: asleep(sender) and asleep(receiver), "both to sleep")
        bell = receiver.mailbox.bell
        assert bell is not None
        rings: list[int] = []
        ring = bell.ring
        monkeypatch.setattr(bell, "ring", lambda: (rings.append(1), ring()))
        sender.mailbox.post("go")
        until(lambda: len(receiver.heard) == 100, "all letters")
        assert receiver.heard == [f"{number}" for number in range(100)]
        assert (rung, len(rings)) == ([0], 1)
        monkeypatch.setattr(bell, "ring", ring)
        assert len(threads) == 2


@pytest.mark.parametrize("resting", [True, False])
@pytest.mark.parametrize("urgent", [True, False])
def test_only_what_is_urgent_wakes_who_is_idle(monkeypatch: pytest.MonkeyPatch, resting: bool, urgent: bool) -> None:
    receiver = Busy()
    receiver.resting = resting
    sender = Busy(lambda part: part._post(receiver.mailbox, "books", urgent=urgent))
    monkeypatch.setattr("engine.broker.loop.LONGEST_POLL_S", CAP_S)
    with carried(sender, receiver):
        until(lambda: asleep(sender) and asleep(receiver), "both to sleep")
        sender.mailbox.post("go")
        if urgent or not resting:
            until(lambda: receiver.heard == ["books"], "the letter")
        else:
            until(lambda: sender.heard == ["go"] and asleep(sender), "the sender to be done")
            assert receiver.heard == []
            receiver.mailbox.post("work")  # from anywhere
            until(lambda: receiver.heard == ["books", "work"], "both, in order")


def test_who_has_nothing_to_give_need_not_be_told_what_was_settled() -> None:
    twin = Twin(topology(), [SPEC])
    machine = twin.stages[0]
    assert machine.is_idle()
    first = twin.worker()
    assert machine.is_idle()
    twin.submit(1)
    assert machine.is_idle()  # all is with a worker
    twin.submit(CREDIT_MAX + 1, first=2)
    assert not machine.is_idle()  # what waits goes with the credit that is settled
    while first.lane:
        twin.finish(first)
    machine.leave(first.key, twin.now)
    assert not machine.is_idle()  # to be dismissed
    twin.kill(first)
    second = twin.worker()
    twin.submit(1, first=99)
    twin.pass_time(SPEC.timeout_s)
    assert not machine.is_idle()  # it may come back from its time limit
    twin.kill(second)
    assert machine.is_idle()


def test_a_batch_took_as_long_as_it_took_however_late_it_is_told() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    twin.submit(1)
    (uid,) = worker.lane[0][0].uids
    machine = twin.stages[0]
    sent = twin.now
    machine.settled(Settle(0, worker.key, worker.lane[0][0].batch, [uid], sent + 0.010), sent + 0.9)
    assert machine.foresight.service_s == pytest.approx(0.010)
    assert machine.stats.lane(1).compute_s == pytest.approx(0.010)
    twin.submit(1, first=2)
    machine.settled(Settle(0, worker.key, worker.lane[-1][0].batch, worker.lane[-1][0].uids, sent - 0.001), twin.now)
    assert machine.foresight.service_s >= 0.0  # by a clock that was read before the batch left
