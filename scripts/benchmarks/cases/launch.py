"""A forward that needs the interpreter: what a system does beside it, it does at its cost. No GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

from benchmarks import record
from benchmarks.offline import offline
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, PEER, Case, Metric, Picture, Point, Row, Summary, Target, divided, worst
from benchmarks.stats import median, percentile

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BODY: Final = '{"x": 2}'
BATCH: Final = 64
BEFORE: Final = (1, 16)  # batch size of the stage before
CONNECTIONS: Final = 4 * BATCH
OFFLINE: Final = "offline"
SETTLE_S: Final = 3.0  # for what a system finds out while it runs


def run(bench: Bench) -> Iterator[Row]:
    services = {
        size: Service((Stage("Tokens", max_batch_size=size), Stage("Launches", max_batch_size=BATCH)))
        for size in BEFORE
    }
    with offline(bench, services[1], "Launches", BATCH) as loop:
        for repeat, contender in bench.turns((OFFLINE, OURS, PEER)):
            if contender == OFFLINE:
                values = _values(loop.batches(bench.seconds))
                yield from (Row(OFFLINE, repeat, {"batch before": size}, values) for size in BEFORE)
                continue
            for size, service in services.items():
                with bench.started(contender, service, BODY) as running:
                    bench.closed(running, BODY, CONNECTIONS, seconds=SETTLE_S)
                    _, window = bench.closed(running, BODY, CONNECTIONS)
                    batches = list(chain.from_iterable(bench.batches(running, window).values()))
                yield Row(contender, repeat, {"batch before": size}, _values(batches))


def _values(batches: Sequence[record.Batch]) -> dict[str, float]:
    full = [batch for batch in batches if batch.items == BATCH]
    values: dict[str, float] = {}
    if full:
        values["forward_ms"] = median([(batch.end_ns - batch.begin_ns) / 1e6 for batch in full])
    if gaps := record.gaps_us(batches, BATCH):
        values["gap_p50_us"] = percentile(gaps, 50)
    if (rate := record.items_per_second(batches)) is not None:
        values["rate"] = rate
    if (mean := record.mean_items(batches)) is not None:
        values["mean_batch"] = mean
    return values


def _everywhere(_point: Point) -> bool:
    return True


def _slowest_forward(summary: Summary) -> float | None:
    """The median time of a full batch, of the plain loop's."""
    found = [
        divided(summary.value(OURS, point, "forward_ms"), summary.value(OFFLINE, point, "forward_ms"))
        for point in summary.points()
    ]
    return max([ratio for ratio in found if ratio is not None], default=None)


CASE: Final = Case(
    name="launch-bound",
    group="launch-bound",
    title="A forward that needs the interpreter",
    about=(
        f"Batches of {BATCH}: a thousand short operations of torch, some 5 ms, each of which lets the interpreter go, "
        "as launching kernels does; the stage before makes arrays of 64 tokens, alone or in batches. Closed loop "
        "(wrk). *offline* is the plain loop."
    ),
    by=("batch before",),
    metrics=(
        Metric("rate", "items/s", "higher", digits=0),
        Metric("forward_ms", "forward of a full batch, ms"),
        Metric("gap_p50_us", "gap p50, us", digits=0),
        Metric("mean_batch", "mean batch size", "higher", digits=1),
    ),
    run=run,
    seconds=3,
    pictures=(Picture("rate", "batch before", "A forward that needs the interpreter: items per second"),),
    targets=(
        Target(
            "items/s at saturation, of the plain loop's",
            0.97, worst(["rate"], _everywhere, to=OFFLINE, highest=False), at_least=True,
        ),
        Target("time of a forward, of the plain loop's", 1.03, _slowest_forward),
    ),
)  # fmt: skip
