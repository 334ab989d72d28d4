"""Which CPUs are near which GPU, from folders like those of the kernel and of the driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.nearby import near_gpus

LOW, HIGH = frozenset({0, 1, 2, 3, 8}), frozenset({4, 5, 6, 7})


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two GPUs, of which the first on the bus is on the second node."""
    for address, node, cpus, name in (
        ("0000:4B:00.0", "1", "4-7", "GPU-aaaa"),
        ("0000:9C:00.0", "0", "0-3,8", "GPU-abbb"),
    ):
        driver, device = tmp_path / "driver" / address, tmp_path / "devices" / address.lower()
        driver.mkdir(parents=True)
        device.mkdir(parents=True)
        (driver / "information").write_text(f"Model: \t\t One\nIRQ:   \t\t 1\nGPU UUID: \t {name}\n")
        (device / "numa_node").write_text(f"{node}\n")
        (device / "local_cpulist").write_text(f"{cpus}\n")
    return tmp_path


def near(machine: Path, **environ: str) -> list[frozenset[int]]:
    return near_gpus(environ, driver=machine / "driver", devices=machine / "devices")


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [HIGH, LOW]),
        ("1,0", [LOW, HIGH]),
        (" 1", [LOW]),
        ("GPU-abbb,GPU-aa", [LOW, HIGH]),
        ("GPU-a", []),  # both
        ("0,-1,1", [HIGH]),
        ("2", []),
        ("", []),
        ("MIG-1", []),
    ],
)
def test_those_that_are_seen(machine: Path, visible: str | None, expected: list[frozenset[int]]) -> None:
    assert near(machine, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})) == expected


def test_where_there_is_no_gpu_there_is_nothing(tmp_path: Path) -> None:
    assert near(tmp_path) == []


def test_of_unequal_ones_only_the_order_of_the_bus_is_known(machine: Path) -> None:
    file = machine / "driver" / "0000:4B:00.0" / "information"
    file.write_text(file.read_text().replace("One", "Other"))
    assert near(machine) == []
    assert near(machine, CUDA_DEVICE_ORDER="PCI_BUS_ID") == [HIGH, LOW]


@pytest.mark.parametrize(
    ("name", "text"), [("numa_node", "-1"), ("numa_node", "x"), ("local_cpulist", ""), ("local_cpulist", "a-b")]
)
def test_a_gpu_of_which_nobody_says_where_it_is(machine: Path, name: str, text: str) -> None:
    (machine / "devices" / "0000:4b:00.0" / name).write_text(text)
    assert near(machine) == [frozenset(), LOW]
