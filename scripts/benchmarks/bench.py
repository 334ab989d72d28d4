"""What a case is given: systems that start and stop in alternation, clients to load them, and a line of progress."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks import load, nginx, overload, plan, processes, record, systems, wrk
from benchmarks.crowd import Asked
from benchmarks.result import OURS, PEER

SEED = 20_000


@dataclass(frozen=True)
class Window:
    """The time of one measurement, and the CPU microseconds each role used in it."""

    begin_ns: int
    end_ns: int
    cpu_us: dict[str, int]

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9

    def per_request(self, requests: int) -> dict[str, float]:
        """As values of a row: ``cpu_us`` in all, ``cpu_us_ROLE`` for each role that used any."""
        if not requests:
            return {}
        values = {f"cpu_us_{role}": used / requests for role, used in self.cpu_us.items() if used}
        return {"cpu_us": sum(self.cpu_us.values()) / requests, **values}


class Bench:
    """One run of one case."""

    def __init__(
        self,
        *,
        repeats: int,
        seconds: float,
        folder: Path,
        threads: int,
        say: Callable[[str], None],
        quick: bool = False,
        base: Path | None = None,
    ) -> None:
        """``quick``: a case may leave out some of its points. ``base``: a checkout of a former commit."""
        self.repeats = repeats
        self.seconds = seconds
        self.folder = folder
        self.threads = threads
        self.say = say
        self.quick = quick
        self.base = base
        self._numbers = count()

    def turns(self, systems: Sequence[str] = (OURS, PEER)) -> Iterator[tuple[int, str]]:
        """(repeat, system): each repeat begins with another system, so that a drift of the machine hits all alike."""
        for repeat in range(self.repeats):
            shift = repeat % len(systems)
            for system in [*systems[shift:], *systems[:shift]]:
                yield repeat, system

    @contextmanager
    def started(self, system: str, service: plan.Service, body: str) -> Iterator[systems.Running]:
        """See :func:`benchmarks.systems.started`; in a fresh folder. A former commit knows no goals."""
        self.say(f"starting {system}")
        folder = self.folder / f"{next(self._numbers)}"
        root = systems.ROOT
        if system == systems.BASE:
            if self.base is None:
                raise RuntimeError("there is no former commit to measure")
            root, service = self.base, dataclasses.replace(service, slos_ms=())
        with systems.started(system, service, folder, body=body, threads=self.threads, root=root) as running:
            yield running

    @contextmanager
    def proxied(self, running: systems.Running, way: nginx.Way, body: str) -> Iterator[systems.Running]:
        """See :func:`benchmarks.nginx.proxied`; in a fresh folder."""
        with nginx.proxied(running, way, self.folder / f"{next(self._numbers)}", body) as seen:
            yield seen

    def answer(self, running: systems.Running, body: str) -> bytes:
        """To one request. Raises RuntimeError when it is not 200."""
        status, answer = systems.ask(running.port, running.service.paths[0], body)
        if status != 200:
            raise RuntimeError(f"{running.system}: {status} {answer[:200]!r}")
        return answer

    def closed(
        self,
        running: systems.Running,
        body: str,
        connections: int,
        seconds: float | None = None,
        head: wrk.Head = wrk.USUAL,
        path: str = "",
        bodies: Sequence[str] = (),
    ) -> tuple[wrk.Report, Window]:
        """Load in a closed loop, by wrk. ``path``: by default the first; ``bodies``: in turns, instead of one."""
        with self._window(running) as close:
            report = wrk.run(
                f"http://127.0.0.1:{running.port}{path}" if path else running.url,
                body,
                connections=connections,
                seconds=seconds or self.seconds,
                folder=self.folder,
                head=head,
                bodies=bodies,
            )
        return report, close()

    def open(
        self,
        running: systems.Running,
        body: str,
        rate: float,
        *,
        repeat: int,
        connections: int,
        seconds: float | None = None,
    ) -> tuple[load.Outcome, Window]:
        """Load in an open loop. The same repeat offers every system the same arrivals.

        Raises RuntimeError when requests failed: not refused, but cut, wrong, or never answered.
        """
        offered = load.Load(
            port=running.port,
            body=body,
            rate=rate,
            seconds=seconds or self.seconds,
            connections=connections,
            seed=SEED + repeat,
            paths=running.service.paths,
            timeout_s=running.service.timeout_s + 5,
        )
        with self._window(running) as close:
            told = subprocess.run(
                [sys.executable, "-m", "benchmarks.load"],
                input=json.dumps(dataclasses.asdict(offered)), capture_output=True, text=True, check=False,
                env={**os.environ, "PYTHONPATH": str(systems.SCRIPTS)},
            )  # fmt: skip
        if told.returncode != 0:
            raise RuntimeError(f"the open-loop client failed: {told.stderr}")
        outcome = load.Outcome(**json.loads(told.stdout))
        if outcome.failed:
            raise RuntimeError(f"{running.system}: {outcome.failed} of {outcome.sent} requests failed")
        return outcome, close()

    def crowd(
        self,
        running: systems.Running,
        rate: float,
        due: Sequence[float],
        *,
        tries: int = 0,
        heads: Sequence[str] = ("",),
        kinds: Sequence[int] = (),
    ) -> tuple[list[Asked], Window]:
        """Requests at such instants, and what became of each; see :func:`benchmarks.overload.offered`."""
        with self._window(running) as close:
            asked = overload.offered(running, rate, due, tries=tries, heads=heads, kinds=kinds)
        return asked, close()

    def batches(self, running: systems.Running, window: Window) -> dict[str, list[record.Batch]]:
        """What each worker computed in the window."""
        return {
            worker: record.within(found, window.begin_ns, window.end_ns)
            for worker, found in record.read(running.records).items()
        }

    @contextmanager
    def _window(self, running: systems.Running) -> Iterator[Callable[[], Window]]:
        """The window of the block, to be asked for after it."""
        before = processes.cpu_us(running.pid)
        begin = time.monotonic_ns()
        closed: list[Window] = []
        yield lambda: closed[0]
        end = time.monotonic_ns()
        after = processes.cpu_us(running.pid)
        closed.append(Window(begin, end, {role: after[role] - before[role] for role in after}))


def present(values: dict[str, float | None]) -> dict[str, float]:
    """Without what was not measured."""
    return {key: value for key, value in values.items() if value is not None}


def open_values(outcome: load.Outcome) -> dict[str, float]:
    """What every open-loop case reports, as values of a row."""
    return present(
        {
            "p50_ms": outcome.p50_ms,
            "p99_ms": outcome.p99_ms,
            "goodput": outcome.good / outcome.seconds,
            "refused": outcome.refused / outcome.sent if outcome.sent else None,
            "refused_p99_ms": outcome.refused_p99_ms,
            "lag_p99_ms": outcome.lag_p99_ms,
        }
    )
