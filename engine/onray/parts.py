"""Which parts of a deployment a cluster runs, what each needs, and by which words it is started. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from engine.config import Deployment
from engine.config.flags import Override, flags
from engine.config.schema import PATHS, StageSection
from engine.core.scaling import Bounds
from engine.supervisor.parts import BROKER, FRONTEND

NAMESPACE: Final = "stageline"  # of all our actors

BROKER_CPUS: Final = 1.0
SCALER: Final = "scaling"
FRONTEND_CPUS: Final = 1.0  # for each of its processes
WORKER_CPUS: Final = 1.0  # what keeps a device fed; a stage on CPUs says how many it uses by ``cpus``

_PLACED: Final = ("run_dir", "bind", "broker")  # follow from where a part was placed
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


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
    workers = [crew.part(slot) for crew in crews(deployment, has_gpus=has_gpus) for slot in range(1, crew.num + 1)]
    return [Part(f"{name}/{BROKER}", BROKER, BROKER_CPUS, 0.0), frontend, *workers]


@dataclass(frozen=True)
class Crew:
    """The workers of a stage, each a part. ``num``: with so many it begins. ``name``: of the deployment."""

    name: str
    stage: str
    num: int
    bounds: Bounds
    is_scaled: bool
    cpus: float
    gpus: float

    @property
    def slots(self) -> range:
        """All that there may ever be."""
        return range(1, max(self.num, self.bounds.most) + 1)

    def part(self, slot: int) -> Part:
        return Part(f"{self.name}/{self.stage}-{slot}", f"{self.stage}=1", self.cpus, self.gpus)


def crews(deployment: Deployment, *, has_gpus: bool) -> list[Crew]:
    return [
        Crew(
            deployment.engine.name,
            stage.name,
            stage.num,
            Bounds(stage.min, stage.most),
            stage.is_scaled,
            cpus_of(stage),
            float(on_gpu(stage, has_gpus=has_gpus)),
        )
        for stage in deployment.stages
    ]


def scaler_of(deployment: Deployment) -> str:
    """The name of the actor that scales it."""
    return f"{deployment.engine.name}/{SCALER}"


def cpus_of(stage: StageSection) -> float:
    """How many a worker is given: those that it is pinned to, where the file says so."""
    if isinstance(stage.cpus, list) and stage.cpus:
        first = stage.cpus[0]
        return float(len(first) if isinstance(first, list) else len(stage.cpus))
    return WORKER_CPUS


def on_gpu(stage: StageSection, *, has_gpus: bool) -> bool:
    """Whether a worker computes on one."""
    return has_gpus if stage.device == "auto" else stage.device != "cpu"


def given(deployment: Deployment, overrides: Mapping[tuple[str, str], Override]) -> dict[str, str]:
    """What flags and variables have said here, as flags of every part. Paths in the folder of the file are told from
    there on, for it lies elsewhere on each host."""
    found = {}
    for flag in flags():
        override = overrides.get((flag.section, flag.name))
        if override is None or flag.name in _PLACED:
            continue
        value = getattr(getattr(deployment, flag.section), flag.name)
        if isinstance(value, bool):
            found[flag.name] = str(value).lower()
        elif flag.key.form in PATHS and value:
            found[flag.name] = path_in(value, deployment.file.parent) or value
        else:
            found[flag.name] = override.text
    return found


def path_in(path: str, folder: Path) -> str:
    """From the folder on; "" of one that lies elsewhere."""
    with suppress(ValueError):
        return str(Path(path).relative_to(folder))
    return ""


def words(
    part: Part, file: str, run_dir: str, *, bind: str = "", broker: str = "", given: Mapping[str, str] = _NOTHING
) -> list[str]:
    """What comes behind ``engine`` where it runs."""
    found = ["up", file, "--only", part.only, "--run-dir", run_dir]
    for flag in flags():
        if flag.name in given and flag.kind is bool:
            found.append(flag.option if given[flag.name] == "true" else flag.option.replace("--", "--no-", 1))
        elif flag.name in given:
            found.append(f"{flag.option}={given[flag.name]}")
    if bind:
        found += ["--bind", bind]
    if broker:
        found += ["--broker", broker]
    return found
