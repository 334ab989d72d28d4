"""``engine check``: what is wrong with a deployment, before anybody asks it for anything."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING, Final

from engine.commands.command import EVERYWHERE, Command, set_up_log
from engine.commands.up import warn_of_strangers

if TYPE_CHECKING:
    from engine.config import Deployment


def check(options: argparse.Namespace, deployment: Deployment) -> int:
    from stages import local

    set_up_log("check", deployment)
    warn_of_strangers()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # user code runs here, and may have to put things away
    return local.check(deployment, as_json=options.json, strict=options.strict)


def _arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print the findings as JSON")
    sub.add_argument("--strict", action="store_true", help="fail also when a stage could not be tried")


CHECK: Final = Command(
    "check",
    "validate a file, then run its warm-up examples through every stage in this process",
    check,
    "engine check stages.toml --json",
    keys=(*EVERYWHERE, "timeout"),
    arguments=_arguments,
)
