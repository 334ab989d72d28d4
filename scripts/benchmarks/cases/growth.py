"""What a request costs as a deployment grows: workers, stages, connections, routes.

The offered rate stays the same while one thing grows, so any rise in CPU per request or in latency is the price of that
thing alone, what idle processes cost included. Starting 64 workers takes longer than measuring them: each point is
started once and its repeats are windows of the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.bench import open_values
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, PEER, Case, Metric, Picture, Row, Target, grown

if TYPE_CHECKING:
    from benchmarks.bench import Bench

NAP: Final = '{"s": 0.002}'
ECHO: Final = '{"x": 2}'
POOL: Final = 64  # connections, where they are not what grows
RATE: Final = 250.0  # requests per second; half of what one worker asleep for 2 ms can do

METRICS: Final = (
    Metric("cpu_us", "CPU, us/request", digits=0),
    Metric("p50_ms", "p50, ms"),
    Metric("p99_ms", "p99, ms"),
    Metric("lag_p99_ms", "client's own lag, p99, ms", "neither"),
)


def _workers(number: int) -> Service:
    return Service((Stage("Nap", num=number),))


def _stages(number: int) -> Service:
    return Service((Stage("Echo", max_batch_size=32, max_wait_ms=1),) * number)


def _connections(_number: int) -> Service:
    return _stages(1)


def _routes(number: int) -> Service:
    return Service(_stages(1).stages, paths=tuple(f"/route{index}" for index in range(number)))


def _run(
    axis: str, sizes: Sequence[int], service: Callable[[int], Service], body: str
) -> Callable[[Bench], Iterator[Row]]:
    def run(bench: Bench) -> Iterator[Row]:
        for size in sizes:
            connections = size if axis == "connections" else POOL
            for system in (OURS, PEER):
                bench.say(f"{axis} {size}")
                with bench.started(system, service(size), body) as running:
                    bench.open(running, body, RATE, repeat=-1, connections=connections, seconds=0.5)  # warm-up
                    for repeat in range(bench.repeats):
                        outcome, window = bench.open(running, body, RATE, repeat=repeat, connections=connections)
                        yield Row(system, repeat, {axis: size}, open_values(outcome) | window.per_request(outcome.sent))

    return run


def _case(
    axis: str,
    sizes: Sequence[int],
    service: Callable[[int], Service],
    about: str,
    targets: tuple[Target, ...],
    body: str = ECHO,
) -> Case:
    return Case(
        name=f"growth-{axis}",
        group="growth",
        title=f"Growth: {axis}",
        about=f"{about} Open loop, {RATE:g} requests/s throughout.",
        by=(axis,),
        metrics=METRICS,
        run=_run(axis, sizes, service, body),
        seconds=1.5,
        pictures=(
            Picture("cpu_us", axis, f"CPU per request (us) as {axis} grow"),
            Picture("p99_ms", axis, f"99th percentile (ms) as {axis} grow"),
        ),
        targets=targets,
    )


CASES: Final = (
    _case(
        "workers", (1, 4, 16, 64), _workers,
        "One stage whose workers sleep 2 ms per request, one request at a time.",
        (Target("CPU per request, 64 workers by 1", 1.3, grown("cpu_us", {"workers": 1}, {"workers": 64})),),
        body=NAP,
    ),
    _case("stages", (1, 2, 4, 8), _stages, "A chain of echo stages, one worker each, batching on.", ()),
    _case(
        "connections", (1, 64, 1000, 4000), _connections,
        "One echo stage; all connections are open and take turns.",
        (Target("p99, 4,000 connections by 64", 1.3, grown("p99_ms", {"connections": 64}, {"connections": 4000})),),
    ),
    _case("routes", (1, 8, 32), _routes, "Routes that share one echo stage and take turns.", ()),
)  # fmt: skip
