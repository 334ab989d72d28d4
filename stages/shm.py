"""Shared memory as the worker uses it: read what batches refer to, put what results refer to.

What a batch refers to is *borrowed* from its sender: until the results are sent nobody changes it, and nobody here may.
User code gets memory of its own (:class:`Lease`): a copy, or where that costs more, pages that are copied when they are
written to.

A block that was filled for a result that is not sent after all (a later step of its item failed) is taken back when
the batch's results are encoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as Table
from types import MappingProxyType
from typing import Any, Final

from engine.core.arena import Ref
from engine.core.messages import Batch, Place
from engine.core.wire import Buffer, Part, Payload, refs_of
from engine.log import get_logger
from engine.memory import Blocks, Gone, Loan, Mapping, Store, Views
from stages.near import Lender, Reader, StandIn

COPY_MAX: Final = 128 * 1024  # bytes; up to here a copy (24 GB/s) costs less than lending a block (7 us)


def open_store(place: Place | None) -> Store | None:
    """The arena of a Welcome, mapped. None where there is none or it cannot be had: sockets carry everything then."""
    if place is None:
        return None
    try:
        return Store(place)
    except (Gone, OSError) as error:
        get_logger().warning("no shared memory: %s", error)
        return None


class Lease:
    """The memory of one batch. Used by one thread at a time.

    A payload stays what came, whatever user code does to what it was given: who decodes it anew sees the bytes that
    were sent. ``last`` says that nobody will decode it anew.
    """

    def __init__(self, arenas: Table[int, Mapping] = MappingProxyType({}), blocks: Blocks | None = None) -> None:
        """``arenas``: those that the payloads refer to. ``blocks``: whose they are, when the payloads came through a
        socket; without, the payloads are somebody else's as well, and everything is copied."""
        self._arenas = arenas
        self._blocks = blocks
        self._loans: list[Loan] = []

    def view(self, part: Part) -> Buffer:
        """A part's bytes, to be read and not kept."""
        if type(part) is not Ref:
            return part  # type: ignore[return-value]  # no Ref here
        return memoryview(self._arenas[part.arena])[part.offset : part.offset + part.length]

    def own(self, part: Part, *, last: bool) -> memoryview:
        """A part's bytes in memory for user code, which may write there and keep it; the beginning of an object."""
        if type(part) is not Ref:
            frame = memoryview(part)  # type: ignore[arg-type]  # no Ref here
            free = last and self._blocks is not None and not frame.readonly
            return frame if free else memoryview(bytearray(frame))
        if part.length > COPY_MAX and self._blocks is not None:
            try:
                loan = self._blocks.lend(self._arenas[part.arena].place, part)
            except (Gone, OSError):  # no longer to be had, or no room for a mapping: it can still be read
                loan = None
            if loan is not None:
                self._loans.append(loan)
                return memoryview(loan.block)[: part.length]
        return memoryview(bytearray(self.view(part)))

    def whole(self, payload: Payload) -> Buffer:
        """All parts of a payload, one after the other, to be read and not kept."""
        if type(payload) is tuple:
            return b"".join([self.view(part) for part in payload])
        return self.view(payload)  # type: ignore[arg-type]  # not a tuple here

    def own_bytes(self, payload: Payload, *, last: bool) -> bytes:
        """All parts of a payload, one after the other, for user code, which may write even there: torch and C code do
        not ask whether they may."""
        if type(payload) is tuple:
            return b"".join([self.view(part) for part in payload])
        data = self.view(payload)  # type: ignore[arg-type]  # not a tuple here
        free = last and self._blocks is not None and type(data) is bytes
        return data if free else bytes(memoryview(data))  # type: ignore[return-value]  # bytes when free

    def end(self) -> None:
        """The values are forgotten here, and the results not sent yet. What user code has kept is its own from now on.

        Raises OSError when there is no memory for that.
        """
        if self._blocks is not None:
            self._blocks.take_back(self._loans)


FOREIGN: Final = Lease()  # for payloads that are somebody else's as well


class SharedMemory:
    """See the module. The main thread's, but for :meth:`read`, which goes with the lane."""

    def __init__(self, near: Lender | None = None, reader: Reader | None = None) -> None:
        """``near``: where tensors on a GPU go; ``reader``: what gets those of others."""
        self._near = near
        self._reader = reader
        self._store: Store | None = None
        self._views = Views()
        self._fresh: list[Ref] = []  # filled for the batch at hand

    def switch(self, store: Store | None) -> None:
        """Another arena to fill. What the former holds is in the broker's hands, or nobody's."""
        if self._store is not None:
            self._store.close()
        self._store = store
        self._fresh.clear()
        if self._near is not None:
            self._near.switch(store)
        if self._reader is not None:
            self._reader.close()

    @property
    def active(self) -> bool:
        return self._store is not None

    def put(self, data: Buffer) -> Ref | None:
        """See :meth:`engine.memory.Store.put`."""
        ref = self._store.put(data) if self._store is not None else None
        if ref is not None:
            self._fresh.append(ref)
        return ref

    def put_tensor(self, tensor: Any) -> StandIn | None:
        """See :meth:`stages.near.Lender.put`."""
        stand = self._near.put(tensor) if self._near is not None else None
        if stand is not None:
            self._fresh.append(stand.ref)
        return stand

    def lease(self, batch: Batch, payloads: list[Payload]) -> Lease:
        """The memory of a batch. Raises what :meth:`engine.memory.Views.open` raises."""
        return Lease(self._views.open(payloads, batch.memory) if batch.refs else {}, self._views.blocks)

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
