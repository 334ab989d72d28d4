"""A real model on the CPU: the packaged MiniLM under each system, and in a plain loop as the ceiling.

Loading torch and the model takes longer than measuring, so all systems are started once and take turns; those whose
turn it is not are idle. LitServe's workers ask for requests a thousand times a second, which would cost the others a
good part of a CPU: its processes are suspended until its turn.

Throughput is read from the times the workers wrote, whole batches only: a window of a few seconds holds few batches,
and counting answers would err by the one cut at its edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Final

from benchmarks import record, systems
from benchmarks.bench import open_values
from benchmarks.offline import OFFLINE, offline
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, PEER, Case, Metric, Picture, Point, Row, Target, worst
from benchmarks.work import TEXT

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BATCH: Final = 16
BODY: Final = f'{{"text": "{TEXT}"}}'
SERVICE: Final = Service((Stage("Embed", max_batch_size=BATCH, max_wait_ms=10),), timeout_s=60)
CONNECTIONS: Final = 4 * BATCH
LOADS: Final = (50, 80)  # percent of the ceiling measured in the same run
SATURATED: Final = "closed loop"
POLLING: Final = "litserve"  # not idle when it has nothing to do


def run(bench: Bench) -> Iterator[Row]:
    with ExitStack() as stack:
        loop = stack.enter_context(offline(bench, SERVICE, "Embed", BATCH))
        running = {
            system: stack.enter_context(bench.started(system, SERVICE, BODY)) for system in (OURS, PEER, POLLING)
        }
        systems.suspend(running[POLLING])
        stack.callback(systems.resume, running[POLLING])
        ceilings = []
        for repeat, contender in bench.turns((OFFLINE, *running)):
            bench.say(f"measuring {contender}")
            if contender == OFFLINE:
                rate = record.items_per_second(loop.batches(bench.seconds))
                assert rate is not None  # of two batches at least
                ceilings.append(rate)
                yield Row(OFFLINE, repeat, {"load": SATURATED}, {"rate": ceilings[-1]})
                continue
            if contender == POLLING:
                systems.resume(running[POLLING])
            yield from _served(bench, running[contender], repeat, ceilings[0])
            if contender == POLLING:
                systems.suspend(running[POLLING])


def _served(bench: Bench, running: systems.Running, repeat: int, ceiling: float) -> Iterator[Row]:
    report, window = bench.closed(running, BODY, CONNECTIONS)
    batches = list(chain.from_iterable(bench.batches(running, window).values()))
    rate, mean = record.items_per_second(batches), record.mean_items(batches)
    values = {"p50_ms": report.p50_ms, "p99_ms": report.p99_ms}
    if rate is not None and mean is not None:
        values |= {"rate": rate, "mean_batch": mean}
    yield Row(running.system, repeat, {"load": SATURATED}, values)
    systems.post(running.port, running.service.paths[0], BODY)  # what wrk left behind is computed before this one
    for percent in LOADS:
        outcome, window = bench.open(running, BODY, ceiling * percent / 100, repeat=repeat, connections=512)
        values = open_values(outcome)
        batches = list(chain.from_iterable(bench.batches(running, window).values()))
        if (mean := record.mean_items(batches)) is not None:
            values["mean_batch"] = mean
        yield Row(running.system, repeat, {"load": f"{percent} % of ceiling"}, values)


def _at(load: str) -> Callable[[Point], bool]:
    return lambda point: point["load"] == load


CASE: Final = Case(
    name="model",
    group="model",
    title="A real model: MiniLM on the CPU",
    about=(
        f"`model.encode(batch)` of all-MiniLM-L6-v2, batch {BATCH}, texts of 16 tokens, the same number of torch "
        "threads everywhere. *offline* is the plain loop. Closed loop: wrk; then open loops at shares of the ceiling."
    ),
    by=("load",),
    metrics=(
        Metric("rate", "texts/s", "higher", digits=1),
        Metric("p50_ms", "p50, ms", digits=1),
        Metric("p99_ms", "p99, ms", digits=1),
        Metric("mean_batch", "mean batch size", "neither", digits=1),
        Metric("lag_p99_ms", "client's own lag, p99, ms", "neither"),
    ),
    run=run,
    seconds=2,
    pictures=(
        Picture("rate", "load", "MiniLM: texts per second at saturation"),
        Picture("p99_ms", "load", "MiniLM: 99th percentile (ms)"),
    ),
    targets=(
        Target(
            "texts/s at saturation, of the offline loop's",
            0.95, worst(["rate"], _at(SATURATED), to=OFFLINE, highest=False), at_least=True,
        ),
        Target(
            "p99 at the same rate, of Mosec's", 1, worst(["p99_ms"], lambda point: point["load"] != SATURATED)
        ),
    ),
)  # fmt: skip
