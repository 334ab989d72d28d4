"""``engine doctor``: what is wrong with this machine or a deployment, and what to do about it."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from engine.commands.command import HERE, Command, set_up_log
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from engine.config import Deployment


def doctor(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.doctor import finding, machine, place

    set_up_log("doctor", deployment)
    findings = [*machine.look(deployment), *place.look(deployment)]
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(finding.as_json(findings) if options.json else finding.text(findings, colour=colour))
    poor = {finding.Grade.BAD, finding.Grade.NOTE} if options.strict else {finding.Grade.BAD}
    return ExitCode.FAILED if any(one.grade in poor for one in findings) else ExitCode.OK


def _arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print what is found as JSON")
    sub.add_argument("--strict", action="store_true", help="fail also of what is only to be known")


DOCTOR: Final = Command(
    "doctor",
    "say what is wrong with this machine or a deployment, and what to do about it",
    doctor,
    "engine doctor stages.toml",
    keys=(*HERE, "address", "port"),
    arguments=_arguments,
)
