"""``engine status``: how a running deployment stands, wherever it runs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from engine.commands import watching
from engine.commands.command import STATUS_TIMEOUT_S, Command, add_on, check_run_dir, set_up_log, unreachable
from engine.errors import Unavailable
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from engine.config import Deployment


def status(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.status import fitted, table

    set_up_log("status", deployment)

    def show(answer: bytes | None, trouble: str, columns: int, rows: int) -> str:
        if options.json:
            return (answer or b"null").decode()
        return fitted(table(answer) if answer is not None else "", trouble, columns, rows)

    try:
        if options.watch is not None:
            return watching.watch(lambda: ask(options, deployment), show, options.watch, drawn=not options.json)
        print(show(ask(options, deployment), "", 0, 0))
        return ExitCode.OK
    except Unavailable as error:
        return nobody(options, deployment, error)


def ask(options: argparse.Namespace, deployment: Deployment) -> bytes:
    """What the brokers say. Raises Unavailable."""
    if options.on is not None:
        from engine.onray import cluster

        return cluster.status(deployment, options.on)
    from engine import admin

    check_run_dir(deployment)
    return admin.ask(deployment, "status", STATUS_TIMEOUT_S)


def nobody(options: argparse.Namespace, deployment: Deployment, error: Unavailable) -> int:
    """There is none that answers: say so."""
    if options.on is None:
        return unreachable(options, deployment, error)
    print(f'engine: "{deployment.engine.name}" does not answer: {error}', file=sys.stderr)
    return ExitCode.UNREACHABLE


def every(text: str) -> float:
    """The type of an argument that is a time between two looks."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not watching.LEAST_S <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected {watching.LEAST_S:g} to 3600 seconds, got {text}")
    return seconds


def _arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print what the broker says, as JSON; watching, a line a look")
    sub.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=every,
        const=watching.EVERY_S,
        help=f"show it again every so many seconds (default: {watching.EVERY_S:g}), until Ctrl-C",
    )
    add_on(sub)


STATUS: Final = Command(
    "status",
    "show a running deployment",
    status,
    "engine status stages.toml --json\nengine status stages.toml --watch",
    linked=True,
    arguments=_arguments,
)
