"""How many CPUs this process may use: what the affinity mask leaves and what the control group's quota leaves.

A container with half a CPU of a large machine sees all of the machine's CPUs in its mask: the quota stands in files of
the control group alone, of version 2 (``cpu.max``) or 1 (``cpu.cfs_quota_us``), and in those of the groups around it.
Imported by whoever starts processes or threads, so it imports nothing that is heavy.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from time import monotonic

from engine.cgroups import CGROUPS, PROC, folders


def available_cpus() -> list[int]:
    """Numbers of the CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """CPUs that the control groups allow this process at once, 0.5 for half of one; None: they set no bound."""
    bound, _ = _tightest(proc, cgroups)
    return bound


def usable_cpus(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """CPUs' worth of time that this process can get at once."""
    count = float(len(available_cpus()))
    bound = quota(proc, cgroups)
    return count if bound is None else min(count, bound)


def left_s(proc: Path = PROC, cgroups: Path = CGROUPS) -> tuple[float, ...]:
    """CPU time that was left over for this process, since some moment, in the order of what leaves it: of the CPUs that
    it may use, and of a quota, if there is one. What grew from one call to the next, the least of them, could have been
    had meanwhile. Empty where the system does not tell."""
    idle = _idle_s(available_cpus(), proc)
    if idle is None:
        return ()
    bound, group = _tightest(proc, cgroups)
    if bound is None:
        return (idle,)
    used = _used_s(group)
    return () if used is None else (idle, bound * monotonic() - used)


def _tightest(proc: Path, cgroups: Path) -> tuple[float, Path] | tuple[None, Path]:
    """What this process is allowed, and by which control group; None, where none of them sets a bound."""
    groups = folders("cpu", proc=proc, cgroups=cgroups)
    bounds = [(bound, group) for group in groups if (bound := _bound(group)) is not None]
    return min(bounds, default=(None, cgroups))


def _idle_s(cpus: Collection[int], proc: Path) -> float | None:
    """For how long these CPUs had nothing to do, added up (proc(5): columns ``idle`` and ``iowait`` of /proc/stat)."""
    names = {f"cpu{cpu}" for cpu in cpus}
    try:
        rows = [line.split() for line in (proc / "stat").read_text().splitlines()]
        ticks = sum(int(row[4]) + int(row[5]) for row in rows if row and row[0] in names)
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def _used_s(group: Path) -> float | None:
    """CPU time of all in a control group, of version 2 or, where that has both controllers in one place, 1."""
    try:
        words = _words(group / "cpu.stat")
        if "usage_usec" in words:
            return int(words[words.index("usage_usec") + 1]) / 1e6
        return int(_words(group / "cpuacct.usage")[0]) / 1e9
    except (ValueError, IndexError):
        return None


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
