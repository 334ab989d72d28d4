"""Shared memory as the worker uses it: read what batches refer to, put what results refer to.

A block that was filled for a result that is not sent after all (a later step of its item failed) is taken back when
the batch's results are encoded.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.arena import Ref
from engine.core.messages import Batch, Place
from engine.core.wire import Buffer, Payload, refs_of
from engine.log import get_logger
from engine.memory import Gone, Store, Views


def open_store(place: Place | None) -> Store | None:
    """The arena of a Welcome, mapped. None where there is none or it cannot be had: sockets carry everything then."""
    if place is None:
        return None
    try:
        return Store(place)
    except (Gone, OSError) as error:
        get_logger().warning("no shared memory: %s", error)
        return None


class SharedMemory:
    """See the module. The main thread's, but for :meth:`read`, which goes with the lane."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._views = Views()
        self._fresh: list[Ref] = []  # filled for the batch at hand

    def switch(self, store: Store | None) -> None:
        """Another arena to fill. What the former holds is in the broker's hands, or nobody's."""
        if self._store is not None:
            self._store.close()
        self._store = store
        self._fresh.clear()

    @property
    def active(self) -> bool:
        return self._store is not None

    def put(self, data: Buffer) -> Ref | None:
        """See :meth:`engine.memory.Store.put`."""
        ref = self._store.put(data) if self._store is not None else None
        if ref is not None:
            self._fresh.append(ref)
        return ref

    def read(self, batch: Batch, payloads: list[Payload]) -> list[Payload]:
        """The batch's payloads without references; see :meth:`engine.memory.Views.resolve`."""
        return self._views.resolve(payloads, batch.memory) if batch.refs else payloads

    def keep(self, payloads: Iterable[Payload]) -> None:
        """These will be sent: what was put for the batch and is not among them is free again."""
        if not self._fresh:
            return
        sent = {ref for payload in payloads for ref in refs_of(payload)}
        if self._store is not None:
            self._store.take_back(ref for ref in self._fresh if ref not in sent)
        self._fresh.clear()

    def close(self) -> None:
        self.switch(None)
        self._views.close()
