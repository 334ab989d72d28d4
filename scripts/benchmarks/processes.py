"""What a system uses: CPU time and memory of its processes, by their role in it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import psutil

ROLES: Final = (
    # text of the command line -> role; the first that fits
    ("engine/bootstrap.py broker", "broker"),
    ("engine/bootstrap.py frontend", "frontend"),
    ("engine/bootstrap.py worker", "worker"),
    ("engine.cli up", "supervisor"),
    ("resource_tracker", "supervisor"),
    ("multiprocessing.spawn", "worker"),
    ("calling_service.py", "supervisor"),
    ("/bin/mosec ", "server"),
    ("mosec_service.py", "supervisor"),
    ("litserve_service.py", "server"),
)


def role(command_line: str) -> str:
    """What a process does, from its command line. Pure."""
    return next((name for part, name in ROLES if part in command_line), "other")


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it, as far as they are alive."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def pids(pid: int, wanted: str) -> list[int]:
    """The processes of a family that have this role."""
    return [process.pid for process in family(pid) if role(" ".join(process.cmdline())) == wanted]


def cpu_us(pid: int) -> Counter[str]:
    """CPU microseconds used so far, by role. Kernel and user time, of living threads."""
    used: Counter[str] = Counter()
    for process in family(pid):
        try:
            used[role(" ".join(process.cmdline()))] += _cpu_us(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it ended between the listing and the look
    return used


def _cpu_us(process: psutil.Process) -> int:
    # schedstat counts nanoseconds; what psutil reads counts ticks of 10 ms, too coarse for 64 workers that sleep.
    stats = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if not stats:
        times = process.cpu_times()
        return int((times.user + times.system) * 1e6)
    used = 0
    for path in stats:
        try:
            used += int(path.read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
    return used // 1000


def memory_kib(pid: int) -> Counter[str]:
    """Memory that is a process's own (USS), in KiB, by role: pages shared with others are not counted twice."""
    used: Counter[str] = Counter()
    for process in family(pid):
        try:
            used[role(" ".join(process.cmdline()))] += process.memory_full_info().uss // 1024
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return used
