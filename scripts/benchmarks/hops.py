"""What the hops of a request cost without any rule on the way: HTTP, a parcel to a broker, to a worker, and back.

    python -m benchmarks.hops [--rounds 3] [--seconds 2] [--connections 1]        (PYTHONPATH=scripts)

The frontend, the broker and the worker only hand a parcel of 200 bytes on, by the sockets that Stageline has between
them: ZeroMQ's, and the unix ones that take their place within a host. *four*: as it is, results pass the broker again;
*three*: the worker sends them to the frontend itself. Latencies that wrk sees; medians over the rounds, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, cast

import uvloop

from benchmarks import systems, wrk
from benchmarks.closed import BODY
from benchmarks.floor import ANSWER
from benchmarks.stats import median
from engine import transport
from engine.core.wire import Buffer

WAYS: Final = {"unix": 0, "zeromq": -1}
HOPS: Final = {"four": True, "three": False}
PARCEL: Final = b"x" * 200


def sockets(folder: str, way: str) -> transport.Endpoints:
    """Where a broker would have them; ``intake`` 0 stands for the frontend's own. Descriptor 0 ends everybody."""
    return transport.ways(transport.Endpoints(folder, ("work",)))[WAYS[way]]


def _send(sock: transport.Socket, frames: Sequence[Buffer]) -> None:
    while not transport.send(sock, frames):
        time.sleep(0.001)  # until the first connection


def broker(folder: str, way: str, passes: bool) -> None:
    ctx, ends = transport.context(), sockets(folder, way)
    front = transport.router(ctx, ends.front)
    egress = transport.pull(ctx, ends.egress)
    lane = transport.lane(ctx, ends.lane(0, 1))
    poller = transport.poller(front)
    poller.register(egress, transport.READABLE)
    poller.register(0, transport.READABLE)
    print("listening", flush=True)
    while 0 not in dict(poller.poll()):
        while (parcel := transport.recv(front)) is not None:
            _send(lane, parcel)
        while passes and (parcel := transport.recv(egress)) is not None:
            transport.send(front, parcel[1:], to=bytes(parcel[0]))
    os._exit(0)


def worker(folder: str, way: str, passes: bool) -> None:
    ctx, ends = transport.context(), sockets(folder, way)
    lane = transport.lane_end(ctx, ends.lane(0, 1))
    out = transport.push(ctx, ends.egress if passes else ends.intake(0))
    poller = transport.poller(lane)
    poller.register(0, transport.READABLE)
    while 0 not in dict(poller.poll()):
        while (parcel := transport.recv(lane)) is not None:
            _send(out, parcel if passes else parcel[1:])
    os._exit(0)


async def frontend(folder: str, way: str, passes: bool) -> None:
    """Say the port, and answer until the end of standard input."""
    loop = asyncio.get_running_loop()
    ctx, ends = transport.context(), sockets(folder, way)
    front = transport.push(ctx, ends.front) if way == "unix" else transport.dealer(ctx, ends.front)
    results = front if passes else transport.pull(ctx, ends.intake(0))
    waiting: deque[asyncio.Transport] = deque()

    def read() -> None:
        while transport.recv(results) is not None:
            connection = waiting.popleft()
            if not connection.is_closing():  # wrk ends with a request under way
                connection.write(ANSWER)

    class Asked(asyncio.Protocol):
        def connection_made(self, connection: asyncio.BaseTransport) -> None:
            self.connection = cast("asyncio.Transport", connection)  # uvloop's is no subclass

        def data_received(self, data: bytes) -> None:
            waiting.append(self.connection)
            _send(front, [PARCEL])
            read()

    loop.add_reader(results.fileno(), read)
    server = await loop.create_server(Asked, "127.0.0.1", 0)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    os._exit(0)


@contextmanager
def chain(way: str, hops: str) -> Iterator[int]:
    """The three, and the port that they are asked at."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sl-"))
        told = ""
        for part in ("broker", "frontend", "worker"):
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.hops", part, folder, way, hops],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(systems.stop_child, process)
            if part != "worker":
                assert process.stdout is not None
                told = process.stdout.readline()
        yield int(told)


def measure(rounds: int, seconds: float, connections: int) -> dict[str, tuple[float, float]]:
    """By sockets and hops: p50 in us, and requests/s."""
    kinds = [(way, hops) for way in WAYS for hops in HOPS]
    seen: dict[str, list[tuple[float, float]]] = {f"{way}, {hops} hops": [] for way, hops in kinds}
    for turn in range(rounds):
        for way, hops in kinds if turn % 2 == 0 else reversed(kinds):
            with chain(way, hops) as port, tempfile.TemporaryDirectory(prefix="sl-bench-") as folder:
                url = f"http://127.0.0.1:{port}/"
                for taken in (0.5, seconds):
                    report = wrk.run(url, BODY, connections=connections, seconds=taken, folder=Path(folder))
                seen[f"{way}, {hops} hops"].append((report.p50_ms * 1000, report.rate))
    return {name: (median([p50 for p50, _ in all_]), median([rate for _, rate in all_])) for name, all_ in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.hops", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=1)
    options = parser.parse_args()
    for name, (p50, rate) in measure(options.rounds, options.seconds, options.connections).items():
        print(f"{name:<20}{p50:>8.0f} us{rate:>10.0f} requests/s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["broker"]:
        broker(sys.argv[2], sys.argv[3], HOPS[sys.argv[4]])
    elif sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], sys.argv[3], HOPS[sys.argv[4]])
    elif sys.argv[1:2] == ["frontend"]:
        uvloop.install()
        asyncio.run(frontend(sys.argv[2], sys.argv[3], HOPS[sys.argv[4]]))
    else:
        main()
