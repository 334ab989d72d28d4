"""Less than a CPU for a process: a control group of its own with a quota.

So on a machine with few CPUs something can be made what is full while all others have more than they need. Takes root.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from engine.cgroups import folders

PERIOD_US: Final = 20_000  # short, so that whoever has used up its part waits for milliseconds only
LEAST: Final = 0.05  # of a CPU: the kernel takes no quota of less than a millisecond


def files(share: float) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """What is written where for this share of a CPU: in version 1 of control groups, and in version 2. Pure."""
    quota = round(share * PERIOD_US)
    return (
        {"cpu.cfs_period_us": f"{PERIOD_US}", "cpu.cfs_quota_us": f"{quota}"},
        {"cpu.max": f"{quota} {PERIOD_US}"},
    )


@contextmanager
def rationed(share: float, *pids: int) -> Iterator[None]:
    """Each of the processes has at most this share of a CPU, in a group of its own, until the end of the block. Raises
    OSError where there can be no such group."""
    made: list[tuple[int, Path]] = []
    try:
        for pid in pids:
            group = _group(share)
            made.append((pid, group))
            (group / "cgroup.procs").write_text(f"{pid}")
        yield
    finally:
        for pid, group in made:
            with suppress(OSError):  # it has ended: so it is in no group
                (group.parent / "cgroup.procs").write_text(f"{pid}")
            group.rmdir()


def missing() -> str | None:
    """Why nobody can be rationed here, or None."""
    try:
        _group(1.0).rmdir()
    except OSError as error:
        return f"no control group with a quota of CPU can be made: {error}"
    return None


def _group(share: float) -> Path:
    """A new one, below that of this process or of one around it."""
    refused: OSError = FileNotFoundError("there is no controller of CPU")
    for around in folders("cpu"):
        group = around / f"stageline-bench-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError as error:
            refused = error
            continue
        try:
            for each in files(share):
                if all((group / name).exists() for name in each):
                    for name, text in each.items():
                        (group / name).write_text(text)
                    return group
        except OSError as error:
            refused = error
        group.rmdir()
    raise refused
