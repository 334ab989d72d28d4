"""``engine status``: how a running deployment stands, wherever it runs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from engine import log
from engine.commands.command import STATUS_TIMEOUT_S, Command, add_on, check_run_dir, unreachable
from engine.errors import Unavailable
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from engine.config import Deployment


def status(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import admin
    from engine.status import table

    log.setup("status", level=deployment.engine.log_level)
    try:
        if options.on is not None:
            answer = _on_cluster(options, deployment)
        else:
            check_run_dir(deployment)
            answer = admin.ask(deployment, "status", STATUS_TIMEOUT_S)
    except Unavailable as error:
        if options.on is None:
            return unreachable(options, deployment, error)
        print(f'engine: "{deployment.engine.name}" does not answer: {error}', file=sys.stderr)
        return ExitCode.UNREACHABLE
    print(answer.decode() if options.json else table(answer))
    return ExitCode.OK


def _on_cluster(options: argparse.Namespace, deployment: Deployment) -> bytes:
    from engine.onray import cluster

    return cluster.status(deployment, options.on)


def _arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print what the broker says, as JSON")
    add_on(sub)


STATUS: Final = Command(
    "status",
    "show a running deployment",
    status,
    "engine status stages.toml --json",
    linked=True,
    arguments=_arguments,
)
