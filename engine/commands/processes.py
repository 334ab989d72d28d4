"""``engine broker``, ``engine frontend`` and ``engine worker``: one process, or one kind of them, by hand; a supervisor
starts its own by the same commands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from engine import log, names
from engine.commands.command import HERE, Command, count, reread, set_up_log
from engine.commands.up import warn_of_strangers
from engine.config import run_dir
from engine.config.endpoints import cell_dir
from engine.errors import ConfigError
from engine.exitcodes import ExitCode
from engine.titles import entitle

if TYPE_CHECKING:
    from engine.config import Deployment


def broker(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.process import Notifier, die_with_parent

    die_with_parent(options.parent)
    cell = options.cell - 1
    entitle(f"broker-{cell + 1}" if cell else "broker", deployment.engine.name)
    set_up_log(f"broker {cell + 1}" if cell else "broker", deployment)
    notify = Notifier(options.status_fd)
    from engine.broker import serve

    if cell >= deployment.brokers:
        raise ConfigError([f"--cell: expected one of {deployment.brokers} cells, got {options.cell}"])
    if deployment.engine.broker and not deployment.engine.bind:
        raise ConfigError(
            [
                'engine.bind: expected where the broker listens, as others reach it by engine.broker: "tcp://0.0.0.0:7000"'
            ]
        )
    if options.parent is not None and not cell:
        return serve.serve(deployment, notify, parent=options.parent, reread=reread(options))
    if deployment.engine.bind:
        return serve.serve(deployment, notify)
    # By hand, on ipc sockets: nobody has made the directory they live in, or seen to it that there is one broker; and
    # of the folder of another cell a supervisor has not seen to that either.
    from engine.supervisor.rundir import Busy, claim, make_private, mark_stopping

    again = None if options.parent is None else reread(options)
    try:
        make_private(run_dir(deployment))
        with claim(cell_dir(run_dir(deployment), cell), deployment.engine.name) as folder:
            return serve.serve(
                deployment,
                notify,
                cell,
                parent=options.parent or 0,
                stopping=lambda within_s: mark_stopping(folder, within_s),
                reread=again,
            )
    except Busy as error:
        log.get_logger().error("%s", error)
        return ExitCode.BUSY


def frontend(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.process import Notifier, die_with_parent

    die_with_parent(options.parent)
    entitle("frontend", deployment.engine.name)
    set_up_log("frontend", deployment)
    _see_to_run_dir(options, deployment)
    names.hold("frontend")  # the user's own may stand before it on PYTHONPATH
    from frontend import serve

    return serve.serve(deployment, Notifier(options.status_fd), reread=reread(options))


def worker(options: argparse.Namespace, deployment: Deployment) -> int:
    stage: str = options.stage
    stages = [spec.name for spec in deployment.stages]
    if stage not in stages:
        raise ConfigError([f"--stage: expected one of {', '.join(stages)}; got {stage}"])
    if options.slot is None:
        from engine import supervisor

        if not (options.num or deployment.stage(stage).num):
            raise ConfigError([f"{stage} begins with no worker (num = 0): name a number, --num 1"])
        entitle(f"workers of {stage}", deployment.engine.name)
        set_up_log("supervisor", deployment)
        warn_of_strangers()
        return supervisor.run_workers(deployment, stage, options.num, reread=reread(options))
    from engine.process import Notifier, die_with_parent

    die_with_parent(options.parent)
    entitle(f"{stage}-{options.slot}", deployment.engine.name)
    set_up_log("worker", deployment, stage=stage, worker=options.slot)
    _see_to_run_dir(options, deployment)
    from stages.runtime import serve

    return serve.serve(deployment, stage, options.slot, Notifier(options.status_fd))


def _see_to_run_dir(options: argparse.Namespace, deployment: Deployment) -> None:
    """By hand, on ipc sockets: nobody has seen to it that the directory, and so a broker in it, is this user's. Made
    before there is a broker, so that no stranger can make it first."""
    if options.parent is None and not deployment.engine.is_tcp:
        from engine.supervisor.rundir import make_private

        make_private(run_dir(deployment))


def _child(sub: argparse.ArgumentParser) -> None:
    """How a supervisor starts its children; nobody else needs these."""
    sub.add_argument("--status-fd", type=int, help=argparse.SUPPRESS)
    sub.add_argument("--parent", type=int, help=argparse.SUPPRESS)


def _broker_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--cell", type=count, default=1, metavar="K", help="the broker of cell K (from 1)")
    _child(sub)


def _worker_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--stage", required=True, metavar="NAME", help="the stage")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--num", type=count, metavar="N", help="how many; default: the stage's num")
    which.add_argument("--slot", type=count, metavar="K", help="run worker K (from 1), in this very process")
    _child(sub)


BROKER: Final = Command(
    "broker",
    "run the broker of a deployment alone",
    broker,
    "engine broker stages.toml",
    keys=(*HERE, "bind", "grace", "namespace", "capacity", "timeout"),
    linked=True,
    arguments=_broker_arguments,
)
FRONTEND: Final = Command(
    "frontend",
    "run the HTTP side of a deployment alone",
    frontend,
    "engine frontend stages.toml",
    keys=(
        *HERE, "grace", "namespace", "capacity", "timeout", "address", "port", "max_request_size", "compression",
        "certfile", "keyfile", "access_log",
    ),
    linked=True,
    arguments=_child,
)  # fmt: skip
WORKER: Final = Command(
    "worker",
    "run workers of one stage",
    worker,
    "engine worker stages.toml --stage encode --num 2",
    keys=(*HERE, "grace", "timeout"),
    linked=True,
    arguments=_worker_arguments,
)
