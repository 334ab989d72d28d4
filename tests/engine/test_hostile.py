"""Peers that say what they should not: it hurts nobody else, is counted, and leaves the broker as it was."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from engine import admin, descriptors, transport
from engine.broker import complaints, front
from engine.broker.complaints import FAILED, MALFORMED, UNEXPECTED, Complaints
from engine.config import Deployment
from engine.core import wire
from engine.core.introduction import FRONTEND, NEAR_SINCE, Stranger
from engine.core.items import Item, Request
from engine.core.messages import (
    Batch,
    Bye,
    Cancel,
    FrontendBeat,
    FrontendWelcome,
    Pulse,
    Results,
    StreamEvents,
    Submit,
    WorkerBeat,
)
from engine.errors import Unavailable
from engine.metrics import unpack, unpack_sources
from tests.engine.test_broker import (
    CAP_S,
    Worker,
    ask,
    client,
    comes,
    deploy,
    got,
    in_thread,
    ready,
    running,
    status_of,
    until,
    until_async,
    worker,
)

ROOT = Path(__file__).parents[2]


class Frontend:
    """A frontend's socket, moved by the test."""

    def __init__(self, deployment: Deployment, **changes: Any) -> None:
        self.played = Worker(deployment)
        self.sock = transport.dealer(self.played.ctx, transport.reaching(deployment).front)
        self.who = msgspec.structs.replace(self.played.who, kind=FRONTEND, **changes)

    def say(self, message: Any, payloads: list[bytes] = []) -> None:  # noqa: B006  # never changed
        frames = wire.encode(message, payloads)
        until(lambda: transport.send(self.sock, frames), "a connection")

    def hear(self, kind: type) -> wire.AnyWords:
        while True:
            assert self.sock.poll(CAP_S * 1000), "nothing came"
            frames = transport.recv(self.sock)
            assert frames is not None
            words = wire.decode(frames)[0]
            if isinstance(words, kind):
                return words

    def join(self) -> Frontend:
        self.say(self.who)
        self.hear(FrontendWelcome)
        return self

    def close(self) -> None:
        self.sock.close()
        self.played.close()


@contextmanager
def frontend(deployment: Deployment, **changes: Any) -> Iterator[Frontend]:
    made = Frontend(deployment, **changes)
    try:
        yield made.join()
    finally:
        made.close()


def dropped(deployment: Deployment) -> dict[str, float]:
    """What the broker has not taken, by reason, over all its parts."""
    found: dict[str, float] = {}
    for family in unpack(unpack_sources(admin.ask(deployment, "metrics", CAP_S)).broker):
        for sample in family.samples:
            if sample.name == "engine_messages_dropped_total":
                reason = sample.labels["reason"]
                found[reason] = found.get(reason, 0) + sample.value
    return found


async def served(w: Worker, c: Any) -> None:
    """A good request is answered."""
    answer = ask(c, b"good")
    batch, payloads = await in_thread(w.batch)
    w.answer(batch, payloads)
    assert (await got(answer)).body == b"good!"


# --- messages that can be read, and say what cannot be --------------------------------------------------------------


HUGE = 2**64 - 1


def said(kind: str, w: Worker, batch: Batch, front: Frontend) -> None:
    """Each of these ended a broker, or would end one that believes what it is told."""
    if kind == "a pid that no process has":
        who = msgspec.structs.replace(w.who, pid=2**40, instance="other", host=transport.host_token())
        w.send(who)
    elif kind == "a time that is past all clocks":
        front.say(Submit([1], [0], [HUGE], [b""]), [b"x"])
        front.say(Submit([2], [0], [-1], [b""]), [b"x"])
    elif kind == "metrics that cannot be read, of a worker":
        w.send(WorkerBeat(w.key, b"\xc1junk"))
    elif kind == "metrics that cannot be read, of a frontend":
        front.say(FrontendBeat(b"\xc1junk"))
        front.hear(object)
    elif kind == "a number cancelled twice":
        front.say(Submit([5], [0], [10_000_000], [b""]), [b"x"])
        front.say(Cancel([5, 5, 5]))
        front.say(Cancel([5]))
    else:
        for stage in (1, 99, 65_535):
            w.push(StreamEvents(stage, w.key, batch.uids, batch=batch.batch), [b"event"])
            w.push(Results(stage, w.key, batch.batch, batch.uids, [200], [b""]), [b"x"])


@pytest.mark.parametrize(
    "kind",
    [
        "a pid that no process has",
        "a time that is past all clocks",
        "metrics that cannot be read, of a worker",
        "metrics that cannot be read, of a frontend",
        "a number cancelled twice",
        "events of a stage that is not there",
    ],
)
def test_what_cannot_be_is_survived_and_so_is_the_end_of_who_said_it(deployment: Deployment, kind: str) -> None:
    async def scenario() -> None:
        with running(deployment) as broker, worker(deployment) as w:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c, b"under way")
                batch, payloads = await in_thread(w.batch)
                odd = Worker(deployment, slot=2).join()
                with frontend(deployment, host="elsewhere") as front:
                    speaker = odd if "worker" in kind or "pid" in kind else w
                    await in_thread(said, kind, speaker, batch, front)
                    front.say(FrontendBeat())
                    await in_thread(front.hear, object)  # it has been read
                odd.send(Bye(odd.key))
                until(lambda: len(status_of(deployment)["stages"][0]["workers"]) == 1, "its end")
                odd.close()
                w.answer(batch, payloads)
                assert (await got(answer)).body == b"under way!"
                await served(w, c)
            assert not broker.failed.is_set()

    asyncio.run(scenario())


# --- handling that fails --------------------------------------------------------------------------------------------


class Fault(Exception):
    """Of ours, planted."""


def test_a_frontend_whose_message_cannot_be_handled_begins_anew_and_loses_nothing(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Halfway through: the first request of the parcel is admitted when it breaks."""

    async def scenario() -> None:
        with running(deployment) as broker, worker(deployment) as w:
            machine = broker.front.machine
            faults = [b"second"]

            def make(request: Request, payload: Any, size: int, now: float) -> Item:
                if size == len(b"second") and faults:
                    faults.pop()
                    raise Fault
                return Item(request, payload, size, now)

            monkeypatch.setattr("engine.core.front.Item", make)
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                answers = [ask(c, body) for body in (b"1st", b"second", b"the third")]
                while not all(answer.done() for answer in answers):
                    if w.lane is not None and comes(w.lane, 0.02):
                        w.answer(*w.batch())
                    await asyncio.sleep(0.001)
                assert [(await answer).body for answer in answers] == [b"1st!", b"second!", b"the third!"]
                assert not faults
                assert not machine.ledger
                assert machine.ledger.nbytes == 0
            assert dropped(deployment) == {FAILED: 1}
            assert not broker.failed.is_set()

    asyncio.run(scenario())
    (line,) = [one for one in caplog.records if one.exc_info]
    assert line.exc_info is not None
    assert line.exc_info[0] is Fault


@pytest.mark.parametrize("where", ["egress", "intake"])
def test_a_worker_whose_results_cannot_be_handled_is_given_up_and_they_are_computed_again(
    threads: str, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deployment: Deployment
) -> None:
    stages = 2 if where == "intake" else 1
    chain = deploy(deployment.engine.run_dir, stages=stages, threads=threads)

    async def scenario() -> None:
        with running(chain) as broker, worker(chain) as w:
            last = Worker(chain, 1).join() if stages == 2 else w
            receiver: Any = broker.stages[1].machine if stages == 2 else broker.front.machine
            name = "accept" if stages == 2 else "results"
            real, faults = getattr(receiver, name), [1]

            def handle(*args: Any) -> None:
                if faults:
                    faults.pop()
                    raise Fault
                real(*args)

            monkeypatch.setattr(receiver, name, handle)
            async with client(chain) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c, b"x")
                first, payloads = await in_thread(w.batch)
                w.answer(first, payloads)
                until(lambda: not broker.stages[0].machine.workers, "its being given up")
                w.send(WorkerBeat(w.key))
                assert w.receive() == Pulse(broker.epoch, False)
                w.join()
                again, payloads = await in_thread(w.batch)
                assert (again.uids, again.attempts) == (first.uids, [2])
                w.answer(again, payloads)
                if stages == 2:
                    last.answer(*await in_thread(last.batch))
                assert (await got(answer)).body == b"x!" + b"!" * (stages - 1)
            if last is not w:
                last.close()
            assert dropped(chain) == {FAILED: 1}
            assert not broker.failed.is_set()

    asyncio.run(scenario())


def test_a_worker_whose_words_cannot_be_handled_is_given_up_with_what_was_begun_for_it(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(deployment) as broker:
        part = broker.stages[0]
        with monkeypatch.context() as patch:
            patch.setattr(part.machine, "welcome", lambda *_, **__: 1 / 0)
            odd = Worker(deployment)
            odd.send(odd.who)
            assert odd.receive() == Stranger()
        until(lambda: not part.machine.workers and not part._lanes, "the end of what was begun")
        assert odd.join().key
        odd.close()
        assert dropped(deployment) == {FAILED: 1}
        assert not broker.failed.is_set()


def test_a_question_that_cannot_be_handled_is_dropped(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(deployment) as broker:
        with monkeypatch.context() as patch:
            patch.setattr("engine.broker.report.QUESTIONS", None)  # it cannot be asked what is in it
            with pytest.raises(Unavailable, match="did not answer"):
                admin.ask(deployment, "status", 0.2)
        until(lambda: broker.front.machine.stats.messages_dropped.get(FAILED), "the complaint")
        assert status_of(deployment)["name"] == "t"


def test_a_flood_is_counted_whole_and_logged_once_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(complaints, "clock", lambda: now[0])
    counts: dict[str, int] = {}
    made = Complaints(counts)
    with caplog.at_level(logging.WARNING, logger="stageline.broker"):
        for turn in range(1000):
            now[0] = 100.0 + turn / 400
            made.note(MALFORMED, "malformed parcel dropped", reason="r")
        made.note(UNEXPECTED, "another thing")
    assert counts == {MALFORMED: 1000, UNEXPECTED: 1}
    lines = [(record.message, getattr(record, "messages", 1)) for record in caplog.records]
    assert lines == [("malformed parcel dropped", count) for count in (1, 400, 400)] + [("another thing", 1)]


# --- who speaks for whom --------------------------------------------------------------------------------------------


def test_results_in_another_workers_name_are_not_taken_and_cost_it_nothing(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment) as broker, worker(deployment) as w:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c, b"mine")
                batch, payloads = await in_thread(w.batch)
                liar = Worker(deployment, slot=2).join()
                for key, number in ((liar.key, batch.batch), (w.key, batch.batch + 1), (liar.key, 77), (1, 1)):
                    liar.push(Results(0, key, number, batch.uids, [200], [b""], "text/plain"), [b"forged"])
                    liar.push(StreamEvents(0, key, batch.uids, batch=number), [b"forged"])
                until(lambda: broker.front.machine.stats.duplicates >= 4, "their being read")
                assert not answer.done()
                w.answer(batch, payloads)
                assert (await got(answer)).body == b"mine!"
                liar.close()

    asyncio.run(scenario())


PULL = """
import sys, zmq
ctx = zmq.Context()
ctx.linger = 0
sock = ctx.socket(zmq.PULL)
sock.connect(sys.argv[1])
print("connecting", flush=True)
while sys.stdin.readline():
    print("got something" if sock.poll(50) else "nothing", flush=True)
sock.close()
ctx.term()
"""

SPEAK = """
import sys
from engine import transport
from engine.core import wire
from engine.core.messages import Bye, Leave, Ready, WorkerBeat
ctx = transport.context()
sock = transport.dealer(ctx, sys.argv[1])
key = int(sys.argv[2])
for message in (WorkerBeat(key), Ready(key, "text/lies"), Leave(key), Bye(key)):
    while not transport.send(sock, wire.encode(message)):
        sock.poll(10)
    assert sock.poll(20000)
    print(wire.decode(transport.recv(sock))[0], flush=True)
sock.close()
ctx.term()
"""


@contextmanager
def program(text: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, of this user like all of a deployment."""
    process = subprocess.Popen(
        [sys.executable, "-c", text, *args],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel does not say who connects")


def test_a_lane_is_gone_once_its_worker_has_connected(deployment: Deployment) -> None:
    async def scenario(w: Worker) -> None:
        async with client(deployment) as c:
            await until_async(lambda: ready(c), "readiness")
            await served(w, c)

    with running(deployment), worker(deployment) as w:
        lane = Path(w.told.removeprefix("unix://"))
        assert lane.is_socket()
        asyncio.run(scenario(w))
        assert not lane.exists()


@LINUX
def test_a_second_reader_of_a_lane_gets_nothing(deployment: Deployment) -> None:
    async def scenario() -> None:
        with (
            running(deployment),
            worker(deployment, newest=NEAR_SINCE - 1) as w,
            program(PULL, w.told) as thief,
        ):
            assert thief.stdout is not None
            assert thief.stdin is not None
            assert thief.stdout.readline() == "connecting\n"
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                for _ in range(20):  # a PUSH would deal half of them to it
                    await served(w, c)
            thief.stdin.write("\n")
            thief.stdin.flush()
            assert thief.stdout.readline() == "nothing\n"

    asyncio.run(scenario())


@LINUX
def test_nobody_speaks_for_another_process(deployment: Deployment) -> None:
    with running(deployment) as broker, worker(deployment) as w:
        until(lambda: status_of(deployment)["stages"][0]["ready"] == 1, "readiness")
        with program(SPEAK, transport.reaching(deployment).control(0), str(w.key)) as liar:
            out, _ = liar.communicate(timeout=CAP_S)
        assert out.splitlines() == [str(Pulse(broker.epoch, False))] * 4
        (one,) = status_of(deployment)["stages"][0]["workers"]
        assert one["state"] == "ready"
        assert w.key in broker.stages[0].machine.workers
        assert broker.stages[0].machine.mime == "text/plain"
        assert dropped(deployment) == {UNEXPECTED: 4}


@LINUX
def test_a_worker_is_known_again_by_a_new_connection_of_its_process(deployment: Deployment) -> None:
    with running(deployment), worker(deployment) as w:
        again = transport.dealer(w.ctx, w.endpoints.control(0))
        until(lambda: transport.send(again, wire.encode(WorkerBeat(w.key))), "a connection")
        assert again.poll(CAP_S * 1000)
        frames = transport.recv(again)
        assert frames is not None
        assert wire.decode(frames)[0] == Pulse(status_of(deployment)["epoch"], True)
        again.close()


@LINUX
@pytest.mark.parametrize("honest", [True, False])
def test_only_a_process_that_is_known_to_be_the_worker_is_killed(deployment: Deployment, honest: bool) -> None:
    """One that says to be another is watched, which hurts only itself, and never signalled."""
    victim = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        with running(deployment) as broker, worker(deployment, pid=os.getpid() if honest else victim.pid) as w:
            watch = broker.stages[0]._watch
            assert (w.key in watch._proven) is honest
            if not honest:
                assert not watch.kill(w.key)
                assert victim.poll() is None
                victim.kill()
                until(lambda: not status_of(deployment)["stages"][0]["workers"], "its own end by its own word")
    finally:
        victim.kill()
        victim.communicate()


def test_who_sent_a_parcel_is_known_over_ipc_and_not_over_tcp(tmp_path: Path) -> None:
    ctx = transport.context()
    for endpoint, known in ((f"ipc://{tmp_path}/s", sys.platform.startswith("linux")), ("tcp://127.0.0.1:*", False)):
        router = transport.router(ctx, endpoint)
        dealer = transport.dealer(ctx, transport.bound(router))
        until(lambda d=dealer: transport.send(d, [b"x"]), "a connection")  # type: ignore[misc]
        assert router.poll(CAP_S * 1000)
        parcel = transport.recv_from(router)
        assert parcel is not None
        assert transport.pid_of(parcel[1]) == (os.getpid() if known else None)
        dealer.close()
        router.close()
        assert transport.pid_of(parcel[1]) is None or known  # its descriptor is gone, or is somebody else's
    ctx.term()


def test_a_dead_workers_lane_leaves_no_file(deployment: Deployment) -> None:
    folder = Path(deployment.engine.run_dir)
    with running(deployment):
        before = sorted(folder.iterdir())
        for turn in range(5):
            with worker(deployment, slot=1 + turn % 2) as w:
                assert len([*folder.iterdir()]) == len(before) + 1
                w.send(Bye(w.key))
                until(lambda: not status_of(deployment)["stages"][0]["workers"], "its end")
        assert sorted(folder.iterdir()) == before


# --- everything at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_structured_extremes_on_every_socket_hurt_nobody(deployment: Deployment, seed: int) -> None:
    """A hostile process says thousands of messages of every kind, with what it can guess of others' numbers, while good
    requests go through two stages: each is answered once and rightly, and nothing is left of it all."""
    chain = deploy(deployment.engine.run_dir, stages=2, threads=deployment.engine.threads)

    async def work(w: Worker) -> None:
        while True:
            if w.lane is not None and comes(w.lane, 0):
                batch, payloads = w.batch()
                payloads = [bytes(b"".join(one) if type(one) is tuple else one) for one in payloads]  # type: ignore[arg-type]
                w.answer(batch, payloads)
            await asyncio.sleep(0.001)

    async def scenario() -> None:
        with running(chain) as broker, worker(chain) as first, worker(chain, 1) as last:
            async with client(chain) as c:
                await until_async(lambda: ready(c), "readiness")
                workers = [asyncio.create_task(work(w)) for w in (first, last)]
                epoch = str(broker.epoch)
                attack = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.engine.programs.hostile",
                    chain.engine.run_dir, "2", str(seed), "3000", epoch, cwd=ROOT,
                )  # fmt: skip
                ended = asyncio.create_task(attack.wait())
                number = 0
                while not ended.done() or number < 20:
                    number += 1
                    assert (await got(ask(c, b"%d" % number))).body == b"%d!!" % number
                    assert not broker.failed.is_set()
                assert ended.result() == 0
                for one in workers:
                    one.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
            counts = dropped(chain)
            assert counts.get(FAILED, 0) == 0, counts
            assert counts[MALFORMED] > 100
            assert status_of(chain)["name"] == "t"

    asyncio.run(scenario())


def test_frames_that_the_configuration_cannot_produce_are_not_read(deployment: Deployment) -> None:
    """The connection that brings one is cut before it is in memory; the largest that can come is taken."""
    frontend_section = replace(deployment.frontend, max_response_size=1)
    stages = tuple(replace(stage, max_queue_bytes=1) for stage in deployment.stages)
    deployment = replace(deployment, frontend=frontend_section, stages=stages)
    endpoints = transport.reaching(deployment)
    size = deployment.frontend.max_request_size
    assert wire.front_frame(size) < 1 << 28
    for largest in (wire.front_frame, wire.egress_frame, wire.intake_frame):
        assert largest(1 << 40) >= 1 << 40
    with running(deployment), worker(deployment) as w, frontend(deployment, host="elsewhere") as front:
        until(lambda: status_of(deployment)["stages"][0]["ready"] == 1, "readiness")
        front.say(Submit([1], [0], [10_000_000], [b""]), [bytes(size)])
        batch, payloads = w.batch()
        assert wire.payload_size(payloads[0]) == size
        ctx = transport.context()
        for endpoint, most in (
            (endpoints.front, wire.front_frame(size)),
            (endpoints.control(0), wire.control_frame()),
            (endpoints.admin, wire.SMALL_FRAME),
            (endpoints.egress, wire.egress_frame(deployment.frontend.max_response_size)),
            (endpoints.intake(0), wire.intake_frame(deployment.stages[0].max_queue_bytes)),
        ):
            make = transport.push if endpoint in (endpoints.egress, endpoints.intake(0)) else transport.dealer
            sock = make(ctx, endpoint)
            monitor = sock.get_monitor_socket(zmq.Event.DISCONNECTED)
            until(lambda s=sock, m=most: transport.send(s, [bytes(m + 1)]), "a connection")  # type: ignore[misc]
            assert monitor.poll(CAP_S * 1000), endpoint
            sock.disable_monitor()
            monitor.close()
            sock.close()
        ctx.term()
        w.answer(batch, [b"taken"])
        assert status_of(deployment)["name"] == "t"


def test_a_broker_that_has_no_descriptor_left_says_so_once_and_counts(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ZeroMQ's threads take connections and tell nobody that they cannot: over tcp; one that comes to an ipc socket
    meanwhile ends the process (`ipc_listener.cpp` takes EMFILE for a fault of its own), so here none comes."""
    monkeypatch.setattr(front, "CHECK_S", 0.02)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running(deployment) as broker, caplog.at_level(logging.ERROR):
        assert not descriptors.are_spent()
        stats = broker.front.machine.stats
        taken: list[int] = []

        def noticed() -> bool:
            while not descriptors.are_spent():  # one may have been given back meanwhile
                taken.append(os.open(os.devnull, os.O_RDONLY))
            return stats.descriptors_spent >= 3

        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, hard))
            until(noticed, "three looks")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        families = unpack(unpack_sources(admin.ask(deployment, "metrics", CAP_S)).broker)
        (family,) = [one for one in families if one.name.endswith("descriptors_spent")]
        assert family.samples[0].value >= 3
    assert len([record for record in caplog.records if "no descriptor left" in record.message]) == 1
