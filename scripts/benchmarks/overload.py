"""Overload of a running deployment with default settings: what is computed is in time, and the others know at once.

    PYTHONPATH=scripts python -m benchmarks.overload [DEPLOYMENT...] [--threads stage]

Workers that sleep, so that the CPUs are free for everything else: slow and quick ones, one stage and two. Each
deployment is first asked for as much as it can do (the *capacity*, in a closed loop: what full batches reach here,
now), then, in an open loop of Poisson arrivals, for LOADS times as much; then for 0.8 of it with a burst of half a
second at three times the capacity, by clients that ask again at once, three times, whatever they are told. Told are

* goodput: answers within the request's time (3 s), of those that arrived once the load had settled, by the capacity;
* how many were answered too late (408), how many were refused, how long that took, and how many of all were refused
  after they had been let in: what was foreseen for them did not come true;
* after the burst, when first tries succeed again (99 of 100 in every half second from then on);
* the memory of all its processes before and after (USS).

Exit status 1 where a goodput is below LEAST, a recovery takes longer than RECOVERY_S, or memory grew by more than
GROWTH_MIB.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks import machine, processes, record, systems, table, wrk
from benchmarks.crowd import Asked
from benchmarks.goals import recovered_s
from benchmarks.load import Load
from benchmarks.plan import Service, Stage
from benchmarks.stats import arrivals, percentile

LOADS: Final = (1.05, 1.2, 1.5, 2.0, 5.0)
MISSED: Final = "(!) "
LEAST: Final = 0.95
RECOVERY_S: Final = 2.0
GROWTH_MIB: Final = 16.0

TIMEOUT_S: Final = 3.0  # the default, and that of capacity below
CAPACITY: Final = 1024
FULL: Final = 8
DOOR_MS: Final = 250.0  # a refusal that took longer was made of somebody who had been let in
BODY: Final = '{"x": 2}'
SEED: Final = 9

USUAL, BURST = 0.8, 3.0  # of the capacity
BURST_AT_S, BURST_S, AFTER_S = 3.0, 0.5, 6.0
TRIES: Final = 3  # after the first


@dataclass(frozen=True)
class Deployment:
    """``full_s``: a full batch of its slowest stage."""

    stages: tuple[Stage, ...]
    full_s: float
    seconds: float  # of each load

    @property
    def nominal(self) -> float:
        """Requests per second."""
        return min(stage.num * stage.max_batch_size for stage in self.stages) / self.full_s


DEPLOYMENTS: Final = {
    "slow": Deployment((Stage("Slow", max_batch_size=FULL),), 0.280, 20.0),
    "slow, four workers": Deployment((Stage("Slow", num=4, max_batch_size=FULL),), 0.280, 12.0),
    "quick": Deployment((Stage("Accelerator", max_batch_size=FULL),), 0.009, 6.0),
    "two stages, the first slow": Deployment(
        (Stage("Slow", max_batch_size=FULL), Stage("Brief", max_batch_size=FULL)), 0.280, 20.0
    ),
    "two stages, the second slow": Deployment(
        (Stage("Brief", max_batch_size=FULL), Stage("Slow", max_batch_size=FULL)), 0.280, 20.0
    ),
    "two stages alike": Deployment((Stage("Brief", max_batch_size=FULL),) * 2, 0.036, 8.0),
}


# --- the client, a process of its own ---------------------------------------------------------------------------------


def offered(
    running: systems.Running,
    rate: float,
    due: Sequence[float],
    *,
    tries: int = 0,
    body: str = BODY,
    heads: Sequence[str] = ("",),
    kinds: Sequence[int] = (),
) -> list[Asked]:
    """``rate``: the capacity. ``heads``, and of each request its kind: see Load; by default all are of the first.

    As many connections as may wait for answers, and not many more: who does not use one for ten seconds loses it.
    """
    connections = round(1.3 * min(rate * TIMEOUT_S, CAPACITY)) + 20
    load = Load(
        running.port, body, rate=1, seconds=due[-1], connections=connections, seed=0, paths=running.service.paths,
        heads=heads, timeout_s=TIMEOUT_S + 2,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.crowd"],
        input=json.dumps({"load": asdict(load), "due": list(due), "tries": tries, "kinds": list(kinds)}),
        capture_output=True,
        text=True,
        check=True,
    )
    return [Asked(*one) for one in json.loads(done.stdout)]


# --- what is measured ------------------------------------------------------------------------------------------------


def capacity(running: systems.Running, deployment: Deployment) -> float:
    """Requests per second with full batches one after the other, as the workers of the slowest stage noted them."""
    begin_ns = time.monotonic_ns()
    many = 3 * sum(stage.num * stage.max_batch_size for stage in deployment.stages)
    wrk.run(running.url, BODY, connections=many, seconds=max(3.0, 12 * deployment.full_s), folder=running.folder)
    found = [
        record.items_per_second([batch for batch in batches if batch.begin_ns > begin_ns and batch.items == FULL])
        or 0.0
        for batches in record.read(running.records).values()
    ]
    return sum(found) if len(deployment.stages) == 1 else min(found)


def flooded(running: systems.Running, rate: float, load: float, seconds: float) -> dict[str, float]:
    """One load. What is not known yet, and what nobody waits for any more, is left out: the first time-out."""
    asked = offered(running, rate, arrivals(rate * load, seconds + TIMEOUT_S, SEED))
    settled = [one for one in asked if one.at >= TIMEOUT_S]
    statuses = Counter(one.status for one in settled)
    good = sum(one.status == 200 and one.took <= TIMEOUT_S for one in settled)
    refused = [one.took * 1000 for one in settled if one.status == 429]
    at_once = [took for took in refused if took < DOOR_MS]
    if strange := set(statuses) - {200, 408, 429}:
        raise RuntimeError(f"answers with status {strange}")
    return {
        "load": load,
        "goodput": good / seconds / rate,
        "late": statuses[408] / len(settled),
        "refused": len(refused) / len(settled),
        "refused_p50_ms": percentile(at_once, 50) if at_once else 0.0,
        "refused_p99_ms": percentile(at_once, 99) if at_once else 0.0,
        "dropped": (len(refused) - len(at_once)) / len(settled),
    }


def burst(running: systems.Running, rate: float) -> float:
    """Seconds from the end of a burst until first tries succeed again for good."""
    usual = arrivals(USUAL * rate, BURST_AT_S + BURST_S + AFTER_S, SEED)
    more = [BURST_AT_S + at for at in arrivals((BURST - USUAL) * rate, BURST_S, SEED + 1)]
    firsts = [one for one in offered(running, rate, sorted([*usual, *more]), tries=TRIES) if one.first]
    end = BURST_AT_S + BURST_S
    return recovered_s(firsts, end, end + AFTER_S, rate)


def memory_mib(running: systems.Running) -> float:
    return sum(processes.memory_kib(running.pid).values()) / 1024


def measure(name: str, threads: str) -> Iterator[list[str]]:
    """Lines of the table, each as soon as it is known; what was missed begins with a star."""
    deployment = DEPLOYMENTS[name]
    service = Service(deployment.stages, capacity=CAPACITY, timeout_s=TIMEOUT_S, broker_threads=threads)
    folder = Path(tempfile.mkdtemp(prefix="sl-bench-", dir="/tmp"))
    try:
        with systems.started("stageline", service, folder / "0", body=BODY, threads=1) as running:
            rate = capacity(running, deployment)
            flooded(running, rate, 1.5, 1.0)  # so that memory is that of a service which has been full once
            before = memory_mib(running)
            for load in LOADS:
                found = flooded(running, rate, load, deployment.seconds)
                yield [
                    name,
                    f"{rate:.0f}",
                    f"{load:g}",
                    _marked(found["goodput"], LEAST, 3, at_least=True),
                    f"{100 * found['late']:.1f}",
                    f"{100 * found['refused']:.0f}",
                    f"{found['refused_p50_ms']:.1f}",
                    f"{found['refused_p99_ms']:.1f}",
                    f"{100 * found['dropped']:.1f}",
                ]
            recovery_s = burst(running, rate)
            after = memory_mib(running)
            grown = _marked(after - before, GROWTH_MIB, 1)
            yield [name, f"{rate:.0f}", "burst", f"recovered after {_marked(recovery_s, RECOVERY_S, 2)} s",
                   f"memory {before:.0f} MiB, grown by {grown}", *[""] * 4]  # fmt: skip
    finally:
        shutil.rmtree(folder)


def _marked(value: float, bound: float, digits: int, *, at_least: bool = False) -> str:
    holds = value >= bound if at_least else value <= bound
    return ("" if holds else MISSED) + f"{value:.{digits}f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deployments", nargs="*", metavar="DEPLOYMENT", help=f"of {', '.join(DEPLOYMENTS)}")
    parser.add_argument("--threads", choices=("auto", "one", "stage"), default="auto", help="of the broker")
    options = parser.parse_args()
    if strangers := [name for name in options.deployments if name not in DEPLOYMENTS]:
        parser.error(f"{strangers[0]}: expected one of {', '.join(DEPLOYMENTS)}")
    raise_descriptor_limit()
    about = machine.describe() | machine.now() | {"broker's threads": options.threads}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    lines = [
        [
            "deployment",
            "capacity/s",
            "load",
            "goodput",
            "late %",
            "refused %",
            "at once: p50, ms",
            "p99, ms",
            "after admission %",
        ]
    ]
    for name in options.deployments or DEPLOYMENTS:
        for line in measure(name, options.threads):
            lines.append(line)
            print("  ".join(line), file=sys.stderr, flush=True)
    print(table.markdown(lines))
    return int(any(MISSED in cell for line in lines for cell in line))


def raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
