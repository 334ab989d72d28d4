"""What a worker tells a broker that begins anew of how long its batches take."""

from __future__ import annotations

from stages.runtime.lately import EACH_TO, Lately


def test_the_warm_up_gives_way_to_what_is_computed() -> None:
    lately = Lately({1: 1000, 8: 8000})
    for _ in range(100):
        lately.note(1, 2000)
    assert 1950 <= lately.times_us[1] <= 2000
    assert lately.times_us[8] == 8000


def test_a_size_that_was_not_seen_begins_with_its_first_batch() -> None:
    lately = Lately()
    lately.note(3, 700)
    assert lately.times_us == {3: 700}


def test_there_are_never_more_than_a_message_has_room_for() -> None:
    lately = Lately()
    for n in range(1, 70_000):
        lately.note(n, n)
    assert len(lately.times_us) < 256
    assert {EACH_TO, 256, 65536} <= lately.times_us.keys()


def test_what_took_no_time_says_nothing() -> None:
    lately = Lately()
    lately.note(1, 0)
    assert not lately.times_us
