"""A broker by tcp, and a fleet that is played: what one broker carries for how many workers.

The broker is real and in a process of its own. Workers and a frontend are played by one other process, which is why
there can be hundreds of them: a worker "computes" by waiting, so whatever is measured is the broker's::

    python -m benchmarks.fleet broker FILE          # says what CPU it has used, in seconds, for each line it reads
    python -m benchmarks.fleet play FILE PLAY       # items/s and what requests took, by a Play as JSON
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import Final

from benchmarks.stats import percentile
from benchmarks.systems import SCRIPTS
from benchmarks.threads import ELSEWHERE, receive, send
from engine import transport
from engine.broker.service import Broker
from engine.config import Deployment, load
from engine.core.introduction import FRONTEND, WORKER, introduce
from engine.core.messages import Answers, Batch, FrontendBeat, Ready, Results, Submit, Welcome, WorkerBeat
from engine.core.wire import STEP_BYTES, decode
from engine.descriptors import allow_many
from engine.keyfile import keyring_of
from engine.process import tune_garbage_collection

BEAT_S: Final = 1.0
PARCEL: Final = 32  # requests of one parcel
SETTLE_S: Final = 0.5  # before it is measured
DEADLINE_US: Final = 60_000_000


@dataclass(frozen=True)
class Play:
    """So many workers that take ``compute_s`` for a batch; ``window`` requests of ``size`` bytes are always under way,
    for so long."""

    workers: int
    compute_s: float
    window: int
    size: int
    seconds: float
    is_timed: bool = False  # what each request took, which costs the player something


# --- the processes ---------------------------------------------------------------------------------------------------


def broker(file: str) -> None:
    made = Broker(load(file))
    made.start()
    tune_garbage_collection()
    for _ in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(used.ru_utime + used.ru_stime, flush=True)
    made.stop()


class Worker:
    """One that is played."""

    def __init__(self, deployment: Deployment, ctx: transport.Context, slot: int) -> None:
        endpoints = transport.reaching(deployment)
        self.control = transport.dealer(ctx, endpoints.control(0))
        who = introduce(
            WORKER,
            deployment.topology,
            deployment=deployment.engine.name,
            instance=secrets.token_hex(8),
            host=ELSEWHERE,
            pid=os.getpid(),
            stage=deployment.topology.stages[0],
            slot=slot,
        )
        send(self.control, who)
        welcome, _ = receive(self.control)
        if not isinstance(welcome, Welcome):
            raise RuntimeError(f"no welcome: {welcome}")
        self.key = welcome.worker
        self.lane = transport.lane_end(ctx, endpoints.told_lane(welcome.lane))
        send(self.control, Ready(self.key, "application/json"))
        self.free_at = 0.0


class Fleet:
    """All of it: see the module."""

    def __init__(self, deployment: Deployment, play: Play) -> None:
        self._play = play
        self._ctx = transport.context(keyring_of(deployment))
        endpoints = transport.reaching(deployment)
        self._results = transport.push(self._ctx, endpoints.egress)
        self._workers = [Worker(deployment, self._ctx, slot) for slot in range(1, play.workers + 1)]
        self._front = transport.dealer(self._ctx, endpoints.front)
        words = introduce(
            FRONTEND,
            deployment.topology,
            deployment=deployment.engine.name,
            instance=secrets.token_hex(8),
            host=ELSEWHERE,
            pid=os.getpid(),
        )
        send(self._front, words)
        self._body = b"x" * play.size
        self._answered = 0
        self._begun: dict[int, float] = {}  # when each that is under way was asked
        self._took: list[float] = []
        self._seq = 0
        self._computing: list[tuple[float, int, Batch]] = []  # until when, by which worker
        self._selector = selectors.DefaultSelector()
        for number, worker in enumerate(self._workers):
            self._selector.register(worker.lane.fileno(), selectors.EVENT_READ, number)
        self._selector.register(self._front.fileno(), selectors.EVENT_READ, -1)

    def run(self) -> tuple[float, float, float]:
        """Items per second once all is under way, and in seconds what half of them, and 99 of 100, took at most."""
        for _ in range(0, self._play.window, PARCEL):
            self._ask(min(self._play.window, PARCEL))
        begin = time.monotonic() + SETTLE_S
        end = begin + self._play.seconds
        before, beat_at = -1, 0.0
        while (now := time.monotonic()) < end:
            if before < 0 and now >= begin:
                before, begin = self._answered, now
                self._took.clear()
                print(f"began {begin}", flush=True)
            if now >= beat_at:
                beat_at = now + BEAT_S
                self._beat()
            self._pass(now)
        rate = (self._answered - before) / (time.monotonic() - begin)
        took = self._took or [0.0]
        return rate, percentile(took, 50), percentile(took, 99)

    def _pass(self, now: float) -> None:
        while self._computing and self._computing[0][0] <= now:
            self._finish(*heappop(self._computing)[1:])
        due = self._computing[0][0] - now if self._computing else 0.01
        for key, _ in self._selector.select(min(max(due, 0.0), 0.01)):
            if key.data < 0:
                self._hear()
            else:
                self._take(key.data, now)

    def _take(self, number: int, now: float) -> None:
        worker = self._workers[number]
        while (frames := transport.recv(worker.lane)) is not None:
            batch, _ = decode(frames)
            assert isinstance(batch, Batch)
            worker.free_at = max(worker.free_at, now) + self._play.compute_s
            heappush(self._computing, (worker.free_at, number, batch))

    def _finish(self, number: int, batch: Batch) -> None:
        count = len(batch.uids)
        results = Results(
            0,
            self._workers[number].key,
            batch.batch,
            batch.uids,
            [200] * count,
            [trail + b"\0" * STEP_BYTES for trail in batch.trails],
            "application/json",
            int(self._play.compute_s * 1e6),
        )
        send(self._results, results, [b"1"] * count)
        self._take(number, time.monotonic())  # a descriptor of ZeroMQ tells of news alone

    def _hear(self) -> None:
        while (frames := transport.recv(self._front)) is not None:
            message, _ = decode(frames)
            if isinstance(message, Answers):
                if set(message.statuses) != {200}:
                    raise RuntimeError(f"answers of {set(message.statuses)}")
                self._answered += len(message.seqs)
                if self._play.is_timed:
                    instant = time.monotonic()
                    self._took += [instant - self._begun.pop(seq) for seq in message.seqs]
                self._ask(len(message.seqs))

    def _ask(self, count: int) -> None:
        seqs = list(range(self._seq, self._seq + count))
        self._seq += count
        if self._play.is_timed:
            self._begun.update(dict.fromkeys(seqs, time.monotonic()))
        submit = Submit(seqs, [0] * count, [DEADLINE_US] * count, [b""] * count)
        send(self._front, submit, [self._body] * count)
        if transport.readable(self._front):
            self._hear()

    def _beat(self) -> None:
        send(self._front, FrontendBeat())
        for worker in self._workers:
            while transport.recv(worker.control) is not None:
                pass
            send(worker.control, WorkerBeat(worker.key))


# --- for whoever measures --------------------------------------------------------------------------------------------


@contextmanager
def served(file: Path) -> Iterator[Served]:
    """The broker of a file, running."""
    process = _start("benchmarks.fleet", "broker", str(file))
    try:
        yield Served(file, process)
    finally:
        process.communicate()
    if process.returncode:
        raise RuntimeError("the broker has failed")


class Served:
    """A broker that can be played with, by one after the other."""

    def __init__(self, file: Path, process: subprocess.Popen[str]) -> None:
        self._file = file
        self._process = process
        self._used()

    def _used(self) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def play(self, play: Play) -> tuple[float, float]:
        """(items per second, seconds of the broker's CPU per item)."""
        rate, cpu_s, *_ = self.timed(play)
        return rate, cpu_s

    def timed(self, play: Play) -> tuple[float, float, float, float]:
        """The same, and what half of the requests, and 99 of 100, took at most; 0.0 where that is not asked for."""
        player = _start("benchmarks.fleet", "play", str(self._file), json.dumps(asdict(play)))
        assert player.stdout is not None
        player.stdout.readline()  # it has begun
        before, began = self._used(), time.monotonic()
        told, _ = player.communicate()
        used, took = self._used() - before, time.monotonic() - began
        if player.returncode:
            raise RuntimeError("the fleet has failed")
        rate, half_s, most_s = map(float, told.split())
        return rate, used / (rate * took), half_s, most_s

    @contextmanager
    def besieged(self, rate: float) -> Iterator[list[int]]:
        """With strangers at its ports, so many tries a second; how many there were is in the list afterwards."""
        knocking, tries = _start("benchmarks.knock", str(self._file), str(rate)), list[int]()
        try:
            yield tries
        finally:
            told, _ = knocking.communicate("\n")
        if knocking.returncode:
            raise RuntimeError("somebody was let in, or nobody could knock")
        tries.append(int(told))


def _start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
    )  # fmt: skip


if __name__ == "__main__":
    allow_many()
    if sys.argv[1] == "broker":
        broker(sys.argv[2])
    else:
        print(*Fleet(load(sys.argv[2]), Play(**json.loads(sys.argv[3]))).run(), flush=True)
        os._exit(0)  # hundreds of sockets, of which nobody waits for any
