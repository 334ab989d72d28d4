"""Tensors on a GPU handed to the next stage without leaving it, where all who may get them can read that GPU's memory.

The first such tensor makes a *region*, memory of the GPU's as large as the worker's arena (:mod:`stages.cuda`), whose
descriptor the broker keeps (:mod:`engine.handles`). A tensor is copied into a block of it, and a *stand-in* of a few
bytes travels by way of shared memory: where the tensor lies. For as long as the broker holds the stand-in's block of
the arena, the tensor's block of the region is held too; when that is released, so is this. So everything that is true
of shared memory is true here - bounded, kept for whoever computes again, no message to be lost - and the broker need
know nothing of it. A region outlives its worker with the arena, and then ends with it.

Who receives a stand-in copies the tensor into memory of its own, on its own device. What finds no room, and what is too
small, goes by way of the CPU.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Final, TypeAlias

from engine import handles
from engine.clock import now
from engine.core.arena import SHARED_MIN, Allocator, Ref
from engine.core.placement import gpu_number
from engine.errors import ProtocolError, WorkerBroken
from engine.log import get_logger
from engine.memory import Gone, Store
from stages.cuda import Region, Unable, reaches

RETRY_S: Final = 5.0  # until a region is tried to be made again
LOOK_S: Final = 30.0  # between two looks for regions that have ended

STAND: Final = struct.Struct("<QQQ")  # the arena it belongs to, the size of the region, where in it


class StandIn(bytes):
    """What travels for a tensor: these bytes, which lie at ``ref``."""

    ref: Ref


PutTensor: TypeAlias = Callable[[Any], StandIn | None]  # None: it has to go another way


class Lender:
    """A worker's region, and what lies in it. Used by one thread."""

    def __init__(self, path: str, device: str, readers: Iterable[str]) -> None:
        """``path``: of the broker's socket for descriptors. ``readers``: devices of all who may get what is put."""
        self._path = path
        self._device = gpu_number(device)
        self._readers = [gpu_number(reader) for reader in readers]
        self._store: Store | None = None
        self._region: Region | None = None
        self._allocator = Allocator(0)
        self._lent: dict[int, int] = {}  # where a stand-in lies in the arena -> where its tensor does in the region
        self._unable_until = -inf

    def switch(self, store: Store | None) -> None:
        """Stand-ins go into this arena from now on. What was lent is the former arena's."""
        if self._region is not None:
            self._region.close()
        self._store, self._region, self._unable_until = store, None, -inf
        self._lent.clear()
        if store is not None:
            store.freed = self._freed

    def put(self, tensor: Any) -> StandIn | None:
        """Copy a dense tensor into the region. None where it has to go another way. Raises what torch raises when the
        device is lost. The reference must be sent, once, or be taken back by the store."""
        store = self._store
        if store is None or tensor.nbytes < SHARED_MIN or str(tensor.device) != Region.where(self._device):
            return None
        if self._region is None and (now() < self._unable_until or not self._make(store)):
            return None
        assert self._region is not None
        store.collect()
        offset = self._allocator.allocate(tensor.nbytes)
        if offset is None:
            return None
        stand = StandIn(STAND.pack(store.place.arena, self._region.size, offset))
        ref = store.put(stand, least=1)
        if ref is None:
            self._allocator.free(offset)
            return None
        stand.ref = ref
        self._lent[ref.offset] = offset
        try:
            self._region.write(offset, tensor.detach().resolve_conj().resolve_neg().contiguous())
        except BaseException:
            store.take_back([ref])
            raise
        return stand

    def _freed(self, at: int) -> None:
        offset = self._lent.pop(at, None)
        if offset is not None:
            self._allocator.free(offset)

    def _make(self, store: Store) -> bool:
        try:
            if not all(reaches(reader, self._device) for reader in self._readers):
                raise Unable("the next stage's GPU cannot read this one's memory")
            region = Region.create(self._device, store.place.size)
            try:
                handles.hand_in(self._path, store.place.arena, region.fd)
            except BaseException:
                region.close()
                raise
        except (Unable, Gone, OSError) as error:
            # A driver that cannot will not; a broker that was not there, or had no descriptor left, may yet.
            self._unable_until = inf if isinstance(error, Unable) else now() + RETRY_S
            get_logger().info("tensors go to the next stage by way of the CPU", extra={"reason": str(error)})
            return False
        self._region, self._allocator = region, Allocator(region.size)
        return True


class Reader:
    """The regions of others, mapped when they are first read. May be used by several threads."""

    def __init__(self, path: str, device: str) -> None:
        self._path = path
        self._device = gpu_number(device)
        self._regions: dict[int, Region] = {}
        self._look_at = inf
        self._lock = threading.Lock()

    def read(self, stand: bytes | memoryview, dtype: Any, shape: tuple[int, ...]) -> Any:
        """The tensor, on this process's device, in memory of its own.

        Raises Gone when its broker has ended, and nobody waits for it; WorkerBroken when this process cannot read such
        memory now, though others can; ProtocolError for what is no stand-in.
        """
        import torch

        try:
            arena, size, offset = STAND.unpack(stand)
        except struct.error as error:
            raise ProtocolError("no stand-in of a tensor") from error
        tensor = torch.empty(shape, dtype=dtype, device=Region.where(self._device))
        if offset + tensor.nbytes > size:
            raise ProtocolError(f"a tensor of {tensor.nbytes} bytes at {offset} of a region of {size}")
        with self._lock:  # also while it is read: who opens another one closes those that have ended
            if now() > self._look_at:
                self._forget_ended()
            (self._regions.get(arena) or self._open(arena, size)).read(offset, tensor)
        return tensor

    def close(self) -> None:
        """Nothing that was sent until now will be read."""
        with self._lock:
            while self._regions:
                self._regions.popitem()[1].close()

    def _open(self, arena: int, size: int) -> Region:
        self._forget_ended()
        try:
            fd = handles.ask(self._path, arena)
        except OSError as error:  # others may have better luck, and so may this stage's next process
            raise WorkerBroken(f"the memory of the stage before on its GPU cannot be had: {error}") from error
        try:
            region = self._regions[arena] = Region.open(self._device, size, fd)
        except Unable as error:
            raise WorkerBroken(f"the memory of the stage before on its GPU cannot be read: {error}") from error
        finally:
            os.close(fd)
        return region

    def _forget_ended(self) -> None:
        """Unmap those that ended with their workers: nothing else would give that memory back."""
        for arena in list(self._regions):
            try:
                os.close(handles.ask(self._path, arena))
            except handles.NotThere:
                self._regions.pop(arena).close()
            except (Gone, OSError):  # nothing is known
                break
        self._look_at = now() + LOOK_S
