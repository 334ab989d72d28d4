"""A plan beside a running deployment: what it does now, by its own metrics."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from engine import admin
from engine.config import Deployment
from engine.errors import ConfigError, ProtocolError, Unavailable
from engine.exitcodes import ExitCode
from engine.planning.answer import service_of, shares_of, slos_of
from engine.planning.files import read, say
from engine.planning.profiles import ASK_S, learned, status_of
from engine.planning.watched import Scrape, seen_between
from engine.simulation.arrivals import Renewal
from engine.simulation.figures import Figures
from engine.simulation.study import study
from engine.simulation.table import PlanError, Seen, compared, read_plan

OFF: Final = 0.05  # by how much the rate of a running deployment may exceed what was planned


def compare(options: argparse.Namespace, deployment: Deployment) -> int:
    """Print both; FAILED where it does not do what was planned. Raises ConfigError, Unavailable."""
    plan = None
    if options.plan is not None:
        try:
            plan = read_plan(read(options.plan, "--plan"), options.plan.name)
        except PlanError as error:
            raise ConfigError([f"--plan: {error}"]) from None
    slos_s = slos_of(options, deployment) if plan is None else plan.slos_s
    if len(slos_s) != len(deployment.routes):
        raise ConfigError([f"--plan: it is of {len(slos_s)} routes, and the file has {len(deployment.routes)}"])
    say(f"looking at {deployment.engine.name} for {options.seconds:g} s")
    seen, status = _watched(deployment, options.seconds, slos_s)
    if not seen.rate:
        raise ConfigError([f"--check: no request came in {options.seconds:g} s: --seconds looks longer"])
    if plan is not None:
        figures, target = plan.best, plan.target
    else:
        shares = shares_of(options.share, deployment)
        service = service_of(deployment, learned(deployment, status), slos_s, shares, options.parts)
        counts = [max(seen.workers.get(stage.name, 0), 1) for stage in deployment.stages]
        arrivals = Renewal(seen.rate, 1.0 if options.cv is None else options.cv)
        figures = study(service, counts, arrivals, requests=options.requests, seeds=options.seeds)
        target = options.target
    problems = _problems(figures, seen, target)
    if options.json:
        told = {"planned": asdict(figures), "running": asdict(seen), "problems": problems}
        print(json.dumps(told, indent=1))
    else:
        print("\n".join([compared(figures, seen), *[f"(!) {problem}" for problem in problems]]))
        if not problems:
            print("as planned")
    return ExitCode.FAILED if problems else ExitCode.OK


def _problems(figures: Figures, seen: Seen, target: float) -> list[str]:
    problems = []
    if seen.rate > figures.rate * (1 + OFF):
        problems.append(f"{seen.rate:.4g} requests/s come, and the plan is for {figures.rate:.4g}: plan anew")
    for stage in figures.stages:
        if seen.workers.get(stage.name, 0) < stage.workers:
            problems.append(f"{stage.name}: {seen.workers.get(stage.name, 0)} workers are ready of {stage.workers}")
    if seen.in_time is not None and seen.in_time < target:
        problems.append(f"{100 * seen.in_time:.4g} % are in time, and the goal is {100 * target:g} %")
    return problems


def _watched(deployment: Deployment, seconds: float, slos_s: Sequence[float]) -> tuple[Seen, dict[str, Any]]:
    """What happened within so many seconds, by the deployment's own metrics; and its status after that."""
    status_of(deployment)
    namespace = deployment.engine.namespace
    try:
        before, began = Scrape.of(admin.ask(deployment, "metrics", ASK_S), namespace), time.monotonic()
        time.sleep(seconds)
        after, ended = Scrape.of(admin.ask(deployment, "metrics", ASK_S), namespace), time.monotonic()
    except ProtocolError as error:
        raise Unavailable(503, f"its metrics cannot be read: {error}") from error
    status = status_of(deployment)
    ready = {stage["name"]: stage.get("ready", 0) for stage in status.get("stages", ())}
    goals_s = dict(zip([route.path for route in deployment.routes], slos_s, strict=True))
    return seen_between(before, after, ended - began, goals_s, ready), status
