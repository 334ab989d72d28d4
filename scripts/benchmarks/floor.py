"""The least a server in Python costs: a protocol under uvloop that answers whatever comes with the same bytes.

    python -m benchmarks.floor [--rounds 5] [--seconds 2] [--connections 64]        (PYTHONPATH=scripts)

It reads nothing: one system call to receive, one to send, and the loop between them. Asked by wrk as the cases are,
with one head in all requests and with one that changes: the server's cost is the floor under any server's, and what
differs between the two is wrk's own. The two take turns; medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, cast

import psutil
import uvloop

from benchmarks import processes, systems, wrk
from benchmarks.cases.http import HEADS
from benchmarks.closed import BODY
from benchmarks.stats import median

ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY.encode(),
)


class Same(asyncio.Protocol):
    """One answer for each read: wrk has one request under way on a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER)


async def serve() -> None:
    """Say the port, and answer until the end of standard input."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Same, "127.0.0.1", 0)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    server.close()


def measure(rounds: int, seconds: float, connections: int) -> dict[str, dict[str, float]]:
    """By head: requests/s, and in us of CPU per request the server, its part outside the kernel, and wrk."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.floor", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in HEADS}
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/inference"
        with tempfile.TemporaryDirectory(prefix="sl-bench-") as folder:
            for turn in range(rounds):
                for name in list(HEADS) if turn % 2 == 0 else reversed(HEADS):
                    before = _cpu_us(process.pid)
                    report = wrk.run(
                        url, BODY, connections=connections, seconds=seconds, folder=Path(folder), head=HEADS[name]
                    )
                    used, own = (after - former for after, former in zip(_cpu_us(process.pid), before, strict=True))
                    seen[name].append((report.rate, used / report.requests, own / report.requests, report.cpu_us))
    finally:
        systems.stop_child(process)
    keys = ("requests/s", "us of the server", "of which outside the kernel", "us of wrk")
    return {
        name: {key: median([value[at] for value in values]) for at, key in enumerate(keys)}
        for name, values in seen.items()
    }


def _cpu_us(pid: int) -> tuple[float, float]:
    """What a process has used so far, and the part of it outside the kernel, which is counted in ticks."""
    return sum(processes.cpu_us(pid).values()), psutil.Process(pid).cpu_times().user * 1e6


def main() -> None:
    """Print one line for each head."""
    if sys.argv[1:] == ["serve"]:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        asyncio.run(serve())
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--connections", type=int, default=64)
    asked = parser.parse_args()
    print(f"{asked.connections} connections, load average before {os.getloadavg()[0]:.1f}")
    for name, values in measure(asked.rounds, asked.seconds, asked.connections).items():
        print(f"  head {name:9s} " + ", ".join(f"{key} {value:,.1f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
