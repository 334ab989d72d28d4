"""``engine up`` and ``engine down``: a deployment from its start to its end, on this machine or a cluster."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from engine import log
from engine.commands.command import HERE, Command, add_on, add_only, parts_of, refuse_only, reread, set_up_log
from engine.config import flags_of, run_dir
from engine.config.flags import overrides, strangers
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from engine.config import Deployment

DOWN_S: Final = 30.0  # beyond what a deployment has to finish in


def warn_of_strangers() -> None:
    """Once for a whole deployment: not in the processes that a supervisor starts."""
    for line in strangers(os.environ):
        log.get_logger().warning("%s", line)


def up(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import supervisor
    from engine.titles import OURS, entitle

    set_up_log("supervisor", deployment)
    if options.reload and (options.only or options.on is not None):
        options.parser.error("--reload is for a whole deployment on this machine: expected it without --only and --on")
    if options.on is not None:
        from engine.onray import cluster

        refuse_only(options)
        found, _ = overrides(flags_of(options), os.environ)
        return cluster.up(deployment, options.on, cluster.tell, found)
    if options.parent is not None:
        from engine.process import die_with_parent

        die_with_parent(options.parent)
    entitle("up", deployment.engine.name, short=OURS)
    warn_of_strangers()
    if options.reload:
        return supervisor.develop(deployment, reread(options))
    return supervisor.run(deployment, reread=reread(options), parts=parts_of(options, deployment))


def down(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.clock import Deadline
    from engine.supervisor import rundir

    set_up_log("down", deployment)
    if options.on is not None:
        from engine.onray import cluster

        refuse_only(options)
        return cluster.down(deployment, options.on, cluster.tell)
    deployment = parts_of(options, deployment).of(deployment)
    path = run_dir(deployment)
    pid = rundir.holder(path)
    if pid is None:
        print(f'engine: "{deployment.engine.name}" does not run here ({path})', file=sys.stderr)
        return ExitCode.UNREACHABLE
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        print(f"engine: process {pid} is another user's, and is not ended", file=sys.stderr)
        return ExitCode.FAILED
    except ProcessLookupError:  # it ended just now, or cannot be seen from here
        if rundir.holder(path) == pid:
            print(f"engine: process {pid} does not run here: end it in its own container", file=sys.stderr)
            return ExitCode.FAILED
    patience = Deadline(deployment.engine.grace + deployment.frontend.drain_delay + DOWN_S)
    while rundir.holder(path) == pid:
        if patience.passed:
            print(f"engine: process {pid} is still stopping", file=sys.stderr)
            return ExitCode.FAILED
        rundir.sleep(rundir.LOOK_S)
    return ExitCode.OK


def _up_arguments(sub: argparse.ArgumentParser) -> None:
    add_only(sub)
    add_on(sub)
    sub.add_argument("--reload", action="store_true", help="for development: serve what is edited, at once")
    sub.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # for whoever holds a part of a deployment


def _down_arguments(sub: argparse.ArgumentParser) -> None:
    add_only(sub)
    add_on(sub)


UP: Final = Command(
    "up",
    "run a deployment, or parts of one, on this machine",
    up,
    "engine up stages.toml --port 9000\n"
    "engine up stages.toml --reload                 while you edit it\n"
    "engine up stages.toml --only broker,frontend   on one host, and\n"
    "engine up stages.toml --only encode=4          on others\n"
    "engine up stages.toml --on ray                 wherever the Ray cluster has room",
    keys=None,
    linked=True,
    arguments=_up_arguments,
)
DOWN: Final = Command(
    "down",
    "end a running deployment, in order",
    down,
    "engine down stages.toml",
    keys=(*HERE, "grace"),
    arguments=_down_arguments,
)
