"""Echo on a machine with many cores: what one broker carries, what several do, and those that come by themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from benchmarks.closed import BODY, METRICS, asked, by_connections
from benchmarks.plan import Service, Stage
from benchmarks.result import PEER, Case, Picture, Row, Target, at, worst

if TYPE_CHECKING:
    from benchmarks.bench import Bench

LEAST_CPUS: Final = 8
CONNECTIONS: Final = (64, 256, 1024)
AUTO: Final = "auto"
SHAPES: Final = ((1, AUTO), (4, AUTO), (4, 1), (4, 2), (4, 4))  # workers, and Stageline's cells
GROWN_S: Final = 75.0  # of load, in which there may be twice as many brokers, twice


def missing() -> str | None:
    """Why the case cannot be measured here, or None."""
    cpus = len(os.sched_getaffinity(0))
    return None if cpus >= LEAST_CPUS else f"{cpus} CPUs: needs {LEAST_CPUS}, for one broker to be what is full"


def shaped() -> Callable[[Bench], Iterator[Row]]:
    """Each shape of the service as :func:`benchmarks.closed.asked` has it."""
    runs = [
        (
            {"workers": workers, "cells": cells},
            asked(
                Service((Stage("Echo", num=workers, max_batch_size=32),), cells=0 if cells == AUTO else int(cells)),
                by_connections(*CONNECTIONS),
                grown_s=GROWN_S if cells == AUTO and workers > 1 else 0.0,
            ),
        )
        for workers, cells in SHAPES
    ]

    def run(bench: Bench) -> Iterator[Row]:
        for shape, each in runs:
            for row in each(bench):
                yield Row(row.system, row.repeat, {**shape, **row.point}, row.values)

    return run


CASE: Final = Case(
    name="cores",
    group="cores",
    title="Echo on many cores",
    about=(
        f"`max_batch_size` 32, everything else at its defaults; closed loop (wrk), `{BODY}`. Cells are Stageline's "
        f"brokers: so many, or as many as there are by themselves after {GROWN_S:.0f} s of load. {PEER.capitalize()} "
        "has no such thing and is measured beside each."
    ),
    by=("workers", "cells", "connections"),
    metrics=METRICS,
    run=shaped(),
    seconds=2,
    pictures=(Picture("rate", "connections", "Echo on many cores: requests per second"),),
    targets=(
        Target("requests/s, of Mosec's", 2, worst(["rate"], at(cells=AUTO), highest=False), at_least=True),
        Target("the same with two cells", 2, worst(["rate"], at(cells=2), highest=False), at_least=True),
        Target("the same with four", 2, worst(["rate"], at(cells=4), highest=False), at_least=True),
    ),
    missing=missing,
)
