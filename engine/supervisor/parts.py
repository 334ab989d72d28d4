"""Which parts of a deployment a supervisor runs: all, or those that ``engine up --only`` names. Pure.

A fleet is one file and a supervisor on each host, with the parts that belong there. The broker's address has to be in
the file then; and as several supervisors of one deployment may be on one machine, those that run a part have a run
directory of their own, by what they run. So two with the same parts are as impossible as two deployments of one name,
and ``engine reload`` and ``engine scale`` find theirs by the same words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from engine.config import NEXT, Deployment, StageSection
from engine.config.endpoints import PATH_MAX
from engine.core.processes import Child, Kind
from engine.core.scaling import Bounds
from engine.errors import ConfigError

BROKER: Final = "broker"
FRONTEND: Final = "frontend"


@dataclasses.dataclass(frozen=True)
class Parts:
    """``names``: "broker", "frontend" and stages, in the file's order; none: all there are. ``nums``: how many workers
    of a stage run here, where that is not the file's number."""

    names: tuple[str, ...] = ()
    nums: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def has(self, name: str) -> bool:
        return not self.names or name in self.names

    def runs(self, child: Child) -> bool:
        return self.has(child.stage if child.kind is Kind.WORKER else child.kind.value)

    def of(self, deployment: Deployment) -> Deployment:
        """The deployment as this supervisor runs it. Whoever asks for workers in so many words wants them to work: none
        is a spare."""
        stages = tuple(
            _with(stage, self.nums[stage.name]) if stage.name in self.nums else stage for stage in deployment.stages
        )
        engine = deployment.engine
        if self.names:
            engine = dataclasses.replace(engine, run_dir=self._run_dir(engine.run_dir))
        return dataclasses.replace(deployment, engine=engine, stages=stages)

    def scaled(self, deployment: Deployment) -> dict[str, Bounds]:
        """The stages whose numbers of workers are this supervisor's to change by their demand: where it runs the whole
        deployment, with all its brokers, and nobody has named a number. Elsewhere each knows a part of the workers."""
        if self.names or deployment.brokers != deployment.cells:
            return {}
        return {
            stage.name: Bounds(stage.min, stage.most, deployment.cells)
            for stage in deployment.stages
            if stage.is_scaled and stage.name not in self.nums
        }

    def _run_dir(self, path: str) -> str:
        own = f"{path}+{'+'.join(self.names)}"
        if len(own) + 1 + len(NEXT) <= PATH_MAX:  # there is a socket in it, with a shorter name
            return own
        return f"{path}+{blake2b(own.encode(), digest_size=6).hexdigest()}"

    def __str__(self) -> str:
        return ", ".join(f"{name}={self.nums[name]}" if name in self.nums else name for name in self.names)


def _with(stage: StageSection, num: int) -> StageSection:
    """A stage of which so many workers run here, whatever the file says of all."""
    return dataclasses.replace(
        stage, num=num, spare=0, min=min(stage.min, num), max=max(stage.max, num) if stage.max else 0
    )


WHOLE: Final = Parts()


def parse(text: str, deployment: Deployment) -> Parts:
    """The parts that are named in ``text``: "broker", "frontend" and stages, each of these with ``=N`` for as many
    workers, parted by commas; all of them where it is empty. Raises ConfigError."""
    if not text:
        return WHOLE
    stages = [stage.name for stage in deployment.stages]
    known = [BROKER, FRONTEND, *stages]
    nums: dict[str, int] = {}
    asked: list[str] = []
    problems: list[str] = []
    for word in (word.strip() for word in text.split(",")):
        name, counts, num = word.partition("=")
        asked.append(name)
        if name not in known:
            problems.append(f"--only: expected some of {', '.join(known)}; got {name or 'nothing'}")
        elif known.count(name) > 1:
            problems.append(f'--only: stage "{name}" has the name of another part of a deployment; give it another')
        elif asked.count(name) > 1:
            problems.append(f"--only: {name} is named twice")
        elif counts and (name not in stages or not num.isdecimal() or not 1 <= int(num) <= 4096):
            problems.append(f"--only: expected STAGE=N with a number of workers from 1 to 4096; got {word}")
        elif counts:
            nums[name] = int(num)
    none = {stage.name for stage in deployment.stages if not stage.num + stage.spare}
    if not problems and (idle := next((name for name in asked if name in none and name not in nums), "")):
        problems.append(f"--only: {idle} begins with no worker (num = 0): name a number, {idle}=1")
    left = [name for name in known if name not in asked]
    if not problems and left and not deployment.engine.is_tcp:
        problems.append(
            f"--only leaves {', '.join(left)} to others, and without an address they and the broker cannot find each "
            'other: write where it listens, such as bind = "tcp://127.0.0.1:7000", below [engine]'
        )
    if problems:
        raise ConfigError(problems)
    return Parts(tuple(name for name in known if name in asked) if left else (), nums)
