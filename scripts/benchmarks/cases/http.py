"""HTTP as it comes in service, not as it is quickest: through a proxy, on connections that do not stay, with bodies
that weigh something, with heads that are never the same twice, answered by a stream. JSON echo but for the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from benchmarks import nginx
from benchmarks.closed import BODY, CLIENT, ECHO, METRICS, Ask, asked, by_connections
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, Case, Metric, Picture, Point, Summary, Target, anywhere, at, worst
from benchmarks.work import EVENTS
from benchmarks.wrk import Head

SERVICE: Final = Service((ECHO,))
BATCHES: Final = "`max_batch_size` 32 and `max_wait_time` 1 ms in both; one worker; closed loop (wrk)"

# Both as long, and with as much work for wrk: only whether they change differs.
TRACED: Final = {
    "x-request-id": "7c0e1b5a-0d4b-4c52-9f6a-%012x",
    "traceparent": "00-4bf92f3577b34da6a3ce%012x-00f0%012x-01",
}
HEADS: Final = {"one": Head(TRACED), "changing": Head(TRACED, changing=True)}


def text(size: int) -> str:
    """A body of ``size`` bytes."""
    frame = '{"text": ""}'
    words = "all work and no play makes a dull test "
    return f"{frame[:-2]}{(words * (size // len(words) + 1))[: size - len(frame)]}{frame[-2:]}"


BODIES: Final = (("1 kB", 1_000, 64), ("100 kB", 100_000, 64), ("1 MB", 1_000_000, 16))


def _ahead(where: Callable[[Point], bool], what: str, metric: str = "rate") -> Target:
    return Target(f"{what}, of Mosec's", 1, worst([metric], where, highest=False), at_least=True)


def _cost_of_change(summary: Summary) -> float | None:
    """The most that a changing head adds to the frontend's CPU per request, in us."""
    found = []
    for point in summary.points():
        if point["head"] == "changing":
            changing = summary.value(OURS, point, "cpu_us_frontend")
            one = summary.value(OURS, {**point, "head": "one"}, "cpu_us_frontend")
            if changing is not None and one is not None:
                found.append(changing - one)
    return max(found, default=None)


NGINX_CASE: Final = Case(
    name="nginx",
    group="http",
    title="Behind nginx",
    about=(
        "nginx before the system, as many of its workers as CPUs. *default*: `proxy_pass` alone, which is HTTP/1.0 and "
        "a connection per request; *keep-alive*: `proxy_http_version 1.1`, `Connection` emptied, connections kept by "
        f"`keepalive` in the upstream. wrk's own connections to nginx stay open. {BATCHES}, 64 connections."
    ),
    by=("proxy",),
    metrics=METRICS,
    run=asked(SERVICE, [Ask({"proxy": way}, 64, way=way) for way in nginx.LOCATION]),
    seconds=2,
    pictures=(Picture("rate", "proxy", "Behind nginx: requests per second"),),
    targets=(
        _ahead(at(proxy="default"), "throughput with nginx's defaults"),
        _ahead(at(proxy="keep-alive"), "throughput with connections kept alive"),
    ),
    missing=nginx.missing,
)

RECONNECT_CASE: Final = Case(
    name="reconnect",
    group="http",
    title="A connection per request",
    about=f"Each request says `connection: close` and comes on a connection of its own. {BATCHES}.",
    by=("connections",),
    metrics=(*METRICS, *CLIENT),
    run=asked(SERVICE, by_connections(16, 64, head=Head({"Connection": "close"}))),
    seconds=2,
    pictures=(Picture("rate", "connections", "A connection per request: requests per second"),),
    targets=(_ahead(anywhere, "throughput"),),
)

BODIES_CASE: Final = Case(
    name="bodies",
    group="http",
    title="Bodies of 1 kB, 100 kB, 1 MB",
    about=f"A text of that length as JSON, there and back. {BATCHES}.",
    by=("body", "connections"),
    metrics=METRICS,
    run=asked(
        SERVICE,
        [
            Ask({"body": name, "connections": connections}, connections, body=text(size))
            for name, size, connections in BODIES
        ],
    ),
    seconds=2,
    pictures=(Picture("rate", "body", "Bodies: requests per second", log_y=True),),
    targets=tuple(_ahead(at(body=name), f"throughput with bodies of {name}") for name, _, _ in BODIES),
)

HEADS_CASE: Final = Case(
    name="heads",
    group="http",
    title="Heads that change",
    about=(
        "Each request has an `x-request-id` and a `traceparent`: *one* the same ones, so that a connection may "
        "remember what it has read, *changing* new ones each time, as clients and proxies send them. wrk puts both "
        f"together in the same way. {BATCHES}, `{BODY}`."
    ),
    by=("head", "connections"),
    metrics=(*METRICS, *CLIENT),
    run=asked(
        SERVICE,
        [
            Ask({"head": name, "connections": connections}, connections, head=head)
            for connections in (64, 256)
            for name, head in HEADS.items()
        ],
    ),
    seconds=2,
    pictures=(Picture("rate", "head", "Heads that change: requests per second"),),
    targets=(
        _ahead(at(head="changing"), "throughput with heads that change"),
        Target("CPU of the frontend for a changing head, beside one head", 2, _cost_of_change, unit=" us"),
    ),
)

SSE_CASE: Final = Case(
    name="sse",
    group="http",
    title="Server-sent events",
    about=(
        f"Streams of {EVENTS} events of a word, a word to each stream of the batch in turn, as a model makes them; "
        f"latency is that of whole streams. {BATCHES}."
    ),
    by=("connections",),
    metrics=(Metric("rate", "streams/s", "higher", digits=0), *METRICS[1:]),
    run=asked(
        Service((Stage("Events", max_batch_size=32, max_wait_ms=1),)),
        by_connections(16, 64),
        right=lambda _body, answer: answer.count(b"data:") == EVENTS,
    ),
    seconds=2,
    pictures=(Picture("rate", "connections", "Server-sent events: streams per second"),),
    targets=(_ahead(anywhere, "throughput"),),
)

CASES: Final = (NGINX_CASE, RECONNECT_CASE, BODIES_CASE, HEADS_CASE, SSE_CASE)
