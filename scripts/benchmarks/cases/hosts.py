"""What one broker carries for workers of other hosts, in clear text and under a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from benchmarks import processes, ration
from benchmarks.closed import BODY, WARM_UP_S
from benchmarks.fleet import Play, served
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, Case, Metric, Point, Row, Summary, Target, at, divided
from engine.addresses import free_ports
from engine.keyfile import make

if TYPE_CHECKING:
    from benchmarks.bench import Bench

WORKERS: Final = (1, 8, 64, 256)
BATCHES: Final = (1, 8, 32)
CEILINGS: Final = {1: 60, 8: 20, 32: 12}  # us
RATES: Final = {1: 3000.0, 8: 8000.0, 32: 15000.0}  # items/s that workers could do together: the player keeps up
LONGEST_S: Final = 0.5  # for a batch
SIZE: Final = 300
PLAIN, KEYED = "plain", "key"
ALONE, BESIEGED = "none", "knocking"
WHERE: Final = (ALONE, BESIEGED)
KNOCKS: Final = 200.0  # a second: a thousand in the seconds of a run
LARGE: Final = 4 << 20
FILE: Final = """
[engine]
name = "hosts"
bind = "tcp://127.0.0.1:{port}"
lanes = 300
{link}
run_dir = "{folder}/run"
log_level = "error"
[frontend]
capacity = 100000
capacity_bytes = "4 GiB"
max_request_size = {size}
timeout = 60.0
[[stage]]
name = "encode"
worker = "nobody:Loads"
max_batch_size = {batch}
max_queue_bytes = "4 GiB"
timeout = 60.0
"""
CELL_WORKERS, CELL_CONNECTIONS = 2, 128
SHAPES: Final = ((1, 1), (1, 2), (2, 2))  # brokers, and for how many cells there are workers and clients
FIXED: Final = 5  # ports; lanes take any that are free behind them


LINKS: Final = (PLAIN, KEYED)


def write(folder: Path, link: str, batch: int, size: int) -> Path:
    """The file of a deployment on ports of its own."""
    folder.mkdir(parents=True)
    file = folder / "stages.toml"
    how = "insecure = true"
    if link == KEYED:
        make(str(folder / "deployment.key"))
        how = 'key = "deployment.key"'
    port = free_ports(FIXED, "127.0.0.1")
    file.write_text(FILE.format(port=port, link=how, folder=folder, batch=batch, size=max(2 * size, 1 << 20)))
    return file


def played(bench: Bench, play: Play, batch: int, about: Callable[[str], Point]) -> Iterator[Row]:
    """One broker for each link, in turns."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sl-", dir="/tmp")))  # short, for sockets lie in it
        running = {link: stack.enter_context(served(write(folder / link, link, batch, play.size))) for link in LINKS}
        for repeat in range(bench.repeats):
            for link in LINKS if repeat % 2 else reversed(LINKS):
                rate, cpu_s = running[link].play(play)
                values = {"rate": rate, "broker_us": cpu_s * 1e6}
                if play.size >= LARGE:
                    megabytes = play.size / 1e6
                    values |= {"mb_s": rate * megabytes, "ms_per_mb": cpu_s * 1e3 / megabytes}
                yield Row(OURS, repeat, about(link), values)


def small(bench: Bench) -> Iterator[Row]:
    for batch in BATCHES:
        for workers in WORKERS[1:2] if bench.quick else WORKERS:
            bench.say(f"{workers} workers, batches of {batch}")
            compute_s = min(workers * batch / RATES[batch], LONGEST_S)
            play = Play(workers, compute_s, 2 * workers * batch, SIZE, bench.seconds)
            yield from played(
                bench,
                play,
                batch,
                lambda link, b=batch, w=workers: {"link": link, "batch": b, "workers": w},  # type: ignore[misc]
            )


def large(bench: Bench) -> Iterator[Row]:
    play = Play(8, 0.001, 16, LARGE, bench.seconds)
    yield from played(bench, play, 2, lambda link: {"link": link})


def spread(bench: Bench) -> Iterator[Row]:
    for workers in (1, 8):
        play = Play(workers, 0.02, 3 * 8 * workers, SIZE, bench.seconds)
        yield from played(bench, play, 8, lambda link, w=workers: {"link": link, "workers": w})  # type: ignore[misc]


def strangers(bench: Bench) -> Iterator[Row]:
    """One broker with a key, alone and besieged, in turns."""
    play = Play(8, 0.01, 16, SIZE, bench.seconds, is_timed=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sl-", dir="/tmp")))
        running = stack.enter_context(served(write(folder / KEYED, KEYED, 8, play.size)))
        for repeat in range(bench.repeats):
            for where in WHERE if repeat % 2 else reversed(WHERE):
                with ExitStack() as siege:
                    tries = siege.enter_context(running.besieged(KNOCKS)) if where == BESIEGED else []
                    rate, cpu_s, half_s, most_s = running.timed(play)
                values = {"rate": rate, "broker_us": cpu_s * 1e6, "p50_ms": half_s * 1e3, "p99_ms": most_s * 1e3}
                yield Row(OURS, repeat, {"strangers": where}, {**values, "tries": float(sum(tries))})


def several(bench: Bench) -> Iterator[Row]:
    """Whole deployments, whose brokers have a part of a CPU each, in turns."""
    with ExitStack() as stack:
        running = {}
        for cells, load in SHAPES:
            service = Service((Stage("Echo", num=load * CELL_WORKERS, max_batch_size=32),), cells=cells)
            made = running[cells, load] = stack.enter_context(bench.started(OURS, service, BODY))
            brokers = processes.pids(made.pid, "broker")
            if len(brokers) != cells:
                raise RuntimeError(f"{len(brokers)} brokers, of {cells}")
            stack.enter_context(ration.rationed(ration.LEAST, *brokers))
            bench.closed(made, BODY, CELL_CONNECTIONS, seconds=WARM_UP_S)
        for repeat in range(bench.repeats):
            for cells, load in reversed(SHAPES) if repeat % 2 else SHAPES:
                connections = load * CELL_CONNECTIONS
                report, window = bench.closed(running[cells, load], BODY, connections)
                used = window.cpu_us.get("broker", 0) / 1e6 / window.seconds
                values = {"rate": report.rate, "p50_ms": report.p50_ms, "used": used / (cells * ration.LEAST)}
                point = {"brokers": cells, "workers": load * CELL_WORKERS, "connections": connections}
                yield Row(OURS, repeat, point, values | window.per_request(report.requests))


def two(load: int) -> Callable[[Summary], float | None]:
    """Requests/s of two brokers by those of one that has workers and clients for so many cells."""

    def measure(summary: Summary) -> float | None:
        def rate(brokers: int, load: int) -> float | None:
            workers, connections = load * CELL_WORKERS, load * CELL_CONNECTIONS
            point = {"brokers": brokers, "workers": workers, "connections": connections}
            return summary.value(OURS, point, "rate")

        return divided(rate(2, 2), rate(1, load))

    return measure


def besieged(summary: Summary) -> float | None:
    """The p99 with strangers by that without."""
    return divided(
        summary.value(OURS, {"strangers": BESIEGED}, "p99_ms"), summary.value(OURS, {"strangers": ALONE}, "p99_ms")
    )


def highest(metric: str, where: Callable[[Point], bool]) -> Callable[[Summary], float | None]:
    """At the worst of these points."""
    return lambda summary: max(summary.ours(metric, where), default=None)


def flat(summary: Summary) -> float | None:
    """The CPU of an item with any number of workers from 8 on, by that with 8: the worst."""
    ratios = []
    for point in summary.points():
        if point["workers"] not in (1, 8):
            few = summary.value(OURS, {**point, "workers": 8}, "broker_us")
            ratios.append(divided(summary.value(OURS, point, "broker_us"), few))
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def keyed(summary: Summary) -> float | None:
    """The CPU of an item under a key, by that without: the worst."""
    ratios = [
        divided(
            summary.value(OURS, {**point, "link": KEYED}, "broker_us"),
            summary.value(OURS, {**point, "link": PLAIN}, "broker_us"),
        )
        for point in summary.points()
        if point["link"] == PLAIN
    ]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def eight(summary: Summary) -> float | None:
    """What eight workers do by eight times what one does."""
    found = divided(
        summary.value(OURS, {"link": PLAIN, "workers": 8}, "rate"),
        summary.value(OURS, {"link": PLAIN, "workers": 1}, "rate"),
    )
    return None if found is None else found / 8


ABOUT: Final = (
    "A broker by tcp on loopback, in a process of its own; workers, which wait in the place of computing, and the "
    "frontend are played by another process, so that what is measured is the broker. *key*: all of it authenticated "
    "and encrypted."
)

CASES: Final = (
    Case(
        name="hosts-broker",
        group="hosts",
        title="Many hosts: what one broker carries",
        about=(
            f"{ABOUT} Requests of {SIZE} bytes. A batch takes as long as has all workers do 3,000 items/s in batches "
            "of one, 8,000 of 8 and 15,000 of 32, but half a second at most."
        ),
        by=("link", "batch", "workers"),
        metrics=(
            Metric("broker_us", "CPU of the broker, us/item", digits=1),
            Metric("rate", "items/s", "higher", digits=0),
        ),
        run=small,
        seconds=1.5,
        targets=(
            *(
                Target(
                    f"CPU of the broker in batches of {batch}, us/item, with any number of workers",
                    ceiling,
                    highest("broker_us", at(batch=batch, link=PLAIN)),
                    unit=" us",
                )
                for batch, ceiling in CEILINGS.items()
            ),
            Target("the same with 64 and 256 workers, of that with 8", 1.5, flat),
            Target("the same under a key, of that without, at the worst", 1.1, keyed),
        ),
    ),
    Case(
        name="hosts-large",
        group="hosts",
        title="Many hosts: large values",
        about=f"{ABOUT} Requests of 4 MiB in batches of 2, eight workers that take a millisecond.",
        by=("link",),
        metrics=(
            Metric("mb_s", "MB/s", "higher", digits=0),
            Metric("ms_per_mb", "CPU of the broker, ms/MB", digits=2),
        ),
        run=large,
        seconds=2,
    ),
    Case(
        name="hosts-spread",
        group="hosts",
        title="Many hosts: more workers",
        about=f"{ABOUT} Batches of 8 that take 20 ms each.",
        by=("link", "workers"),
        metrics=(Metric("rate", "items/s", "higher", digits=0),),
        run=spread,
        seconds=2,
        targets=(Target("eight workers, of eight times one", 0.95, eight, at_least=True),),
    ),
    Case(
        name="hosts-strangers",
        group="hosts",
        title="Many hosts: strangers at the ports",
        about=(
            f"{ABOUT} Requests of {SIZE} bytes in batches of 8 that take 10 ms, 16 under way, under a key; and "
            f"{KNOCKS:.0f} tries a second of those who have none, at every port: without a key, with one of their own, "
            "with the broker's public key and one of their own, by HTTP, and silent. All are refused. In turns with "
            "runs without them."
        ),
        by=("strangers",),
        metrics=(
            Metric("p50_ms", "p50, ms", digits=1),
            Metric("p99_ms", "p99, ms", digits=1),
            Metric("rate", "items/s", "higher", digits=0),
            Metric("broker_us", "CPU of the broker, us/item", digits=1),
            Metric("tries", "tries of strangers", "neither", digits=0),
        ),
        run=strangers,
        seconds=5,
        targets=(Target("p99 with strangers, of that without", 1.2, besieged),),
    ),
    Case(
        name="hosts-cells",
        group="hosts",
        title="Many hosts: two brokers where one is full",
        about=(
            f"A scale model, for a machine with few CPUs: each broker is held to {ration.LEAST * 100:.0f} % of a CPU "
            f"by a control group of its own (a quota for each {ration.PERIOD_US // 1000} ms), so that it is what is "
            "full, while the frontend, the workers and the client have more CPU than they need. Brokers share nothing, "
            "so what holds for these parts of a CPU holds for whole ones. `engine up` of an echo in batches of 32 at "
            f"most, wrk. A *cell* is one broker with {CELL_WORKERS} workers and {CELL_CONNECTIONS} connections; shown "
            "as well is one broker with the workers and the connections of two, which has more to do each time that "
            "it wakes, and so needs less for each request."
        ),
        by=("brokers", "workers", "connections"),
        metrics=(
            Metric("rate", "requests/s", "higher", digits=0),
            Metric("p50_ms", "p50, ms", digits=1),
            Metric("used", "of the brokers' CPU, used", "neither", digits=3),
            Metric("cpu_us_broker", "CPU of the brokers, us/request", digits=1),
        ),
        run=several,
        seconds=10,
        targets=(Target("requests/s of two cells, of one", 1.9, two(1), at_least=True),),
        missing=ration.missing,
    ),
)
