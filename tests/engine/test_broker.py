"""The broker's threads and the client over real sockets, with workers played by the test."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import admin, curve, transport, unix
from engine.broker.service import Broker
from engine.broker.watch import AVAILABLE, Watch
from engine.client import Client, submit
from engine.config import Deployment, build
from engine.core import meta, wire
from engine.core.call import Answer
from engine.core.deaths import Death
from engine.core.introduction import (
    FRONTEND,
    NEAR_SINCE,
    NEWEST,
    OLDEST,
    UNREADABLE,
    WORKER,
    FrozenWords,
    Introduction,
    Refusal,
    Stranger,
    introduce,
)
from engine.core.link import PARCEL_ITEMS, PARCEL_TURNS, UNKNOWN_FATE
from engine.core.messages import (
    Batch,
    Bye,
    Dismiss,
    FrontendWelcome,
    Leave,
    Message,
    Pulse,
    Ready,
    Results,
    StreamEvents,
    Submit,
    Welcome,
    WorkerBeat,
)
from engine.errors import StartError, Unavailable
from engine.keyfile import keyring_of
from engine.metrics import unpack, unpack_sources

CAP_S = 20.0


def deploy(
    folder: str,
    *,
    stages: int = 1,
    bind: str = "",
    threads: str = "auto",
    routes: Sequence[Any] = (),
    idempotent: bool = True,
    **frontend: Any,
) -> Deployment:
    one = {"worker": "m:W", "max_batch_size": 4, "timeout": 10.0, "idempotent": idempotent}
    data = {
        "engine": {"name": "t", "run_dir": folder, "bind": bind, "insecure": bool(bind), "threads": threads},
        "route": [{"path": f"/r{i}", "stages": [f"s{stage}" for stage in route]} for i, route in enumerate(routes)],
        "frontend": frontend,
        "stage": [{"name": f"s{i}", **one} for i in range(stages)],
    }
    return build(data, file=Path(folder) / "stages.toml", label="stages.toml")


@contextmanager
def running(deployment: Deployment) -> Iterator[Broker]:
    broker = Broker(deployment)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


class Worker:
    """A worker's sockets, moved by the test's own thread."""

    def __init__(
        self, deployment: Deployment, stage: int = 0, *, pid: int | None = None, slot: int = 1, newest: int = NEWEST
    ) -> None:
        """``newest``: the protocol that it speaks at the most."""
        self.topology = deployment.topology
        self.endpoints = transport.reaching(deployment)
        self.stage = stage
        self.ctx = transport.context(keyring_of(deployment))
        self.control = transport.dealer(self.ctx, self.endpoints.control(stage))
        targets = [i for i in range(len(self.topology.stages)) if i != stage]
        way = transport.ways(self.endpoints)[0 if newest >= NEAR_SINCE else -1]
        self.out = {target: transport.push(self.ctx, way.intake(target)) for target in targets}
        self.out[-1] = transport.push(self.ctx, way.egress)
        who = introduce(
            WORKER,
            self.topology,
            deployment=deployment.engine.name,
            instance=secrets.token_hex(16),
            host=transport.host_token() if pid is not None else "elsewhere",
            pid=pid if pid is not None else os.getpid(),
            stage=self.topology.stages[stage],
            slot=slot,
        )
        self.who = msgspec.structs.replace(who, protocols=(OLDEST, newest))
        self.lane: transport.Socket | None = None
        self.key = 0
        self.told = ""  # of its lane
        self.batches: list[tuple[Batch, list[wire.Payload]]] = []

    def send(self, message: Message | FrozenWords) -> None:
        until(lambda: transport.send(self.control, wire.encode(message)), "a connection")

    def receive(self) -> wire.AnyWords:
        assert self.control.poll(CAP_S * 1000), "nothing came"
        frames = transport.recv(self.control)
        assert frames is not None
        return wire.decode(frames)[0]

    def join(self) -> Worker:
        self.send(self.who)
        welcome = self.receive()
        assert isinstance(welcome, Welcome), welcome
        self.key = welcome.worker
        if self.lane is not None:
            self.lane.close()
        self.told = welcome.lane
        self.lane = transport.lane_end(self.ctx, self.endpoints.told_lane(welcome.lane))
        self.send(Ready(self.key, "text/plain"))
        return self

    def batch(self) -> tuple[Batch, list[wire.Payload]]:
        assert self.lane is not None
        while (frames := transport.recv(self.lane)) is None:  # a large one comes in pieces
            assert comes(self.lane, CAP_S), "no batch came"
        message, payloads = wire.decode(frames)
        assert isinstance(message, Batch)
        return message, payloads

    def answer(self, batch: Batch, payloads: list[wire.Payload], mark: bytes = b"!") -> None:
        target = self.topology.following(batch.routes[0], self.stage)[0]
        results = Results(
            self.stage,
            self.key,
            batch.batch,
            batch.uids,
            [200] * len(batch.uids),
            [trail + wire.pack_step(us, 1, 2) for trail, us in zip(batch.trails, batch.queues_us, strict=True)],
            "text/plain",
        )
        self.push(results, [bytes(p) + mark for p in payloads], target)  # type: ignore[arg-type]

    def push(self, message: Message, payloads: list[bytes], target: int = -1) -> None:
        self.push_frames(wire.encode(message, payloads), target)

    def push_frames(self, frames: list[wire.Buffer], target: int) -> None:
        until(lambda: transport.send(self.out[target], frames), "a connection")
        until(lambda: transport.keeps_nothing(self.out[target]), "the broker to take it")

    def close(self) -> None:
        for sock in (self.control, self.lane, *self.out.values()):
            if sock is not None:
                sock.close()
        self.ctx.term()


@contextmanager
def worker(deployment: Deployment, stage: int = 0, **about: Any) -> Iterator[Worker]:
    made = Worker(deployment, stage, **about)
    try:
        yield made.join()
    finally:
        made.close()


def comes(sock: transport.Socket, timeout_s: float) -> bool:
    """Whether something does, within that time, by a socket of either kind."""
    poller = transport.poller(sock)
    return bool(poller.poll(timeout_s * 1000))


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + CAP_S
    while not condition():
        assert time.monotonic() < end, f"waited {CAP_S} s for {what}"
        time.sleep(0.005)


@asynccontextmanager
async def client(deployment: Deployment, **about: Any) -> Any:
    made = Client(deployment, name="test", **about)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def until_async(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + CAP_S
    while not condition():  # what is waited for happens in other threads
        assert time.monotonic() < end, f"waited {CAP_S} s for {what}"
        await asyncio.sleep(0.005)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


def ready(c: Client) -> bool:
    return bool(c.view().stages) and all(stage.ready for stage in c.view().stages)


def ask(c: Client, body: bytes = b"hi", *, timeout_s: float = 10.0, **about: Any) -> asyncio.Future[Answer]:
    return submit(c, 0, body, timeout_s=timeout_s, meta=meta.pack("r"), **about)


async def got(answer: asyncio.Future[Answer]) -> Answer:
    return await asyncio.wait_for(answer, CAP_S)


def status_of(deployment: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(admin.ask(deployment, "status", CAP_S))
    return found


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_request_goes_there_and_back(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment), worker(deployment) as w:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c, b"hello")
                batch, payloads = await in_thread(w.batch)
                assert batch.reason == "idle"
                w.answer(batch, payloads)
                reply = await got(answer)
                assert (reply.status, bytes(reply.body), reply.mime) == (200, b"hello!", "text/plain")
                assert len(wire.unpack_trail(reply.trail)) == 1

    asyncio.run(scenario())


def test_a_batch_larger_than_the_system_holds_goes_on_as_the_worker_reads(deployment: Deployment) -> None:
    """While it does not, other work goes on, and nobody waits for it without a rest."""

    async def scenario() -> None:
        with running(deployment) as broker, worker(deployment) as slow:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                large = os.urandom(4_000_000)
                first = ask(c, large)
                (part,) = broker.stages
                await until_async(lambda: any(lane.kept for lane in part._lanes.values()), "the lane to be full")
                with worker(deployment, slot=2) as other:
                    second = ask(c, b"small")
                    batch, payloads = await in_thread(other.batch)
                    other.answer(batch, payloads)
                    assert (await got(second)).body == b"small!"
                batch, payloads = await in_thread(slow.batch)
                slow.answer(batch, payloads)
                assert bytes((await got(first)).body) == large + b"!"
                await until_async(lambda: not any(lane.kept for lane in part._lanes.values()), "no more to be watched")
                assert not part._stuck

    asyncio.run(scenario())


def test_a_worker_that_has_lost_its_lane_is_asked_to_introduce_itself(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment), worker(deployment) as w:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c, b"hello")
                await in_thread(w.batch)
                assert w.lane is not None
                w.lane.close()  # all else of it lives
                while not isinstance(said := await in_thread(w.receive), Pulse) or said.known:
                    pass
                await in_thread(w.join)
                batch, payloads = await in_thread(w.batch)
                w.answer(batch, payloads)
                assert (await got(answer)).body == b"hello!"

    asyncio.run(scenario())


# --- by which way ----------------------------------------------------------------------------------------------------


def test_a_frontend_takes_the_way_that_leads_somewhere(deployment: Deployment) -> None:
    ends = transport.reaching(deployment)
    near, far = transport.ways(ends)
    ctx = transport.context()

    def kind() -> type | None:
        found = transport.door(ctx, ends)
        if found is not None:
            found.close()
        return None if found is None else type(found)

    try:
        assert kind() is None
        old = transport.router(ctx, far.front)
        assert kind() is curve.Socket
        new = transport.router(ctx, near.front)
        assert kind() is unix.Connecting
        new.close()
        Path(transport.bound(new).removeprefix("unix://")).touch()  # left by one that was killed
        assert kind() is curve.Socket
        old.close()
        until(lambda: kind() is None, "the end of the other one")
        Path(transport.bound(new).removeprefix("unix://")).unlink()
    finally:
        ctx.term()


def test_a_broker_of_a_version_without_unix_sockets_may_take_the_place_of_one_with_them(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def served(c: Client, w: Worker) -> None:
        await until_async(lambda: ready(c), "readiness")
        answer = ask(c, b"hello")
        batch, payloads = await in_thread(w.batch)
        w.answer(batch, payloads)
        assert (await got(answer)).body == b"hello!"

    async def scenario() -> None:
        async with client(deployment) as c:
            with running(deployment), worker(deployment) as w:
                await served(c, w)
            with monkeypatch.context() as patch:
                patch.setattr(
                    "engine.broker.front.transport.ways", lambda ends: [ends]
                )  # of all that is in this process
                with running(deployment):
                    patch.undo()
                    with worker(deployment, newest=NEAR_SINCE - 1) as w:
                        await served(c, w)
            with running(deployment), worker(deployment) as w:
                await served(c, w)

    asyncio.run(scenario())


def test_two_stages_and_large_bodies(deployment: Deployment) -> None:
    deployment = deploy(deployment.engine.run_dir, stages=2, threads=deployment.engine.threads)

    async def scenario() -> None:
        with running(deployment), worker(deployment, 0) as a, worker(deployment, 1) as b:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                large = os.urandom(3_000_000)
                answers = [ask(c, large), ask(c, b"small")]
                seen = 0
                while seen < 2:
                    batch, payloads = await in_thread(a.batch)
                    a.answer(batch, payloads, b"1")
                    seen += len(batch.uids)
                seen = 0
                while seen < 2:
                    batch, payloads = await in_thread(b.batch)
                    b.answer(batch, payloads, b"2")
                    seen += len(batch.uids)
                assert bytes((await got(answers[0])).body) == large + b"12"
                assert bytes((await got(answers[1])).body) == b"small12"

    asyncio.run(scenario())


@asynccontextmanager
async def seen_by_broker(deployment: Deployment) -> Any:
    """A connected client, the Submits it sends, and what waits until all it was asked have come. The broker is played
    here."""
    ctx = transport.context()
    front = transport.router(ctx, transport.reaching(deployment).front)
    submits: list[Submit] = []
    table = [(route.path, list(route.stages)) for route in deployment.topology.routes]
    welcome = FrontendWelcome(NEWEST, 1, 1, list(deployment.topology.stages), table)

    def look() -> None:
        while (frames := transport.recv(front)) is not None:
            message, _ = wire.decode(frames[1:])
            if isinstance(message, Submit):
                submits.append(message)
            elif isinstance(message, Introduction):
                transport.send(front, wire.encode(welcome), to=bytes(frames[0]))

    async def until_sent() -> None:
        await until_async(lambda: look() or (submits and submits[-1].seqs[-1] == c.link._seq), "a submit")

    try:
        async with client(deployment) as c:
            await until_async(lambda: look() or c.link.session == 1, "a welcome")
            yield c, submits, until_sent
    finally:
        front.close()
        ctx.term()


def test_requests_of_one_turn_travel_in_one_parcel(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with seen_by_broker(deployment) as (c, submits, until_sent):
            answers = [ask(c, b"%d" % i) for i in range(10)]
            await until_sent()
            assert [len(one.seqs) for one in submits] == [10]
            for answer in answers:
                answer.cancel()

    asyncio.run(scenario())


def test_what_comes_turn_after_turn_travels_together_and_a_lone_request_at_once(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with seen_by_broker(deployment) as (c, submits, until_sent):
            loop = asyncio.get_running_loop()
            come_all = asyncio.Event()

            def come(turns: int, at_once: int = 2) -> None:
                for _ in range(at_once):
                    ask(c, b"x")
                if turns > 1:
                    loop.call_soon(come, turns - 1, 1)
                else:
                    come_all.set()

            ask(c, b"alone")
            await asyncio.sleep(0)  # the turn in which it leaves
            assert not c.link._outgoing
            await until_sent()
            come(6)
            await come_all.wait()
            await until_sent()
            assert [len(one.seqs) for one in submits] == [1, 7]
            come_all.clear()
            come(3 * PARCEL_TURNS)  # no matter how long they keep coming
            await come_all.wait()
            await until_sent()
            assert PARCEL_TURNS <= len(submits[2].seqs) <= PARCEL_TURNS + 3
            for _ in range(2 * PARCEL_ITEMS):
                ask(c, b"x")
            assert not c.link._outgoing  # what is enough for a parcel leaves at once
            await until_sent()
            assert [len(one.seqs) for one in submits[-2:]] == [PARCEL_ITEMS] * 2

    asyncio.run(scenario())


def test_a_killed_worker_is_noticed_at_once_and_replayed(deployment: Deployment) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)

    async def scenario() -> None:
        try:
            with running(deployment), worker(deployment, pid=process.pid) as dying, worker(deployment, slot=2) as other:
                async with client(deployment) as c:
                    await until_async(lambda: c.view().stages and c.view().stages[0].ready == 2, "two workers")
                    answers = [ask(c, b"x") for _ in range(2)]
                    first, _ = await in_thread(dying.batch)
                    process.kill()
                    process.wait()
                    replies = 0
                    attempts = []
                    while replies < 2:
                        batch, payloads = await in_thread(other.batch)
                        attempts += batch.attempts
                        other.answer(batch, payloads)
                        replies += len(batch.uids)
                    assert [(await got(a)).status for a in answers] == [200, 200]
                    assert 2 in attempts
                    assert first.attempts == [1] * len(first.uids)
                    await until_async(lambda: c.view().stages[0].ready == 1, "the death to be told")
        finally:
            process.kill()
            process.communicate()

    if not AVAILABLE:
        pytest.fail("this system has no pidfd; the test needs Linux 5.3 and Python 3.9")
    asyncio.run(scenario())


def test_a_client_that_leaves_cancels(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment) as broker, worker(deployment) as w:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                first = ask(c)
                batch, payloads = await in_thread(w.batch)
                second = ask(c)
                await until_async(lambda: len(broker.front.machine.ledger) == 2, "both to be admitted")
                second.cancel()
                await until_async(lambda: len(broker.front.machine.ledger) == 1, "the cancel")
                w.answer(batch, payloads)
                assert (await got(first)).status == 200
                assert second.cancelled()
                assert c.pending == 0

    asyncio.run(scenario())


def test_stream_events_come_before_the_answer(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment), worker(deployment) as w:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                events: list[bytes] = []
                answer = ask(c, on_event=lambda event: events.append(event.data))
                batch, payloads = await in_thread(w.batch)
                for text in (b"one", b"two"):
                    w.push(StreamEvents(0, w.key, batch.uids, batch=batch.batch), [text])
                await until_async(lambda: len(events) == 2, "events")
                assert not answer.done()
                w.answer(batch, payloads)
                assert (await got(answer)).status == 200
                assert events == [b"one", b"two"]

    asyncio.run(scenario())


def test_a_new_broker_gets_what_the_old_one_owed(deployment: Deployment) -> None:
    async def scenario() -> None:
        w = Worker(deployment)
        try:
            async with client(deployment) as c:
                with running(deployment):
                    w.join()
                    await until_async(lambda: ready(c), "readiness")
                    answer = ask(c, b"survives")
                    await in_thread(w.batch)
                with running(deployment):  # another epoch; the old one's books are gone
                    w.send(WorkerBeat(w.key))
                    pulse = w.receive()
                    assert isinstance(pulse, Pulse)
                    assert not pulse.known
                    w.join()
                    batch, payloads = await in_thread(w.batch)
                    w.answer(batch, payloads)
                    assert bytes((await got(answer)).body) == b"survives!"
        finally:
            w.close()

    asyncio.run(scenario())


def test_draining_refuses_and_finishes(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment) as broker, worker(deployment) as w:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c)
                batch, payloads = await in_thread(w.batch)
                drained = asyncio.ensure_future(in_thread(broker.drain, CAP_S))
                await until_async(lambda: c.view().draining, "the word to get round")
                with pytest.raises(Unavailable) as caught:
                    ask(c)
                assert caught.value.status == 503
                assert not drained.done()
                w.answer(batch, payloads)
                assert (await got(answer)).status == 200
                assert await drained is True

    asyncio.run(scenario())


def test_a_client_without_a_broker_keeps_then_refuses(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("engine.core.link.LOST_S", -1.0)
        async with client(deployment) as c:
            answer = ask(c)
            await asyncio.sleep(0)
            assert not answer.done()
            assert not c.view().connected
            with pytest.raises(Unavailable, match="cannot be reached"):
                ask(c, timeout_s=-1.0)
        assert answer.cancelled()

    asyncio.run(scenario())


# --- workers ---------------------------------------------------------------------------------------------------------


def test_leave_is_answered_with_dismissal(deployment: Deployment) -> None:
    with running(deployment), worker(deployment) as w:
        w.send(Leave(w.key))
        assert isinstance(w.receive(), Dismiss)
        w.send(Bye(w.key))
        until(lambda: not status_of(deployment)["stages"][0]["workers"], "the goodbye")


def test_an_unknown_worker_is_asked_to_introduce_itself(deployment: Deployment) -> None:
    with running(deployment) as broker, worker(deployment) as w:
        w.send(WorkerBeat(w.key + 1000))
        assert w.receive() == Pulse(broker.epoch, False)
        w.send(WorkerBeat(w.key))
        assert w.receive() == Pulse(broker.epoch, True)


def test_a_worker_is_told_whether_it_is_known_to_be_ready(deployment: Deployment) -> None:
    with running(deployment) as broker:
        loading = Worker(deployment)
        try:
            loading.send(loading.who)
            welcome = loading.receive()
            assert isinstance(welcome, Welcome)
            loading.send(WorkerBeat(welcome.worker))
            assert loading.receive() == Pulse(broker.epoch, True, is_loading=True)
            loading.send(Ready(welcome.worker, "text/plain"))
            loading.send(WorkerBeat(welcome.worker))
            assert loading.receive() == Pulse(broker.epoch, True)
        finally:
            loading.close()


def test_a_worker_from_another_file_is_refused(deployment: Deployment) -> None:
    with running(deployment):
        stranger = Worker(deployment)
        try:
            stranger.send(msgspec.structs.replace(stranger.who, stage="s9"))
            refused = stranger.receive()
            assert isinstance(refused, Refusal)
            assert "stages.toml" in refused.reason
        finally:
            stranger.close()


def test_a_worker_at_another_stages_socket_is_sent_to_its_own(deployment: Deployment) -> None:
    deployment = deploy(deployment.engine.run_dir, stages=2)
    with running(deployment):
        lost = Worker(deployment, 1)
        try:
            lost.control.close()
            lost.control = transport.dealer(lost.ctx, lost.endpoints.control(0))
            lost.send(lost.who)
            assert lost.receive() == Stranger(stage=1)
        finally:
            lost.close()


@pytest.mark.parametrize("where", ["front", "admin", "control"])
def test_whom_the_broker_cannot_read_it_tells_so(deployment: Deployment, where: str) -> None:
    endpoints = transport.reaching(deployment)
    junk: list[list[wire.Buffer]] = [
        [b"\x01\x00\x00\x00\xc1"],
        [b'{"stageline":"greeting from the future"}'],
        [b"no parcel", b""],
    ]
    with running(deployment), worker(deployment) as w:
        endpoint = endpoints.control(0) if where == "control" else getattr(endpoints, where)
        sock = transport.dealer(w.ctx, endpoint)
        try:
            for frames in junk:
                until(lambda frames=frames: transport.send(sock, frames), "a connection")  # type: ignore[misc]
                assert sock.poll(CAP_S * 1000), "not a word"
                answer = transport.recv(sock)
                assert answer is not None
                assert wire.decode(answer)[0] == UNREADABLE
        finally:
            sock.close()


def test_a_frontend_of_another_deployment_is_refused_in_words(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment):
            other = replace(deployment, engine=replace(deployment.engine, name="another"))
            async with client(other) as c:
                await until_async(lambda: c.link.refusal, "a refusal")
                assert '"another"' in c.link.refusal
                with pytest.raises(Unavailable):
                    ask(c)

    asyncio.run(scenario())


@pytest.mark.skipif(not AVAILABLE, reason="no pidfds here")
def test_a_connection_that_introduces_itself_twice_is_watched_once(deployment: Deployment) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    ctx = transport.context()
    try:
        with running(deployment) as broker:
            before = watched()
            sock = transport.dealer(ctx, transport.reaching(deployment).front)
            for process in processes:
                words = introduce(
                    FRONTEND,
                    deployment.topology,
                    deployment="t",
                    instance=secrets.token_hex(8),
                    host=transport.host_token(),
                    pid=process.pid,
                )
                until(lambda words=words: transport.send(sock, wire.encode(words)), "a connection")  # type: ignore[misc]
                heard: list[wire.AnyWords] = []
                while not heard or not isinstance(heard[-1], FrontendWelcome):
                    assert sock.poll(CAP_S * 1000), "no welcome"
                    frames = transport.recv(sock)
                    assert frames is not None
                    heard.append(wire.decode(frames)[0])
            assert watched() == before + 1
            processes[0].kill()
            until(lambda: not broker.front.machine.frontends, "the end of the first")
            until(lambda: watched() == before, "the end of the watch")
            sock.close()
    finally:
        ctx.term()
        for process in processes:
            process.kill()
            process.communicate()


def watched() -> int:
    """How many processes this one watches."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            count += os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[pidfd]"
    return count


def test_a_frontend_that_reads_its_file_in_another_order_is_served_by_the_right_stages(deployment: Deployment) -> None:
    deployment = deploy(deployment.engine.run_dir, stages=2, routes=[(0, 1), (1,)])
    turned = replace(deployment, stages=deployment.stages[::-1], routes=deployment.routes[::-1])

    async def scenario() -> None:
        with running(deployment), worker(deployment, 0) as first, worker(deployment, 1) as second:
            async with client(turned) as c:
                await until_async(lambda: ready(c), "readiness")
                alone = submit(c, 0, b"x", timeout_s=CAP_S)
                batch, payloads = await in_thread(second.batch)
                second.answer(batch, payloads, b"2")
                assert bytes((await got(alone)).body) == b"x2"
                both = submit(c, 1, b"x", timeout_s=CAP_S)
                for one, mark in ((first, b"1"), (second, b"2")):
                    batch, payloads = await in_thread(one.batch)
                    one.answer(batch, payloads, mark)
                assert bytes((await got(both)).body) == b"x12"

    asyncio.run(scenario())


def test_a_once_only_request_is_not_given_to_the_next_broker(deployment: Deployment) -> None:
    deployment = deploy(deployment.engine.run_dir, idempotent=False)

    async def scenario() -> None:
        w = Worker(deployment)
        try:
            async with client(deployment) as c:
                with running(deployment):
                    w.join()
                    await until_async(lambda: ready(c), "readiness")
                    answer = ask(c, b"once")
                    await in_thread(w.batch)
                with running(deployment) as broker:
                    reply = await got(answer)
                    assert (reply.status, bytes(reply.body)) == (500, UNKNOWN_FATE)
                    assert broker.front.machine.stats.admitted == 0
        finally:
            w.close()

    asyncio.run(scenario())


def test_hostile_parcels_hurt_nobody(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment) as broker, worker(deployment) as w:
            hostile = Worker(deployment)
            endpoints = transport.reaching(deployment)
            front = transport.dealer(hostile.ctx, endpoints.front)
            try:
                junk: list[list[wire.Buffer]] = [
                    [b""],
                    [b"\xc1"],
                    [b"\x92\x02"],
                    [os.urandom(1000)],
                    [b"x"] * 50,
                    wire.encode(Results(99, 1, 1, [1], [200], [b""]), [b"x"]),
                    wire.encode(Results(0, 999, 999, [5], [200], [b""]), [b"x"]),
                    wire.encode(Submit([1], [55], [1], [b""]), [b"x"]),
                    wire.encode(Bye(12345)),
                ]
                for frames in junk:
                    for sock in (hostile.control, hostile.out[-1], front):
                        until(lambda s=sock, f=frames: transport.send(s, f), "a connection")  # type: ignore[misc]
                async with client(deployment) as c:
                    await until_async(lambda: ready(c), "readiness")
                    answer = ask(c)
                    batch, payloads = await in_thread(w.batch)
                    w.answer(batch, payloads)
                    assert (await got(answer)).status == 200
                assert not broker.failed.is_set()
            finally:
                front.close()
                hostile.close()

    asyncio.run(scenario())


# --- looking ---------------------------------------------------------------------------------------------------------


def test_status_and_metrics(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment), worker(deployment) as w:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c)
                batch, payloads = await in_thread(w.batch)
                w.answer(batch, payloads)
                await got(answer)
                status = json.loads(await c.ask("status", timeout_s=CAP_S))
                (stage,) = status["stages"]
                assert (stage["name"], stage["ready"], stage["batches_by_reason"]) == ("s0", 1, {"idle": 1})
                assert [one["slot"] for one in stage["workers"]] == [1]
                assert [one["name"] for one in status["frontends"]] == ["test"]
                sources = unpack_sources(await c.ask("metrics", timeout_s=CAP_S))
                found = {
                    (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                    for family in unpack(sources.broker)
                    for sample in family.samples
                }
                assert found["engine_batch_releases_total", (("reason", "idle"), ("stage", "s0"))] == 1
                assert found["engine_batch_size_count", (("connection", "1"), ("stage", "s0"))] == 1
                assert found["engine_workers", (("stage", "s0"), ("state", "ready"))] == 1
                assert found["engine_remaining_task", ()] == 0

    asyncio.run(scenario())


def test_nobody_there_is_said_in_time(deployment: Deployment) -> None:
    with pytest.raises(Unavailable, match="no broker"):
        admin.ask(deployment, "status", 0.1)


def test_a_port_in_use_fails_the_start_and_closes_everything(deployment: Deployment) -> None:
    ctx = transport.context()
    taken = transport.router(ctx, "tcp://127.0.0.1:*")
    try:
        threads = deployment.engine.threads
        elsewhere = deploy(deployment.engine.run_dir, bind=transport.bound(taken), threads=threads)
        with pytest.raises(StartError, match="cannot listen"):
            Broker(elsewhere).start()
    finally:
        taken.close()
        ctx.term()


# --- parts -----------------------------------------------------------------------------------------------------------


def test_watch_tells_ends_once_and_kills() -> None:
    watch = Watch()
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        assert watch.add(7, process.pid, may_kill=True)
        assert watch.ended() == []
        assert watch.kill(7)
        ended: list[tuple[int, Death, str]] = []
        until(lambda: ended.extend(watch.ended()) or ended, "the end")
        assert ended == [(7, Death.OUTSIDE, "by SIGKILL")]  # how it ended is known until its parent has asked
        process.wait()
        assert watch.ended() == []
        assert not watch.kill(7)
        assert not watch.add(8, 2**22 + 1)
    finally:
        process.kill()
        process.communicate()
        watch.close()
