"""What ``engine plan`` says beside what a deployment then does: latencies at 70 % of the capacity, numbers of workers.

    PYTHONPATH=scripts python -m benchmarks.planned [DEPLOYMENT...] [--repeats N]

Everything is asked of the command itself: it measures each stage (``--save-profile``), says the p50 and p99 of so many
workers at 70 % of what full batches reach (``--keep``), and the fewest workers for a rate within an SLO. Then the
deployment is started and asked for the same, in an open loop; for the number of workers with as many as the plan says,
and with one and two less, with this SLO in its file. *off* is by how much the planned p99
differs from the median of the measured ones, or where arrivals come in bursts, which the plan is given as they came,
from that of all. A plan is right where so many workers meet the goal and two less do not:
exact, or one too many.

A model on CPUs that others use too is not as quick in one minute as in the next: of it the plan goes by what the
deployment has learned while it was asked (``--running``), and is made after that.

Exit status 1 where a p99 is off by more than OFF, or a number is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, plan, systems, table
from benchmarks.crowd import Asked
from benchmarks.overload import MISSED, offered, raise_descriptor_limit
from benchmarks.plan import Service, Stage
from benchmarks.stats import median, percentile
from benchmarks.work import TEXT
from engine.simulation.arrivals import Renewal
from engine.simulation.profile import StageProfile

ADAPTER: Final = "exemplary_service.py"
LOAD: Final = 0.7
OFF: Final = 0.15
TARGET: Final = 0.99
LEAST: Final = 4000  # requests of a measurement ...
SECONDS: Final = 12.0  # ... or of so long, whichever is less
SETTLE_S: Final = 1.5  # of each, which is not counted
TIMEOUT_S: Final = 30.0
LONG_S: Final = 10.0  # an SLO that nothing misses
LEARN_RATE: Final = 40.0  # requests per second, before anything is known
BODY: Final = '{"x": 2}'


@dataclass(frozen=True)
class Deployment:
    """``workers`` are what its latencies are measured with; none: they are not. ``slo_s`` and ``rate``, a multiple of
    what one worker of its slowest stage carries, are for the number of workers; 0: it is not asked for."""

    works: tuple[str, ...]
    workers: tuple[int, ...]
    most: int
    slo_s: float = 0.0
    rate: float = 0.0
    cv: float = 1.0
    body: str = BODY
    learns: bool = False  # the plan goes by what it has learned while it was asked

    def service(self, workers: Sequence[int], slo_s: float = 0.0) -> Service:
        stages = (Stage(work, num=num, max_batch_size=self.most) for work, num in zip(self.works, workers, strict=True))
        return Service(tuple(stages), timeout_s=TIMEOUT_S, adapter=ADAPTER, slo_s=slo_s)


DEPLOYMENTS: Final = {
    "accelerator, 1 worker": Deployment(("Accelerator",), (1,), 32),
    "accelerator, 2 workers": Deployment(("Accelerator",), (2,), 32, slo_s=0.060, rate=1.6),
    "brief, 2 workers": Deployment(("Brief",), (2,), 8, slo_s=0.120, rate=2.5),
    "brief, a tight goal": Deployment(("Brief",), (), 8, slo_s=0.060, rate=2.5),
    "brief, a tighter one": Deployment(("Brief",), (), 8, slo_s=0.045, rate=2.5),
    "brief, bursts (CV 4)": Deployment(("Brief",), (2,), 8, slo_s=0.240, rate=2.5, cv=4.0),
    "two stages": Deployment(("Accelerator", "Brief"), (1, 2), 8, slo_s=0.150, rate=2.5),
    "two stages alike": Deployment(("Brief", "Brief"), (2, 2), 8, slo_s=0.200, rate=1.7),
    "MiniLM on a CPU": Deployment(("Embed",), (1,), 16, body=f'{{"text": "{TEXT}"}}', learns=True),
}


class Planned:
    """One deployment in a folder of its own."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.deployment = deployment
        self.folder = folder
        self.profile = folder / "profile.json"
        self.names = [f"s{place}-{work.lower()}" for place, work in enumerate(deployment.works)]
        self._runs = 0

    def ask(self, workers: Sequence[int], *words: str) -> dict[str, Any]:
        """What the command prints."""
        service = self.deployment.service(workers)
        file = self.folder / "stages.toml"
        file.write_text(plan.stages_toml(service, systems.ADAPTERS / ADAPTER))
        (self.folder / "records").mkdir(exist_ok=True)
        known = ["--profile", str(self.profile)] if self.profile.exists() else ["--save-profile", str(self.profile)]
        arrivals = [] if "--arrivals" in words else ["--cv", str(self.deployment.cv)]
        done = subprocess.run(
            [sys.executable, "-m", "engine.cli", "plan", str(file), *words, *arrivals, *known, "--json"],
            env={**os.environ, **systems.environment(service, self.folder, 1)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not done.stdout:
            raise RuntimeError(f"engine plan ended with {done.returncode}")
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def profile_it(self) -> None:
        """Have the command measure the stages."""
        ones = [1] * len(self.names)
        self.ask(ones, "--rate", "1", "--slo", f"{LONG_S}s", "--requests", "100", "--seeds", "1")

    def ask_running(self, running: systems.Running, *words: str) -> dict[str, Any]:
        """The same of a deployment that runs, by what it has learned; :attr:`profile` is that then."""
        done = subprocess.run(
            [sys.executable, "-m", "engine.cli", "plan", str(running.folder / "stages.toml"), "--running", "--json",
             "--run-dir", str(running.folder / "run"), "--save-profile", str(self.profile), *words],
            env={**os.environ, **systems.environment(running.service, running.folder, 1)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )  # fmt: skip
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def capacity(self, workers: Sequence[int]) -> float:
        """Requests per second with full batches, by the profile."""
        stages: list[dict[str, Any]] = list(json.loads(self.profile.read_text())["stages"].values())
        most = self.deployment.most
        full_s = [StageProfile({int(n): ms for n, ms in stage["ms"].items()}).curve(most) / 1000 for stage in stages]
        return min(num * most / seconds for num, seconds in zip(workers, full_s, strict=True))

    def run(self, workers: Sequence[int], rate: float, seed: int, slo_s: float = 0.0) -> list[Asked]:
        """Start it and measure; what came after it had settled."""
        with self.started(workers, slo_s) as running:
            return self.measure(running, rate, seed)

    @contextmanager
    def started(self, workers: Sequence[int], slo_s: float = 0.0) -> Iterator[systems.Running]:
        self._runs += 1
        service = replace(self.deployment.service(workers, slo_s), capacity=1024)
        folder = self.folder / f"{self._runs}"
        with systems.started("stageline", service, folder, body=self.deployment.body, threads=1) as running:
            yield running

    def measure(self, running: systems.Running, rate: float, seed: int) -> list[Asked]:
        asked = offered(running, rate, self.due(rate, seed), body=self.deployment.body)
        return [one for one in asked if one.at >= SETTLE_S]

    def due(self, rate: float, seed: int) -> list[float]:
        """When to send, in seconds."""
        seconds = SETTLE_S + min(max(LEAST / rate, 3.0), SECONDS) * max(self.deployment.cv, 1.0)
        return list(takewhile(lambda at: at < seconds, Renewal(rate, self.deployment.cv).instants(seed)))

    def recorded(self, rate: float, seeds: Sequence[int]) -> list[str]:
        """Words for the command: that arrivals are these. Of bursts a run has few, and no two runs have the same."""
        if self.deployment.cv == 1.0:
            return []
        trace = self.folder / "trace.csv"
        gaps = [later - sooner for seed in seeds for sooner, later in pairwise([0.0, *self.due(rate, seed)])]
        trace.write_text("gap\n" + "\n".join(map(repr, gaps)) + "\n")
        return ["--arrivals", str(trace)]


def latencies(planned: Planned, repeats: int) -> Iterator[str]:
    """Cells: rate; planned and measured p50 and p99 in ms; how far off."""
    workers = planned.deployment.workers
    if planned.deployment.learns:
        yield from learnt_latencies(planned, repeats)
        return
    if not workers:
        yield from ["-"] * 4
        return
    kept = [word for name, num in zip(planned.names, workers, strict=True) for word in ("--keep", f"{name}={num}")]
    rate = LOAD * planned.capacity(workers)
    seeds = range(100, 100 + repeats)
    words = ["--rate", f"{rate:.3f}", "--slo", f"{LONG_S}s", *kept, *planned.recorded(rate, seeds)]
    best = planned.ask(workers, *words)["best"]
    found = [[one.took * 1000 for one in planned.run(workers, rate, seed) if one.status == 200] for seed in seeds]
    p50 = median([percentile(run, 50) for run in found])
    p99s = [percentile(run, 99) for run in found]
    is_one = planned.deployment.cv != 1.0  # the plan is of all that came in these runs, one after the other
    p99 = percentile([took for run in found for took in run], 99) if is_one else median(p99s)
    off = best["p99_s"] * 1000 / p99 - 1
    yield f"{rate:.0f}"
    yield f"{best['p50_s'] * 1000:.1f}, {p50:.1f}"
    yield f"{best['p99_s'] * 1000:.1f}, {p99:.1f} ({min(p99s):.1f}-{max(p99s):.1f})"
    yield f"{'' if abs(off) <= OFF else MISSED}{100 * off:+.0f} %"


def learnt_latencies(planned: Planned, repeats: int) -> Iterator[str]:
    """The same, each plan made after what it is held against, by what was learned meanwhile: medians."""
    workers = planned.deployment.workers
    kept = [word for name, num in zip(planned.names, workers, strict=True) for word in ("--keep", f"{name}={num}")]
    goal = ("--slo", f"{LONG_S}s", *kept)
    rates, plans, runs, ratios = [], [], [], []
    with planned.started(workers) as running:
        planned.measure(running, LEARN_RATE, 1)
        for repeat in range(repeats):
            planned.ask_running(running, "--rate", "1", *goal, "--requests", "100", "--seeds", "1")
            rates.append(LOAD * planned.capacity(workers))
            took = [one.took * 1000 for one in planned.measure(running, rates[-1], 100 + repeat) if one.status == 200]
            best = planned.ask_running(running, "--rate", f"{rates[-1]:.3f}", *goal)["best"]
            plans.append((best["p50_s"] * 1000, best["p99_s"] * 1000))
            runs.append((percentile(took, 50), percentile(took, 99)))
            ratios.append(plans[-1][1] / runs[-1][1])
    off = median(ratios) - 1
    yield f"{median(rates):.0f}"
    yield f"{median([p50 for p50, _ in plans]):.1f}, {median([p50 for p50, _ in runs]):.1f}"
    measured = [p99 for _, p99 in runs]
    yield (
        f"{median([p99 for _, p99 in plans]):.1f}, {median(measured):.1f} ({min(measured):.1f}-{max(measured):.1f}), "
        f"each by its own: {', '.join(f'{100 * (ratio - 1):+.0f} %' for ratio in ratios)}"
    )
    yield f"{'' if abs(off) <= OFF else MISSED}{100 * off:+.0f} %"


def numbers(planned: Planned) -> Iterator[str]:
    """Cells: rate and SLO; planned workers; what share is in time with these, one less and two less; the verdict."""
    deployment = planned.deployment
    if not deployment.slo_s:
        yield from ["-"] * 4
        return
    ones = [1] * len(deployment.works)
    rate = deployment.rate * planned.capacity(ones)
    found = planned.ask(ones, "--rate", f"{rate:.3f}", "--slo", f"{deployment.slo_s * 1000:g}ms")["best"]
    counts = [stage["workers"] for stage in found["stages"]]
    limit = max(range(len(counts)), key=lambda place: (counts[place], found["stages"][place]["busy"]))
    shares: list[float] = []
    for less in range(3):
        workers = [num - less * (place == limit) for place, num in enumerate(counts)]
        if workers[limit] < 1:
            break
        run = planned.run(workers, rate, 200, deployment.slo_s)
        shares.append(sum(one.status == 200 and one.took <= deployment.slo_s for one in run) / len(run))
    fewer = next((less for less in (2, 1, 0) if less < len(shares) and shares[less] >= TARGET), -1)
    verdict = {0: "exact", 1: "one too many", 2: f"{MISSED}two too many", -1: f"{MISSED}too few"}[fewer]
    yield f"{rate:.0f}/s, {deployment.slo_s * 1000:g} ms"
    yield ", ".join(map(str, counts))
    yield ", ".join(f"{100 * share:.1f}" for share in shares)
    yield verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deployments", nargs="*", metavar="DEPLOYMENT", help=f"of {', '.join(DEPLOYMENTS)}")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement of latencies")
    options = parser.parse_args()
    if strangers := [name for name in options.deployments if name not in DEPLOYMENTS]:
        parser.error(f"{strangers[0]}: expected one of {', '.join(DEPLOYMENTS)}")
    raise_descriptor_limit()
    print(", ".join(f"{key} {value}" for key, value in (machine.describe() | machine.now()).items()), flush=True)
    lines = [
        ["deployment", "at 70 %, /s", "p50, ms: plan, run", "p99, ms: plan, run", "off", "goal", "workers",
         "in time %: so many, less", "number"]
    ]  # fmt: skip
    for name in options.deployments or DEPLOYMENTS:
        folder = Path(tempfile.mkdtemp(prefix="sl-bench-", dir="/tmp"))
        try:
            planned = Planned(DEPLOYMENTS[name], folder)
            if not planned.deployment.learns:
                planned.profile_it()
            lines.append([name, *latencies(planned, options.repeats), *numbers(planned)])
        finally:
            shutil.rmtree(folder)
        print("  ".join(lines[-1]), file=sys.stderr, flush=True)
    print(table.markdown(lines))
    return int(any(MISSED in cell for line in lines for cell in line))


if __name__ == "__main__":
    sys.exit(main())
