"""Whom the kernel killed for want of memory: with files as the kernel shows them, and with the kernel's own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.broker.watch import AVAILABLE, Watch
from engine.core.deaths import Death
from engine.core.killings import TEXT
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


@pytest.fixture
def pair() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes in one small group, each of which takes memory without end once it is sent a byte."""
    with control_group("memory", *SMALL) as group:
        processes = [subprocess.Popen([sys.executable, "-c", EATS], stdin=subprocess.PIPE) for _ in range(2)]
        for process in processes:
            (group / "cgroup.procs").write_text(str(process.pid))
        yield processes
        for process in processes:
            process.kill()
            process.communicate()


def run_out_of_memory(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"x")
    process.stdin.flush()


def test_the_kernel_is_asked_and_not_the_signal(pair: list[subprocess.Popen[bytes]]) -> None:
    watch = OomWatch()
    watch.look([process.pid for process in pair])
    eats, other = pair
    run_out_of_memory(eats)
    assert eats.wait(30) == -signal.SIGKILL
    assert watch.killed(eats.pid)
    other.kill()
    assert other.wait(30) == -signal.SIGKILL
    assert not watch.killed(other.pid)


@pytest.mark.skipif(not AVAILABLE, reason="there are no pidfds here")
def test_the_broker_tells_such_a_death_from_others(pair: list[subprocess.Popen[bytes]]) -> None:
    watch = Watch()
    try:
        for key, process in enumerate(pair):
            assert watch.add(key, process.pid)
        eats, other = pair
        run_out_of_memory(eats)
        assert select.select([watch.fileno()], [], [], 30)[0]
        assert watch.ended() == [(0, Death.MEMORY, TEXT)]
        other.kill()
        assert select.select([watch.fileno()], [], [], 30)[0]
        assert watch.ended() == [(1, Death.OUTSIDE, "by SIGKILL")]
    finally:
        watch.close()


@pytest.mark.skipif(not AVAILABLE, reason="there are no pidfds here")
@pytest.mark.parametrize("reaped", [False, True])
def test_how_a_worker_ended_is_known_also_when_its_parent_was_quicker(reaped: bool) -> None:
    ways = {
        "kill -9 $$": (Death.OUTSIDE, "by SIGKILL"),
        "kill -11 $$": (Death.OWN, "by SIGSEGV"),
        "exit 3": (Death.OWN, "with exit code 3"),
    }
    watch = Watch()
    processes = [subprocess.Popen(["sh", "-c", f"read line; {way}"], stdin=subprocess.PIPE) for way in ways]
    try:
        for key, process in enumerate(processes):
            assert watch.add(key, process.pid)
            assert process.stdin is not None
            process.stdin.close()
            if reaped:
                process.wait(30)
            else:
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        told = [(death, how) for _, death, how in sorted(watch.ended())]
        if reaped and told == [(Death.OWN, "")] * len(ways):
            pytest.skip("this kernel forgets with the parent's wait")
        assert told == list(ways.values())
    finally:
        watch.close()
        for process in processes:
            process.wait(30)
