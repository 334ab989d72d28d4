"""Letters between threads, and the bell that ends a poll: rung only for who sleeps, never missed, never in the way."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator

import pytest

from engine.mailbox import Bell, Mailbox


@pytest.fixture
def bell() -> Iterator[Bell]:
    made = Bell()
    yield made
    made.close()


def rings(bell: Bell, timeout_s: float = 0.0) -> bool:
    return bool(select.select([bell], [], [], timeout_s)[0])


def test_a_letter_rings_only_for_a_sleeper(bell: Bell) -> None:
    box: Mailbox[int] = Mailbox()
    box.post(1)  # before there is a thread
    box.bell = bell
    box.post(2)
    assert not rings(bell)
    assert box.letters
    bell.asleep = True
    box.post(3)
    box.post(4)
    assert rings(bell)
    bell.silence()
    assert not rings(bell)
    assert box.take(most=1) == [1]
    assert box.take() == [2, 3, 4]
    assert not box.letters


def test_no_letter_is_slept_over_and_all_keep_their_order(bell: Bell) -> None:
    """Two threads post while one announces, looks again and sleeps: it hears of each letter."""
    box: Mailbox[tuple[int, int]] = Mailbox(bell)
    each = 2000

    def post(who: int) -> None:
        for number in range(each):
            box.post((who, number))

    posters = [threading.Thread(target=post, args=(who,)) for who in range(2)]
    for poster in posters:
        poster.start()
    seen: list[tuple[int, int]] = []
    while len(seen) < 2 * each:
        bell.asleep = True
        if not box.letters:
            assert rings(bell, 20.0), "a letter was posted and nobody was woken"
        bell.asleep = False
        if rings(bell):
            bell.silence()
        seen += box.take()
    for poster in posters:
        poster.join()
    for who in range(2):
        assert [number for author, number in seen if author == who] == list(range(each))


def test_silence_that_nobody_broke_is_no_error(bell: Bell) -> None:
    bell.silence()
    bell.ring()
    bell.silence()
    bell.silence()
    assert not rings(bell)


def test_a_bell_that_nobody_hears_does_not_block(bell: Bell) -> None:
    for _ in range(100_000):
        bell.ring()


def test_what_is_posted_to_an_owner_that_has_ended_disturbs_nobody() -> None:
    bell = Bell()
    box: Mailbox[int] = Mailbox(bell)
    bell.asleep = True
    bell.close()
    other = Bell()  # takes the descriptors that have become free
    try:
        box.post(1)
        bell.ring()
        assert not rings(other)
    finally:
        other.close()
