"""``engine logs``: what a deployment that was started on a terminal has written."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

from engine.commands.command import EVERYWHERE, Command, add_only, count, parts_of
from engine.config import run_dir
from engine.errors import ConfigError
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from engine.config import Deployment

LAST: Final = 200
LOOK_S: Final = 0.2  # between two looks at a log that is followed
LEVELS: Final = ("debug", "info", "warning", "error")
PROCESSES: Final = ("supervisor", "broker", "frontend", "worker")


def logs(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import logs
    from engine.supervisor import rundir

    stages = [spec.name for spec in deployment.stages]
    if options.stage and options.stage not in stages:
        raise ConfigError([f"--stage: expected one of {', '.join(stages)}; got {options.stage}"])
    folder = run_dir(parts_of(options, deployment).of(deployment))
    rundir.check(folder)
    path = folder / rundir.LOG
    if not path.exists():
        print(
            f"engine: there is no log at {path}: one is kept where `engine up` was started on a terminal; elsewhere it "
            "goes to standard error, and so to whatever started it: journalctl -u NAME, docker logs, kubectl logs",
            file=sys.stderr,
        )
        return ExitCode.FAILED
    choice = logs.Choice(
        level=getattr(logging, options.level.upper()) if options.level else 0,
        process=options.process,
        stage=options.stage,
        request=options.request,
    )
    colour = not options.json and sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def show(lines: list[bytes], most: int | None = None) -> int:
        shown = deque(logs.chosen(lines, choice, raw=options.json, colour=colour), maxlen=most)
        for text in shown:
            print(text)
        sys.stdout.flush()
        return len(shown)

    tail = logs.Tail(path)
    begun = [*logs.Tail(folder / rundir.FORMER_LOG).last(), *(tail.lines() if options.follow else tail.last())]
    if not show(begun, options.last) and not options.follow:
        print(f"engine: no such line among the {len(begun)} in {path}", file=sys.stderr)
    while options.follow:
        is_over = rundir.holder(folder) is None
        show(tail.last() if is_over else tail.lines())
        if is_over:
            break
        rundir.sleep(LOOK_S)
    return ExitCode.OK


def _arguments(sub: argparse.ArgumentParser) -> None:
    add_only(sub)
    sub.add_argument("--follow", "-f", action="store_true", help="go on with what comes, until the deployment ends")
    sub.add_argument("--last", type=count, default=LAST, metavar="N", help="so many lines (%(default)s)")
    sub.add_argument("--level", choices=LEVELS, help="these and more severe ones")
    sub.add_argument("--process", choices=PROCESSES, default="", help="of this kind of process")
    sub.add_argument("--stage", metavar="NAME", default="", help="about this stage")
    sub.add_argument("--request", metavar="ID", default="", help="about the request with this x-request-id")
    sub.add_argument("--json", action="store_true", help="as they were written, an object a line")


LOGS: Final = Command(
    "logs",
    "show the log of a deployment that was started on a terminal",
    logs,
    "engine logs stages.toml --follow\n"
    "engine logs stages.toml --level warning --stage encode\n"
    "engine logs stages.toml --request 6f1c0e --json",
    keys=(*EVERYWHERE, "run_dir"),
    arguments=_arguments,
)
