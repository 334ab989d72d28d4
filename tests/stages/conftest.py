"""A worker process of its own per test, and a broker's side that the test plays by hand over real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import zmq

from engine import transport, unix
from engine.config import Deployment, load, run_dir
from engine.core import meta, wire
from engine.core.introduction import NEWEST, FrozenWords, Introduction
from engine.core.messages import Batch, Message, Pulse, Results, StreamEvents, Welcome, WorkerBeat

Words = TypeVar("Words", bound=Message | FrozenWords)

SERVICES = Path(__file__).parent / "services"
CAP_S = 30.0  # generous: a busy machine starts an interpreter in seconds

SCRIPT = """
import sys
from engine import log
from engine.config import load
from engine.process import Notifier
from stages.runtime.serve import serve
log.setup("worker", stage=sys.argv[2], worker=int(sys.argv[3]))
sys.exit(serve(load(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Notifier(int(sys.argv[4]))))
"""


def wait_until(condition: Callable[[], object], pump: Callable[[], object], what: str) -> None:
    until = time.monotonic() + CAP_S
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"waited {CAP_S} s for {what}")
        pump()


@dataclass
class Item:
    """What became of one item, from all Results seen so far."""

    status: int
    payload: wire.Payload
    mime: str
    step: tuple[int, int, int]
    hop: int
    worker: int
    batch: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def value(self) -> object:
        return json.loads(bytes(self.payload))  # type: ignore[arg-type]


class Broker:
    """The broker's side of one stage. Pumps in the test's thread; answers beats unless ``mute``."""

    def __init__(self, deployment: Deployment, stage: int, *, epoch: int = 1, way: int = 0) -> None:
        """``way``: of those to the sockets that carry work; 0: unix sockets, -1: ZeroMQ's."""
        topology = self.topology = deployment.topology
        self.stage = stage
        self.epoch = epoch
        self.key = 0
        self.mute = False
        self.endpoints = transport.Endpoints(str(run_dir(deployment)), topology.stages)
        self.ctx = transport.context()
        self.control = transport.router(self.ctx, self.endpoints.control(stage))
        self.way = transport.ways(self.endpoints)[way]
        self.pulls = {-1: transport.pull(self.ctx, self.way.egress)}
        for other in range(len(topology.stages)):
            if other != stage:
                self.pulls[other] = transport.pull(self.ctx, self.way.intake(other))
        self.lanes: dict[int, transport.Socket] = {}
        self.peer = b""
        self.heard: list[wire.AnyWords] = []
        self.results: list[Results] = []
        self.items: dict[int, Item] = {}
        self.events: list[tuple[int, bytes]] = []
        self.poller = zmq.Poller()
        for sock in (self.control, *self.pulls.values()):
            self.poller.register(sock, zmq.POLLIN)

    def pump(self) -> None:
        """Wait a moment for messages and sort them."""
        self.poller.poll(50)
        while (frames := transport.recv(self.control)) is not None:
            message, _ = wire.decode(frames[1:])
            self.peer = bytes(frames[0])
            self.heard.append(message)
            if isinstance(message, WorkerBeat) and not self.mute:
                self.tell(Pulse(self.epoch, True))
        for hop, sock in self.pulls.items():
            while (frames := transport.recv(sock)) is not None:
                message, payloads = wire.decode(frames)
                if isinstance(message, StreamEvents):
                    self.events += zip(message.uids, map(bytes, payloads), strict=True)
                else:
                    assert isinstance(message, Results)
                    self._keep(hop, message, payloads)

    def _keep(self, hop: int, message: Results, payloads: Sequence[wire.Payload]) -> None:
        self.results.append(message)
        for at, uid in enumerate(message.uids):
            assert uid not in self.items, f"item {uid} was settled twice"
            self.items[uid] = Item(
                message.statuses[at],
                payloads[at],
                message.mime,
                wire.unpack_trail(message.trails[at])[-1],
                hop,
                message.worker,
                message.batch,
                message.headers.get(at, {}),
            )

    def tell(self, message: Message | FrozenWords) -> None:
        transport.send(self.control, wire.encode(message), to=self.peer)

    def expect(self, kind: type[Words]) -> Words:
        """The next message of this kind on the control socket; those before it are dropped."""
        found: list[Words] = []

        def seen() -> bool:
            while self.heard and not found:
                message = self.heard.pop(0)
                if isinstance(message, kind):
                    found.append(message)
            return bool(found)

        wait_until(seen, self.pump, kind.__name__)
        return found[0]

    def welcome(self) -> Introduction:
        """Wait for an introduction and give the worker a new key and lane."""
        who = self.expect(Introduction)
        self.key += 1
        lane = transport.lane(self.ctx, self.way.lane(self.stage, self.key))
        self.lanes[self.key] = lane
        self.tell(
            Welcome(
                protocol=NEWEST,
                epoch=self.epoch,
                worker=self.key,
                lane=transport.bound(lane),
                same_host=True,
                memory=None,
                stage=self.stage,
                stages=list(self.topology.stages),
                routes=[(route.path, list(route.stages)) for route in self.topology.routes],
            )
        )
        return who

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Pump until it holds."""
        wait_until(condition, self.pump, what)

    def give(
        self,
        batch: int,
        values: Sequence[object],
        *,
        first_uid: int | None = None,
        routes: Sequence[int] = (),
        budgets_s: Sequence[float] = (),
        head: bytes = b"",
    ) -> list[int]:
        """Send a batch down the lane; values that are bytes are bodies as they are. Returns the uids."""
        start = batch * 100 if first_uid is None else first_uid
        n = len(values)
        uids = list(range(start, start + n))
        message = Batch(
            batch=batch,
            sent_ns=time.monotonic_ns(),
            reason="idle",
            uids=uids,
            routes=list(routes) or [0] * n,
            budgets_us=[int(s * 1e6) for s in budgets_s] or [60_000_000] * n,
            attempts=[1] * n,
            metas=[meta.pack(f"r{uid}", head) for uid in uids],
            queues_us=[7] * n,
            trails=[b""] * n,
        )
        payloads = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
        self.send_down(wire.encode(message, payloads))
        return uids

    def send_down(self, frames: list[wire.Buffer]) -> None:
        lane = self.lanes[self.key]

        def sent() -> bool:
            if isinstance(lane, unix.Socket):
                return lane.send(frames)
            try:  # with a copy: without one pyzmq starts a thread that lives as long as the process
                lane.send_multipart(frames, zmq.NOBLOCK, copy=True)
            except zmq.Again:
                return False
            return True

        wait_until(sent, self.pump, "the worker to connect to its lane")
        wait_until(lambda: transport.keeps_nothing(lane), self.pump, "the worker to take it")

    def settled(self, uids: Sequence[int]) -> list[Item]:
        wait_until(lambda: all(uid in self.items for uid in uids), self.pump, f"results of {list(uids)}")
        return [self.items[uid] for uid in uids]

    def close(self) -> None:
        for sock in (self.control, *self.pulls.values(), *self.lanes.values()):
            sock.close(linger=0)
        self.ctx.term()


class Process:
    """One worker process, with what it wrote to its status pipe and to stderr."""

    def __init__(self, deployment: Deployment, stage: str, slot: int, folder: Path, env: dict[str, str]) -> None:
        self._status, writing = os.pipe()
        self._stderr = folder / f"stderr-{stage}-{slot}"
        with self._stderr.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(deployment.file), stage, str(slot), str(writing)],
                pass_fds=(writing,),
                stderr=stderr,
                env={**os.environ, **env},
            )
        os.close(writing)
        os.set_blocking(self._status, False)
        self._buffer = b""
        self.events: list[dict[str, object]] = []

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def pump(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._buffer += os.read(self._status, 65536)
        *lines, self._buffer = self._buffer.split(b"\n")
        self.events += [json.loads(line) for line in lines]

    def names(self) -> list[object]:
        self.pump()
        return [event["event"] for event in self.events]

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, broker: Broker | None = None) -> int:
        """The exit code; the broker goes on answering meanwhile."""

        def pump() -> None:
            if broker is not None:
                broker.pump()
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.popen.wait(0.2)

        wait_until(lambda: self.popen.poll() is not None, pump, "the worker to end")
        assert self.popen.returncode is not None
        return self.popen.returncode

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        os.close(self._status)


class Bench:
    """Deployments, workers and brokers of one test, all ended after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: list[Broker | Process] = []

    def deployment(self, text: str) -> Deployment:
        file = self.folder / "stages.toml"
        head = f'[engine]\nname = "test"\nrun_dir = "{self.folder}/run"\n' if "[engine]" not in text else ""
        file.write_text(head + text.replace("RUN_DIR", f"{self.folder}/run"))
        (self.folder / "run").mkdir(mode=0o700, exist_ok=True)
        for service in SERVICES.glob("*.py"):
            shutil.copy(service, self.folder)
        return load(file, environ={})

    def broker(self, deployment: Deployment, stage: int = 0, *, epoch: int = 1, way: int = 0) -> Broker:
        made = Broker(deployment, stage, epoch=epoch, way=way)
        self._open.append(made)
        return made

    def close_broker(self, broker: Broker) -> None:
        self._open.remove(broker)
        broker.close()

    def worker(self, deployment: Deployment, stage: str | None = None, slot: int = 1, **env: str) -> Process:
        made = Process(deployment, stage or deployment.stages[0].name, slot, self.folder, env)
        self._open.append(made)
        return made

    def fifo(self) -> Path:
        """A named pipe: user code that opens it blocks until the test does (see :func:`release`)."""
        path = self.folder / f"gate-{len(list(self.folder.glob('gate-*')))}"
        os.mkfifo(path)
        return path

    def close(self) -> None:
        for thing in reversed(self._open):
            thing.close()


def release(fifo: Path, broker: Broker) -> None:
    """Let user code that reads the pipe go on; waits until it is there."""
    fds: list[int] = []

    def opened() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads yet
            fds.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(fds)

    wait_until(opened, broker.pump, "the worker to reach the gate")
    os.close(fds[0])


@pytest.fixture
def let_go() -> Callable[[Path, Broker], None]:
    return release


@pytest.fixture
def bench() -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))  # ipc paths are short
    made = Bench(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)
