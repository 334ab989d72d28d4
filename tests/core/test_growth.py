"""When a deployment gets more brokers: only where all that it has are full, and more can help."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.core.fullness import AGAIN_S
from engine.core.growth import FRESH_S, SETTLE_S, WATCH_S, Grow, Growth, Room, Stay, Verdict

ROOMY = Room({"first": 8, "second": 9}, 16, "there are as many as there may be")
LOOKS = 20


class World:
    """Brokers that are full, some of them, and CPUs of which so many have nothing to do."""

    def __init__(self, *left: float, cells: int = 1) -> None:
        self.growth = Growth()
        self.left = left
        self.cells = cells
        self.now = 100.0
        self.began = self.now

    def second(self, room: Room = ROOMY, *, full: Sequence[int] | None = None) -> list[Verdict]:
        """What is decided in a second, in which those say once that they are full."""
        self.now += 1.0
        found = []
        for cell in range(self.cells) if full is None else full:
            self.growth.hear(cell, self.now)
            left_s = [share * self.now for share in self.left]
            if (verdict := self.growth.look(self.cells, room, left_s, self.now)) is not None:
                found.append(verdict)
        return found

    def first(self, room: Room = ROOMY, *, full: Sequence[int] | None = None) -> Verdict | None:
        for _ in range(LOOKS):
            if found := self.second(room, full=full):
                return found[0]
        return None


def test_one_that_is_full_gets_another_beside_it() -> None:
    world = World(6.0)
    assert world.first() == Grow(2)
    assert world.now - world.began == WATCH_S + 1  # it had said so already when the watch began


@pytest.mark.parametrize(
    ("cells", "left", "wanted"),
    [
        (1, 1.0, 2),
        (2, 9.0, 4),
        (4, 2.5, 6),  # two CPUs have nothing to do
        (3, 9.0, 6),
        (6, 9.0, 8),  # no more than workers of the stage that has fewest
    ],
)
def test_there_are_twice_as_many_as_far_as_that_goes(cells: int, left: float, wanted: int) -> None:
    assert World(left, cells=cells).first() == Grow(wanted)


def test_not_before_all_are_full() -> None:
    assert World(6.0, cells=2).first(full=[0]) is None
    assert World(6.0, cells=2).first(full=[0, 1]) == Grow(4)


def test_a_moment_of_rest_begins_it_anew() -> None:
    world = World(6.0)
    for _ in range(int(WATCH_S)):
        assert world.second() == []
    world.now += FRESH_S
    assert [world.second() for _ in range(int(WATCH_S))] == [[]] * int(WATCH_S)


def test_after_a_change_there_is_time_to_see_what_it_does() -> None:
    world = World(6.0)
    assert world.first() == Grow(2)
    world.cells, grown = 2, world.now
    while not (found := world.second()):
        assert world.now - grown < 2 * SETTLE_S
    assert found == [Grow(4)]
    assert world.now - grown >= SETTLE_S


@pytest.mark.parametrize(
    ("left", "room", "word"),
    [
        ((0.9,), ROOMY, "no CPU left"),
        ((5.0, 0.2), ROOMY, "no CPU left"),  # of a quota
        ((), ROOMY, "cannot be seen"),
        ((6.0,), Room({"first": 8, "second": 1}, 16, ""), "second has no more"),
        ((6.0,), Room({"first": 0}, 16, ""), "first has no more"),
        ((6.0,), Room({"first": 8}, 1, "the brokers are somebody else's"), "somebody else's"),
    ],
)
def test_where_it_cannot_help_the_reason_is_told_once_and_again_after_long(
    left: tuple[float, ...], room: Room, word: str
) -> None:
    world = World(*left)
    found = [verdict for _ in range(int(AGAIN_S)) for verdict in world.second(room)]
    assert len(found) == 1
    assert isinstance(found[0], Stay)
    assert word in found[0].why
    assert isinstance(world.first(room), Stay)


def test_another_reason_is_told_at_once_and_a_cpu_that_is_left_is_taken() -> None:
    world = World(0.0)
    few = Room({"first": 1}, 16, "")
    assert isinstance(world.first(), Stay)
    assert isinstance(told := world.first(few), Stay)
    assert "first" in told.why
    world.left = (3.0,)
    assert world.first() == Grow(2)


def test_what_could_not_be_done_is_not_tried_again_at_once() -> None:
    world = World(6.0)
    assert world.first() == Grow(2)
    world.growth.fail(world.now)
    assert [world.second() for _ in range(int(AGAIN_S) - 1)] == [[]] * (int(AGAIN_S) - 1)
    assert world.first() == Grow(2)
