"""What the numbers were measured on and with: without it they mean nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from benchmarks import nginx
from benchmarks.systems import ROOT, peers_python

OURS = ("pyzmq", "gunicorn", "falcon", "msgspec", "uvloop", "numpy", "torch", "sentence-transformers")
THEIRS = ("mosec", "litserve", "msgspec", "numpy", "uvloop")


def now() -> dict[str, str]:
    """When a case began, with what, and how busy the machine was then."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "stageline": commit(),
        "load average before": " ".join(f"{one:.1f}" for one in os.getloadavg()),
    }


def describe() -> dict[str, str]:
    """The machine."""
    return {
        "cpu": _cpu(),
        "cpus": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Of the systems beside Stageline, and of what they stand on."""
    found = {"python": _python()}
    for name in OURS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # torch, where no case needed it
    code = (
        "from importlib.metadata import distributions\n"
        f"for d in distributions():\n  if d.name in {THEIRS!r}: print(d.name, d.version)"
    )
    told = subprocess.run([peers_python(), "-c", code], capture_output=True, text=True, check=True)
    peers = dict(line.split() for line in told.stdout.splitlines())
    found |= {name if name in ("mosec", "litserve") else f"{name} (peers)": value for name, value in peers.items()}
    clients = {"wrk": (["wrk", "-v"], r"wrk (\S+)"), "nginx": ([nginx.binary() or "nginx", "-v"], r"nginx/(\S+)")}
    for name, (command, said) in clients.items():
        if shutil.which(command[0]):
            told = subprocess.run(command, capture_output=True, text=True, check=False)
            if match := re.search(said, told.stdout + told.stderr):
                found[name] = match[1]
    return found


def _python() -> str:
    """The interpreter, the same for all systems, and whose build it is: distributions optimise theirs by a profile."""
    if sys.base_prefix != "/usr":
        return platform.python_version()
    return f"{platform.python_version()} of {platform.freedesktop_os_release().get('PRETTY_NAME', 'the system')}"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The version, and the commit when run from a repository; ``+`` when files were changed since."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    commit = told.stdout.strip()
    try:
        number = version("stageline")
    except PackageNotFoundError:  # run from the checkout
        number = "not installed"
    return number + (f" ({commit})" if commit else "")
