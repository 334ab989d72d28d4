"""A broker: its parts, and the threads that carry them, started and stopped in order.

Order of start: all stages and the front bind before anybody is told "ready", so that a port in use fails the start and
not a request. Order of stop: the front stops admitting; what is admitted finishes, within ``grace``; then the stages
stop (nobody may hand them work any more), then the front (it sends the last answers), then the context is ended.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from typing import Any, Final

from engine import transport
from engine.addresses import numbered
from engine.broker.arenas import Arenas
from engine.broker.front import FrontPart
from engine.broker.guard import Guard
from engine.broker.handles import Handles
from engine.broker.letters import ChangeFront, ChangeStage, Drain
from engine.broker.loop import Part, PartThread
from engine.broker.stage import StagePart
from engine.clock import Deadline
from engine.config import Deployment, StageSection
from engine.core.front import EPOCHS
from engine.core.placement import broker_threads
from engine.core.stage import StageSpec
from engine.core.wire import egress_frame, front_frame, parts_frame
from engine.cpus import usable_cpus
from engine.errors import StartError
from engine.keyfile import Keyring, keyring_of
from engine.process import count_gpus
from engine.specs import front_spec, given_s, stage_spec
from engine.transport import Endpoints

log: Final = logging.getLogger("stageline.broker")

JOIN_S: Final = 2.0  # for all threads to end


def _handles(deployment: Deployment, path: str | None, arenas: Arenas) -> Handles | None:
    """Where tensors on a GPU may be handed from stage to stage."""
    may_be = any(stage.device != "cpu" for stage in deployment.stages) and any(
        len(route.stages) > 1 for route in deployment.routes
    )
    if path is None or not may_be or not deployment.engine.shared_memory or not count_gpus():
        return None
    return Handles(path, arenas)


def _listening(deployment: Deployment, cell: int) -> Endpoints:
    found = transport.listening(deployment, cell)
    try:
        return numbered(found)
    except (OSError, ValueError) as error:
        raise StartError(f"cannot listen at {found.base}: {found.host}: {error}") from error


def _largest_result(deployment: Deployment) -> int:
    """The most bytes of a frame that a worker sends to the door: an answer's, and of requests that go on in parts what
    waits for the stages that take them."""
    topology = deployment.topology
    takers = {one for route, stage, _ in topology.splits() for one in topology.readers(route, stage)}
    return max(
        [
            egress_frame(deployment.frontend.max_response_size),
            *[parts_frame(deployment.stages[one].max_queue_bytes) for one in takers],
        ]
    )


def _scaled(deployment: Deployment) -> list[int]:
    """Which stages somebody may want to scale."""
    return [index for index, stage in enumerate(deployment.stages) if stage.is_scaled]


def _spec(deployment: Deployment, stage: StageSection, cell: int) -> StageSpec:
    given = given_s(deployment, stage.name)
    return stage_spec(stage, deployment.engine, cell, deployment.brokers, given_s=given)


class Broker:
    """All threads of one broker. ``start`` and ``stop`` are called by one thread, which owns none of the sockets."""

    def __init__(
        self, deployment: Deployment, cell: int = 0, parent: int = 0, *, keyring: Keyring | None = None
    ) -> None:
        """``cell``: which of the deployment's, from 0. ``parent``: the process of its supervisor; 0: it has none.
        ``keyring``: one that has been read; None: read it."""
        topology = deployment.topology
        self._cell = cell
        self._parent = parent
        self.endpoints = _listening(deployment, cell)
        self.failed = threading.Event()
        self.epoch = secrets.randbelow(EPOCHS - 1) + 1
        self._failures, self._failure = os.pipe()
        self._keyring = keyring or keyring_of(deployment)
        self._secret = self._keyring.secrets[0] if self._keyring is not None else None
        self._context = transport.context(self._keyring)
        self.threads = broker_threads(
            deployment.engine.threads, usable_cpus(), serves_hosts=bool(deployment.engine.bind)
        )
        self.arenas = Arenas(deployment.engine.shared_memory)
        self._handles = _handles(deployment, self.endpoints.handles, self.arenas)
        self.front = FrontPart(
            front_spec(deployment),
            topology,
            name=deployment.engine.name,
            namespace=deployment.engine.namespace,
            epoch=self.epoch,
            endpoints=self.endpoints,
            context=self._context,
            arenas=self.arenas,
            threads=self.threads,
            parent=parent,
            largest=front_frame(deployment.frontend.max_request_size),
            largest_result=_largest_result(deployment),
        )
        self.stages = [
            StagePart(
                index,
                _spec(deployment, stage, cell),
                topology,
                deployment=deployment.engine.name,
                namespace=deployment.engine.namespace,
                epoch=self.epoch,
                endpoints=self.endpoints,
                lanes=deployment.engine.lanes,
                context=self._context,
                arenas=self.arenas,
            )
            for index, stage in enumerate(deployment.stages)
        ]
        self._scaled = _scaled(deployment)
        crews = [stage.machine.crew for stage in self.stages]
        self.front.machine.ledger.crews = crews
        for stage in self.stages:
            stage.machine.crews = crews
        mailboxes = [stage.mailbox for stage in self.stages]
        self.front.stages = mailboxes
        for stage in self.stages:
            stage.stages = mailboxes
            stage.front = self.front.mailbox
        carried: list[tuple[str, list[Part[Any]]]]
        if self.threads == "stage":
            carried = [("front", [self.front])]
            carried += [(f"stage {part.machine.spec.name}", [part]) for part in self.stages]
        else:
            # In this order what one part tells another - the front whom it admits, each part the stage before it that
            # it has its results - is heard in the same pass.
            carried = [("broker", [self.front, *reversed(self.stages)])]
        if self._keyring is not None:
            carried[0][1].insert(0, Guard(self._context, self.front.machine.stats.connections_refused))
        self._threads = [PartThread(name, parts, self._fail) for name, parts in carried]

    def _fail(self) -> None:
        self.failed.set()
        os.write(self._failure, b"\0")

    def renewed(self, deployment: Deployment) -> Broker:
        """One in its place, when it has stopped, by the key that :meth:`is_outdated` has read: the file may be written
        again, or be gone, by now."""
        return Broker(deployment, self._cell, self._parent, keyring=self._keyring)

    def is_outdated(self) -> bool:
        """Whether the key file has another first line by now: by that of this broker nobody shall come in any more."""
        ring = self._keyring
        if ring is None:
            return False
        ring.reread()
        return ring.secrets[0] != self._secret

    def fileno(self) -> int:
        """Readable once a thread has failed."""
        return self._failures

    @property
    def passes(self) -> list[int]:
        """Of each thread, so far: one that lives makes at least one about every LONGEST_POLL_S."""
        return [thread.passes for thread in self._threads]

    @property
    def cpu_s(self) -> list[float]:
        """CPU time of each thread, so far; while all of them run."""
        return [thread.cpu_s for thread in self._threads]

    @property
    def held(self) -> int:
        """Bytes of the bodies of admitted requests, as of some moment ago: another thread counts them."""
        return self.front.machine.ledger.nbytes

    def waiting(self, now: float) -> dict[str, float]:
        """By stage, for how many seconds some of the requests that wait for its workers can wait still."""
        left = {part.machine.spec.name: part.machine.waits_until - now for part in self.stages}
        return {name: seconds for name, seconds in left.items() if seconds > 0.0}

    def demand(self) -> dict[str, float]:
        """How many workers the stages need that are scaled, by name."""
        return {
            self.stages[index].machine.spec.name: self.stages[index].machine.demand_workers for index in self._scaled
        }

    def start(self) -> None:
        """Start every thread; raises StartError, with everything closed again, when one cannot bind."""
        if not self.endpoints.is_tcp:
            os.makedirs(self.endpoints.base, mode=0o700, exist_ok=True)  # a cell's own
        transport.remove_lanes(self.endpoints)
        for (
            thread
        ) in self._threads:  # in turn: nobody comes in before there is who says who may, and would hang till then
            thread.start()
            thread.started.wait()
        error = next((thread.error for thread in self._threads if thread.error is not None), None)
        if error is not None:
            self.stop()
            raise error if isinstance(error, StartError) else StartError(str(error)) from error
        if self._handles is not None:
            self._handles.start()

    def change(self, deployment: Deployment) -> None:
        """Take over what another edition of the same deployment says of its stages and of the door; the stages and
        routes themselves must be the same."""
        self._scaled = _scaled(deployment)
        self.front.mailbox.post(ChangeFront(front_spec(deployment)))
        for part, stage in zip(self.stages, deployment.stages, strict=True):
            part.mailbox.post(ChangeStage(_spec(deployment, stage, self._cell)))

    def drain(self, grace_s: float) -> bool:
        """Admit nothing more and wait for what is admitted; False when ``grace_s`` was not enough."""
        self.front.mailbox.post(Drain())
        for stage in self.stages:
            stage.mailbox.post(Drain())
        deadline = Deadline(grace_s)
        # Reading the length of a dict that another thread changes is safe; a stale value costs one more look.
        while self.front.machine.ledger and not deadline.passed and not self.failed.is_set():
            self.failed.wait(min(0.02, deadline.remaining()))
        return not self.front.machine.ledger

    def stop(self) -> None:
        """End all threads and the context. A thread that does not end is left to the end of the process."""
        # A list, not a generator in all(): every one is told to stop. The front comes last, it sends the last answers.
        deadline = Deadline(JOIN_S)
        if self._handles is not None:
            self._handles.stop()
        ended = [thread.stop(deadline.remaining()) for thread in reversed(self._threads)]
        if not all(ended):
            log.error("a broker thread did not end; its sockets are left to the end of the process")
            return
        os.close(self._failures)
        os.close(self._failure)
        self.arenas.close()
        self._context.term()
