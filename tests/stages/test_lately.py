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


def test_what_batches_cost_is_told_apart_as_finely_as_a_message_has_room_for() -> None:
    lately = Lately()
    lately.note_cost(1000.4, 5000)
    lately.note_cost(1030, 6000)
    lately.note_cost(0.2, 9)
    assert lately.times_us == {1024: 5100}
    for power in range(50):
        for step in range(8):
            lately.note_cost((8 + step) << power, 1000)
    assert len(lately.times_us) <= 256
    assert all(abs(near - 100) <= 7 for near in lately.times_us if 94 < near < 106)
