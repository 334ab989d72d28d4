"""Arenas as mapped memory: the producer's end (:class:`Store`) and the reader's (:class:`Views`).

The broker makes every arena as an anonymous file and keeps it open; others map it by way of ``/proc/PID/fd/N``. So it
has no name that could stay behind, whoever is killed in whatever order: the kernel frees it with the last process that
has it. Which block may be used when is decided in :mod:`engine.core.arena`.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Container, Iterable, Sequence
from typing import Final

from engine.core.arena import RELEASED, SHARED_MIN, UNIT, Allocator, Ref, fits, marks_end
from engine.core.messages import Place
from engine.core.wire import Buffer, Part, Payload
from engine.errors import ProtocolError

CLEAR: Final = b"\0"
MAPPED_MOST: Final = 128  # arenas of others at once: each takes a descriptor, of which a process often has 1,024


class Gone(Exception):
    """The arena is no more: its broker has ended, or has given up whoever asks. Nobody waits for what was in it."""


def name_of(arena: int) -> str:
    """The label of an arena's file, as /proc shows it."""
    return f"stageline-{arena:016x}"


def open_arena(place: Place, *, writable: bool) -> int:
    """A descriptor of the arena. Raises Gone, or OSError when the system does not allow it.

    The label is compared, for after its broker's end the process number may be somebody else's.
    """
    try:
        fd = os.open(f"/proc/{place.pid}/fd/{place.fd}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Gone(f"process {place.pid} does not hold arena {place.arena:x}") from error
    try:
        about = os.fstat(fd)
        label = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
        if not label.endswith(f":{name_of(place.arena)}") or not stat.S_ISREG(about.st_mode):
            raise Gone(f"descriptor {place.fd} of process {place.pid} is not arena {place.arena:x}")
        if about.st_size != place.size:
            raise Gone(f"arena {place.arena:x} has {about.st_size} bytes, not {place.size}")
    except BaseException:
        os.close(fd)
        raise
    return fd


class Store:
    """A producer's arena. Not thread-safe. Raises what :func:`open_arena` raises."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._allocator = Allocator(place.size)
        self._marks_end = marks_end(place.size)
        fd = open_arena(place, writable=True)
        try:
            self._map = mmap.mmap(fd, place.size)
        finally:
            os.close(fd)  # the mapping has its own
        self._bytes = memoryview(self._map)

    @property
    def place(self) -> Place:
        return self._place

    @property
    def used(self) -> int:
        """Bytes of the blocks that may still be read."""
        self._collect()
        return self._allocator.used

    def put(self, data: Buffer) -> Ref | None:
        """Copy bytes into a block. None when they are too few to be worth it, or there is no room now.

        The reference must be sent, once, or :meth:`take_back` be called.
        """
        length = data.nbytes if type(data) is memoryview else len(data)
        if length < SHARED_MIN:
            return None
        self._collect()
        offset = self._allocator.allocate(length)
        if offset is None:
            return None
        self._bytes[offset : offset + length] = data
        return Ref(self._place.arena, offset, length)

    def take_back(self, refs: Iterable[Ref]) -> None:
        """These references were not sent."""
        for ref in refs:
            if ref.arena == self._place.arena:
                self._allocator.free(ref.offset)

    def close(self) -> None:
        self._bytes.release()
        self._map.close()

    def _collect(self) -> None:
        """Take back what the broker has marked. The mark is cleared before the block can be given out again."""
        at = self._map.find(RELEASED, 0, self._marks_end)
        while at >= 0:
            self._bytes[at : at + 1] = CLEAR
            self._allocator.free(at * UNIT)
            at = self._map.find(RELEASED, at + 1, self._marks_end)


class Mapping(mmap.mmap):
    """A whole arena, read only."""

    place: Place

    @classmethod
    def of(cls, place: Place) -> Mapping:
        """Raises Gone or OSError."""
        fd = open_arena(place, writable=False)
        try:
            made = cls(fd, place.size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        made.place = place
        return made

    def private(self, offset: int, length: int) -> memoryview:
        """A part of it mapped once more: to be written to without anybody else seeing it. ``offset`` is a block's.

        Raises Gone or OSError.
        """
        fd = open_arena(self.place, writable=False)
        try:
            flags, prot = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
            return memoryview(mmap.mmap(fd, length, flags=flags, prot=prot, offset=offset))
        finally:
            os.close(fd)


class Views:
    """The arenas of others, mapped when they are first referred to. Not thread-safe.

    A mapping is dropped when its arena is found gone, which is looked up when another is mapped; it ends when the last
    view of it does. (The broker gives the *memory* of an arena back at its end, whoever still has it mapped.)
    """

    def __init__(self) -> None:
        self._mappings: dict[int, Mapping] = {}

    def resolve(self, payloads: Sequence[Payload], places: Sequence[Place]) -> list[Payload]:
        """The payloads with read-only views in place of references.

        Raises Gone, OSError when an arena cannot be mapped, ProtocolError for a reference that does not fit. Valid as
        long as the sender of the payloads keeps them: for a batch, until its results have been sent.
        """
        wanted = {place.arena: place for place in places}
        if not wanted.keys() <= self._mappings.keys():
            self._sweep(wanted)
            for arena, place in wanted.items():
                if arena not in self._mappings:
                    self._mappings[arena] = Mapping.of(place)
        return [
            payload
            if type(payload) is bytes
            else tuple(self._view(part) for part in payload)
            if type(payload) is tuple
            else self._view(payload)  # type: ignore[arg-type]  # no tuple here
            for payload in payloads
        ]

    def close(self) -> None:
        """Forget all mappings; views that are still in use keep theirs."""
        self._mappings.clear()

    def __len__(self) -> int:
        return len(self._mappings)

    def _view(self, part: Part) -> Part:
        if type(part) is not Ref:
            return part
        mapping = self._mappings.get(part.arena)
        if mapping is None or not fits(part, mapping.place.size):
            raise ProtocolError(f"a reference to {part.length} bytes at {part.offset} of arena {part.arena:x}")
        return memoryview(mapping)[part.offset : part.offset + part.length]

    def _sweep(self, wanted: Container[int]) -> None:
        """Drop what is gone, and of too many those that were mapped first."""
        for arena, mapping in list(self._mappings.items()):
            try:
                os.close(open_arena(mapping.place, writable=False))
            except Gone:
                del self._mappings[arena]
                continue
            if len(self._mappings) >= MAPPED_MOST and arena not in wanted:
                del self._mappings[arena]
