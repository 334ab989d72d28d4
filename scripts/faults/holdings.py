"""What the processes of a deployment hold, and which of it has grown. Counting looks at /proc; the judgement is pure.

Growth that repeats is a leak: pools of libraries grow once and stay. So counts are taken again and again under the same
load, and what is looked at is whether the later ones still climb over the earlier.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

# What may come on top between the halves of a run without being a leak: (absolute, share of what there was).
ROOM: Final[Mapping[str, tuple[float, float]]] = {
    "descriptors": (4, 0.02),  # connections that happen to be open
    "threads": (2, 0.0),
    "shared memory": (1 << 20, 0.05),  # bytes that are mapped
    "label sets": (4, 0.02),  # a status or a reason that was not seen before
    "run directory": (1, 0.0),
    "memory": (12 << 20, 0.06),  # bytes; allocators keep some
}

LEAST: Final = 6  # samples
QUARTILE_LEAST: Final = 6  # of which the lower quartile is taken

Counts = Mapping[str, float]


def counted(processes: Iterable[psutil.Process], run: Path | None, metrics: str) -> dict[str, float]:
    """What all of them hold together now; what ends while it is looked at counts as nothing."""
    found = dict.fromkeys(ROOM, 0.0)
    for process in processes:
        try:
            with process.oneshot():
                found["descriptors"] += process.num_fds()
                found["threads"] += process.num_threads()
                full = process.memory_full_info()
                found["memory"] += full.uss
                found["shared memory"] += _mapped(process.pid)
        except (psutil.Error, OSError):
            continue
    found["label sets"] = len({line.rpartition(" ")[0] for line in metrics.splitlines() if line and line[0] != "#"})
    found["run directory"] = sum(1 for _ in run.rglob("*")) if run is not None and run.exists() else 0
    return found


def _mapped(pid: int) -> int:
    """Bytes of memory files (memfd, /dev/shm) that a process has open, as far as they are filled."""
    total = 0
    folder = Path(f"/proc/{pid}/fd")
    for number in os.listdir(folder):
        try:
            target = os.readlink(folder / number)
            if target.startswith(("/memfd:", "/dev/shm/")):
                total += os.stat(folder / number).st_blocks * 512
        except OSError:
            continue
    return total


def grown(samples: Sequence[Counts]) -> list[str]:
    """What climbs: the lower quartile of the last third is above that of the middle third by more than its room; of few
    samples, all of the last third are above all of the middle one.

    Some counts jump between a few levels - who is alive, what is on its way - and their medians with them, while a leak
    lifts the low ones too. The first third is for warming up. Fewer than LEAST samples show nothing and raise
    ValueError.
    """
    if len(samples) < LEAST:
        raise ValueError(f"{len(samples)} samples are too few to tell growth from noise")
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[-third:]
    problems = []
    for what, (absolute, share) in ROOM.items():
        before, after = _compared([sample[what] for sample in middle], [sample[what] for sample in last])
        if after > before + max(absolute, before * share):
            series = " ".join(f"{sample[what]:.0f}" for sample in samples)
            problems.append(f"grows: {what} from {before:.0f} to {after:.0f}; {series}")
    return problems


def _compared(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Of two series of one length. In a few samples a level may be missing by chance."""
    if len(before) < QUARTILE_LEAST:
        return max(before), min(after)
    return _low(before), _low(after)


def _low(values: Sequence[float]) -> float:
    """The lower quartile."""
    return sorted(values)[len(values) // 4]
