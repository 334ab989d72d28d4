"""The plan: the deployment of a file, simulated with more and more workers, or at higher and higher rates."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from engine.config import Deployment
from engine.cpus import usable_cpus
from engine.errors import ConfigError
from engine.planning.files import read, say
from engine.planning.profiles import MEASURED
from engine.process import count_gpus
from engine.simulation import search
from engine.simulation.arrivals import FEW, Arrivals, Recording, Renewal, TraceError, read_trace
from engine.simulation.figures import Figures
from engine.simulation.profile import Profile, ProfileError
from engine.simulation.study import Service, study
from engine.simulation.table import Plan, workers
from engine.specs import front_spec, stage_spec

# What is a little too much shows only after a while, so a run is at least so many times as long as the goal:
GOALS: Final = 20
NOISY: Final = 0.25  # of batches that take now a quarter more, now less
LONGER: Final = 5  # but has not more than so many times the requests for it


def plan_of(
    options: argparse.Namespace, deployment: Deployment, service: Service, arrivals: Arrivals, kept: Sequence[int]
) -> Plan:
    """``kept``: how many workers a stage has whatever is found (0: that is to be found). Raises ConfigError."""
    found = _found(options, deployment, service, arrivals, kept)
    return Plan(
        name=deployment.engine.name,
        rate=found.best.rate,
        slos_s=service.slos_s,
        target=options.target,
        arrivals=arrivals.words,
        profile=service.profile.source,
        best=found.best,
        more=found.more,
        is_met=found.is_met,
        devices=options.devices or 0,
        alone_s=service.alone_s,
        notes=(
            *_notes_on_load(options, deployment, service, arrivals),
            *_notes_on_workers(deployment, service, found.best),
        ),
        times_ms={
            name: {str(n): round(seconds * 1000, 4) for n, seconds in stage.times.items()}
            for name, stage in service.profile.stages.items()
        },
    )


def _found(
    options: argparse.Namespace, deployment: Deployment, service: Service, arrivals: Arrivals, kept: Sequence[int]
) -> search.Found:
    def ask(counts: search.Counts, rate: float) -> Figures:
        requests = min(max(options.requests, int(GOALS * rate * max(service.slos_s))), options.requests * LONGER)
        found = study(service, counts, arrivals.at(rate), requests=requests, seeds=options.seeds)
        say(f"{rate:.4g}/s, {workers(found)} workers: {100 * found.in_time:.4g} % in time")
        return found

    are_kept = [bool(count) for count in kept]
    if options.devices is None:
        least = tuple(own or count for own, count in zip(kept, service.least(arrivals.rate), strict=True))
        if any(alone_s > slo_s for alone_s, slo_s in zip(service.alone_s, service.slos_s, strict=True)):
            return search.hopeless(ask, arrivals.rate, least, kept=are_kept)
        return search.fewest(ask, arrivals.rate, least, options.target, kept=are_kept)
    capacities = [service.capacity(stage) for stage in range(len(service.stages))]
    try:
        counts = search.dealt(options.devices, capacities, kept)
    except ValueError:
        names = ", ".join(stage.name for stage, own in zip(deployment.stages, kept, strict=True) if not own)
        raise ConfigError([f"--devices {options.devices}: expected one at least for each stage: {names}"]) from None
    return search.highest(ask, counts, capacities, options.target, kept=are_kept)


def _said(known: Sequence[float]) -> str:
    least, most = min(known), max(known)
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"


def _notes_on_load(
    options: argparse.Namespace, deployment: Deployment, service: Service, arrivals: Arrivals
) -> Iterator[str]:
    if isinstance(arrivals, Recording):
        if len(arrivals.gaps) < FEW:
            yield f"{arrivals.name} has {len(arrivals.gaps)} gaps: some thousands tell more of bursts"
    elif options.cv is None:
        yield (
            "arrivals were taken for independent (Poisson): where they come in bursts more workers are needed; "
            "give --arrivals with recorded ones, or --cv"
        )
    if options.slo is not None and set(front_spec(deployment).slos_s) != {options.slo}:
        yield f'planned with slo = "{options.slo * 1000:g} ms" below [frontend], which the file does not say'
    for (route, stage), known in service.parts.items():
        if not options.parts:
            yield (
                f"{deployment.routes[route].path}: a request was taken to have {_said(known)} parts behind "
                f"{deployment.stages[stage].name}, by its profile: --parts says otherwise"
            )
    if len(deployment.routes) > 1 and not options.share:
        yield "all routes were taken to be asked for equally: --share PATH=N says otherwise"


def _notes_on_workers(deployment: Deployment, service: Service, best: Figures) -> Iterator[str]:
    if service.profile.source == MEASURED:
        yield "batches were made of each class's example: where people send other values, plan with --running"
    if (cells := deployment.cells) > 1:
        yield f"planned as one queue; each of {cells} cells has its own, and where workers are few that takes more"
    for spec in deployment.stages:
        if (noise := service.profile.of(spec.name).noise) > NOISY:
            yield (
                f"{spec.name}: single batches took {100 * noise:.0f} % more or less than usual: where that is not the "
                "model's way something else was computing, and it is to be measured again"
            )
        if spec.max_batch_cost:
            yield f"{spec.name}: requests were taken to cost all the same, and those that were timed to be usual"
        known = max(service.profile.of(spec.name).times)
        if known < spec.max_batch_size:
            yield f"{spec.name}: batches of more than {known} were not measured, and taken to go on likewise"
    for kind, there in (("cpu", usable_cpus), ("cuda", count_gpus)):
        devices = {name: stage.device for name, stage in service.profile.stages.items()}
        count = sum(stage.workers for stage in best.stages if devices[stage.name].startswith(kind))
        if count and count > there() > 0:
            yield (
                f"one worker was measured at a time; {count} that compute on {there():g} "
                f"{'CPU' if kind == 'cpu' else 'GPU'}s would take each other's time"
            )


def parts_of(
    texts: Sequence[str], deployment: Deployment, profile: Profile
) -> dict[tuple[int, int], tuple[float, ...]]:
    """By route and stage, how many elements the list has that is taken apart behind it: as ``--parts`` says, else as
    the profile knows. Raises ConfigError where neither does."""
    topology = deployment.topology
    lists = [(route, stage, split) for route, stage, split in topology.splits() if not split.names]
    paths = [deployment.routes[route].path for route, _, _ in lists]
    if texts and not lists:
        raise ConfigError(["--parts: no route of the file takes a list apart (each)"])
    told = _pairs([text if "=" in text else f"={text}" for text in texts], "--parts", ["", *paths], "N or PATH=N")
    found: dict[tuple[int, int], tuple[float, ...]] = {}
    for (route, stage, split), path in zip(lists, paths, strict=True):
        name = deployment.stages[stage].name
        count = told.get(path, told.get(""))
        known = (count,) if count is not None else profile.of(name).parts.get(path)
        if known is None:
            raise ConfigError(
                [
                    f"route {path}: requests go on in parts there behind {name}, and of how many nobody knows: give "
                    "--parts N (or PATH=N), or have it measured with an example of which that stage returns a list"
                ]
            )
        if max(known) > split.most:
            raise ConfigError([f"--parts {max(known):g}: route {path} takes {split.most} at most"])
        found[route, stage] = tuple(known)
    return found


def slos_of(options: argparse.Namespace, deployment: Deployment) -> tuple[float, ...]:
    """The goal of each route: of all the same, or as the file has them. SystemExit where there is none."""
    own = front_spec(deployment).slos_s
    if options.slo is None and not all(own):
        options.parser.error("within which time? --slo 200ms, or slo in the file")
    return own if options.slo is None else (options.slo,) * len(own)


def service_of(
    deployment: Deployment,
    profile: Profile,
    slos_s: tuple[float, ...],
    shares: tuple[float, ...],
    parts: Sequence[str] = (),
) -> Service:
    """The deployment as the broker would serve it with these goals. ``parts``: see :func:`parts_of`. ConfigError where
    the profile lacks a stage."""
    one = replace(deployment, engine=replace(deployment.engine, cells=1), grown=0)
    try:
        for stage in deployment.stages:
            profile.of(stage.name)
    except ProfileError as error:
        raise ConfigError([str(error)]) from None
    # What other requests cost than those that were timed a plan does not know: all are taken for alike.
    specs = tuple(stage_spec(replace(stage, max_batch_cost=0), one.engine) for stage in one.stages)
    front = replace(front_spec(one), slos_s=slos_s)
    timeout_s = max(deployment.frontend.timeout, *slos_s)
    return Service(one.topology, front, specs, profile, timeout_s, shares, parts_of(parts, deployment, profile))


def _pairs(texts: Sequence[str], flag: str, known: Sequence[str], example: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not equals or name not in known or not number.replace(".", "", 1).isdecimal() or not float(number):
            raise ConfigError(
                [f"{flag}: expected {example}, one of {', '.join(filter(None, known))}; got {text.removeprefix('=')}"]
            )
        found[name] = float(number)
    return found


def kept_of(texts: Sequence[str], deployment: Deployment) -> list[int]:
    """Of each stage; 0 where nothing is said. Raises ConfigError."""
    names = [stage.name for stage in deployment.stages]
    found = _pairs(texts, "--keep", names, "STAGE=N")
    return [int(found.get(name, 0)) for name in names]


def shares_of(texts: Sequence[str], deployment: Deployment) -> tuple[float, ...]:
    """Of each route; all alike where nothing is said. Raises ConfigError."""
    paths = [route.path for route in deployment.routes]
    found = _pairs(texts, "--share", paths, "PATH=N")
    return tuple(found.get(path, 0.0 if found else 1.0) for path in paths)


def arrivals_of(options: argparse.Namespace) -> Arrivals:
    """As the command line says. Raises ConfigError."""
    if options.arrivals is None:
        return Renewal(options.rate or 1.0, 1.0 if options.cv is None else options.cv)
    try:
        found = read_trace(read(options.arrivals, "--arrivals"), options.arrivals.name, options.column)
    except TraceError as error:
        raise ConfigError([f"--arrivals: {error}"]) from None
    return found.at(options.rate) if options.rate is not None else found
