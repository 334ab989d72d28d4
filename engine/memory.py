"""Arenas as mapped memory: the producer's end (:class:`Store`) and the reader's (:class:`Views`, :class:`Blocks`).

The broker makes every arena as an anonymous file and keeps it open; others map it by way of ``/proc/PID/fd/N``. So it
has no name that could stay behind, whoever is killed in whatever order: the kernel frees it with the last process that
has it. Which block may be used when is decided in :mod:`engine.core.arena`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import stat
import struct
import sys
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.core.arena import RELEASED, SHARED_MIN, UNIT, Allocator, Ref, fits, marks_end, units
from engine.core.messages import Place
from engine.core.wire import Buffer, Payload, refs_of
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
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        # What has the number now cannot be opened by its name: a socket, or an event's descriptor.
        raise Gone(f"descriptor {place.fd} of process {place.pid} is not arena {place.arena:x}") from error
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
        self.freed: Callable[[int], None] | None = None  # told the offset of each block that is free again

    @property
    def place(self) -> Place:
        return self._place

    @property
    def used(self) -> int:
        """Bytes of the blocks that may still be read."""
        self.collect()
        return self._allocator.used

    def put(self, data: Buffer, *, least: int = SHARED_MIN) -> Ref | None:
        """Copy bytes into a block. None when they are too few to be worth it, or there is no room now.

        The reference must be sent, once, or :meth:`take_back` be called.
        """
        length = data.nbytes if type(data) is memoryview else len(data)
        if length < least:
            return None
        self.collect()
        offset = self._allocator.allocate(length)
        if offset is None:
            return None
        self._bytes[offset : offset + length] = data
        return Ref(self._place.arena, offset, length)

    def take_back(self, refs: Iterable[Ref]) -> None:
        """These references were not sent."""
        for ref in refs:
            if ref.arena == self._place.arena:
                self._free(ref.offset)

    def give_back(self) -> None:
        """Have the system take the memory of all free blocks; they read as zeros until they are written to again."""
        self.collect()
        for start, end in self._allocator.free_runs():
            try:
                self._map.madvise(mmap.MADV_REMOVE, start, end - start)
            except OSError:
                return  # a system that cannot: it is used again

    def close(self) -> None:
        self._bytes.release()
        self._map.close()

    def collect(self) -> None:
        """Take back what the broker has marked. The mark is cleared before the block can be given out again."""
        at = self._map.find(RELEASED, 0, self._marks_end)
        while at >= 0:
            self._bytes[at : at + 1] = CLEAR
            self._free(at * UNIT)
            at = self._map.find(RELEASED, at + 1, self._marks_end)

    def _free(self, offset: int) -> None:
        if self._allocator.free(offset) and self.freed is not None:
            self.freed(offset)


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


class Views:
    """The arenas of others, mapped when they are first referred to. Not thread-safe.

    A mapping is dropped when its arena is found gone, which is looked up when another is mapped; it ends when the last
    view of it does. (The broker gives the *memory* of an arena back at its end, whoever still has it mapped.)
    """

    def __init__(self) -> None:
        self.blocks = Blocks()
        self._mappings: dict[int, Mapping] = {}

    def open(self, payloads: Sequence[Payload], places: Sequence[Place]) -> dict[int, Mapping]:
        """The arenas that the payloads refer to, by their numbers.

        Raises Gone, OSError when an arena cannot be mapped, ProtocolError for a reference that does not fit. What lies
        in them is valid as long as the sender of the payloads keeps it: for a batch, until its results have been sent.
        """
        wanted = {place.arena: place for place in places}
        if not wanted.keys() <= self._mappings.keys():
            self._sweep(wanted)
            for arena, place in wanted.items():
                if arena not in self._mappings:
                    self._mappings[arena] = Mapping.of(place)
        found = {arena: self._mappings[arena] for arena in wanted}
        for payload in payloads:
            for ref in refs_of(payload):
                if ref.arena not in found or not fits(ref, found[ref.arena].place.size):
                    raise ProtocolError(f"a reference to {ref.length} bytes at {ref.offset} of arena {ref.arena:x}")
        return found

    def close(self) -> None:
        """Forget all mappings; views that are still in use keep theirs."""
        self._mappings.clear()
        self.blocks.close()

    def __len__(self) -> int:
        return len(self._mappings)

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
        self.blocks.forget_but(self._mappings)


# --- blocks to write into --------------------------------------------------------------------------------------------

KEPT: Final = 64  # idle mappings of blocks: address space and page tables, no memory of their own
# Writing to a page of a block takes 0.5 us, copying it beforehand 0.04. Who writes to one page in so many is given
# copies, and so is who keeps what it got; after so many copies it is tried again.
WRITER: Final = 8
PASSED_OVER: Final = 64
_PAGE: Final = mmap.PAGESIZE
_ENTRY: Final = struct.Struct("=Q").size  # of /proc/self/pagemap, a word for each page; the flags are its top byte:
_MAPPED: Final = 0xC0  # in memory, or swapped out
_OF_FILE: Final = 0x20  # a page of the arena, which nobody has written to here
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, Linux 5.14
_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0)  # known to Python since 3.11
_FIXED: Final = 0x10  # MAP_FIXED
_UNTOUCHED: Final = bytes(0 if flags & _MAPPED and not flags & _OF_FILE else 1 for flags in range(256))


class Block(mmap.mmap):
    """A part of an arena as its reader's own: the kernel copies a page when it is written to, and nobody else sees it.

    Made in two steps, an anonymous mapping and the file's over it, because a mapping of a file takes a descriptor for
    as long as it lives, and user code may keep thousands.
    """

    at: int  # its address

    @classmethod
    def of(cls, place: Place, offset: int, length: int) -> Block:
        """``offset`` and ``length`` are multiples of a page. Raises Gone or OSError."""
        flags, prot = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        fd = open_arena(place, writable=False)
        try:
            made = cls(-1, length, flags=flags | mmap.MAP_ANONYMOUS, prot=prot)
            made.at = ctypes.addressof(ctypes.c_char.from_buffer(made))
            if _map(made.at, length, prot, flags | _FIXED, fd, offset) != made.at:
                _lost.append(made)  # what lies at its address now is not known, and must not be unmapped
                raise OSError(ctypes.get_errno(), "a block cannot be mapped")
        finally:
            os.close(fd)
        return made

    def written(self, pagemap: int, length: int) -> int:
        """Pages that have been copied because they were written to, among those of the first ``length`` bytes."""
        pages = -(-length // _PAGE)
        entries = os.pread(pagemap, pages * _ENTRY, self.at // _PAGE * _ENTRY)
        return pages - entries[_TOP::_ENTRY].translate(_UNTOUCHED).count(1)

    def keep(self, length: int) -> None:
        """Have all pages of the first ``length`` bytes copied. Raises OSError without the memory for it."""
        length = -(-length // _PAGE) * _PAGE
        try:
            self.madvise(_POPULATE_WRITE, 0, length)
        except OSError as error:
            if error.errno != errno.EINVAL:  # which is what an older kernel says
                raise
            for at in range(0, length, _PAGE):
                self[at] = self[at]


_TOP: Final = _ENTRY - 1 if sys.byteorder == "little" else 0
_lost: list[Block] = []


def _mapper() -> Any:
    function = ctypes.CDLL(None, use_errno=True).mmap
    word = ctypes.c_size_t
    function.argtypes = (word, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    function.restype = word
    return function


_map: Final = _mapper()


@dataclass(slots=True)
class Loan:
    """A block in somebody's hands."""

    ref: Ref
    block: Block
    faults: int  # of this process until then


class Blocks:
    """Lends blocks to user code and takes them back. May be used by several threads.

    User code may write into what it is lent, and keep it for longer than it was lent. So a block that comes back is
    looked at: what was written is undone before it is lent again, and one of which a view is still there becomes that
    view's own, with every page of it, before the producer may fill the memory anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[int, int], Block] = {}  # by arena and offset; the one that came back last is the last
        self._copies = 0  # to be made before the next block is lent
        self._pagemap: int | None = None  # not opened yet; negative: there is none

    def lend(self, place: Place, ref: Ref) -> Loan | None:
        """A block whose first bytes are those of the reference; None where a copy serves as well or better.

        Raises Gone or OSError.
        """
        with self._lock:
            if self._pagemap is None:
                self._pagemap = _open_pagemap()
            if self._pagemap < 0:
                return None
            if self._copies:
                self._copies -= 1
                return None
            block = self._idle.pop((ref.arena, ref.offset), None)
        if block is None or len(block) < ref.length:
            # Rounded up, so that it serves for the next one at this place as well, which may be somewhat larger.
            length = min(UNIT << (units(ref.length) - 1).bit_length(), place.size - place.size % UNIT - ref.offset)
            block = Block.of(place, ref.offset, length)
        return Loan(ref, block, _faults())

    def take_back(self, loans: list[Loan]) -> None:
        """To be called while the memory still holds what it held. Empties the list, which must be the last to hold the
        blocks. Raises OSError when there is no memory for what somebody keeps."""
        if not loans:
            return
        faults = _faults()
        while loans:
            kept = _holders(loans) > _ALONE
            loan = loans.pop()
            ref, block = loan.ref, loan.block
            if kept:
                block.keep(ref.length)
                self._copies = PASSED_OVER
                continue
            if self._pagemap is None:
                continue  # closed meanwhile
            # Writing to a page for the first time is a fault. Without any there is nothing to look for.
            if faults != loan.faults and (written := block.written(self._pagemap, ref.length)):
                block.madvise(mmap.MADV_DONTNEED)
                if written * WRITER * _PAGE > ref.length:
                    self._copies = PASSED_OVER
            with self._lock:
                self._idle[ref.arena, ref.offset] = block
                while len(self._idle) > KEPT:
                    del self._idle[next(iter(self._idle))]

    def forget_but(self, arenas: Container[int]) -> None:
        """Drop what is idle and not of these arenas."""
        with self._lock:
            for key in [key for key in self._idle if key[0] not in arenas]:
                del self._idle[key]

    def close(self) -> None:
        self.forget_but(())
        if self._pagemap is not None and self._pagemap >= 0:
            os.close(self._pagemap)
        self._pagemap = None

    def __len__(self) -> int:
        return len(self._idle)


def _open_pagemap() -> int:
    """Negative where nobody can tell what was written, or where blocks that are neighbours could share a page."""
    if UNIT % _PAGE:
        return -1
    try:
        return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _faults() -> int:
    """Of all threads: 1 us."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def _holders(loans: list[Loan]) -> int:
    """How many references there are to the last block."""
    return sys.getrefcount(loans[-1].block)


_ALONE: Final = _holders([Loan(Ref(0, 0, 0), Block(-1, _PAGE), 0)])  # differs between versions of Python
