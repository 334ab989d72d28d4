"""``engine why``: the reasons of a running deployment for its latest decisions."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from engine.commands.command import STATUS_TIMEOUT_S, Command, check_run_dir, count, set_up_log, unreachable
from engine.errors import ConfigError, Unavailable
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from engine.config import Deployment

LAST_MOST: Final = 65_535  # decisions that can be asked for: more than are kept


def why(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import admin, why
    from engine.core.messages import Ask
    from engine.core.meta import ID_MAX

    set_up_log("why", deployment)
    stage, request_id = options.stage, options.request
    stages = [spec.name for spec in deployment.stages]
    if stage and stage not in stages:
        raise ConfigError([f"--stage: expected one of {', '.join(stages)}; got {stage}"])
    if len(request_id) > ID_MAX or not (request_id.isascii() and request_id.isprintable()):
        raise ConfigError([f"--request: expected an x-request-id, up to {ID_MAX} characters; got {request_id!r}"])
    check_run_dir(deployment)
    try:
        answer = admin.ask(deployment, Ask("why", min(options.last, LAST_MOST), stage, request_id), STATUS_TIMEOUT_S)
    except Unavailable as error:
        try:
            admin.ask(deployment, "status", STATUS_TIMEOUT_S)
        except Unavailable:
            return unreachable(options, deployment, error)
        name = deployment.engine.name
        print(
            f'engine: the broker of "{name}" tells its status, but not why: it is of an older version', file=sys.stderr
        )
        return ExitCode.UNREACHABLE
    if options.json:
        print(why.latest(answer, options.last))
    else:
        print(why.text(answer, why.now(), last=options.last, stage=stage, request=request_id))
    return ExitCode.OK


def _arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--stage", metavar="NAME", default="", help="of this stage alone")
    sub.add_argument(
        "--last", type=count, default=20, metavar="N", help="so many decisions (default: 20; 1000 are kept)"
    )
    sub.add_argument("--request", metavar="ID", default="", help="those about the request with this x-request-id")
    sub.add_argument("--json", action="store_true", help="print what the broker says, as JSON")


WHY: Final = Command(
    "why",
    "say why batches left and requests were refused, lately",
    why,
    "engine why stages.toml                             what the last thousand decisions amount to\n"
    "engine why stages.toml --stage encode --last 100   of one stage\n"
    "engine why stages.toml --request 6f1c0e            what became of one request, if it is among them",
    linked=True,
    arguments=_arguments,
)
