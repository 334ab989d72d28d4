"""CPUs that may be used: the mask, and the quota in whichever files it stands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine import cpus


def machine(folder: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Files as the kernel would show them: /proc/self/cgroup, and what lies below /sys/fs/cgroup."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(lines)
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    return proc, cgroups


V1 = "9:name=systemd:/\n2:cpu,cpuacct:{path}\n1:cpuset:/elsewhere\n"


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        # the group around it allows less
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "400000 100000"}, 1.0),
        # the path is the host's, the mount is the container's own
        ("0::/docker/0123\n", {"cpu.max": "200000 100000"}, 2.0),
        (
            V1.format(path="/"),
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        (V1.format(path="/x"), {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"}, 3.0),
        (V1.format(path="/x"), {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        # both versions side by side: the controller is in one of them
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1.0),
        ("1:cpu:/\n0::/\n", {"unified/cpu.max": "100000 50000"}, 2.0),
        # what cannot be read sets no bound
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {"cpu.max": "1 0"}, None),
        ("cpu\n\n:::\n", {}, None),
    ],
)
def test_the_quota_of_a_control_group(
    tmp_path: Path, lines: str, files: dict[str, str], expected: float | None
) -> None:
    assert cpus.quota(*machine(tmp_path, lines, files)) == expected


def test_without_such_files_there_is_no_bound(tmp_path: Path) -> None:
    assert cpus.quota(tmp_path / "none", tmp_path) is None
    assert cpus.usable_cpus(tmp_path / "none", tmp_path) == len(cpus.available_cpus())


def test_the_smaller_of_mask_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = machine(tmp_path, "0::/\n", {"cpu.max": "250000 100000"})
    monkeypatch.setattr(cpus, "available_cpus", lambda: list(range(16)))
    assert cpus.usable_cpus(*where) == 2.5
    monkeypatch.setattr(cpus, "available_cpus", lambda: [3])
    assert cpus.usable_cpus(*where) == 1.0


def test_of_this_machine_something_is_known() -> None:
    assert 0 < cpus.usable_cpus() <= len(cpus.available_cpus())


STAT = """cpu  9 9 9 900 90 0 0 0 0 0
cpu0 1 0 2 300 30 0 0 0 0 0
cpu1 5 0 2 200 20 0 0 0 0 0
cpu2 3 9 5 400 40 0 0 0 0 0
intr 12 34
"""


@pytest.fixture
def some(monkeypatch: pytest.MonkeyPatch) -> float:
    """Two of the machine's CPUs may be used, and it is the tenth second: how long a tick of the kernel's is."""
    monkeypatch.setattr(cpus, "available_cpus", lambda: [0, 2])
    monkeypatch.setattr(cpus, "monotonic", lambda: 10.0)
    return 1 / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("lines", "files", "left"),
    [
        ("0::/\n", {}, [770]),
        ("0::/\n", {"cpu.max": "150000 100000", "cpu.stat": "usage_usec 4000000\nuser_usec 1\n"}, [770, 11.0]),
        # of the group that sets the bound
        (
            "0::/a/b\n",
            {
                "a/b/cpu.max": "300000 100000",
                "a/b/cpu.stat": "usage_usec 1",
                "a/cpu.max": "200000 100000",
                "a/cpu.stat": "usage_usec 5000000",
            },
            [770, 15.0],
        ),
        (
            V1.format(path="/"),
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "50000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpuacct.usage": "2000000000",
            },
            [770, 3.0],
        ),
        # a bound, and nobody knows what of it was used
        ("0::/\n", {"cpu.max": "150000 100000"}, []),
    ],
)
def test_time_that_nobody_used(
    tmp_path: Path, some: float, lines: str, files: dict[str, str], left: list[float]
) -> None:
    proc, cgroups = machine(tmp_path, lines, files)
    (proc / "stat").write_text(STAT)
    found = cpus.left_s(proc, cgroups)
    assert found == pytest.approx([left[0] * some, *left[1:]] if left else [])


def test_where_the_system_does_not_tell_nothing_is_known_of_it(tmp_path: Path, some: float) -> None:
    assert cpus.left_s(tmp_path / "none", tmp_path) == ()
    assert len(cpus.left_s()) <= 2
