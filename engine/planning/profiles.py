"""How long a deployment's batches take: measured in a process of each stage's own, read from a file, or asked of a
running broker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engine import admin
from engine.config import Deployment, dump, run_dir
from engine.errors import ConfigError, StartError
from engine.exitcodes import ExitCode
from engine.loader import stand_in
from engine.planning.files import read, say, write
from engine.process import place, settle, slots
from engine.simulation.profile import Profile, ProfileError, StageProfile, read_profile
from engine.supervisor.family import BOOTSTRAP
from engine.supervisor.rundir import check
from stages import blame, profiling

MEASURED: Final = "measured on this machine"
ASK_S: Final = 3.0  # for a running broker's answer
# Measured with two virtual CPUs at light load; where CPUs are many and quick they are less.
HOP_S: Final = 0.0004  # of a batch to its worker, and of its results from there, where nobody has learned it
EDGE_S: Final = 0.0010  # of a request in the frontend, and on its way to the broker and back
NOISE_MOST: Final = 1.0  # what is learned of noise while times change is more than that


def profile_of(options: argparse.Namespace, deployment: Deployment) -> Profile:
    """From where the command line says. Raises ConfigError, StartError, Unavailable."""
    if options.profile is not None:
        try:
            profile = read_profile(read(options.profile, "--profile"), options.profile.name)
        except ProfileError as error:
            raise ConfigError([f"--profile: {error}"]) from None
    elif options.running:
        profile = learned(deployment, status_of(deployment))
    else:
        profile = _measured(deployment)
    if options.save_profile is not None:
        write(options.save_profile, profile.to_json())
    return profile


def _measured(deployment: Deployment) -> Profile:
    """Of each stage, one after the other."""
    places = place(deployment, slots(deployment))
    stages: dict[str, StageProfile] = {}
    with tempfile.TemporaryDirectory(prefix="stageline-plan-") as folder:
        snapshot = Path(folder) / "deployment.json"
        snapshot.write_bytes(dump(deployment))
        for stage in deployment.stages:
            told = _in_own_process(snapshot, stage.name, places[stage.name, 1].env)
            stages |= read_profile(told, stage.name).stages
    return Profile(stages, MEASURED, HOP_S, EDGE_S)


def _in_own_process(snapshot: Path, stage: str, env: Mapping[str, str]) -> str:
    """A stage's profile as JSON. What user code prints goes to standard error. Raises StartError."""
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as result:
        try:
            child = subprocess.Popen(
                [sys.executable, BOOTSTRAP, "plan", str(snapshot), "--measure", stage, "--result-fd", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                env={**os.environ, **env},
                pass_fds=(writing,),
            )
        finally:
            os.close(writing)
        try:
            told = result.read()
            code = child.wait()
        finally:
            child.kill()
            child.wait()
    if code or not told:
        raise StartError(
            f"stage {stage} was not measured (exit code {code}), see above; a profile can also be written by hand and "
            "given with --profile"
        )
    return told


def measure(deployment: Deployment, stage: str, result_fd: int) -> int:
    """In the process of a stage's own."""
    settle(deployment, stage, 1)
    stand_in(deployment.argv, deployment.path)
    try:
        found = profiling.profile_stage(deployment, stage, say)
    except KeyboardInterrupt:
        raise
    except StartError:
        raise
    except BaseException as error:  # whatever user code raises
        print(f"{blame.traceback(error)}\nstage {stage}: {blame.line(error)}", file=sys.stderr)
        return ExitCode.START
    with open(result_fd, "w", encoding="utf-8") as result:
        result.write(Profile({stage: found}).to_json())
    return ExitCode.OK


def status_of(deployment: Deployment) -> dict[str, Any]:
    """What ``engine status --json`` prints. Raises Unavailable."""
    if not deployment.engine.is_tcp:
        check(run_dir(deployment))
    found: dict[str, Any] = json.loads(admin.ask(deployment, "status", ASK_S))
    return found


def learned(deployment: Deployment, status: Mapping[str, Any]) -> Profile:
    """What the running broker has learned. Raises ConfigError for a stage of which it has learned nothing."""
    stages: dict[str, StageProfile] = {}
    hops: list[float] = []
    parts: dict[str, dict[str, list[float]]] = {}
    for told in status.get("parts", ()):
        parts.setdefault(told["stage"], {})[told["route"]] = [told["mean"]]
    for told in status.get("stages", ()):
        known = told.get("learned") or {}
        if times := known.get("ms"):
            noise = min(known.get("noise", 0.0), NOISE_MOST)
            seconds = {int(n): ms / 1000 for n, ms in times.items()}
            stages[told["name"]] = StageProfile(seconds, noise, parts=parts.get(told["name"], {}))
            hops.append(known.get("overhead_ms", 0.0) / 2000)
    if missing := [stage.name for stage in deployment.stages if stage.name not in stages]:
        unknown = ", ".join(missing)
        raise ConfigError([f"nothing is known yet of {unknown}: send it some requests, or leave --running out"])
    return Profile(stages, "learned by the running deployment", sum(hops) / len(hops) or HOP_S, EDGE_S)
