"""The sink of a streaming worker: its events leave while ``forward`` runs, no further ahead than their clients read.

Called by the main thread alone, from inside ``forward``; ``window`` counts, the outlets send.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from math import inf
from typing import Final

from engine.clock import now
from engine.core import wire
from engine.core.messages import EVENT_COST, Flow, StreamEvents
from engine.core.routing import FINAL
from engine.errors import EncodingError
from stages.base import Worker
from stages.compute import TOO_SLOW, Outcome
from stages.context import PADDING, ItemIn
from stages.runtime.outlets import Outlets
from stages.runtime.parcels import Origin
from stages.runtime.shared import Numbers
from stages.runtime.window import Windows
from stages.stream import SSEWorker, StreamWorker, stream_flow_of
from stages.watchdog import Watchdog

# How long an event waits for the client of its stream to read on, before that stream is given up: meanwhile it holds
# back the other streams of the batch. A StreamWorker has no others, and waits as long as its timeout allows.
PATIENCE_S: Final = 1.0
OUTLETS_S: Final = 0.5  # between two looks at what could not be sent, while waiting


class Streams:
    """Becomes the sink of ``worker``, if that streams. ``origin`` is whose events the broker takes them for, once it
    knows the worker."""

    def __init__(
        self,
        worker: Worker,
        *,
        outlets: Outlets,
        cancelled: Numbers,
        windows: Windows,
        watchdog: Watchdog,
        most: int = sys.maxsize,
    ) -> None:
        """``most``: bytes of an event."""
        self.origin = Origin(-1, -1)
        self.batch = 0  # the number of what is computed
        self._worker = worker
        self._flow = stream_flow_of(worker)
        self._outlets = outlets
        self._cancelled = cancelled
        self._windows = windows
        self._watchdog = watchdog
        self._most = most
        self._slow: set[int] = set()  # uids of the batch whose clients do not read
        if isinstance(worker, SSEWorker | StreamWorker):
            worker._sink = self.send

    def has_begun(self, item: ItemIn) -> bool:
        """An event of this item has left: it cannot be computed again."""
        return self._windows.has_begun(item.uid)

    def end(self, uids: Sequence[int], outcomes: list[Outcome]) -> list[Outcome]:
        """Their batch is done. What became of each: for a stream that was given up, that."""
        if self._slow:
            outcomes = [TOO_SLOW if uid in self._slow else outcome for uid, outcome in zip(uids, outcomes, strict=True)]
            self._slow.clear()
        self._windows.forget(uids)
        return outcomes

    def send(self, index: int, data: bytes) -> bool:
        """An event for item ``index`` of the batch. False: nobody listens any more."""
        if not self._worker._items:
            return False
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("events must be sent by the thread that runs forward")
        if index < 0:
            raise IndexError(f"event for value {index} of a batch")
        if len(data) > self._most:
            raise EncodingError(f"the event has {len(data)} bytes, and max_response_size is {self._most}")
        item = self._worker._items[index]
        uid = item.uid
        if uid == PADDING:
            return True  # as for the item that is repeated, and nobody's
        if uid in self._cancelled or not self._wait_room(uid):
            return False
        message = StreamEvents(
            stage=self.origin.stage,
            worker=self.origin.worker,
            uids=[uid],
            flow=int(self._flow),
            mime=self._worker.resp_mime_type if item.last else "",
            batch=self.batch,
        )
        frames = wire.encode(message, [data])
        self._windows.sent(uid, len(data) + EVENT_COST)
        # Interrupted between two frames of a parcel, the socket would take what follows for the rest of it.
        self._watchdog.undisturbed(lambda: self._outlets.send(FINAL, frames))
        return True

    def _wait_room(self, uid: int) -> bool:
        """Until the client of this stream has read on. False: it does not, or it has left."""
        give_up_at = inf if self._flow is Flow.CHUNKS else now() + PATIENCE_S
        while not self._windows.has_room(uid):
            if uid in self._cancelled:
                return False
            if (left := give_up_at - now()) <= 0:
                self._slow.add(uid)
                self._cancelled.add([uid])  # for whoever asks its context
                return False
            self._watchdog.undisturbed(self._outlets.flush)
            self._windows.wait(min(left, OUTLETS_S))
        return True
