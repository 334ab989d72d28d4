"""One broker thread for all parts beside a thread per stage: what it costs, and what it buys.

    python -m benchmarks.threads [--rounds 5] [--seconds 1]        (PYTHONPATH=scripts)

The broker is real and in a process of its own; frontends and workers are played, each in a process of its own, so that
what is measured is the broker. *Cost*: small requests through one stage, a window of them always under way; rate, the
broker's CPU and its voluntary context switches per request. *Gain*: requests of 4 MB to a stage whose workers cannot
map shared memory, as those of another host, so that the broker moves the bytes; beside them small ones to another
stage, one at a time, whose latency is told. The two ways take turns; medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from engine import transport
from engine.broker.service import Broker
from engine.config import Deployment, build
from engine.core.introduction import FRONTEND, WORKER, FrozenWords, introduce
from engine.core.messages import (
    Answers,
    Batch,
    FrontendBeat,
    FrontendPulse,
    Message,
    Ready,
    Results,
    Submit,
    Welcome,
    WorkerBeat,
)
from engine.core.wire import STEP_BYTES, AnyWords, Payload, decode, encode
from engine.memory import Store
from engine.process import tune_garbage_collection

WINDOWS: Final = (1, 16, 64, 256)
WAYS: Final = ("one", "stage")
LARGE: Final = 4 << 20
SMALL: Final = b'{"x": 2}'
NAME: Final = "threads"
ELSEWHERE: Final = "elsewhere"  # no neighbour of the broker: sockets carry everything


def deployment(folder: str, threads: str) -> Deployment:
    """Two stages, a route to each."""
    data = {
        "engine": {"name": NAME, "run_dir": folder, "threads": threads},
        "stage": [{"name": f"s{i}", "worker": "m:W", "max_batch_size": 32 * i or 1, "timeout": 30} for i in range(2)],
        "route": [{"path": f"/r{i}", "stages": [f"s{i}"]} for i in range(2)],
    }
    return build(data, file=Path(folder) / "stages.toml", label="stages.toml")


# --- the processes ---------------------------------------------------------------------------------------------------


def broker(folder: str, threads: str) -> None:
    """Says what it has used so far for every line it reads."""
    made = Broker(deployment(folder, threads))
    made.start()
    tune_garbage_collection()
    for _ in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(used.ru_utime + used.ru_stime, used.ru_nvcsw, flush=True)
    made.stop()


def worker(folder: str, stage: int, slot: int) -> None:
    """Answers every batch at once, with a few bytes for each item."""
    deployed = deployment(folder, "one")
    topology, endpoints, ctx = deployed.topology, transport.reaching(deployed), transport.context()
    control = transport.dealer(ctx, endpoints.control(stage))
    out = transport.push(ctx, transport.ways(endpoints)[0].egress)
    who = introduce(
        WORKER,
        topology,
        deployment=NAME,
        instance=f"{stage}-{slot}",
        host=ELSEWHERE,
        pid=os.getpid(),
        stage=topology.stages[stage],
        slot=slot,
    )
    send(control, who)
    welcome, _ = receive(control)
    assert isinstance(welcome, Welcome)
    lane = transport.lane_end(ctx, welcome.lane)
    send(control, Ready(welcome.worker, "application/json"))
    beat_at = 0.0
    poller = transport.poller(lane)
    while True:
        poller.poll(300)
        if time.monotonic() > beat_at:
            send(control, WorkerBeat(welcome.worker))
            beat_at = time.monotonic() + 1
        while transport.recv(control) is not None:
            pass
        if (frames := transport.recv(lane)) is None:
            continue
        batch, _ = decode(frames)
        assert isinstance(batch, Batch)
        count = len(batch.uids)
        trails = [trail + b"\0" * STEP_BYTES for trail in batch.trails]
        results = Results(stage, welcome.worker, batch.batch, batch.uids, [200] * count, trails, "application/json")
        send(out, results, [SMALL] * count)


def frontend(folder: str, route: int, size: int, window: int, seconds: float, pause_s: float) -> None:
    """Keeps ``window`` requests under way, each ``pause_s`` after an answer; says their rate, and median and 99th
    percentile of their latency in ms."""
    ctx = transport.context()
    sock = transport.dealer(ctx, transport.reaching(deployment(folder, "one")).front)
    shares = size >= LARGE
    host = transport.host_token() if shares else ELSEWHERE
    topology, instance = deployment(folder, "one").topology, secrets.token_hex(8)
    send(sock, introduce(FRONTEND, topology, deployment=NAME, instance=instance, host=host, pid=os.getpid()))
    store: Store | None = None
    while shares and store is None:
        pulse, _ = receive(sock)
        if isinstance(pulse, FrontendPulse) and pulse.memory is not None:
            store = Store(pulse.memory)
    body = SMALL if size <= len(SMALL) else b"x" * size
    sent: dict[int, float] = {}
    took: list[float] = []
    last = 0

    def ask(count: int) -> None:
        nonlocal last
        seqs = list(range(last + 1, last + 1 + count))
        last += count
        sent.update(dict.fromkeys(seqs, time.monotonic()))
        bodies: list[Payload] = [(store.put(body) if store is not None else None) or body for _ in seqs]
        send(sock, Submit(seqs, [route] * count, [30_000_000] * count, [b""] * count), bodies)

    start, beat_at = time.monotonic(), time.monotonic() + 1
    for _ in range(0, window, 16):
        ask(min(window, 16))
    while sent:
        message, _ = receive(sock)
        now = time.monotonic()
        if now > beat_at:
            send(sock, FrontendBeat())
            beat_at = now + 1
        if isinstance(message, Answers):
            assert set(message.statuses) == {200}
            took += [now - sent.pop(seq) for seq in message.seqs]
            if now < start + seconds:
                time.sleep(pause_s)
                ask(len(message.seqs))
    took.sort()
    rate = len(took) / (time.monotonic() - start)
    print(rate, took[len(took) // 2] * 1e3, took[len(took) * 99 // 100] * 1e3, len(took), flush=True)
    sock.close()
    ctx.term()


def send(sock: transport.Socket, message: Message | FrozenWords, payloads: Sequence[Payload] = ()) -> None:
    frames = encode(message, payloads)
    while not transport.send(sock, frames):
        time.sleep(0.001)


def receive(sock: transport.Socket) -> tuple[AnyWords, list[Payload]]:
    while (frames := transport.recv(sock)) is None:
        transport.poller(sock).poll(1000)
    return decode(frames)


# --- the measurements ------------------------------------------------------------------------------------------------


class Bench:
    """A broker with its workers."""

    def __init__(self, folder: str, threads: str) -> None:
        self._folder = folder
        self._broker = _start("broker", folder, threads)
        self.used()
        self._workers = [_start("worker", folder, stage, slot) for stage, slot in ((0, 1), (0, 2), (1, 1))]
        time.sleep(1.0)  # for imports: the first request would wait for them all the same

    def used(self) -> tuple[float, float]:
        """The broker's CPU in seconds and its voluntary context switches, so far."""
        assert self._broker.stdin is not None
        assert self._broker.stdout is not None
        self._broker.stdin.write("\n")
        self._broker.stdin.flush()
        cpu, switches = map(float, self._broker.stdout.readline().split())
        return cpu, switches

    def frontend(
        self, route: int, size: int, window: int, seconds: float, *, pause_s: float = 0.0
    ) -> subprocess.Popen[str]:
        return _start("frontend", self._folder, route, size, window, seconds, pause_s)

    def close(self) -> None:
        for process in self._workers:
            process.kill()
            process.communicate()
        self._broker.communicate()
        assert self._broker.returncode == 0


def _start(role: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.threads", role, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _told(process: subprocess.Popen[str]) -> list[float]:
    out, _ = process.communicate()
    assert process.returncode == 0
    return [float(word) for word in out.split()]


@contextmanager
def benches() -> Iterator[dict[str, Bench]]:
    """One broker for each way."""
    folders = {way: tempfile.mkdtemp(prefix="sl-", dir="/tmp") for way in WAYS}
    running = {way: Bench(folder, way) for way, folder in folders.items()}
    try:
        yield running
    finally:
        for way, bench in running.items():
            bench.close()
            shutil.rmtree(folders[way])


def cost(bench: Bench, window: int, seconds: float) -> tuple[float, ...]:
    before = bench.used()
    rate, *_, count = _told(bench.frontend(1, len(SMALL), window, seconds))
    after = bench.used()
    return rate, (after[0] - before[0]) / count * 1e6, (after[1] - before[1]) / count


def gain(bench: Bench, seconds: float) -> tuple[float, ...]:
    large = bench.frontend(0, LARGE, 4, seconds)
    _, p50, p99, _ = _told(bench.frontend(1, len(SMALL), 1, seconds, pause_s=0.002))
    rate, *_ = _told(large)
    return rate, p50, p99


def table(
    head: Sequence[str], rounds: int, measure: Callable[[Bench], tuple[float, ...]], running: dict[str, Bench]
) -> None:
    seen: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            seen[way].append(measure(running[way]))
    for way, values in seen.items():
        columns = [f"{name} {median(value[at] for value in values):.2f}" for at, name in enumerate(head)]
        print(f"  threads = {way:6s} " + ", ".join(columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    asked = parser.parse_args()
    with benches() as running:
        for window in WINDOWS:
            print(f"{window} small requests under way")
            head = ("requests/s", "us of CPU per request", "context switches per request")
            table(head, asked.rounds, lambda bench, w=window: cost(bench, w, asked.seconds), running)  # type: ignore[misc]
        print("4 MB to one stage, small ones to another")
        head = ("large/s", "p50 of the small, ms", "p99, ms")
        table(head, asked.rounds, lambda bench: gain(bench, asked.seconds), running)


if __name__ == "__main__":
    roles: dict[str, Callable[[list[str]], None]] = {
        "broker": lambda args: broker(args[0], args[1]),
        "worker": lambda args: worker(args[0], int(args[1]), int(args[2])),
        "frontend": lambda args: frontend(args[0], int(args[1]), *map(int, args[2:4]), *map(float, args[4:])),
    }
    role = roles.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if role is None:
        main()
    else:
        try:
            role(sys.argv[2:])
        except KeyboardInterrupt:
            sys.exit(1)
