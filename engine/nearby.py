"""Which CPUs are near which GPU: those of the NUMA node it is plugged into, as the kernel and NVIDIA's driver tell.

Nothing is loaded for it, and nothing is taken for granted: a GPU of which nobody says where it is has no CPUs near it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

VISIBLE_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"
DRIVER: Final = Path("/proc/driver/nvidia/gpus")  # a folder for each, by its address on the bus
DEVICES: Final = Path("/sys/bus/pci/devices")


def near_gpus(environ: Mapping[str, str], *, driver: Path = DRIVER, devices: Path = DEVICES) -> list[frozenset[int]]:
    """The CPUs near each GPU that a process with this environment sees, in the order of their numbers; where that order
    is not certain, none. (CUDA sorts GPUs by their speed, and equal ones by their address, unless told to look at the
    address alone: so of unequal ones nothing is known here.)"""
    try:
        addresses = sorted(folder.name for folder in driver.iterdir())
        told = [_information(driver / address / "information") for address in addresses]
    except OSError:
        return []
    if len({one.get("Model") for one in told}) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return []
    visible = environ.get(VISIBLE_VARIABLE)
    if visible is None:
        return [_near(devices / address.lower()) for address in addresses]
    by_name = {one["GPU UUID"]: address for one, address in zip(told, addresses, strict=True) if "GPU UUID" in one}
    found = []
    for entry in visible.split(","):
        address = _address(entry.strip(), addresses, by_name)
        if address is None:
            break  # CUDA reads up to the first that is invalid
        found.append(_near(devices / address.lower()))
    return found


def _address(entry: str, addresses: list[str], by_name: Mapping[str, str]) -> str | None:
    if entry.isdecimal():
        return addresses[int(entry)] if int(entry) < len(addresses) else None
    named = [address for name, address in by_name.items() if entry and name.startswith(entry)]
    return named[0] if len(named) == 1 else None


def _information(file: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in file.read_text().splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _near(device: Path) -> frozenset[int]:
    """CPUs of a list such as ``0-7,16``; none where there are no nodes, or one."""
    try:
        if int((device / "numa_node").read_text()) < 0:
            return frozenset()
        spans = (span.partition("-") for span in (device / "local_cpulist").read_text().strip().split(","))
        return frozenset(cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return frozenset()
