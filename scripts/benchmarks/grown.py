"""A deployment whose broker is full while it serves: what the other one that comes by itself brings.

    python -m benchmarks.grown [--share 0.1] [--seconds 60]        (PYTHONPATH=scripts; takes root)

A scale model, for a machine with few CPUs: each broker is held to a part of a CPU by a control group of its own as soon
as it is there, while everybody else has more than he needs. An echo in two stages of two workers, wrk in a closed loop,
again and again; a line for each of its runs, and the medians with one broker and with two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from benchmarks import plan, processes, ration, systems, wrk
from benchmarks.result import OURS

BODY: Final = '{"x": 2}'
CONNECTIONS: Final = 256
RUN_S: Final = 4.0
SERVICE: Final = plan.Service((plan.Stage("Echo", 2, 32), plan.Stage("Echo", 2, 32)))


class Rationing:
    """Each broker that comes is held to its part."""

    def __init__(self, pid: int, share: float) -> None:
        self._pid = pid
        self._share = share
        self._known: set[int] = set()
        self._groups = ExitStack()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def __enter__(self) -> Rationing:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._groups.close()

    @property
    def brokers(self) -> int:
        return len(self._known)

    def _go_on(self) -> None:
        while not self._over.wait(0.05):
            self._look()

    def _look(self) -> None:
        try:
            found = set(processes.pids(self._pid, "broker")) - self._known
        except psutil.Error:  # somebody ended meanwhile
            return
        for pid in found:
            self._groups.enter_context(ration.rationed(self._share, pid))
            self._known.add(pid)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grown", description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.1, help="of a CPU, for each broker (0.1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load (60)")
    options = parser.parse_args(arguments)
    if why := ration.missing():
        print(why, file=sys.stderr)
        return 1
    rates: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="sl-") as folder:
        made = systems.started(OURS, SERVICE, Path(folder) / "it", body=BODY, threads=1)
        with made as running, Rationing(running.pid, options.share) as rationing:
            end = time.monotonic() + options.seconds
            while time.monotonic() < end:
                before = rationing.brokers
                report = wrk.run(
                    running.url, BODY, connections=CONNECTIONS, seconds=RUN_S, folder=Path(folder), head=wrk.USUAL
                )
                after = rationing.brokers
                if before == after:
                    rates.setdefault(after, []).append(report.rate)
                told = f"{after} brokers" if after > 1 else "1 broker"
                print(f"{told}: {report.rate:,.0f} requests/s, {report.not_2xx + report.errors} not answered 200")
    for brokers, found in sorted(rates.items()):
        print(f"{brokers}: median {median(found):,.0f} requests/s of {len(found)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
