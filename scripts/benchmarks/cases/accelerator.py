"""A simulated accelerator under an open loop: 5 ms per batch and 0.5 ms per item, asleep, so that the CPUs stay free.

Capacity is what full batches reach: workers x 32 items every 21 ms. The bound on admitted requests is three batches per
worker in both systems: one computing, one ready, one forming. More could not be answered within 100 ms, so at
overload a larger bound would turn refusals into late answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

from benchmarks import record
from benchmarks.bench import open_values
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, Case, Metric, Picture, Point, Row, Summary, Target, worst
from benchmarks.work import FIXED_S, PER_ITEM_S

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BODY: Final = '{"x": 2}'
BATCH: Final = 32
WORKERS: Final = (1, 2, 4)
LOADS: Final = (2, 10, 30, 50, 70, 90, 120, 150)  # percent of capacity
ENOUGH: Final = 100  # requests: at low rates a window is made longer to hold that many ...
LONGEST: Final = 4  # ... but not more than so many times

METRICS: Final = (
    Metric("p50_ms", "p50, ms"),
    Metric("p99_ms", "p99, ms"),
    Metric("goodput_share", "answered within 100 ms, share of capacity", "higher", digits=3),
    Metric("mean_batch", "mean batch size", "higher", digits=1),
    Metric("refused", "refused, share", "neither", digits=3),
    Metric("refused_p99_ms", "p99 of refusals, ms"),
    Metric("lag_p99_ms", "client's own lag, p99, ms", "neither"),
)


def capacity(workers: int) -> float:
    """Requests per second with every batch full."""
    return workers * BATCH / (FIXED_S + PER_ITEM_S * BATCH)


def window_s(rate: float, seconds: float) -> float:
    """How long to measure at a rate."""
    return min(max(seconds, ENOUGH / rate), seconds * LONGEST)


def _run(workers: int) -> Callable[[Bench], Iterator[Row]]:
    bound = 3 * BATCH * workers
    service = Service((Stage("Accelerator", num=workers, max_batch_size=BATCH, max_wait_ms=10),), capacity=bound)

    def run(bench: Bench) -> Iterator[Row]:
        for repeat, system in bench.turns():
            with bench.started(system, service, BODY) as running:
                bench.open(running, BODY, capacity(workers) / 2, repeat=repeat, connections=bound, seconds=0.5)
                for percent in LOADS:
                    rate = capacity(workers) * percent / 100
                    outcome, window = bench.open(
                        running, BODY, rate,
                        repeat=repeat, connections=2 * bound, seconds=window_s(rate, bench.seconds),
                    )  # fmt: skip
                    values = open_values(outcome)
                    values["goodput_share"] = values["goodput"] / capacity(workers)
                    batches = list(chain.from_iterable(bench.batches(running, window).values()))
                    if (mean := record.mean_items(batches)) is not None:
                        values["mean_batch"] = mean
                    yield Row(system, repeat, {"load %": percent}, values)

    return run


def _up_to(percent: int) -> Callable[[Point], bool]:
    return lambda point: float(point["load %"]) <= percent


def _goodput_at(percent: int) -> Callable[[Summary], float | None]:
    return lambda summary: summary.value(OURS, {"load %": percent}, "goodput_share")


def _refusal_at(percent: int) -> Callable[[Summary], float | None]:
    return lambda summary: summary.value(OURS, {"load %": percent}, "refused_p99_ms")


def _always(_point: Point) -> bool:
    return True


def _targets(workers: int) -> tuple[Target, ...]:
    latencies = ["p50_ms", "p99_ms"]
    targets: tuple[Target, ...] = (Target("p50 and p99 at every rate, of Mosec's", 1, worst(latencies, _always)),)
    if workers == 2:
        targets = (
            Target("p50 and p99 at every rate up to 70 % of capacity, of Mosec's", 0.7, worst(latencies, _up_to(70))),
            *targets,
        )
    if workers == 4:
        targets = (
            *targets,
            Target(
                "mean batch size at every rate, of Mosec's",
                1,
                worst(["mean_batch"], _always, highest=False),
                at_least=True,
            ),
            Target("goodput at 120 %, of capacity", 0.95, _goodput_at(120), at_least=True),
            Target("p99 of refusals at 120 %", 10, _refusal_at(120), unit=" ms"),
        )
    return targets


def _case(workers: int) -> Case:
    them = "1 worker" if workers == 1 else f"{workers} workers"
    return Case(
        name=f"accelerator-{workers}",
        group="accelerator",
        title=f"Simulated accelerator, {them}",
        about=(
            f"`sleep(0.005 + 0.0005 * len(batch))`, batch {BATCH}, {them}: capacity {capacity(workers):,.0f}/s. "
            f"Open loop, Poisson arrivals, latency from the intended send time; {3 * BATCH * workers} requests "
            "admitted at once in both."
        ),
        by=("load %",),
        metrics=METRICS,
        run=_run(workers),
        seconds=1.2,
        pictures=(
            Picture("p50_ms", "load %", f"Simulated accelerator, {them}: median latency (ms)", False, True),
            Picture("p99_ms", "load %", f"Simulated accelerator, {them}: 99th percentile (ms)", False, True),
            Picture("goodput_share", "load %", f"Simulated accelerator, {them}: goodput, share of capacity", False),
            Picture("mean_batch", "load %", f"Simulated accelerator, {them}: mean batch size", False),
        ),
        targets=_targets(workers),
    )


CASES: Final = tuple(map(_case, WORKERS))
