"""Echo: JSON in, the same out, one worker a stage. What the system itself costs, and what it does to a lone request.

All requests of a run have one head and one body of a few bytes, which flatters whoever remembers them: what heads that
change and bodies that weigh something cost stands in :mod:`benchmarks.cases.http`.
"""

from __future__ import annotations

from typing import Final

from benchmarks.closed import BODY, ECHO, METRICS, asked, by_connections
from benchmarks.plan import Service, Stage
from benchmarks.result import Case, Picture, Point, Target, anywhere, at, worst

CONNECTIONS: Final = (1, 16, 64, 256)
ABOUT: Final = (
    f"one worker; closed loop (wrk), `{BODY}` with one head in all requests, so that a connection has to read it only "
    "once (*Heads that change* says what else)."
)


def _full(point: Point) -> bool:
    return point["connections"] in (64, 256)


def _pictures(what: str) -> tuple[Picture, ...]:
    return (
        Picture("rate", "connections", f"Echo, {what}: requests per second"),
        Picture("p50_ms", "connections", f"Echo, {what}: median latency (ms)", log_y=True),
    )


BATCHED_CASE: Final = Case(
    name="echo-batched",
    group="echo",
    title="Echo, batching on",
    about=f"`max_batch_size` 32 and `max_wait_time` 1 ms in both; {ABOUT}",
    by=("connections",),
    metrics=METRICS,
    run=asked(Service((ECHO,)), by_connections(*CONNECTIONS)),
    seconds=2,
    pictures=_pictures("batching on"),
    targets=(
        Target(
            "throughput at 64 and 256 connections, of Mosec's",
            1.5, worst(["rate"], _full, highest=False), at_least=True,
        ),
        Target(
            "throughput at 16 connections, of Mosec's",
            3, worst(["rate"], at(connections=16), highest=False), at_least=True,
        ),
        Target("p50 of one connection, of Mosec's", 0.3, worst(["p50_ms"], at(connections=1))),
    ),
)  # fmt: skip

SINGLE_CASE: Final = Case(
    name="echo-single",
    group="echo",
    title="Echo, batching off",
    about=f"`max_batch_size` 1 in both; {ABOUT}",
    by=("connections",),
    metrics=METRICS,
    run=asked(Service((Stage("Echo", max_batch_size=1),)), by_connections(*CONNECTIONS)),
    seconds=2,
    pictures=_pictures("batching off"),
    targets=(Target("p50 of one connection, of Mosec's", 1.5, worst(["p50_ms"], at(connections=1))),),
)

CHAIN_CASE: Final = Case(
    name="echo-chain",
    group="echo",
    title="Echo, three stages",
    about=f"Three stages, `max_batch_size` 32 and `max_wait_time` 1 ms in each, in both; {ABOUT}",
    by=("connections",),
    metrics=METRICS,
    run=asked(Service((ECHO,) * 3), by_connections(64, 256)),
    seconds=2,
    pictures=_pictures("three stages"),
    targets=(
        Target(
            "throughput at 64 and 256 connections, of Mosec's",
            1.3, worst(["rate"], anywhere, highest=False), at_least=True,
        ),
    ),
)  # fmt: skip

CASES: Final = (BATCHED_CASE, SINGLE_CASE, CHAIN_CASE)
