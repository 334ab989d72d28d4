"""A work at saturation beside its plain loop: what serving it costs. What the cases with a loop to compare with share.

The service has a stage that makes what the work takes, one value at a time or in batches, and the work's own stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from benchmarks import record
from benchmarks.offline import OFFLINE, offline
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, PEER, Metric, Point, Row, Summary, divided
from benchmarks.stats import median, percentile

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BODY: Final = '{"x": 2}'
BATCH: Final = 64
BEFORE: Final = (1, 16)  # batch size of the stage before
SETTLE_S: Final = 3.0  # for what a system finds out while it runs
TIMEOUT_S: Final = 60.0

METRICS: Final = (
    Metric("rate", "items/s", "higher", digits=0),
    Metric("rate", "of the plain loop's", "higher", to=OFFLINE),
    Metric("forward_ms", "forward of a full batch, p50, ms"),
    Metric("gap_p50_us", "gap p50, us", digits=0),
    Metric("mean_batch", "mean batch size", "higher", digits=1),
)


@dataclass(frozen=True)
class Load:
    """``work`` names a class of :mod:`benchmarks.work` that takes what Tokens gives and has a ``batch``."""

    work: str
    connections: int
    workers: Sequence[int] = (1,)

    def service(self, workers: int, before: int) -> Service:
        stages = (
            Stage("Tokens", max_batch_size=before),
            Stage(self.work, num=workers, max_batch_size=BATCH),
        )
        return Service(stages, timeout_s=TIMEOUT_S)

    def points(self) -> Iterator[tuple[Point, Service]]:
        for workers in self.workers:
            for before in BEFORE:
                yield {"workers": workers, "batch before": before}, self.service(workers, before)


def beside_the_loop(load: Load) -> Callable[[Bench], Iterator[Row]]:
    """The run of a case: the loop, and each system at each point, in turns."""

    def run(bench: Bench) -> Iterator[Row]:
        with offline(bench, load.service(1, 1), load.work, BATCH) as loop:
            for repeat, contender in bench.turns((OFFLINE, OURS, PEER)):
                if contender == OFFLINE:
                    values = measured([loop.batches(bench.seconds)])
                    yield from (Row(OFFLINE, repeat, point, values) for point, _ in load.points())
                    continue
                for point, service in load.points():
                    with bench.started(contender, service, BODY) as running:
                        bench.closed(running, BODY, load.connections, seconds=SETTLE_S)
                        _, window = bench.closed(running, BODY, load.connections)
                        workers = bench.batches(running, window).values()
                    yield Row(contender, repeat, point, measured(workers))

    return run


def measured(workers: Iterable[Sequence[record.Batch]]) -> dict[str, float]:
    """As values of a row: of each worker its batches, in order."""
    workers = list(workers)
    batches = list(chain.from_iterable(workers))
    full = [batch for batch in batches if batch.items == BATCH]
    gaps = list(chain.from_iterable(record.gaps_us(own, BATCH) for own in workers))
    rates = [rate for own in workers if (rate := record.items_per_second(own)) is not None]
    values: dict[str, float] = {}
    if full:
        values["forward_ms"] = median([(batch.end_ns - batch.begin_ns) / 1e6 for batch in full])
    if gaps:
        values["gap_p50_us"] = percentile(gaps, 50)
    if rates:
        values["rate"] = sum(rates)
    if (mean := record.mean_items(batches)) is not None:
        values["mean_batch"] = mean
    return values


def slowest_forward(summary: Summary) -> float | None:
    """The median time of a full batch, of the plain loop's: where it is longest."""
    found = [
        divided(summary.value(OURS, point, "forward_ms"), summary.value(OFFLINE, point, "forward_ms"))
        for point in summary.points()
    ]
    return max([ratio for ratio in found if ratio is not None], default=None)
