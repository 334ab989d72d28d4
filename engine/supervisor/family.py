"""Who the processes of a deployment are, by which command each is started, and in which environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from engine.config import Deployment
from engine.core.processes import Child, Kind
from engine.log import AUTO, TEXT
from engine.process import around, counted, place, slots
from engine.supervisor.parts import Parts

BROKER_START_S: Final = 30.0  # it binds sockets; half a minute is a machine in deep trouble
BOOTSTRAP: Final = str(Path(__file__).resolve().parents[1] / "bootstrap.py")
FRONTEND_START_S: Final = 60.0  # imports, forks and binds; loads no model

# The argument vector of a child, given the number of its status pipe.
Commands: TypeAlias = Callable[[Child, int], Sequence[str]]


def worker(deployment: Deployment, stage: str, slot: int) -> Child:
    start_s = deployment.stage(stage).start_timeout
    return Child(Kind.WORKER, f"worker {stage}-{slot}", stage, slot, start_s)


def settled(deployment: Deployment, parts: Parts, *, on_screen: bool = False) -> Deployment:
    """The deployment as these parts of it run on this host, shown by its supervisor or not."""
    found = parts.of(deployment)
    if found.engine.log_format == TEXT and on_screen:  # who shows the log as text reads it as JSON
        found = replace(found, engine=replace(found.engine, log_format=AUTO))
    return with_frontends(found, parts)


def with_frontends(deployment: Deployment, parts: Parts) -> Deployment:
    """With as many processes of the frontend as go with what runs here of it, where its file does not say."""
    brokers_and_workers = [child for child in of(deployment, parts) if child.kind is not Kind.FRONTEND]
    spares = sum(stage.spare for stage in deployment.stages if parts.has(stage.name))
    return counted(deployment, len(brokers_and_workers) - spares)


def of(deployment: Deployment, parts: Parts) -> list[Child]:
    """Those of a whole deployment that are among these parts."""
    return [child for child in whole(deployment) if parts.runs(child)]


def whole(deployment: Deployment) -> list[Child]:
    """Brokers, frontend and every worker."""
    workers = [worker(deployment, stage, slot) for stage, slot in slots(deployment)]
    brokers = [
        Child(Kind.BROKER, f"broker {cell + 1}" if cell else "broker", slot=cell, start_s=BROKER_START_S)
        for cell in range(deployment.cells)
    ]
    return [*brokers, *workers, Child(Kind.FRONTEND, "frontend", start_s=FRONTEND_START_S)]


def environments(
    deployment: Deployment, members: Iterable[Child], beside: Iterable[Child] = ()
) -> dict[Child, Mapping[str, str]]:
    """What each child's environment has over the supervisor's. A stage's variables reach its own workers only. Workers
    are placed by who runs here: ``members``, and the brokers and the frontend of ``beside``, who do already."""
    members, beside = list(members), list(beside)
    workers = {(child.stage, child.slot): child for child in members if child.kind is Kind.WORKER}
    count = sum(
        {Kind.BROKER: 1, Kind.FRONTEND: deployment.frontend.processes}.get(child.kind, 0)
        for child in (*members, *beside)
    )
    places = place(deployment, list(workers), beside=count)
    common = around(places.values(), count)
    others = {child: common for child in members if child.kind in (Kind.BROKER, Kind.FRONTEND)}
    return {**others, **{workers[key]: placement.env for key, placement in places.items()}}


def command_line(snapshot: Callable[[Child], Path]) -> Commands:
    """Commands that start the children of this process, each from the deployment in its ``snapshot``."""
    parent = str(os.getpid())

    def command(child: Child, status_fd: int) -> Sequence[str]:
        which: list[str] = []
        if child.kind is Kind.WORKER:
            which = ["--stage", child.stage, "--slot", str(child.slot)]
        elif child.kind is Kind.BROKER and child.slot:
            which = ["--cell", str(child.slot + 1)]
        told = ["--status-fd", str(status_fd), "--parent", parent]
        return [sys.executable, BOOTSTRAP, child.kind.value, str(snapshot(child)), *which, *told]

    return command
