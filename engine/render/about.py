"""What is rendered, beside the deployment itself; and what several of the renderers need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil
from typing import Final

from engine.config import Deployment
from engine.config.schema import StageSection
from engine.core.lifecycle import ABANDON_S, stop_order
from engine.core.processes import Kind
from engine.errors import ConfigError
from engine.supervisor.parts import WHOLE, Parts

APP: Final = "/app"  # the folder with the file and the code, in an image
KEY: Final = "/run/secrets/stageline/deployment.key"
USER: Final = 10001  # nobody's number on common systems
# Where every container runtime has a folder in which each user's entries are his own, also with a read-only root.
RUN_DIR: Final = "/dev/shm/stageline"
SWEEP_S: Final = 3.0  # a supervisor's own end, behind that of its processes


@dataclass(frozen=True)
class About:
    """``text``: the file, as it is. ``parts``: of a single host. ``cells``: brokers with workers of every stage each.
    ``command``: of ``engine`` on a host without containers. ``version``: of Stageline, where it is known."""

    text: str = ""
    cells: int = 1
    image: str = ""
    namespace: str = "default"
    parts: Parts = WHOLE
    command: str = "engine"
    version: str = ""

    def image_of(self, deployment: Deployment) -> str:
        return self.image or f"{label(deployment.engine.name)}:latest"


def label(name: str) -> str:
    """A name as it may stand in a DNS name (RFC 1123)."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "x"


def check(deployment: Deployment) -> None:
    """Raises ConfigError where processes in containers could not find each other, or not have what they ask for."""
    problems = []
    if not deployment.engine.bind:
        # Both at once: with the first alone, the file is refused for want of the second.
        secret = deployment.engine.key or deployment.engine.insecure
        keyed = "" if secret else ', and key = "deployment.key", the file that `engine keys new` makes'
        problems.append(
            "engine.bind: expected where the broker listens, for others cannot reach its private sockets: write bind = "
            f'"tcp://0.0.0.0:7000" below [engine]{keyed}'
        )
    seen: dict[str, str] = {"broker": "the broker", "frontend": "the frontend"}
    for stage in deployment.stages:
        if (other := seen.setdefault(label(stage.name), stage.name)) != stage.name:
            problems.append(f'stage "{stage.name}": its name in the cluster, {label(stage.name)}, is that of {other}')
        devices = [stage.device] if isinstance(stage.device, str) else stage.device
        if numbered := [device for device in devices if device.startswith("cuda:")]:
            problems.append(
                f'stage "{stage.name}": device names {numbered[0]}, of one machine; write device = "cuda", and each '
                "worker is given a GPU of its own"
            )
    if problems:
        raise ConfigError(problems)


def gpus(stage: StageSection) -> int:
    """Of a worker. With "auto" it takes one where it finds one, and asks for none."""
    devices = [stage.device] if isinstance(stage.device, str) else stage.device
    return int(any(device.startswith("cuda") for device in devices))


def stop_s(deployment: Deployment, *kinds: Kind) -> int:
    """The most time that a supervisor of processes of these kinds takes to stop."""
    steps = stop_order(kinds, deployment.engine.grace, delay_s=deployment.frontend.drain_delay)
    return ceil(sum(step.bound_s + ABANDON_S for step in steps) + SWEEP_S)
