"""The workers of one stage, their batches, and which of them could take another: pure bookkeeping.

A worker has a credit of two: a batch it computes, and one given in advance. Its place follows from what it has:

    idle        ready, nothing in flight; the longest idle comes first
    single      ready, one batch, room for one in advance; the one that computes longest comes first
    computing   has a batch, whatever its state; the first to reach its time limit comes first
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from math import inf

import msgspec

from engine.core.items import Item


class WorkerState(str, Enum):
    STARTING = "starting"
    READY = "ready"
    OVERDUE = "overdue"
    LEAVING = "leaving"


class InFlight(msgspec.Struct, eq=False):
    """A batch at a worker. ``items`` shrinks as results reach the next hop."""

    number: int
    items: dict[int, Item]
    sent_at: float
    alone: bool = False
    revoked: bool = False
    shared: bool = False  # some of it may be in shared memory


@dataclass(slots=True, eq=False)
class Worker:
    key: int
    slot: int
    pid: int
    local: bool  # its process is watched by pid
    heard: float
    maps: bool = False  # it can be given references to shared memory
    state: WorkerState = WorkerState.STARTING
    batches: OrderedDict[int, InFlight] = field(default_factory=OrderedDict)  # first: computing; second: in advance
    since: float = 0.0  # when it began to compute the first of them
    done_batches: int = 0
    done_items: int = 0
    families: bytes = b""
    dismissed: bool = False

    @property
    def in_flight(self) -> int:
        """Items it has."""
        return sum([len(batch.items) for batch in self.batches.values()])


class Crew:
    """See the module. ``in_advance`` false: nobody is given a second batch."""

    def __init__(self, *, in_advance: bool) -> None:
        self.workers: dict[int, Worker] = {}
        self.idle: OrderedDict[int, Worker] = OrderedDict()
        self.single: OrderedDict[int, Worker] = OrderedDict()
        self._computing: OrderedDict[int, Worker] = OrderedDict()
        self._in_advance = in_advance

    def place(self, worker: Worker, now: float, *, begins: bool) -> None:
        """Put a worker where it belongs after its batches or its state changed. ``begins``: it computes another batch
        from now on."""
        key = worker.key
        self.idle.pop(key, None)
        self.single.pop(key, None)
        if not worker.batches:
            self._computing.pop(key, None)
            if worker.state is WorkerState.READY:
                self.idle[key] = worker
            return
        if begins:
            worker.since = now
            self._computing[key] = worker
            self._computing.move_to_end(key)
        if worker.state is WorkerState.READY and self._in_advance and len(worker.batches) == 1:
            (only,) = worker.batches.values()
            if not only.alone and not only.revoked:
                self.single[key] = worker

    def rest(self, key: int) -> None:
        """Give a worker nothing more for now; what it has, it keeps."""
        self.idle.pop(key, None)
        self.single.pop(key, None)

    def remove(self, key: int) -> None:
        self.rest(key)
        self._computing.pop(key, None)
        del self.workers[key]

    def take_idle(self) -> Worker:
        return self.idle.popitem(last=False)[1]

    def take_single(self) -> Worker:
        return self.single.popitem(last=False)[1]

    def late(self, now: float, timeout_s: float) -> Iterator[Worker]:
        """Workers whose batch has taken ``timeout_s``, each given out once per batch."""
        while self._computing:
            key, worker = next(iter(self._computing.items()))
            if worker.since + timeout_s > now:
                return
            del self._computing[key]
            yield worker

    def next_late(self, timeout_s: float) -> float:
        """When the next batch will have taken ``timeout_s``; inf when nobody computes."""
        for worker in self._computing.values():
            return worker.since + timeout_s
        return inf

    def has_ready(self) -> bool:
        return any(worker.state is WorkerState.READY for worker in self.workers.values())
