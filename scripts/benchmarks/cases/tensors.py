"""An array from stage 1 to stage 2: what passing tensors costs, beside a bare hand-over through shared memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from benchmarks.plan import Service, Stage
from benchmarks.result import Case, Metric, Picture, Point, Row, Target, worst
from benchmarks.systems import SCRIPTS
from benchmarks.work import TENSOR_MB

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BARE: Final = "bare"  # the hand-over without any system
CONNECTIONS: Final = (1, 8)


def body(megabytes: float) -> str:
    return f'{{"mb": {megabytes:g}}}'


def run(bench: Bench) -> Iterator[Row]:
    service = Service((Stage("Make"), Stage("Total")))
    for repeat, system in bench.turns():
        with bench.started(system, service, body(1)) as running:
            for megabytes in TENSOR_MB:
                for connections in CONNECTIONS:
                    report, window = bench.closed(running, body(megabytes), connections)
                    values = {"rate": report.rate, "p50_ms": report.p50_ms, "p99_ms": report.p99_ms}
                    values |= window.per_request(report.requests)
                    yield Row(system, repeat, {"MB": megabytes, "connections": connections}, values)
    for repeat in range(bench.repeats):
        bench.say("bare hand-over")
        for megabytes in TENSOR_MB:
            for connections in CONNECTIONS:
                yield Row(BARE, repeat, {"MB": megabytes, "connections": connections}, {
                    "rate": handover(megabytes, connections, bench.seconds / 3),
                })  # fmt: skip


def handover(megabytes: float, slots: int, seconds: float) -> float:
    """Hand-overs per second, measured in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.handover", str(megabytes), str(slots), str(seconds)],
        capture_output=True, text=True, check=True, cwd=SCRIPTS, timeout=seconds + 60,
    )  # fmt: skip
    return float(told.stdout)


def _at(megabytes: float, connections: int) -> Callable[[Point], bool]:
    return lambda point: point == {"MB": megabytes, "connections": connections}


CASE: Final = Case(
    name="tensors",
    group="tensors",
    title="Arrays between two stages",
    about=(
        "Stage 1 hands a float32 array to stage 2, which sums it; the HTTP request says the size and the answer is the "
        "sum. Closed loop (wrk), no batching. *bare* is the same copy and sum between two processes with shared memory "
        "and a pipe, as many slots as connections, and no system around it."
    ),
    by=("MB", "connections"),
    metrics=(
        Metric("rate", "arrays/s", "higher", digits=0),
        Metric("p50_ms", "p50, ms"),
        Metric("p99_ms", "p99, ms"),
        Metric("cpu_us", "CPU, us/request", digits=0),
    ),
    run=run,
    seconds=1,
    pictures=(Picture("rate", "MB", "Arrays per second", log_y=True),),
    targets=(
        Target(
            "4 MB, 8 connections: arrays/s, of Mosec's", 10, worst(["rate"], _at(4, 8), highest=False), at_least=True
        ),
        Target(
            "4 MB, 8 connections: arrays/s, of the bare hand-over's",
            0.5, worst(["rate"], _at(4, 8), to=BARE, highest=False), at_least=True,
        ),
    ),
)  # fmt: skip
