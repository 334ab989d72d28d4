"""How a deployment is run by a system that others have already: text out of a configuration. Pure.

    kubernetes   manifests: a broker for each cell, a Deployment for each stage, the frontends, and what is around them
    compose      one machine's containers, for ``docker compose``
    dockerfile   the image of both
    systemd      a unit that runs all, or some parts, on a host without containers
    about        what is rendered beside the file, and what several of these need
    yaml         values as YAML that is plain to read

Every process in there is ``engine up F --only PARTS``: so whatever places them, each is watched by a supervisor of its
own, which ends what dead workers leave and replaces those that are worn, and is asked for its health without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from engine.config import Deployment
from engine.render import compose, dockerfile, kubernetes, systemd
from engine.render.about import About

TARGETS: Final[Mapping[str, Callable[[Deployment, About], str]]] = {
    "kubernetes": kubernetes.render,
    "compose": compose.render,
    "systemd": systemd.render,
    "dockerfile": dockerfile.render,
}

__all__ = ["TARGETS", "About"]
