"""The allocator gives nothing twice and gets all back; the books know what may be read, and when an arena ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.arena import SHARED_MIN, UNIT, Allocator, Books, Ref, fits, marks_end, units
from engine.errors import ProtocolError

SIZE = 64 * UNIT
LAST = SIZE - marks_end(SIZE)  # bytes in its blocks


class Allocating(RuleBasedStateMachine):
    """Random allocations and frees against a plain map of units."""

    @initialize(size=st.integers(0, 40 * UNIT))
    def start(self, size: int) -> None:
        self.size = size
        self.allocator = Allocator(size)
        self.blocks: dict[int, int] = {}  # offset -> length

    def room(self, count: int) -> bool:
        """Whether ``count`` units in a row are free, by the map."""
        taken = {offset // UNIT + step for offset, length in self.blocks.items() for step in range(units(length))}
        run = 0
        for unit in range(marks_end(self.size) // UNIT, self.size // UNIT):
            run = 0 if unit in taken else run + 1
            if run == count:
                return True
        return False

    @rule(length=st.integers(1, 12 * UNIT))
    def allocate(self, length: int) -> None:
        room = self.room(units(length))
        offset = self.allocator.allocate(length)
        assert (offset is not None) == room
        if offset is not None:
            assert fits(Ref(1, offset, length), self.size)
            self.blocks[offset] = length

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.blocks)))
        assert self.allocator.free(offset)
        del self.blocks[offset]
        assert not self.allocator.free(offset)  # once

    @rule(offset=st.integers(0, 40 * UNIT))
    def free_what_was_not_given(self, offset: int) -> None:
        if offset not in self.blocks:
            assert not self.allocator.free(offset)

    @invariant()
    def nothing_overlaps(self) -> None:
        end = marks_end(self.size)
        for offset, length in sorted(self.blocks.items()):
            assert offset >= end
            end = offset + units(length) * UNIT
        assert not self.blocks or end <= self.size
        assert self.allocator.used == sum(units(length) * UNIT for length in self.blocks.values())

    def teardown(self) -> None:
        """Free runs are joined: once all is back, all of it can be given out at once."""
        for offset in list(self.blocks):
            self.allocator.free(offset)
        whole = (self.size // UNIT) * UNIT - marks_end(self.size)
        if whole > 0:
            assert self.allocator.allocate(whole) == marks_end(self.size)


TestAllocating = Allocating.TestCase
TestAllocating.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_lowest_room_is_given_first_so_that_little_is_touched() -> None:
    allocator = Allocator(SIZE)
    first, second = allocator.allocate(SHARED_MIN), allocator.allocate(SHARED_MIN)
    assert first is not None
    assert second is not None
    allocator.free(first)
    assert allocator.allocate(UNIT) == first
    for _ in range(1000):
        offset = allocator.allocate(SHARED_MIN)
        assert offset is not None
        assert offset <= second + units(SHARED_MIN) * UNIT
        allocator.free(offset)


@given(size=st.integers(0, 1 << 40))
def test_every_block_has_a_mark(size: int) -> None:
    assert marks_end(size) >= size // UNIT
    assert marks_end(size) % UNIT == 0


REF = Ref(1, marks_end(SIZE), 100)


@pytest.mark.parametrize(
    "ref",
    [
        Ref(1, 0, 100),  # the marks
        Ref(1, marks_end(SIZE) + 1, 100),  # between units
        Ref(1, marks_end(SIZE), LAST + 1),
        Ref(1, SIZE, 1),
        Ref(1, SIZE - UNIT, UNIT + 1),
        Ref(1, marks_end(SIZE), 0),
        Ref(2, marks_end(SIZE), 100),  # another arena
        Ref(1, 1 << 62, 1 << 62),
    ],
)
def test_references_that_do_not_fit_are_refused_with_all_that_came_beside_them(ref: Ref) -> None:
    books = Books()
    books.open(1, SIZE)
    with pytest.raises(ProtocolError):
        books.arrive([REF, ref])
    assert books.held_bytes == 0
    books.arrive([REF])


def test_a_block_has_one_reference_at_a_time() -> None:
    books = Books()
    books.open(1, SIZE)
    with pytest.raises(ProtocolError):
        books.arrive([REF, REF])
    books.arrive([REF])
    with pytest.raises(ProtocolError):
        books.arrive([REF])
    assert books.release([REF]) == ([REF], [])
    assert books.release([REF]) == ([], [])  # nothing is released twice
    books.arrive([REF])


def test_an_arena_outlives_its_producer_until_its_last_block_is_read() -> None:
    books = Books()
    books.open(1, SIZE)
    other = Ref(1, REF.offset + UNIT, 7)
    books.arrive([REF, other])
    assert not books.retire(1)
    books.arrive([late := Ref(1, REF.offset + 2 * UNIT, 7)])  # was in the kernel when its producer died
    assert books.release([REF]) == ([], [])  # nobody reads the mark any more
    assert books.release([other, late]) == ([], [1])
    with pytest.raises(ProtocolError):
        books.arrive([REF])
    assert (len(books), books.held_bytes) == (0, 0)


def test_an_arena_of_which_nothing_is_held_ends_with_its_producer() -> None:
    books = Books()
    books.open(1, SIZE)
    assert books.retire(1)
    assert not books.retire(1)
    assert len(books) == 0
