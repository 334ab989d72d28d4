"""A service asked in a closed loop (wrk), in one way after the other: what the cases of echo and of HTTP share.

An :class:`Ask` is one way of asking, a value; :func:`asked` is the run of a case that asks so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks import nginx, wrk
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, Metric, Point, Row

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BODY: Final = '{"x": 2}'
ECHO: Final = Stage("Echo", max_batch_size=32, max_wait_ms=1)
WARM_UP_S: Final = 1.0
WARM_UP_CONNECTIONS: Final = 16

METRICS: Final = (
    Metric("rate", "requests/s", "higher", digits=0),
    Metric("p50_ms", "p50, ms", digits=3),
    Metric("p99_ms", "p99, ms", digits=3),
    Metric("cpu_us", "CPU, us/request", digits=1),
    Metric("cpu_us_frontend", "- frontend", "neither", digits=1),
    Metric("cpu_us_broker", "- broker", "neither", digits=1),
    Metric("cpu_us_server", "- server (Rust)", "neither", digits=1),
    Metric("cpu_us_worker", "- worker", "neither", digits=1),
)
CLIENT: Final = (
    Metric("client_us", "CPU of the client (wrk), us/request", "neither", digits=1),
    Metric("client_busy", "client's share of a CPU", "neither"),  # at 1 it would be what is measured
)


@dataclass(frozen=True)
class Ask:
    """One way of asking, at one point of a case; ``way``: by nginx."""

    point: Point
    connections: int
    body: str = BODY
    head: wrk.Head = wrk.USUAL
    way: nginx.Way | None = None


def echoed(body: str, answer: bytes) -> bool:
    """Whether an echo was one."""
    same: bool = json.loads(answer) == json.loads(body)
    return same


def asked(
    service: Service, asks: Sequence[Ask], *, right: Callable[[str, bytes], bool] = echoed, grown_s: float = 0.0
) -> Callable[[Bench], Iterator[Row]]:
    """The run of a case: each system is started, and asked in every way.

    It raises RuntimeError where the answer to a body is not ``right``: what is measured would not be the same.
    ``grown_s``: for so long ours is loaded before, to have as many brokers as it then has.
    """

    def run(bench: Bench) -> Iterator[Row]:
        for repeat, system in bench.turns():
            with bench.started(system, service, asks[0].body) as running:
                bench.closed(running, asks[0].body, WARM_UP_CONNECTIONS, seconds=WARM_UP_S)
                if grown_s and system == OURS:
                    bench.closed(running, asks[-1].body, asks[-1].connections, seconds=grown_s)
                for ask in asks:
                    with ExitStack() as stack:
                        seen = running
                        if ask.way is not None:
                            seen = stack.enter_context(bench.proxied(running, ask.way, ask.body))
                            bench.closed(seen, ask.body, WARM_UP_CONNECTIONS, seconds=WARM_UP_S)
                        if not right(ask.body, bench.answer(seen, ask.body)):
                            raise RuntimeError(f"{system}: a wrong answer at {dict(ask.point)}")
                        report, window = bench.closed(seen, ask.body, ask.connections, head=ask.head)
                    values = {"rate": report.rate, "p50_ms": report.p50_ms, "p99_ms": report.p99_ms}
                    values |= {"client_us": report.cpu_us, "client_busy": report.cpu_us * report.rate / 1e6}
                    yield Row(system, repeat, ask.point, values | window.per_request(report.requests))

    return run


def by_connections(*numbers: int, **how: Any) -> tuple[Ask, ...]:  # Ask's other fields
    """The same at several numbers of connections."""
    return tuple(Ask({"connections": number}, number, **how) for number in numbers)
