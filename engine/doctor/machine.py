"""This machine, for a deployment: may it have so many descriptors, CPUs, so much memory; do its clocks, its kernel, its
packages and its GPUs do what is needed?"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from engine.cgroups import folders
from engine.config import Deployment
from engine.core.placement import MANY_CPUS
from engine.cpus import available_cpus, quota, usable_cpus
from engine.descriptors import MOST, broker_needs
from engine.doctor.finding import Finding, bad, good, note
from engine.status import size

FRONTEND_BASE: Final = 64  # descriptors of a frontend process beside its connections
CLIENTS: Final = 10_000  # connections that a service may have without anybody being surprised
SLOW_CLOCKS: Final = ("acpi_pm", "hpet", "pit", "jiffies")
BACKLOG: Final = 1024  # connections that may wait to be accepted
PROBE_S: Final = 60.0  # torch imports for long, and a driver may hang
AT_REST: Final = 90 << 20  # bytes that a process takes with nothing to do
TIME_ERROR: Final = 5  # what adjtimex(2) returns of a clock that nobody sets right

_REQUIREMENT: Final = re.compile(r"^([A-Za-z0-9_.-]+)\s*([^;]*?)\s*(?:;\s*(.*))?$")
_BOUND: Final = re.compile(r"(>=|<=|<|>|==|!=)\s*([0-9][0-9.]*)")

# What torch sees; a process of its own, for a driver may hang or take this one along.
PROBE: Final = """
import torch
print("torch", torch.__version__, torch.version.cuda or "-", torch.cuda.is_available(), torch.cuda.device_count())
for index in range(torch.cuda.device_count()):
    free, whole = torch.cuda.mem_get_info(index)
    print("gpu", torch.cuda.get_device_name(index).replace(" ", "_"), free, whole)
"""


def look(deployment: Deployment) -> Iterator[Finding]:
    """All of it."""
    yield from packages()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield judge_descriptors(deployment, MOST if hard == resource.RLIM_INFINITY else hard)
    yield judge_cpus(deployment, len(available_cpus()), quota(), usable_cpus())
    yield judge_memory(deployment, memory())
    yield from judge_kernel(_words("/proc/sys/net/core/somaxconn"), _words("/proc/sys/net/ipv4/ip_local_port_range"),
                            _words("/proc/sys/net/ipv4/ip_local_reserved_ports"), deployment)  # fmt: skip
    yield judge_clock(_words("/sys/devices/system/clocksource/clocksource0/current_clocksource"), _is_set_right(),
                      spans_hosts=deployment.engine.is_tcp)  # fmt: skip
    yield from gpus(deployment)


def _words(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


# --- packages --------------------------------------------------------------------------------------------------------


def packages() -> Iterator[Finding]:
    yield good("python", f"{platform.python_version()}, {sys.executable}")
    try:
        required = metadata.requires("stageline") or []
        own = metadata.version("stageline")
    except metadata.PackageNotFoundError:
        yield note(
            "packages", "stageline is not installed here: it is run from a source tree", "install it: pip install ."
        )
        return
    problems = list(judge_requirements(required, _installed(required)))
    yield from problems
    if not problems:
        yield good("packages", f"stageline {own}; all that it requires is there")


def _installed(required: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in required:
        match = _REQUIREMENT.match(text)
        if match is not None:
            try:
                found[match[1]] = metadata.version(match[1])
            except metadata.PackageNotFoundError:
                continue
    return found


def judge_requirements(required: Sequence[str], installed: Mapping[str, str]) -> Iterator[Finding]:
    """Of requirements that hold here: those without a marker, for those with one are for other Pythons or extras."""
    for text in required:
        match = _REQUIREMENT.match(text)
        if match is None or match[3]:
            continue
        name, bounds = match[1], _BOUND.findall(match[2])
        version = installed.get(name)
        if version is None:
            yield bad("packages", f"{name} is not installed", f"pip install '{name}{match[2]}'")
        elif not all(_holds(version, sign, bound) for sign, bound in bounds):
            yield bad("packages", f"{name} is {version}, and {match[2]} is needed", f"pip install '{name}{match[2]}'")


def _holds(version: str, sign: str, bound: str) -> bool:
    have, want = _numbers(version), _numbers(bound)
    size = max(len(have), len(want))
    have, want = have + [0] * (size - len(have)), want + [0] * (size - len(want))
    return {">=": have >= want, "<=": have <= want, "<": have < want, ">": have > want, "==": have == want,
            "!=": have != want}[sign]  # fmt: skip


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:4]]


# --- limits ----------------------------------------------------------------------------------------------------------


def judge_descriptors(deployment: Deployment, hard: int) -> Finding:
    """``hard``: how many a process here may allow itself."""
    workers = sum(stage.num + stage.spare for stage in deployment.stages)
    least = max(broker_needs(workers, len(deployment.stages), 4), FRONTEND_BASE + deployment.frontend.capacity)
    how = "ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of docker"
    if hard < least:
        return bad(
            "descriptors",
            f"a process may have {hard} open, and this deployment needs {least}: for {workers} workers and "
            f"{deployment.frontend.capacity} requests at once",
            f"allow {max(65536, 2 * least)}: {how}",
        )
    if hard < CLIENTS:
        return note(
            "descriptors",
            f"a process may have {hard} open, so a frontend process holds fewer connections than that; beyond them "
            "idle ones are closed",
            f"allow 65536 where there are many clients: {how}",
        )
    return good("descriptors", f"{hard} for each process")


def judge_cpus(deployment: Deployment, seen: int, bound: float | None, usable: float) -> Finding:
    """``seen``: in the affinity mask; ``bound``: what control groups allow."""
    workers = sum(stage.num for stage in deployment.stages)
    limited = f" of the {seen} that it sees, for its control group allows no more" if bound and bound < seen else ""
    many = "1 worker" if workers == 1 else f"{workers} workers"
    words = f"{usable:g} for this process{limited}; {many}, a broker and the frontend"
    if usable < 1:
        return note(
            "cpus",
            f"{words}: less than one for all of them, so whoever has used up its share is stopped until the next "
            "tenth of a second, and latencies show it",
            "allow at least 2: cpus of docker, limits.cpu of Kubernetes, CPUQuota= of systemd",
        )
    on_cpu = sum(stage.num for stage in deployment.stages if stage.device == "cpu")
    if on_cpu > 2 * usable and on_cpu > MANY_CPUS:
        return note(
            "cpus",
            f"{words}: {on_cpu} of the workers compute on CPUs, more than twice as many as there are",
            "fewer workers with larger batches do more where they compute all the time: engine plan says how many",
        )
    return good("cpus", words)


def memory() -> int:
    """Bytes that this process and all beside it in its control group may use."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bounds = [whole]
    for folder in folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _words(str(folder / name))
            if text.isdecimal() and int(text):
                bounds.append(int(text))
    return min(bounds)


def judge_memory(deployment: Deployment, most: int) -> Finding:
    """``most``: bytes there are. What models take is not known here."""
    engine, frontend = deployment.engine, deployment.frontend
    processes = 2 + frontend.processes + sum(stage.num + stage.spare for stage in deployment.stages)
    bodies = 3 * frontend.capacity_bytes
    shared = engine.shared_memory * (frontend.processes + sum(stage.num for stage in deployment.stages))
    rest = processes * AT_REST
    words = (
        f"{size(most)}; beside the models {processes} processes take some {size(rest)} at rest, bodies at most "
        f"{size(bodies)} (capacity_bytes), shared memory at most {size(shared)}"
    )
    if rest > most:
        return bad("memory", words, "allow more, or run fewer workers")
    if rest + bodies + shared > most:
        return note(
            "memory",
            f"{words}: a flood of large requests could use up all of it, and then the kernel kills a process",
            "lower capacity_bytes and shared_memory to what your requests need, or allow more",
        )
    return good("memory", words)


# --- the kernel ------------------------------------------------------------------------------------------------------


def judge_kernel(somaxconn: str, ephemeral: str, reserved: str, deployment: Deployment) -> Iterator[Finding]:
    if somaxconn.isdecimal() and int(somaxconn) < BACKLOG:
        yield note(
            "backlog",
            f"only {somaxconn} connections may wait to be accepted (net.core.somaxconn): of a burst of new clients "
            "some are refused",
            f"sysctl -w net.core.somaxconn={BACKLOG * 4}",
        )
    found = own_ports(deployment)
    if found is None:
        return
    first, last = found
    low, high = (int(word) for word in ephemeral.split()) if len(ephemeral.split()) == 2 else (0, 0)
    if last >= low and first <= high and not _is_reserved(first, last, reserved):
        yield note(
            "ports",
            f"the broker's ports {first} to {last} lie among those that the system gives to outgoing connections "
            f"({low} to {high}): one may be taken when a worker comes",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}, or a lower port in bind",
        )


def own_ports(deployment: Deployment) -> tuple[int, int] | None:
    """The first and the last of the broker's; None where it listens at none."""
    from engine.ports import ports

    of_broker = [one for one in ports(deployment) if one.process == "broker"]
    return (of_broker[0].first, of_broker[-1].last) if of_broker and of_broker[0].first else None


def _is_reserved(first: int, last: int, reserved: str) -> bool:
    spans = [part.partition("-") for part in reserved.split(",") if part]
    return any(int(low) <= first and last <= int(high or low) for low, _, high in spans)


# --- clocks ----------------------------------------------------------------------------------------------------------


def _is_set_right() -> bool | None:
    """Whether somebody keeps the system's clock right; None where that cannot be known (adjtimex(2))."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state: int = libc.adjtimex(ctypes.create_string_buffer(1024))  # no bit of modes is set: it is only read
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR


def judge_clock(source: str, is_set_right: bool | None, *, spans_hosts: bool) -> Finding:
    """``source``: what the kernel reads the time from. The data path counts what passes and reads no wall clock, so a
    wrong one costs nothing but the sense of logs and certificates."""
    if source in SLOW_CLOCKS:
        return note(
            "clock",
            f"the kernel reads the time from {source}, which takes some microseconds each time, at many places of each "
            "request",
            "see `dmesg | grep -i tsc`: why it does not trust the CPU's own; on a virtual machine kvm-clock or hyperv",
        )
    if is_set_right is False and spans_hosts:
        return note(
            "clock",
            "nobody sets this machine's clock right: nothing fails for that, but logs of several hosts cannot be put "
            "in order",
            "run chrony or systemd-timesyncd",
        )
    return good("clock", source or "its source is not known")


# --- GPUs ------------------------------------------------------------------------------------------------------------


def gpus(deployment: Deployment) -> Iterator[Finding]:
    wanted = {stage.name: stage.num for stage in deployment.stages if _may_use_gpu(stage.device)}
    if not wanted:
        return
    must = {stage.name for stage in deployment.stages if stage.name in wanted and stage.device != "auto"}
    listed = _listed()
    if not listed and not must:
        yield good("gpus", f'none is here, so device = "auto" of {", ".join(wanted)} is the CPU')
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
        told, trouble = done.stdout, done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        told, trouble = "", [f"torch did not answer within {PROBE_S:g} s"]
    yield from judge_gpus(wanted, must, listed, told, trouble[0] if trouble else "")


def _may_use_gpu(device: object) -> bool:
    return device == "auto" or (device != "cpu" and str(device) != "cpu")


def _listed() -> list[str]:
    """As ``nvidia-smi -L`` has them."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if line.startswith("GPU ")]


def judge_gpus(
    wanted: Mapping[str, int], must: set[str], listed: Sequence[str], told: str, trouble: str
) -> Iterator[Finding]:
    """``wanted``: workers by stage that may have one; ``must``: stages that cannot do without; ``listed``: by the
    driver; ``told``: what PROBE printed."""
    lines = [line for line in told.splitlines() if line.startswith(("torch ", "gpu "))]  # others are a library's
    names = ", ".join(wanted)
    if not lines:
        judge = bad if must else note
        if not listed and must:
            yield bad("gpus", f"{', '.join(sorted(must))} needs one, and the driver lists none (nvidia-smi -L)",
                      "install the driver; in a container give it the GPUs: --gpus all")  # fmt: skip
            return
        yield judge("gpus", f"the driver lists {len(listed)}, and torch cannot use them: {trouble}",
                    "install torch with CUDA: pip install torch")  # fmt: skip
        return
    _, version, cuda, available, count = lines[0].split()
    if available != "True" or int(count) == 0:
        judge = bad if must else note
        why = "is built without CUDA" if cuda == "-" else f"is built for CUDA {cuda}, and finds none"
        yield judge(
            "gpus",
            f"the driver lists {len(listed)}, torch {version} {why}; asked for by {names}",
            "install torch with CUDA (pip install torch), and a driver that is as new as its CUDA: nvidia-smi says "
            "which one it supports; in a container give it the GPUs: --gpus all",
        )
        return
    described = []
    for line in lines[1:]:
        _, name, free, whole = line.split(" ")
        described.append(f"{name.replace('_', ' ')} ({size(int(free))} of {size(int(whole))} free)")
    seen = f"{count} by torch {version} with CUDA {cuda}: {', '.join(described)}"
    workers = sum(wanted.values())
    if workers > int(count):
        yield note("gpus", f"{seen}; {workers} workers of {names} share them",
                   "each holds its own copy of the model: there has to be memory for so many")  # fmt: skip
    else:
        yield good("gpus", seen)
