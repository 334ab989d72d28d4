"""The broker's end of shared memory: makes arenas, keeps their books, marks blocks as released, ends arenas. With an
arena it keeps what stands for its producer's memory on a GPU, of which the arena's blocks speak (:mod:`stages.near`).

One per broker, used by all its threads, each for the producers and results it meets; the lock is held for a few
dictionary operations and a one-byte write. The rules are :class:`engine.core.arena.Books`; here are the files.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from engine.core.arena import RELEASED, UNIT, Books, Ref
from engine.core.messages import Place
from engine.core.wire import Part, Payload, are_bytes, refs_of
from engine.errors import ProtocolError
from engine.memory import name_of

log: Final = logging.getLogger("stageline.broker")

AVAILABLE: Final = hasattr(os, "memfd_create")


class Arenas:
    """See the module. Every method may be called from any thread."""

    def __init__(self, size: int) -> None:
        """``size``: bytes of address space for each producer; 0 makes none."""
        self._size = size if AVAILABLE else 0
        self._books = Books()
        self._places: dict[int, Place] = {}
        self._kept: dict[int, int] = {}  # arena -> a descriptor that was handed in
        self._lock = threading.Lock()

    def create(self) -> Place | None:
        """An arena for a producer on this host; None when sharing is off or the system has nothing to give."""
        if not self._size:
            return None
        arena = secrets.randbits(63)
        try:
            fd = _make(arena, self._size)
        except OSError as error:  # out of descriptors, or forbidden here: sockets carry everything
            log.warning("no shared memory for a process", extra={"reason": str(error)})
            return None
        place = Place(arena, os.getpid(), fd, self._size)
        with self._lock:
            self._places[arena] = place
            self._books.open(arena, self._size)
        return place

    def arrive(self, payloads: Sequence[Payload]) -> None:
        """Payloads have come in; what they refer to is kept. ProtocolError, and nothing is kept, if that cannot be."""
        if not are_bytes(payloads) and (refs := [ref for payload in payloads for ref in refs_of(payload)]):
            with self._lock:
                self._books.arrive(refs)

    def take(self, stage: int, payloads: Sequence[Payload]) -> bool:
        """:meth:`arrive` for results of a stage. False: their worker has died meanwhile. The references end with it,
        and the items are computed again."""
        try:
            self.arrive(payloads)
        except ProtocolError as error:
            log.warning("results dropped", extra={"stage": stage, "reason": str(error)})
            return False
        return True

    def release(self, refs: Iterable[Ref]) -> None:
        """Nobody will read these blocks again: tell their producers, end arenas that waited for it."""
        with self._lock:
            marked, ended = self._books.release(refs)
            for ref in marked:
                os.pwrite(self._places[ref.arena].fd, RELEASED, ref.offset // UNIT)
            for arena in ended:
                self._end(arena)

    def retire(self, place: Place | None) -> None:
        """The producer of this arena is gone."""
        if place is None:
            return
        with self._lock:
            if self._books.retire(place.arena):
                self._end(place.arena)

    def places(self, refs: Iterable[Ref]) -> list[Place]:
        """Where a reader finds these blocks. To be called while they are held."""
        with self._lock:
            return [self._places[arena] for arena in sorted({ref.arena for ref in refs})]

    def keep(self, arena: int, fd: int) -> bool:
        """A producer hands in a descriptor, which is closed when its arena ends. False: it stays the caller's."""
        with self._lock:
            if arena not in self._places or arena in self._kept:
                return False
            os.set_inheritable(fd, False)
            self._kept[arena] = fd
            return True

    def kept(self, arena: int) -> int | None:
        """A new descriptor of what was handed in."""
        with self._lock:
            fd = self._kept.get(arena)
            return None if fd is None else os.dup(fd)

    def plain(self, payloads: Sequence[Payload]) -> list[Payload]:
        """The payloads with bytes in place of references, for who cannot map. To be called while they are held."""
        return [
            tuple(self._read(part) for part in payload) if type(payload) is tuple else self._read(payload)  # type: ignore[arg-type]
            for payload in payloads
        ]

    def usage(self) -> tuple[int, int]:
        """Arenas there are, and the bytes that are held in them."""
        with self._lock:
            return len(self._books), self._books.held_bytes

    def close(self) -> None:
        """End all arenas: the broker is ending."""
        with self._lock:
            for arena in list(self._places):
                self._end(arena)

    def _read(self, part: Part) -> Part:
        if type(part) is not Ref:
            return part
        with self._lock:
            fd = self._places[part.arena].fd
        data = bytearray(part.length)
        view, done = memoryview(data), 0
        while done < part.length:
            done += os.preadv(fd, [view[done:]], part.offset + done)
        return view

    def _end(self, arena: int) -> None:
        """Close the file and give its pages back at once: somebody who only reads may keep it mapped for a while."""
        place = self._places.pop(arena)
        try:
            with mmap.mmap(place.fd, place.size) as mapped:
                mapped.madvise(mmap.MADV_REMOVE)
        except OSError as error:
            log.debug("the pages of an arena stay until its readers end", extra={"reason": str(error)})
        os.close(place.fd)
        if (kept := self._kept.pop(arena, None)) is not None:
            os.close(kept)


def _make(arena: int, size: int) -> int:
    fd = os.memfd_create(name_of(arena), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)  # sparse: a page exists when it has been written to
        # Nobody can cut it short under a reader, which would be killed by SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd
