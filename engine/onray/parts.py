"""Which parts of a deployment a cluster runs, what each needs, and by which words it is started. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.config import Deployment
from engine.config.schema import StageSection

BROKER: Final = "broker"
FRONTEND: Final = "frontend"
NAMESPACE: Final = "stageline"  # of all our actors

BROKER_CPUS: Final = 1.0
FRONTEND_CPUS: Final = 1.0  # for each of its processes
WORKER_CPUS: Final = 1.0  # what keeps a device fed; a stage on CPUs says how many it uses by ``cpus``


@dataclass(frozen=True)
class Part:
    """One actor. ``only``: what ``engine up`` is told to run there."""

    name: str  # of the deployment and the part: unique in the cluster
    only: str
    cpus: float
    gpus: float

    @property
    def needs(self) -> str:
        """In words."""
        found = [f"{amount:g} {what}{'s' if amount != 1 else ''}" for amount, what in self._amounts if amount]
        return " and ".join(found) or "nothing"

    @property
    def _amounts(self) -> Sequence[tuple[float, str]]:
        return (self.cpus, "CPU"), (self.gpus, "GPU")


def parts(deployment: Deployment, *, has_gpus: bool) -> list[Part]:
    """The broker, the frontend, and each worker by itself. ``has_gpus``: the cluster has some, which ``device =
    "auto"`` stands for then."""
    name = deployment.engine.name
    frontend = Part(f"{name}/{FRONTEND}", FRONTEND, FRONTEND_CPUS * deployment.frontend.processes, 0.0)
    workers = [
        Part(
            f"{name}/{stage.name}-{number}", f"{stage.name}=1", cpus_of(stage), float(on_gpu(stage, has_gpus=has_gpus))
        )
        for stage in deployment.stages
        for number in range(1, stage.num + 1)
    ]
    return [Part(f"{name}/{BROKER}", BROKER, BROKER_CPUS, 0.0), frontend, *workers]


def cpus_of(stage: StageSection) -> float:
    """How many a worker is given: those that it is pinned to, where the file says so."""
    if isinstance(stage.cpus, list) and stage.cpus:
        first = stage.cpus[0]
        return float(len(first) if isinstance(first, list) else len(stage.cpus))
    return WORKER_CPUS


def on_gpu(stage: StageSection, *, has_gpus: bool) -> bool:
    """Whether a worker computes on one."""
    return has_gpus if stage.device == "auto" else stage.device != "cpu"


def words(part: Part, file: str, run_dir: str, *, bind: str = "", broker: str = "") -> list[str]:
    """What comes behind ``engine`` where it runs."""
    found = ["up", file, "--only", part.only, "--run-dir", run_dir]
    if bind:
        found += ["--bind", bind]
    if broker:
        found += ["--broker", broker]
    return found
