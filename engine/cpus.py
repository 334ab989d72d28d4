"""How many CPUs this process may use: what the affinity mask leaves and what the control group's quota leaves.

A container with half a CPU of a large machine sees all of the machine's CPUs in its mask: the quota stands in files of
the control group alone, of version 2 (``cpu.max``) or 1 (``cpu.cfs_quota_us``), and in those of the groups around it.
Imported by whoever starts processes or threads, so it imports nothing but the standard library.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")


def available_cpus() -> list[int]:
    """Numbers of the CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """CPUs that the control groups allow this process at once, 0.5 for half of one; None: they set no bound."""
    bounds = [bound for group in _groups(proc, cgroups) if (bound := _bound(group)) is not None]
    return min(bounds, default=None)


def usable_cpus(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """CPUs' worth of time that this process can get at once."""
    count = float(len(available_cpus()))
    bound = quota(proc, cgroups)
    return count if bound is None else min(count, bound)


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Folders that may bound this process's CPU time: of its own group, and of each around it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        # Version 2 has no controllers in its line. Its folder is the root itself, or "unified" beside version 1's,
        # which are called by their controllers, in the order of the line or one by one.
        roots = [cgroups / controllers, cgroups / "cpu"] if controllers else [cgroups, cgroups / "unified"]
        own = PurePosixPath(path.lstrip("/"))
        for root in roots:
            # In a container the path may be the host's while the mount begins at the own group: what is not there
            # has no bound, and the root is looked at in any case.
            for group in (own, *own.parents):
                yield root / group


def _bound(group: Path) -> float | None:
    """CPUs that one group allows; None where it sets no bound or cannot be read."""
    both = _words(group / "cpu.max")
    if len(both) != 2:
        both = [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
    try:
        quota_us, period_us = (int(word) for word in both)  # "max" and an empty list are ValueErrors: no bound
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (OSError, UnicodeDecodeError):
        return []
