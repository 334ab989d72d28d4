"""Which ports a deployment listens at, for whoever keeps a firewall: ``engine ports``. Pure."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from engine.config import Deployment
from engine.config.endpoints import Endpoints

HEAD: Final = ("ports", "of", "who connects", "for")


class Ports(NamedTuple):
    """Ports ``first`` to ``last`` of one process."""

    first: int
    last: int
    process: str  # that listens
    address: str
    peers: str  # that connect
    purpose: str


def ports(deployment: Deployment) -> list[Ports]:
    """All of them, the broker's first; without ``bind`` only the frontend's, for then the broker listens at none."""
    frontend = deployment.frontend
    clients = Ports(frontend.port, frontend.port, "frontend", frontend.address, "clients", "HTTP")
    if not deployment.engine.bind:
        return [clients]
    found = Endpoints(deployment.engine.bind, tuple(stage.name for stage in deployment.stages))
    lanes = deployment.engine.lanes

    def of_broker(first: int, last: int, peers: str, purpose: str) -> Ports:
        return Ports(found.port + first, found.port + last, "broker", found.host, peers, purpose)

    told = [
        of_broker(0, 0, "frontends", "requests and answers"),
        of_broker(1, 1, "frontends, engine status and its like", "questions"),
        of_broker(2, 2, "workers", "final results"),
    ]
    for index, stage in enumerate(found.stages):
        control = 3 + 2 * index
        told.append(of_broker(control, control, f"workers of {stage}", "control"))
        told.append(of_broker(control + 1, control + 1, "workers", f"what goes on to {stage}"))
    told.append(of_broker(found.first_lane, found.first_lane + lanes - 1, "workers", "batches"))
    return [*told, clients]


def table(told: list[Ports]) -> str:
    """In columns."""
    rows = [HEAD, *((_range(one), f"{one.process} at {one.address}", one.peers, one.purpose) for one in told)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_json(told: list[Ports]) -> str:
    """A list of objects with the fields of :class:`Ports`."""
    return json.dumps([one._asdict() for one in told])


def _range(one: Ports) -> str:
    return str(one.first) if one.first == one.last else f"{one.first}-{one.last}"
