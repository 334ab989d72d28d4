"""Frames of HTTP/2 that carry no request: one budget over all of them, and turns that end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.frames import BURST, PADDING, RATE, TURN, TURN_PER_REQUEST, Frames

HEAD_MAX = 64 * 1024
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION, ALTSVC = range(11)


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def read(counted: Frames, data: bytes, instant: float = 0.0) -> list[int]:
    """All turns of it; their sizes."""
    view, sizes = memoryview(data), []
    while view:
        sizes.append(counted.take(view, instant))
        view = view[sizes[-1] :]
    return sizes


NOTHING: dict[str, bytes] = {
    "PRIORITY": frame(PRIORITY, b"\0\0\0\0\x10", stream=1),
    "WINDOW_UPDATE": frame(WINDOW, b"\0\0\0\1"),
    "SETTINGS": frame(SETTINGS),
    "SETTINGS ACK": frame(SETTINGS, flags=1),
    "PING": frame(PING, bytes(8)),
    "PING ACK": frame(PING, bytes(8), flags=1),
    "ALTSVC": frame(ALTSVC, b"\0\0"),
    "an unknown type": frame(0xBE),
    "a large unknown type": frame(0xBE, bytes(16384)),
    "CONTINUATION": frame(CONTINUATION, stream=1),
    "empty DATA": frame(DATA, stream=1),
    "tiny DATA": frame(DATA, b"x", stream=1),
    "RST_STREAM": frame(RST, bytes(4), stream=1),
    "GOAWAY": frame(GOAWAY, bytes(8)),
    "PUSH_PROMISE": frame(PUSH, bytes(4), stream=1),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_carries_nothing_is_bounded_whatever_it_is(name: str) -> None:
    counted = Frames(0.0, HEAD_MAX)
    read(counted, PREFACE + NOTHING[name] * int(BURST))
    assert not counted.is_spent
    read(counted, NOTHING[name] * 2)
    assert counted.is_spent


def test_the_budget_is_one_for_all_types() -> None:
    counted = Frames(0.0, HEAD_MAX)
    read(counted, PREFACE + b"".join(NOTHING.values()) * (1 + int(BURST) // len(NOTHING)))
    assert counted.is_spent


def test_time_fills_it_again_to_its_brim() -> None:
    counted = Frames(0.0, HEAD_MAX)
    read(counted, PREFACE)
    for second in range(1, 60):
        read(counted, NOTHING["PING"] * int(RATE), float(second))
    assert not counted.is_spent
    read(counted, NOTHING["PING"] * int(BURST), 1e6)
    assert not counted.is_spent
    read(counted, NOTHING["PING"] * 2, 1e6)
    assert counted.is_spent


def test_a_client_that_uses_it_never_meets_the_budget() -> None:
    counted = Frames(0.0, HEAD_MAX)
    read(counted, PREFACE + frame(SETTINGS))
    for stream in range(1, 20_001, 2):
        read(counted, frame(HEADERS, b"x" * 20, flags=4, stream=stream))
        read(counted, frame(WINDOW, b"\0\0\0\1", stream=stream) + frame(PRIORITY, bytes(5), stream=stream))
        read(counted, frame(DATA, b"{}", flags=1, stream=stream))
    assert not counted.is_spent


def test_a_large_upload_never_meets_it() -> None:
    counted = Frames(0.0, HEAD_MAX)
    read(counted, PREFACE + frame(HEADERS, b"x", flags=4, stream=1) + frame(DATA, bytes(1024), stream=1) * 10_000)
    assert not counted.is_spent


def test_a_large_download_with_an_update_of_both_windows_for_each_frame_never_meets_it() -> None:
    counted = Frames(0.0, HEAD_MAX)
    read(counted, PREFACE + frame(HEADERS, b"x", flags=5, stream=1))
    for _ in range(10_000):
        counted.sent(1)
        read(counted, NOTHING["WINDOW_UPDATE"] * 2)
    assert not counted.is_spent


def test_requests_that_are_dropped_cost_more_than_they_bring() -> None:
    counted = Frames(0.0, HEAD_MAX)
    for _ in range(int(BURST)):
        read(counted, frame(HEADERS, b"x", flags=5, stream=1))
        counted.refused()
    assert counted.is_spent


def test_a_head_in_many_frames_has_its_bound() -> None:
    """The parser behind keeps up to a megabyte of it for each connection."""
    counted = Frames(0.0, HEAD_MAX)
    read(counted, PREFACE)
    for number in range(100):  # a large head each, and whole: none of them counts for the next
        read(counted, frame(HEADERS, bytes(HEAD_MAX // 2), stream=2 * number + 1))
        assert counted.unfinished == HEAD_MAX // 2
        read(counted, frame(CONTINUATION, bytes(HEAD_MAX // 2), flags=4, stream=2 * number + 1))
        assert counted.unfinished == 0
    assert not counted.is_spent
    read(counted, frame(HEADERS, bytes(HEAD_MAX), stream=999) + frame(CONTINUATION, bytes(PADDING + 1), stream=999))
    assert counted.is_spent


def test_what_has_come_of_a_frame_is_known() -> None:
    counted = Frames(0.0, HEAD_MAX)
    read(counted, PREFACE + frame(HEADERS, bytes(100), stream=1)[:50])
    assert (counted.unfinished, counted.begun) == (100 + 41, 1)
    read(counted, bytes(59) + frame(DATA, b"x" * 10, stream=1)[:-1])
    assert (counted.unfinished, counted.begun) == (100 + 9, 2)


@pytest.mark.parametrize(
    ("one", "most"), [(NOTHING["SETTINGS"], TURN), (frame(HEADERS, b"x", flags=4), TURN // TURN_PER_REQUEST)]
)
def test_a_turn_has_so_many_frames_at_most(one: bytes, most: int) -> None:
    counted = Frames(0.0, HEAD_MAX)
    read(counted, PREFACE)
    assert read(counted, one * 10 * most) == [most * len(one)] * 10


def test_large_frames_are_read_as_they_come() -> None:
    counted = Frames(0.0, HEAD_MAX)
    assert read(counted, PREFACE + frame(DATA, bytes(16384), stream=1) * 4) == [24 + 4 * (9 + 16384)]


@given(st.lists(st.sampled_from(sorted(NOTHING.values())), max_size=80), st.lists(st.integers(0, 3000), max_size=8))
def test_how_the_bytes_are_cut_changes_nothing(parts: list[bytes], at: list[int]) -> None:
    data = PREFACE + b"".join(parts)
    whole, pieces = Frames(0.0, HEAD_MAX), Frames(0.0, HEAD_MAX)
    assert sum(read(whole, data)) == len(data)
    places = sorted({place % len(data) for place in at} | {0})
    for start, end in zip(places, [*places[1:], len(data)], strict=True):
        assert sum(read(pieces, data[start:end])) == end - start
    assert (whole._budget, whole._skip, whole._head) == (pieces._budget, pieces._skip, pieces._head)
