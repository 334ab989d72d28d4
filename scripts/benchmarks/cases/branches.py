"""Pages of few lines and of many, whose lines are read by themselves: as parts of a route, by calls between services,
with all steps in one worker, and in a plain loop.

Each system is started anew for each measurement: what is under way when the client ends would be computed beside the
next one's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

from benchmarks import pages, record
from benchmarks.offline import OFFLINE, offline
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, PEER, Case, Metric, Row, Target, anywhere, worst
from benchmarks.systems import CALLS

if TYPE_CHECKING:
    from benchmarks.bench import Bench

CONNECTIONS: Final = 16
BODIES: Final = tuple(json.dumps({"page": page}) for page in range(len(pages.LINES)))
CHECKED: Final = pages.LINES.index(8)
SYSTEMS: Final = (OURS, PEER, CALLS, OFFLINE)


def services(kind: str, readers: int) -> dict[str, Service]:
    """Of the steps of a kind, by system. There are two CPUs' worth of processes for what computes."""
    find, join = Stage(f"{kind}Find", num=2), Stage(f"{kind}Join")
    read = Stage(f"{kind}Read", num=readers, max_batch_size=pages.CROPS, max_wait_ms=10, each="crops")
    whole = Stage(f"{kind}Whole", num=readers, max_batch_size=CONNECTIONS // readers, max_wait_ms=10)
    made = {OURS: (find, read, join), PEER: (whole,), CALLS: (find, read), OFFLINE: (whole,)}
    return {system: Service(stages, timeout_s=120) for system, stages in made.items()}


def check(system: str, answer: bytes) -> None:
    """Raises RuntimeError where it has not all lines of its page: that is no measurement."""
    lines = len(json.loads(answer)["lines"])
    if lines != pages.LINES[CHECKED]:
        raise RuntimeError(f"{system}: {lines} lines of a page of {pages.LINES[CHECKED]}")


def measured(kind: str, readers: int, settle_s: float) -> Callable[[Bench], Iterator[Row]]:
    """The run of a case."""
    of = services(kind, readers)
    point = {"connections": CONNECTIONS}

    def run(bench: Bench) -> Iterator[Row]:
        for repeat, system in bench.turns(SYSTEMS):
            bench.say(f"measuring {system}")
            if system == OFFLINE:
                with offline(bench, of[system], f"{kind}Loop", 1) as loop:
                    rate = record.items_per_second(loop.batches(bench.seconds))
                assert rate is not None  # of two pages at least
                yield Row(system, repeat, point, {"rate": rate})
                continue
            with bench.started(system, of[system], BODIES[0]) as running:
                check(system, bench.answer(running, BODIES[CHECKED]))
                bench.closed(running, BODIES[0], CONNECTIONS, settle_s, bodies=BODIES)
                report, window = bench.closed(running, BODIES[0], CONNECTIONS, bodies=BODIES)
                if report.requests < CONNECTIONS:  # less than one for each: how many is chance, and none has no ratio
                    raise RuntimeError(f"{system}: {report.requests} pages in {bench.seconds:g} s: give more --seconds")
                values = {"rate": report.rate, "p50_ms": report.p50_ms, "p99_ms": report.p99_ms}
                values["cpu_ms"] = sum(window.cpu_us.values()) / max(report.requests, 1) / 1000
                values["broker_ms"] = window.cpu_us.get("broker", 0) / max(report.requests, 1) / 1000
                lines = record.mean_items(list(chain.from_iterable(bench.batches(running, window).values())))
                if lines is not None:
                    values["mean_batch"] = lines
                yield Row(system, repeat, point, values)

    return run


METRICS: Final = (
    Metric("rate", "pages/s", "higher"),
    Metric("rate", "of the plain loop's", "higher", to=OFFLINE),
    Metric("rate", "of the calls'", "higher", to=CALLS),
    Metric("p50_ms", "p50, ms", digits=0),
    Metric("p99_ms", "p99, ms", digits=0),
    Metric("mean_batch", "mean batch of lines", "neither", digits=1),
    Metric("cpu_ms", "CPU, ms/page", digits=1),
    Metric("broker_ms", "- broker", "neither"),
)
TARGETS: Final = (
    Target("pages/s, of calls between services", 1, worst(["rate"], anywhere, to=CALLS, highest=False), at_least=True),
    Target(
        "pages/s, of Mosec's with all steps in one worker", 1, worst(["rate"], anywhere, highest=False), at_least=True
    ),
    Target("pages/s, of the plain loop's", 1, worst(["rate"], anywhere, to=OFFLINE, highest=False), at_least=True),
)
SIDES: Final = (
    f"Pages of {', '.join(map(str, sorted(pages.LINES)))} lines in turns. *stageline*: three stages, the route takes "
    f"each of a page's lines, batches of {pages.CROPS}. *mosec*: all steps in one worker, which takes pages in batches "
    f"of up to {CONNECTIONS} and reads the lines of a batch together. *calls*: a service under uvicorn (2 processes) "
    "finds lines and asks one under Mosec for each of them, all at once. *offline*: a plain loop, page by page. Closed "
    f"loop (wrk), {CONNECTIONS} connections."
)
CASES: Final = (
    Case(
        name="branches-ocr",
        group="branches",
        title="Branches: OCR",
        about=(
            f"The steps and networks of `examples/ocr` on two CPUs. {SIDES} Two processes for each network, and two of "
            "Mosec's worker (up to 8 pages each), with one thread each; the loop is one process with two threads."
        ),
        by=("connections",),
        metrics=METRICS,
        run=measured("", 2, 5),
        seconds=20,
        targets=TARGETS,
    ),
    Case(
        name="branches-device",
        group="branches",
        title="Branches: a pretended device",
        about=(
            f"Finding lines takes {pages.Device.find_s * 1000:g} ms of a CPU, and reading "
            f"{pages.Device.fixed_s * 1000:g} ms for a batch and {pages.Device.line_s * 1000:g} ms for each line, in "
            f"which the one device leaves the CPUs free; a line's picture has 29 kB. {SIDES}"
        ),
        by=("connections",),
        metrics=METRICS,
        run=measured("Device", 1, 2),
        seconds=8,
        targets=TARGETS,
    ),
)
