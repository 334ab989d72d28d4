"""Arenas without memory: the real books and allocators over a dict, for the twin.

A block's bytes exist from its writing until its mark is seen or its arena ends; whoever reads too late gets a KeyError.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.arena import Allocator, Books, Ref
from engine.core.wire import Payload

SIZE = 4 << 20


class Memory:
    def __init__(self) -> None:
        self.books = Books()
        self._allocators: dict[int, Allocator] = {}  # of producers that live
        self._bytes: dict[int, dict[int, bytes]] = {}  # arena -> offset -> block
        self._arenas = 0

    def open(self) -> int:
        self._arenas += 1
        self.books.open(self._arenas, SIZE)
        self._allocators[self._arenas] = Allocator(SIZE)
        self._bytes[self._arenas] = {}
        return self._arenas

    def put(self, arena: int, value: bytes) -> Payload:
        """The value as a producer sends it; at times with a part that is not shared, or as plain bytes when full."""
        offset = self._allocators[arena].allocate(len(value))
        if offset is None:
            return value
        assert offset not in self._bytes[arena]
        head, tail = (b"", value) if offset // (16 * 1024) % 2 else (value[:2], value[2:])
        self._bytes[arena][offset] = tail
        ref = Ref(arena, offset, len(tail))
        return (head, ref) if head else ref

    def read(self, payload: Payload) -> bytes:
        parts = payload if type(payload) is tuple else (payload,)
        return b"".join(
            self._bytes[part.arena][part.offset] if isinstance(part, Ref) else bytes(part)  # type: ignore[arg-type]
            for part in parts
        )

    def release(self, refs: Sequence[Ref]) -> None:
        marked, ended = self.books.release(refs)
        for ref in marked:
            assert self._allocators[ref.arena].free(ref.offset)
            del self._bytes[ref.arena][ref.offset]
        for arena in ended:
            del self._bytes[arena]

    def retire(self, arena: int) -> None:
        """The producer is gone."""
        del self._allocators[arena]
        if self.books.retire(arena):
            del self._bytes[arena]

    def is_empty(self) -> bool:
        return (
            self.books.held_bytes == 0
            and all(not allocator.used for allocator in self._allocators.values())
            and not any(self._bytes.values())
            and self._bytes.keys() == self._allocators.keys()
            and len(self.books) == len(self._allocators)
        )
