"""What is computed of a batch and not sent yet.

What comes as one batch may be several that ``forward`` gets one after the other, short ones, whose results leave
together. So that what is done does not wait for one that takes long, it is sent before the next one is computed once
it has lain here for :data:`LATE_S`; and where the one that is computed takes so long itself, or hangs, a thread beside
``forward`` sends it. It may do so only while the main thread has such a batch open, and each time with the lock held:
the main thread uses its sockets without, but only when it has none open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from engine.core.batching import AHEAD_S
from engine.core.messages import Batch
from engine.core.routing import FINAL, JOIN
from engine.core.wire import Buffer, Payload, pack_steps
from stages.compute import Outcome
from stages.runtime.outlets import Outlets
from stages.runtime.parcels import NOWHERE, Origin, Parcel, Plan, encoded
from stages.shm import SharedMemory

LATE_S: Final = AHEAD_S  # twice what several batches that come as one take in all
LOOK_S: Final = 0.010  # between two looks of the thread, while there are such


class Tray:
    """The main thread's, but for the thread that it starts. ``plan``: where results go."""

    def __init__(self, outlets: Outlets, memory: SharedMemory, mime: str) -> None:
        self.plan: Plan = NOWHERE
        self._outlets = outlets
        self._memory = memory
        self._mime = mime
        self._origin = Origin(-1, -1)
        self._batch: Batch | None = None
        self._sent = 0  # items of it
        self._outcomes: list[Outcome] = []  # of those after them, with the steps of their trails
        self._steps: list[bytes] = []
        self._costs: dict[int, float] = {}  # by position among these
        self._targets: dict[int, int] = {}
        self._compute_us = 0  # for these
        self._payloads: list[Payload] = []  # of those that were sent
        self.was_late = False  # something of the batch has been sent before its end
        self._late_at = 0.0  # from when on what is here is to be sent
        self._lock = threading.Lock()
        self._open = False  # one of several batches is computed
        self._used = False  # opened since the thread looked last
        self._parked = False
        self._stopping = False
        self._unpark = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, batch: Batch, origin: Origin) -> None:
        """Results of several will come, one after the other."""
        self._origin = origin
        self._batch, self._sent = batch, 0
        self.was_late = False
        self._late_at = time.monotonic() + LATE_S
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="tray", daemon=True)
            self._thread.start()
        self._open = self._used = True
        if self._parked:
            self._unpark.set()

    def add(
        self,
        outcomes: list[Outcome],
        batch_us: int,
        compute_us: int,
        costs: Mapping[int, float],
        targets: Mapping[int, int],
    ) -> None:
        """What became of the items of the next one, as :meth:`Plan.results` takes it."""
        with self._lock:
            assert self._batch is not None  # it has begun
            before = len(self._outcomes)
            first = self._sent + before
            queues_us = self._batch.queues_us[first : first + len(outcomes)]
            self._steps += pack_steps(queues_us, batch_us, compute_us)
            self._outcomes += outcomes
            self._compute_us += compute_us
            if costs:
                self._costs.update({before + place: cost for place, cost in costs.items()})
            if targets:
                self._targets.update({before + place: target for place, target in targets.items()})
            if time.monotonic() >= self._late_at:
                self._send()

    def send(self) -> None:
        """All that is here, now."""
        with self._lock:
            self._send()

    def end(self) -> None:
        """No more will come: send what is here."""
        with self._lock:
            self._open = False
            self._send()
            self._batch = None
        self._memory.keep(self._payloads)
        self._payloads = []

    def post(self, parcels: list[Parcel]) -> None:
        """Send these, which are all of a batch."""
        frames = encoded(parcels)
        self._memory.keep(payload for _, _, payloads in parcels for payload in payloads)
        self._leave(parcels, frames)

    def stop(self) -> None:
        """End the thread."""
        with self._lock:
            self._open = False
            self._stopping = True
        self._unpark.set()
        if self._thread is not None:
            self._thread.join()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """With the lock held."""
        batch, outcomes = self._batch, self._outcomes
        if batch is None or not outcomes:
            return
        count, sent = len(outcomes), self._sent
        parcels = self.plan.results(
            self._origin,
            batch if count == len(batch.uids) else part_of(batch, sent, count),
            outcomes,
            mime=self._mime,
            steps=self._steps,
            compute_us=self._compute_us,
            costs=self._costs,
            targets=self._targets,
        )
        self._sent = sent + count
        self._outcomes, self._steps, self._compute_us = [], [], 0
        self._costs, self._targets = {}, {}
        self._late_at = time.monotonic() + LATE_S
        self.was_late = self._open
        frames = encoded(parcels)
        # What was put in memory beside these is that of a result which is encoded just now, perhaps.
        self._payloads += [payload for _, _, payloads in parcels for payload in payloads]
        self._leave(parcels, frames)

    def _leave(self, parcels: list[Parcel], frames: list[list[Buffer]]) -> None:
        for (target, _, _), parcel in zip(parcels, frames, strict=True):
            self._outlets.send(FINAL if target == JOIN else target, parcel)

    def _watch(self) -> None:
        """Look now and then for what is late. Nobody wakes it for a batch (a switch of threads costs more than several
        short ones do) unless it has parked, which it does when none came between two looks; the main thread says that
        it has opened one first, and looks for a parked thread second."""
        while not self._stopping:
            if self._open or self._used:
                self._used = False
                self._unpark.wait(LOOK_S)
                with self._lock:
                    if self._open and time.monotonic() >= self._late_at:
                        self._send()
            else:
                self._parked = True
                if not self._used:
                    self._unpark.wait()
                self._parked = False
            if not self._stopping:
                self._unpark.clear()


def part_of(batch: Batch, first: int, count: int) -> Batch:
    """So many of its items, from this one on."""
    end = first + count
    return replace(
        batch,
        uids=batch.uids[first:end],
        routes=batch.routes[first:end],
        budgets_us=batch.budgets_us[first:end],
        attempts=batch.attempts[first:end],
        metas=batch.metas[first:end],
        queues_us=batch.queues_us[first:end],
        trails=batch.trails[first:end],
    )
