"""What has come on a connection and is not served yet: what is kept of it, and what the gate and the transport hear."""

from __future__ import annotations

import pytest

from engine.config.schema import FrontendSection
from frontend.gate import BEHIND_ALL, BEHIND_MAX, Gate
from frontend.inbox import Inbox


class Transport:
    def __init__(self) -> None:
        self.reads: list[str] = []

    def get_extra_info(self, name: str) -> object:
        return ("192.0.2.7", 4711)

    def pause_reading(self) -> None:
        self.reads.append("pause")

    def resume_reading(self) -> None:
        self.reads.append("resume")


class Bench:
    def __init__(self) -> None:
        self.gate = Gate(FrontendSection(capacity_bytes=1024, max_request_size=512))
        self.transport = Transport()
        self.inbox = Inbox(self.gate, self.transport)

    @property
    def counted(self) -> tuple[int, int]:
        """Bytes at the gate: of bodies, and of what came too early."""
        return self.gate.held, self.gate.behind


def test_a_body_that_comes_in_pieces_is_counted_as_it_comes() -> None:
    bench = Bench()
    assert bench.inbox.begin(b"HEAD123", 4, 10)
    assert bench.counted == (3, 0)
    assert bench.inbox.more(b"45")
    assert bench.counted == (5, 0)
    assert bench.inbox.more(b"6NEXT")
    assert bench.inbox.take(bench.inbox.data, 4, 10) == b"123456"
    assert bench.inbox.data == b"NEXT"
    assert bench.counted == (0, 4)
    bench.inbox.drop()
    assert bench.inbox.data == b""
    assert bench.counted == (0, 0)


def test_what_came_with_a_request_waits_behind_it() -> None:
    bench = Bench()
    assert bench.inbox.take(b"HEADbodyNEXT", 4, 8) == b"body"
    assert bench.inbox.data == b"NEXT"
    assert bench.counted == (0, 4)
    array = bench.inbox.data
    assert bench.inbox.begin(array, 3, 9)  # its turn: a head of three bytes
    assert bench.inbox.data is array, "it was copied"
    assert bench.counted == (1, 0)


def test_there_is_no_room() -> None:
    bench = Bench()
    bench.gate.hold(1000)
    assert not bench.inbox.begin(b"HEAD123", 4, 104)
    assert bench.counted == (1000, 0)
    assert bench.inbox.begin(b"HEAD123", 4, 24)
    bench.gate.hold(20)
    assert not bench.inbox.more(b"45678")
    assert bytes(bench.inbox.data) == b"HEAD12345678", "whoever says so gets all of it"
    bench.inbox.drop()
    assert bench.counted == (1020, 0)
    assert bench.gate.fits(4, "192.0.2.7"), "its client is counted for nothing any more"


@pytest.mark.parametrize("way", ["take", "take all", "begin", "leave"])
def test_who_sends_too_much_is_not_read_until_it_is_wanted(way: str) -> None:
    bench = Bench()
    inbox = bench.inbox
    assert inbox.add(b"x" * BEHIND_MAX)
    assert bench.transport.reads == []
    assert inbox.add(b"x")
    assert inbox.add(b"x")
    assert bench.transport.reads == ["pause"]
    inbox.take(inbox.data, 0, 1)
    assert bench.transport.reads == ["pause"]
    if way == "take":
        inbox.take(inbox.data, 0, 1)
    elif way == "take all":
        inbox.take(inbox.data, 0, BEHIND_MAX + 1)
    elif way == "begin":
        assert inbox.begin(inbox.data, BEHIND_MAX, BEHIND_MAX + 9)
    else:
        inbox.leave()
    assert bench.transport.reads == ["pause", "resume"]


def test_where_all_send_too_much_nothing_more_is_kept() -> None:
    bench = Bench()
    bench.gate.behind = BEHIND_ALL - 10  # of others
    assert bench.inbox.add(b"x" * 10)
    assert not bench.inbox.add(b"x")
    assert bench.inbox.data == b""
    assert bench.gate.behind == BEHIND_ALL - 10
