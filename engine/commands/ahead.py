"""``engine plan``, ``engine graph``, ``engine ports``, ``engine keys`` and ``engine render``: what is asked for and
written before a deployment runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from engine.commands.command import EVERYWHERE, HERE, Command, Plain, add_only, count, parts_of, set_up_log
from engine.exitcodes import ExitCode
from engine.planning import flags as plan_flags

if TYPE_CHECKING:
    from engine.config import Deployment

KEY_FILE: Final = "deployment.key"
TARGETS: Final = ("kubernetes", "compose", "systemd", "dockerfile")  # of engine.render


def plan(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.planning import command

    set_up_log("plan", deployment)
    return command.run(options, deployment)


def graph(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import graph

    print(graph.as_json(deployment) if options.json else graph.mermaid(deployment), end="\n" if options.json else "")
    return ExitCode.OK


def ports(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import ports

    told = ports.ports(deployment)
    print(ports.as_json(told) if options.json else ports.table(told))
    return ExitCode.OK


def keys(options: argparse.Namespace) -> int:
    from engine.keyfile import make, told_next

    make(options.file)
    print(told_next(options.file))
    return ExitCode.OK


def render(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import render
    from engine.commands.version import installed
    from engine.supervisor.address import own_command

    about = render.About(
        text=deployment.file.read_text(encoding="utf-8"),
        cells=options.cells,
        image=options.image,
        namespace=options.kube_namespace,
        parts=parts_of(options, deployment),
        command=own_command(),
        version=installed() or "",
    )
    print(render.TARGETS[options.target](deployment, about), end="")
    return ExitCode.OK


def _graph_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print stages and steps as JSON")


def _ports_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print them as JSON")


def _keys_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("action", choices=["new"], help="new: make a key file, which nobody else may read")
    sub.add_argument("file", metavar="FILE", nargs="?", default=KEY_FILE, help=f"where; default: {KEY_FILE}")


def _target(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("target", metavar="SYSTEM", choices=TARGETS, help=f"one of {', '.join(TARGETS)}")


def _render_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--cells", type=count, default=1, metavar="N", help="kubernetes: brokers with workers each")
    sub.add_argument("--image", default="", metavar="IMAGE", help="kubernetes, compose: what the containers run")
    sub.add_argument("--kube-namespace", default="default", metavar="NAME", help="kubernetes: where it lies")
    add_only(sub)


PLAN: Final = Command(
    "plan",
    "say how many workers a goal takes, or what rate so many carry, by simulation",
    plan,
    plan_flags.EXAMPLES,
    keys=HERE,
    arguments=plan_flags.add_arguments,
)
GRAPH: Final = Command(
    "graph",
    "draw stages and routes, as text for Mermaid",
    graph,
    "engine graph stages.toml",
    keys=EVERYWHERE,
    arguments=_graph_arguments,
)
PORTS: Final = Command(
    "ports",
    "say which ports a firewall must open",
    ports,
    "engine ports stages.toml",
    keys=(*EVERYWHERE, "address", "port"),
    arguments=_ports_arguments,
)
KEYS: Final = Plain(
    "keys",
    "make the secret by which processes on several hosts know each other",
    keys,
    "engine keys new deployment.key",
    arguments=_keys_arguments,
)
RENDER: Final = Command(
    "render",
    "write how a deployment is run by another system: manifests for Kubernetes, units for systemd, and the like",
    render,
    "engine render kubernetes stages.toml --cells 2",
    keys=(*EVERYWHERE, "key"),
    first=_target,
    arguments=_render_arguments,
)
