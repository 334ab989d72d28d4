"""``engine version``: what is installed here, for whoever asks for help."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib import metadata
from typing import Final

from engine.commands.command import Plain
from engine.exitcodes import ExitCode

BESIDE: Final = ("pyzmq", "falcon", "gunicorn", "msgpack", "prometheus-client", "torch")


def installed(package: str = "stageline") -> str | None:
    """Its version; None where it is not installed: ours is then run from a source tree."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def version(options: argparse.Namespace) -> int:
    print(f"engine {installed() or '(not installed)'}")
    print(f"python {platform.python_version()} ({sys.executable})")
    print(f"system {platform.platform()}")
    for package in BESIDE:
        print(f"{package} {installed(package) or '(not installed)'}")
    return ExitCode.OK


VERSION: Final = Plain("version", "say which versions of what are installed here", version, "engine version")
