"""A work in a plain loop, batch after batch: the most that serving it can reach. Records like a worker does.

``python -m benchmarks.offline WORK BATCH_SIZE``: each line on standard input, a number of seconds, runs that long.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import pages, record, systems, work

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.plan import Service

OFFLINE: Final = "offline"  # its name among the systems


class Offline:
    """The plain loop, in a process of its own; runs when asked to."""

    def __init__(self, process: subprocess.Popen[str], records: Path) -> None:
        self._process = process
        self._records = records

    def batches(self, seconds: float) -> list[record.Batch]:
        """What it computes in so long a time. Raises RuntimeError when the loop has ended, or has done less than two
        batches."""
        known = sum(map(len, record.read(self._records).values()))
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        self.wait("done")
        (batches,) = record.read(self._records).values()
        if len(batches) < known + 2:
            raise RuntimeError(f"{seconds} s is too short for two batches on this machine: give more --seconds")
        return batches[known:]

    def wait(self, word: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != word:
            raise RuntimeError(f"the offline loop ended with {self._process.wait()}")


@contextmanager
def offline(bench: Bench, service: Service, kind: str, size: int) -> Iterator[Offline]:
    """The loop of the work called ``kind``, loaded and warm, with what the service's workers find around them."""
    bench.say("starting the offline loop")
    records = Path(tempfile.mkdtemp(prefix="offline-", dir=bench.folder)) / "records"
    records.mkdir()
    with (records.parent / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.offline", kind, str(size)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, **systems.environment(service, records.parent, bench.threads)},
        )  # fmt: skip
    loop = Offline(process, records)
    try:
        loop.wait("ready")
        yield loop
    finally:
        systems.stop_child(process)


def main() -> None:
    """Say ``ready``, then run when told to, and say ``done``; ends with its standard input."""
    kind, size = sys.argv[1], int(sys.argv[2])
    made = getattr(pages if hasattr(pages, kind) else work, kind)()
    batch = made.batch(size)
    print("ready", flush=True)
    for line in sys.stdin:
        until = time.monotonic() + float(line)
        while time.monotonic() < until:
            made.forward(batch)
        print("done", flush=True)


if __name__ == "__main__":
    main()
