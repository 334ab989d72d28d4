"""A forward that needs the interpreter: what a system does beside it, it does at its cost. No GPU is needed."""

from __future__ import annotations

from typing import Final

from benchmarks.offline import OFFLINE
from benchmarks.result import Case, Picture, Target, anywhere, worst
from benchmarks.saturation import BATCH, METRICS, Load, beside_the_loop, slowest_forward
from benchmarks.work import LAUNCHES, TOKENS

CASE: Final = Case(
    name="launch-bound",
    group="launch-bound",
    title="A forward that needs the interpreter",
    about=(
        f"Batches of {BATCH}: {LAUNCHES:,} short operations of torch, some 5 ms, each of which lets the interpreter "
        f"go, as launching kernels does; the stage before makes arrays of {TOKENS} tokens, alone or in batches. Closed "
        "loop (wrk). *offline* is the plain loop."
    ),
    by=("workers", "batch before"),
    metrics=METRICS,
    run=beside_the_loop(Load("Launches", connections=4 * BATCH)),
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
