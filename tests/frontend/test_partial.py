"""Beginnings of requests, of all connections together: bounded, and those that began first make room. No sockets."""

from __future__ import annotations

from frontend.partial import Partial


class Owner:
    def __init__(self) -> None:
        self.is_given_up = False

    def give_up(self) -> None:
        self.is_given_up = True


def test_those_that_began_first_make_room() -> None:
    partial, owners = Partial(100), [Owner() for _ in range(5)]
    for owner in owners[:4]:
        partial.has(owner, 10)
    partial.has(owners[1], 25)
    partial.has(owners[0], 26)  # growing is no new beginning
    assert partial.total == 71
    partial.has(owners[4], 60)
    assert [owner.is_given_up for owner in owners] == [True, True, False, False, False]
    assert partial.total == 80


def test_what_is_whole_counts_no_more() -> None:
    partial, one, other = Partial(100), Owner(), Owner()
    partial.has(one, 90)
    partial.has(one, 0)
    partial.has(one, 0)
    partial.has(other, 90)
    assert partial.total == 90
    assert not one.is_given_up


def test_who_begins_anew_is_not_taken_for_one_that_began_long_ago() -> None:
    partial, upload, head = Partial(100), Owner(), Owner()
    partial.has(upload, 50)
    partial.has(head, 45)
    partial.has(upload, 56, anew=True)
    assert (upload.is_given_up, head.is_given_up) == (False, True)


def test_one_that_is_too_large_alone_is_given_up_itself() -> None:
    partial, one = Partial(100), Owner()
    partial.has(one, 101)
    assert one.is_given_up
    assert partial.total == 0
