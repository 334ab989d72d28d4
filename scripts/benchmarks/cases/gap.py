"""How long a worker stands idle between two batches while requests wait: what a device loses to its system."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

from benchmarks import record
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, Case, Metric, Picture, Row, Target
from benchmarks.stats import percentile

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BODY: Final = '{"x": 2}'
BATCH: Final = 32
CONNECTIONS: Final = (128, 256)  # four and eight batches: one computes, the rest wait


def run(bench: Bench) -> Iterator[Row]:
    service = Service((Stage("Accelerator", max_batch_size=BATCH, max_wait_ms=10),))
    for repeat, system in bench.turns():
        with bench.started(system, service, BODY) as running:
            bench.closed(running, BODY, connections=CONNECTIONS[0], seconds=1)  # warm-up
            for connections in CONNECTIONS:
                report, window = bench.closed(running, BODY, connections)
                workers = bench.batches(running, window)
                gaps = list(chain.from_iterable(record.gaps_us(batches, BATCH) for batches in workers.values()))
                values = {"rate": report.rate}
                if gaps:
                    values |= {"gap_p50_us": percentile(gaps, 50), "gap_p99_us": percentile(gaps, 99)}
                if (mean := record.mean_items(list(chain.from_iterable(workers.values())))) is not None:
                    values["mean_batch"] = mean
                yield Row(system, repeat, {"connections": connections}, values)


CASE: Final = Case(
    name="gap",
    group="gap",
    title="Gap between two batches at saturation",
    about=(
        "One simulated accelerator, batch 32, closed loop. Time from the end of `forward` to the beginning of the next "
        "one, before full batches only: their items were waiting."
    ),
    by=("connections",),
    metrics=(
        Metric("gap_p50_us", "gap p50, us", digits=0),
        Metric("gap_p99_us", "gap p99, us", digits=0),
        Metric("rate", "requests/s", "higher", digits=0),
        Metric("mean_batch", "mean batch size", "higher", digits=1),
    ),
    run=run,
    seconds=3,
    pictures=(Picture("gap_p50_us", "connections", "Median gap between two batches (us)", False),),
    targets=(
        Target(
            "median gap, 256 connections",
            150, lambda summary: summary.value(OURS, {"connections": 256}, "gap_p50_us"), unit=" us",
        ),
    ),
)  # fmt: skip
