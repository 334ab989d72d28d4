"""A forward that needs the interpreter: what a system does beside it, it does at its cost. No GPU is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.offline import OFFLINE, offline
from benchmarks.result import Case, Picture, Row, Target, anywhere, worst
from benchmarks.saturation import BATCH, METRICS, Load, beside_the_loop, slowest_forward
from benchmarks.work import LAUNCHES, LAUNCHES_VARIABLE, TOKENS

if TYPE_CHECKING:
    from benchmarks.bench import Bench

FORWARD_MS: Final = 5.0
LOOK_S: Final = 2.0
LOAD: Final = Load("Launches", connections=4 * BATCH)


@contextmanager
def so_many(bench: Bench) -> Iterator[None]:
    """For whoever is started in the block: as many operations as take that long on this machine."""
    with offline(bench, LOAD.service(1, 1), LOAD.work, BATCH) as loop:
        took_ms = median([(batch.end_ns - batch.begin_ns) / 1e6 for batch in loop.batches(LOOK_S)])
    former = os.environ.get(LAUNCHES_VARIABLE)
    os.environ[LAUNCHES_VARIABLE] = f"{round(LAUNCHES * FORWARD_MS / took_ms)}"
    try:
        yield
    finally:
        del os.environ[LAUNCHES_VARIABLE]
        if former is not None:
            os.environ[LAUNCHES_VARIABLE] = former


def run(bench: Bench) -> Iterator[Row]:
    with so_many(bench):
        yield from beside_the_loop(LOAD)(bench)


CASE: Final = Case(
    name="launch-bound",
    group="launch-bound",
    title="A forward that needs the interpreter",
    about=(
        f"Batches of {BATCH}: as many short operations of torch as take {FORWARD_MS:g} ms on the machine, each of "
        f"which lets the interpreter go, as launching kernels does; the stage before makes arrays of {TOKENS} tokens, "
        "alone or in batches. Closed loop (wrk). *offline* is the plain loop."
    ),
    by=("workers", "batch before"),
    metrics=METRICS,
    run=run,
    seconds=3,
    pictures=(Picture("rate", "batch before", "A forward that needs the interpreter: items per second"),),
    targets=(
        Target(
            "items/s at saturation, of the plain loop's",
            0.97, worst(["rate"], anywhere, to=OFFLINE, highest=False), at_least=True,
        ),
        Target("time of a forward, of the plain loop's", 1.03, slowest_forward),
    ),
)  # fmt: skip
