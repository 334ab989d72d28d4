"""What holding costs: memory per idle connection, and per request that waits."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from benchmarks import processes
from benchmarks.load import parse, request
from benchmarks.plan import Service, Stage
from benchmarks.result import Case, Metric, Row
from benchmarks.systems import Running

if TYPE_CHECKING:
    from benchmarks.bench import Bench

CONNECTIONS: Final = 1000
PADDING: Final = "x" * 1000  # a request that waits is a little over 1 kB
QUICK: Final = f'{{"s": 0, "pad": "{PADDING}"}}'
SLOW: Final = f'{{"s": 1.5, "pad": "{PADDING}"}}'


def run(bench: Bench) -> Iterator[Row]:
    service = Service((Stage("Nap"),), timeout_s=3600)
    for repeat, system in bench.turns():
        with bench.started(system, service, QUICK) as running, ExitStack() as stack:
            bare = _used(running)
            connections = [_connected(stack, running) for _ in range(CONNECTIONS)]
            for connection in connections:  # each has been used once, as kept-alive connections have
                _ask(connection, running, QUICK)
                _await(connection)
            idle = _used(running)
            queued = _queued(connections, running)
            yield Row(
                system, repeat, {"connections": CONNECTIONS},
                {"start_mib": bare / 1024, "idle_kib": (idle - bare) / CONNECTIONS,
                 "queued_kib": (queued - idle) / CONNECTIONS},
            )  # fmt: skip


def _used(running: Running) -> int:
    return sum(processes.memory_kib(running.pid).values())


def _connected(stack: ExitStack, running: Running) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=30))


def _ask(connection: socket.socket, running: Running, body: str) -> None:
    connection.sendall(request(running.service.paths[0], body))


def _await(connection: socket.socket) -> None:
    data = b""
    while (found := parse(data)) is None:
        received = connection.recv(65536)
        if not received:
            raise RuntimeError("a connection was closed that should have been kept")
        data += received
    if found[0] != 200:
        raise RuntimeError(f"expected 200, got {found[0]}")


def _queued(connections: list[socket.socket], running: Running) -> int:
    """Memory used while all but two requests wait.

    Two slow requests come first. When the first is answered, all others have long been in the queue, and while the
    worker sleeps through the second, memory is read.
    """
    for index, connection in enumerate(connections):
        _ask(connection, running, SLOW if index < 2 else QUICK)
    _await(connections[0])
    used = _used(running)
    if select.select([connections[1]], [], [], 0)[0]:
        raise RuntimeError("reading the memory took longer than the queue lasted")
    for connection in connections[1:]:
        _await(connection)
    return used


CASE: Final = Case(
    name="growth-memory",
    group="growth",
    title="Memory per connection and per queued request",
    about=(
        f"{CONNECTIONS:,} connections, then one request of 1 kB on each while the only worker sleeps. Memory that is "
        "the processes' own (USS), all processes of the system together."
    ),
    by=("connections",),
    metrics=(
        Metric("start_mib", "before, MiB", digits=0),
        Metric("idle_kib", "per idle connection, KiB", digits=1),
        Metric("queued_kib", "per queued request, KiB", digits=1),
    ),
    run=run,
    seconds=1,
)
