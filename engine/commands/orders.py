"""``engine reload``, ``engine scale`` and ``engine health``: what a running supervisor is told or asked."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from engine.commands.command import EVERYWHERE, STATUS_TIMEOUT_S, Command, add_only, parts_of, set_up_log
from engine.config import run_dir
from engine.errors import ConfigError, StartError, Unavailable
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from engine.config import Deployment


def reload(options: argparse.Namespace, deployment: Deployment) -> int:
    return _order(options, deployment, {"do": "reload"})


def scale(options: argparse.Namespace, deployment: Deployment) -> int:
    nums = {}
    for text in options.nums:
        stage, found, num = text.partition("=")
        if not found or not num.isdecimal():
            raise ConfigError([f"expected STAGE=N, such as {deployment.stages[0].name}=2; got {text}"])
        nums[stage] = int(num)
    if not nums:
        raise ConfigError([f"which stage? expected STAGE=N, such as {deployment.stages[0].name}=2"])
    return _order(options, deployment, {"do": "scale", "nums": nums})


def _order(options: argparse.Namespace, deployment: Deployment, order: dict[str, object]) -> int:
    from engine.supervisor import orders

    set_up_log("engine", deployment)
    own = parts_of(options, deployment).of(deployment)
    try:
        reached = orders.give(run_dir(own), order, lambda line: print(line, flush=True))
    except Unavailable as error:
        print(
            f'engine: no running deployment "{deployment.engine.name}": {error}; start it with: '
            f"engine up {options.file}{f' --only {options.only}' * bool(options.only)}",
            file=sys.stderr,
        )
        return ExitCode.UNREACHABLE
    except RuntimeError as error:
        print(f"engine: not changed: {error}", file=sys.stderr)
        return ExitCode.START
    print("changed")
    if order["do"] == "reload":
        _tell_of_others(deployment, reached)
    return ExitCode.OK


def _tell_of_others(deployment: Deployment, reached: set[int]) -> None:
    """Workers of the deployment that are another supervisor's, here or elsewhere, go on as they are."""
    from engine import admin, status

    try:
        answer = admin.ask(deployment, "status", STATUS_TIMEOUT_S)
    except (Unavailable, ConfigError, StartError):  # nobody answers, or a key that cannot be read now
        return  # it was told what was done; nothing more is known
    if others := status.strangers(answer, reached):
        print(
            f"not reached: {others}, which other commands run: `engine reload` with the --only of theirs, or a SIGHUP "
            "to the command, has them replaced likewise"
        )


def health(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.supervisor import orders

    own = parts_of(options, deployment).of(deployment)
    try:
        orders.give(run_dir(own), orders.HEALTH, lambda line: None, within_s=STATUS_TIMEOUT_S)
    except Unavailable as error:
        print(f"engine: {error}", file=sys.stderr)
        return ExitCode.UNREACHABLE
    except RuntimeError as error:
        print(error)
        return ExitCode.OK if options.live else ExitCode.FAILED
    print("ready")
    return ExitCode.OK


def _health_arguments(sub: argparse.ArgumentParser) -> None:
    add_only(sub)
    sub.add_argument("--live", action="store_true", help="whether the supervisor itself lives, whatever it says")


def _scale_arguments(sub: argparse.ArgumentParser) -> None:
    add_only(sub)
    sub.add_argument("nums", metavar="STAGE=N", nargs="*", help="how many workers a stage shall have")


RELOAD: Final = Command(
    "reload",
    "replace the workers of a running deployment by what its file says now",
    reload,
    "engine reload",
    arguments=add_only,
)
HEALTH: Final = Command(
    "health",
    "say whether what a supervisor runs on this machine is ready, without any network: for probes",
    health,
    "engine health stages.toml --only encode",
    keys=(*EVERYWHERE, "run_dir"),
    arguments=_health_arguments,
)
SCALE: Final = Command(
    "scale",
    "change how many workers stages have",
    scale,
    "engine scale stages.toml encode=4",
    arguments=_scale_arguments,
)
