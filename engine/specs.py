"""What the machines of :mod:`engine.core` need to know of a deployment, out of its file. Pure.

The broker makes its machines of these, and so does the simulator: what is planned by is what is served by.
"""

from __future__ import annotations

from engine.config import ClientSection, Deployment, EngineSection, StageSection
from engine.core.batching import Policy
from engine.core.cells import bound, share
from engine.core.fairness import Client, Priority
from engine.core.front import FrontSpec
from engine.core.memo import CacheSpec
from engine.core.messages import CLIENT_SIZE
from engine.core.stage import StageSpec
from engine.core.wire import APART_BYTES


def stage_spec(
    stage: StageSection, engine: EngineSection, cell: int = 0, cells: int = 1, *, given_s: float = 0.0
) -> StageSpec:
    """What the machine of a cell, one of ``cells``, needs of a stage's section. ``given_s``: see :func:`given_s`."""
    return StageSpec(
        name=stage.name,
        num=share(stage.num, cells, cell),
        policy=Policy(
            stage.max_batch_size,
            min(stage.max_batch_bytes, APART_BYTES),
            stage.max_wait_time / 1000,
            stage.eager,
            float(stage.max_batch_cost),
        ),
        timeout_s=stage.timeout,
        kill_after_s=stage.kill_after,
        max_queue_bytes=stage.max_queue_bytes,
        idempotent=stage.idempotent,
        max_attempts=engine.max_attempts,
        spare=share(stage.spare, cells, cell, begin=stage.num + 1),
        may_be_empty=not stage.min,
        bounds=(stage.min, stage.most) if stage.is_scaled else None,
        given_s=given_s,
    )


def given_s(deployment: Deployment, stage: str) -> float:
    """How much time requests that pass through a stage are given, by their goal or their deadline: the least."""
    frontend = deployment.frontend
    goals = [route.slo or frontend.slo or frontend.timeout for route in deployment.routes if stage in route.stages]
    return min(goals, default=frontend.timeout)


def front_spec(deployment: Deployment) -> FrontSpec:
    """The bounds of a broker's door, the goals and classes of routes, and who is who."""
    frontend, cells, topology = deployment.frontend, deployment.brokers, deployment.topology
    return FrontSpec(
        bound(frontend.capacity, cells),
        bound(frontend.capacity_bytes, cells),
        bound(frontend.idempotency_bytes, deployment.keyed),
        slos_s=tuple([route.slo or frontend.slo for route in deployment.routes]),
        priorities=tuple([Priority[route.priority.upper()] for route in deployment.routes]),
        clients={bytes.fromhex(one.token_sha256)[:CLIENT_SIZE]: _client(one) for one in deployment.clients},
        caches={
            number: CacheSpec(bound(stage.cache["size"], cells), stage.cache["ttl"])
            for number, stage in enumerate(deployment.stages)
            if stage.cache
        },
        gathering={one.gather: deployment.stages[one.gather].max_queue_bytes for _, _, one in topology.splits()},
    )


def _client(section: ClientSection) -> Client:
    priority = Priority[section.priority.upper()] if section.priority else None
    return Client(section.name, section.weight, priority)
