"""Echo: JSON in, the same JSON out, one worker. What the system itself costs, and what it does to a lone request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from benchmarks.plan import Service, Stage
from benchmarks.result import Case, Metric, Picture, Point, Row, Target, worst

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BODY: Final = '{"x": 2}'
CONNECTIONS: Final = (1, 16, 64, 256)
BATCHED: Final = Service((Stage("Echo", max_batch_size=32, max_wait_ms=1),))
SINGLE: Final = Service((Stage("Echo", max_batch_size=1),))

METRICS: Final = (
    Metric("rate", "requests/s", "higher", digits=0),
    Metric("p50_ms", "p50, ms", digits=3),
    Metric("p99_ms", "p99, ms", digits=3),
    Metric("cpu_us", "CPU, us/request", digits=1),
    Metric("cpu_us_frontend", "- frontend", "neither", digits=1),
    Metric("cpu_us_broker", "- broker", "neither", digits=1),
    Metric("cpu_us_server", "- server (Rust)", "neither", digits=1),
    Metric("cpu_us_worker", "- worker", "neither", digits=1),
)


def _run(service: Service) -> Callable[[Bench], Iterator[Row]]:
    def run(bench: Bench) -> Iterator[Row]:
        for repeat, system in bench.turns():
            with bench.started(system, service, BODY) as running:
                bench.closed(running, BODY, connections=16, seconds=1)  # warm-up
                for connections in CONNECTIONS:
                    report, window = bench.closed(running, BODY, connections)
                    values = {"rate": report.rate, "p50_ms": report.p50_ms, "p99_ms": report.p99_ms}
                    values |= window.per_request(report.requests)
                    yield Row(system, repeat, {"connections": connections}, values)

    return run


def _at(*connections: int) -> Callable[[Point], bool]:
    return lambda point: point["connections"] in connections


def _pictures(what: str) -> tuple[Picture, ...]:
    return (
        Picture("rate", "connections", f"Echo, {what}: requests per second"),
        Picture("p50_ms", "connections", f"Echo, {what}: median latency (ms)", log_y=True),
    )


BATCHED_CASE: Final = Case(
    name="echo-batched",
    group="echo",
    title="Echo, batching on",
    about="`max_batch_size` 32 and `max_wait_time` 1 ms in both; one worker; closed loop (wrk).",
    by=("connections",),
    metrics=METRICS,
    run=_run(BATCHED),
    seconds=2,
    pictures=_pictures("batching on"),
    targets=(
        Target(
            "throughput at 64 and 256 connections, of Mosec's",
            1.5, worst(["rate"], _at(64, 256), highest=False), at_least=True,
        ),
        Target("throughput at 16 connections, of Mosec's", 3, worst(["rate"], _at(16), highest=False), at_least=True),
        Target("p50 of one connection, of Mosec's", 0.3, worst(["p50_ms"], _at(1))),
    ),
)  # fmt: skip

SINGLE_CASE: Final = Case(
    name="echo-single",
    group="echo",
    title="Echo, batching off",
    about="`max_batch_size` 1 in both; one worker; closed loop (wrk).",
    by=("connections",),
    metrics=METRICS,
    run=_run(SINGLE),
    seconds=2,
    pictures=_pictures("batching off"),
    targets=(Target("p50 of one connection, of Mosec's", 1.5, worst(["p50_ms"], _at(1))),),
)
