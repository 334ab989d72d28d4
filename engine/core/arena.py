"""Shared memory as values: what a reference is, how an arena is laid out, who may use which part of it when. Pure.

An *arena* is a piece of memory that one process, its *producer*, writes and others on the same host read. The producer
alone gives out *blocks* of it (:class:`Allocator`), copies a large buffer into one, and sends a :class:`Ref` in place
of the bytes. The broker keeps the books (:class:`Books`): a block is *held* from the arrival of its reference until
nobody will read it again; then the broker sets the block's *mark*, a byte at the beginning of the arena, and the
producer, which looks there before it gives out the next block, may use the memory again.

A mark instead of a message: it cannot be lost with a connection, reaches a producer whose threads are all busy, and
costs neither side a hand-over between threads. A reference travels once and is never sent again, so a mark never hits a
block that has been given out anew.

    0                marks_end(size)                                              size
    | a mark per unit | unit | unit | unit | ...                                    |
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from engine.errors import ProtocolError

SHARED_MIN: Final = 64 * 1024  # bytes; below it copying through a socket costs less than the bookkeeping
UNIT: Final = 16 * 1024  # bytes; blocks are whole units: aligned to pages, and at most a fifth is wasted
RELEASED: Final = b"\1"  # a mark that is set; a block's mark is that of its first unit


class Ref(msgspec.Struct, frozen=True, gc=False):
    """``length`` bytes at ``offset`` of an arena: stands in a payload where the bytes would."""

    arena: int
    offset: int
    length: int


def units(length: int) -> int:
    """Units of a block for this many bytes."""
    return -(-length // UNIT)


def marks_end(size: int) -> int:
    """Where the blocks of an arena begin: the bytes before are the marks."""
    return units(size // UNIT) * UNIT


def fits(ref: Ref, size: int) -> bool:
    """Whether a reference names a block that an arena of ``size`` bytes can have."""
    return (
        ref.length > 0
        and ref.offset % UNIT == 0
        and ref.offset >= marks_end(size)
        and ref.offset + ref.length <= size - size % UNIT
    )


class Allocator:
    """Which units of an arena are free: the lowest run that is long enough is given out, so that little of the arena is
    ever touched. Neighbouring free runs are one. Not thread-safe."""

    def __init__(self, size: int) -> None:
        """For an arena of ``size`` bytes; one that is too small for any block has none to give."""
        first, end = marks_end(size) // UNIT, size // UNIT
        self._starts = [first] if end > first else []  # free runs, ascending
        self._ends = [end] if end > first else []
        self._given: dict[int, int] = {}  # start -> end
        self.used = 0  # bytes in blocks that are given out

    def allocate(self, length: int) -> int | None:
        """The offset of a block for ``length`` bytes (at least 1), or None when no free run is long enough."""
        count = units(length)
        for index, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start >= count:
                if end - start == count:
                    del self._starts[index], self._ends[index]
                else:
                    self._starts[index] = start + count
                self._given[start] = start + count
                self.used += count * UNIT
                return start * UNIT
        return None

    def free_runs(self) -> list[tuple[int, int]]:
        """What is not given out, as bytes from and to."""
        return [(start * UNIT, end * UNIT) for start, end in zip(self._starts, self._ends, strict=True)]

    def free(self, offset: int) -> bool:
        """Take a block back. False when there is none at this offset."""
        start = offset // UNIT
        end = self._given.pop(start, None) if offset % UNIT == 0 else None
        if end is None:
            return False
        self.used -= (end - start) * UNIT
        index = bisect_left(self._starts, start)
        left = index > 0 and self._ends[index - 1] == start
        right = index < len(self._starts) and self._starts[index] == end
        if left and right:
            self._ends[index - 1] = self._ends[index]
            del self._starts[index], self._ends[index]
        elif left:
            self._ends[index - 1] = end
        elif right:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)
        return True


@dataclass(slots=True)
class _Book:
    """Of one arena."""

    size: int
    held: dict[int, int] = field(default_factory=dict)  # offset -> length
    retired: bool = False


class Books:
    """The broker's account of every arena and of the blocks whose references it has. Not thread-safe.

    An arena lives until its producer is gone *and* nothing of it is held: a result outlives the process that made it.
    """

    def __init__(self) -> None:
        self._books: dict[int, _Book] = {}
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._books)

    def open(self, arena: int, size: int) -> None:
        """An arena exists."""
        self._books[arena] = _Book(size)

    def arrive(self, refs: Iterable[Ref]) -> None:
        """References have come in: all their blocks are held from now on, or none of them and ProtocolError is raised.

        A reference is refused when its arena is gone (its producer died, and what it computed is computed again), when
        it does not fit, and when its block is held already.
        """
        refs = list(refs)
        taken: set[tuple[int, int]] = set()
        for ref in refs:
            book = self._books.get(ref.arena)
            if book is None:
                raise ProtocolError(f"a reference to arena {ref.arena:x}, which is not there (any more)")
            if not fits(ref, book.size):
                raise ProtocolError(f"a reference to {ref.length} bytes at {ref.offset} of an arena of {book.size}")
            if ref.offset in book.held or (ref.arena, ref.offset) in taken:
                raise ProtocolError(f"a second reference to the block at {ref.offset}")
            taken.add((ref.arena, ref.offset))
        for ref in refs:
            self._books[ref.arena].held[ref.offset] = ref.length
            self.held_bytes += ref.length

    def release(self, refs: Iterable[Ref]) -> tuple[list[Ref], list[int]]:
        """Nobody will read these blocks again: those to be marked, and the arenas that end with them."""
        marked: list[Ref] = []
        ended: list[int] = []
        for ref in refs:
            book = self._books.get(ref.arena)
            if book is None or book.held.pop(ref.offset, None) is None:
                continue
            self.held_bytes -= ref.length
            if not book.retired:
                marked.append(ref)
            elif not book.held:
                del self._books[ref.arena]
                ended.append(ref.arena)
        return marked, ended

    def retire(self, arena: int) -> bool:
        """The producer is gone. True when the arena ends with it; else it does with the last of its blocks."""
        book = self._books.get(arena)
        if book is None:
            return False
        book.retired = True
        if book.held:
            return False
        del self._books[arena]
        return True
