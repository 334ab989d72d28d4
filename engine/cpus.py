"""How many CPUs this process may use: what the affinity mask leaves and what the control group's quota leaves.

A container with half a CPU of a large machine sees all of the machine's CPUs in its mask: the quota stands in files of
the control group alone, of version 2 (``cpu.max``) or 1 (``cpu.cfs_quota_us``), and in those of the groups around it.
Imported by whoever starts processes or threads, so it imports nothing that is heavy.
"""

from __future__ import annotations

import os
from pathlib import Path

from engine.cgroups import CGROUPS, PROC, folders


def available_cpus() -> list[int]:
    """Numbers of the CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """CPUs that the control groups allow this process at once, 0.5 for half of one; None: they set no bound."""
    groups = folders("cpu", proc=proc, cgroups=cgroups)
    bounds = [bound for group in groups if (bound := _bound(group)) is not None]
    return min(bounds, default=None)


def usable_cpus(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """CPUs' worth of time that this process can get at once."""
    count = float(len(available_cpus()))
    bound = quota(proc, cgroups)
    return count if bound is None else min(count, bound)


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
