"""Whom the kernel killed for want of memory: with files as the kernel shows them, and with the kernel's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.oom import OomWatch
from tests.control_group import control_group

# A group of 64 MiB without swap, by the files of either version.
SMALL = (
    {"memory.max": "64M", "memory.swap.max": "0"},
    {"memory.limit_in_bytes": "64M", "memory.memsw.limit_in_bytes": "64M"},
    {"memory.max": "64M"},
    {"memory.limit_in_bytes": "64M"},
)
EATS = "import sys; sys.stdin.read(1); held = [b'x' * (8 << 20) for _ in range(1000)]"


class Kernel:
    """``/proc`` and ``/sys/fs/cgroup`` of a made-up machine."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        self.watch = OomWatch(self.proc, self.groups)

    def process(self, pid: int, line: str) -> None:
        (self.proc / str(pid)).mkdir(parents=True, exist_ok=True)
        (self.proc / str(pid) / "cgroup").write_text(f"1:cpu:/\n{line}\n")

    def ends(self, pid: int) -> None:
        """A zombie is in no group."""
        self.process(pid, "0::/" if "0::" in (self.proc / str(pid) / "cgroup").read_text() else "4:memory:/")

    def kills(self, file: str, count: int) -> None:
        (self.groups / file).parent.mkdir(parents=True, exist_ok=True)
        (self.groups / file).write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n")


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/service", "service/memory.events"),
        ("0::/service", "service/memory.events.local"),
        ("0::/service", "unified/service/memory.events"),
        ("0::/service/part", "service/memory.events"),  # the controller ends above
        ("0::/docker/0123", "memory.events"),  # the path is the host's, the mount the container's
        ("4:memory:/service", "memory/service/memory.oom_control"),
        ("4:memory:/docker/0123", "memory/memory.oom_control"),
    ],
)
def test_a_death_after_which_more_kills_are_counted_was_one(tmp_path: Path, line: str, file: str) -> None:
    kernel = Kernel(tmp_path)
    for pid in (7, 8):
        kernel.process(pid, line)
    kernel.kills(file, 2)
    kernel.watch.look([7, 8])
    kernel.kills(file, 3)
    kernel.ends(7)
    assert kernel.watch.killed(7)
    kernel.ends(8)
    assert not kernel.watch.killed(8)


def test_a_process_is_looked_for_in_the_group_that_it_was_moved_to(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    for name in ("a", "b"):
        kernel.kills(f"{name}/memory.events", 0)
    kernel.process(7, "0::/a")
    kernel.watch.look([7])
    kernel.process(7, "0::/b")
    kernel.watch.look([7])
    kernel.kills("b/memory.events", 1)
    assert kernel.watch.killed(7)


def test_where_nobody_counts_nothing_is_concluded(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.watch.look([7])
    assert not kernel.watch.killed(7)
    kernel.process(7, "0::/a")
    kernel.watch.look([7])
    assert not kernel.watch.killed(7)


def test_the_kernel_is_asked_and_not_the_signal() -> None:
    with control_group("memory", *SMALL) as group:
        watch = OomWatch()
        processes = [subprocess.Popen([sys.executable, "-c", EATS], stdin=subprocess.PIPE) for _ in range(2)]
        try:
            for process in processes:
                (group / "cgroup.procs").write_text(str(process.pid))
            watch.look([process.pid for process in processes])
            eats, other = processes
            assert eats.stdin is not None
            eats.stdin.write(b"x")
            eats.stdin.flush()
            assert eats.wait(30) == -signal.SIGKILL
            assert watch.killed(eats.pid)
            os.kill(other.pid, signal.SIGKILL)
            assert other.wait(30) == -signal.SIGKILL
            assert not watch.killed(other.pid)
        finally:
            for process in processes:
                process.kill()
                process.communicate()
