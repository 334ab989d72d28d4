"""Clients that send or read slowly, or not at all: how long they are waited for, and what is held for them meanwhile.
No sockets, no clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.clock import now
from engine.config.schema import FrontendSection
from frontend.gate import Gate, client_of
from frontend.inbox import Inbox
from frontend.lean import LeanConnection
from frontend.pace import LEAST_RATE, NEW_S, STALL_S, is_late, left_s
from frontend.serving.connection import Connection
from frontend.unsent import LOOK_MOST, ROOM, SLACK, Unsent

# --- pace ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elapsed_s", "moved", "late"),
    [
        (30.0, 0, False),
        (30.1, 0, True),
        (30.9, LEAST_RATE, False),
        (31.1, LEAST_RATE, True),
        (600.0, 600 * LEAST_RATE, False),
        (29 * 30.0, 29, True),  # a byte now and then is no progress
    ],
)
def test_a_client_has_some_seconds_and_the_time_that_what_it_moved_takes(
    elapsed_s: float, moved: int, late: bool
) -> None:
    assert is_late(elapsed_s, moved, 30.0) is late
    assert (left_s(elapsed_s, moved, 30.0) < 0) is late


def test_no_pause_is_longer_than_the_patience_however_quick_a_client_was() -> None:
    assert left_s(1.0, 100 * LEAST_RATE, 30.0) == 30.0


# --- bodies ----------------------------------------------------------------------------------------------------------


def gate(**keys: Any) -> Gate:
    return Gate(FrontendSection(**{"capacity_bytes": 1000, "max_request_size": 100, **keys}))


def test_a_client_fills_half_with_bodies_that_are_not_whole_and_no_more() -> None:
    one = gate()
    assert one.hold(500, "slow")
    assert not one.hold(1, "slow")
    assert not one.fits(1, "slow")
    assert one.hold(100, "other")
    assert one.hold(100)  # whole when it came
    assert one.held == 700
    one.whole(400, "slow")
    assert one.held == 700, "it is kept until its answer"
    assert one.hold(300, "slow")
    assert not one.hold(1, "other")


def test_what_is_known_of_a_client_goes_with_its_last_body() -> None:
    one = gate()
    for size in (0, 10, 20):
        assert one.hold(size, "one")
        one.whole(size, "one")
        one.release(size)
    assert not one._arriving
    assert one.held == 0


def test_one_body_always_fits() -> None:
    assert gate(max_request_size=900).fits(900, "one")
    assert gate(workers=100).fits(100, "one")


def test_the_processes_of_a_frontend_share_what_there_is() -> None:
    one = gate(workers=4)
    assert one.hold(250)
    assert not one.hold(1)


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (("192.0.2.7", 4711), "192.0.2.7"),
        (["192.0.2.7", 4711], "192.0.2.7"),
        (("::ffff:192.0.2.7", 4711, 0, 0), "::ffff:192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 4711, 0, 0), client_of(("2001:db8:1:2::9", 1, 0, 0))),
        (("fe80::1%eth0", 4711, 0, 2), client_of(("fe80::2", 1, 0, 0))),
        ("", ""),
        (None, ""),
        ((), ""),
        (("not an address: at all", 1), "not an address: at all"),
    ],
)
def test_who_a_peer_is_counted_as(peer: object, client: str) -> None:
    assert client_of(peer) == client


def test_networks_are_told_apart() -> None:
    assert client_of(("2001:db8:1:2::9", 1, 0, 0)) != client_of(("2001:db8:1:3::9", 1, 0, 0))


# --- answers ---------------------------------------------------------------------------------------------------------


class Transport:
    def __init__(self, unsent: int) -> None:
        self.unsent = unsent
        self.aborted = self.closed = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def test_one_that_takes_nothing_is_cut() -> None:
    unsent, transport = Unsent(10_000), Transport(1000)
    unsent.watch(transport)
    unsent.sweep(now() + STALL_S - 1)
    assert not transport.aborted
    unsent.sweep(now() + STALL_S + 1)
    assert transport.aborted
    assert unsent.total == 0


def test_one_that_takes_a_byte_now_and_then_is_cut_as_well() -> None:
    unsent, transport = Unsent(10_000), Transport(1000)
    unsent.watch(transport)
    began = now()
    for second in range(1, int(STALL_S) + 3):
        transport.unsent -= 1
        unsent.sweep(began + second)
    assert transport.aborted


@pytest.mark.parametrize("end", ["reads again", "has read all", "is gone"])
def test_one_that_has_read_is_not_watched_any_more(end: str) -> None:
    unsent, transport = Unsent(10_000), Transport(1000)
    unsent.watch(transport)
    unsent.watch(transport)
    if end == "has read all":
        transport.unsent = 0
        unsent.sweep(now())
    else:
        unsent.forget(transport)
        unsent.forget(transport)
    assert unsent.total == 0
    transport.unsent = 1000
    unsent.sweep(now() + 2 * STALL_S)
    assert not transport.aborted


@pytest.mark.parametrize("server", ["lean", "asgi"])
def test_one_that_is_closed_and_stops_reading_before_the_end_is_cut(server: str) -> None:
    """When little is left its transport says that there is room again, closed or not."""
    one, transport = gate(), Transport(1000)
    connection: Any
    if server == "lean":
        connection = LeanConnection(SimpleNamespace(gate=one))  # type: ignore[arg-type]
        connection._transport, connection._inbox = transport, Inbox(one, transport)
        connection.pause_writing()
        one.unsent.close(transport)
    else:
        connection = Connection.__new__(Connection)
        connection.worker, connection.transport = SimpleNamespace(app=SimpleNamespace(gate=one)), transport
        connection._flow_control = SimpleNamespace(resume_writing=lambda: None)
        connection._cut(False)  # the end of a body in pieces that failed
    assert transport.closed
    transport.unsent = 10
    connection.resume_writing()
    one.unsent.sweep(now() + STALL_S + 1)
    assert transport.aborted


def test_together_they_hold_so_much_and_those_that_take_the_least_are_cut() -> None:
    unsent = Unsent(4900)
    clients = {name: Transport(1000) for name in ("idle", "done", "quick", "slow", "new")}
    for name in ("idle", "done", "quick", "slow"):
        unsent.watch(clients[name])
    clients["done"].unsent = 0
    clients["quick"].unsent -= 500
    clients["slow"].unsent -= 200
    unsent.watch(clients["new"])
    assert not any(transport.aborted for transport in clients.values()), "there is room by now"
    clients["more"] = Transport(1000)
    unsent.watch(clients["more"])
    assert {name for name, transport in clients.items() if transport.aborted} == {"idle"}
    assert unsent.total == 4000, "what was taken of an answer is held with the rest of it"


def test_one_that_had_no_time_to_take_anything_is_not_taken_for_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    unsent = Unsent(2000)
    slow, fresh = Transport(1500), Transport(600)
    unsent.watch(slow)
    slow.unsent -= 1
    later = now() + NEW_S
    monkeypatch.setattr("frontend.unsent.now", lambda: later)
    unsent.watch(fresh)
    assert (slow.aborted, fresh.aborted) == (True, False)


def test_of_those_that_take_nothing_who_asks_for_most_is_cut_first() -> None:
    unsent, beside = Unsent(3500), [Transport(1000), Transport(1000)]
    lone, more = Transport(1000), Transport(1000)
    unsent.watch(lone)
    for one in beside:
        unsent.watch(one, beside)
        one.unsent -= 1
    unsent.watch(more)
    assert [one.aborted for one in (lone, *beside, more)] == [False, True, False, False]


def test_answers_that_share_a_connection_are_slow_together() -> None:
    """A hundred answers over one line have a hundredth of it each; one that takes none of its share is cut."""
    unsent = Unsent(10**9)
    beside = [Transport(10**6) for _ in range(100)]
    for one in beside:
        unsent.watch(one, beside)
    instant = now()
    for _ in range(200):
        instant += 1.0
        for one in beside[1:]:
            one.unsent -= LEAST_RATE // 100 + 1
        unsent.sweep(instant)
    assert [one.aborted for one in beside] == [True] + [False] * 99


def test_room_is_made_for_many_at_once() -> None:
    """Looking for who pays the least costs as much as there are; so it is not done for each that comes."""
    unsent = Unsent(1000)
    clients = [Transport(1) for _ in range(1001)]
    for one in clients:
        unsent.watch(one)
    assert unsent.total == 1000 - 1000 // ROOM
    assert [one.aborted for one in clients] == [True] * 126 + [False] * 875


def test_who_has_taken_all_is_not_looked_for_with_each_that_comes() -> None:
    """A thousand that hold nearly all there is, and others that come and take theirs."""
    unsent, looks = Unsent(1_000_000), 0

    class Looked(Transport):
        def get_write_buffer_size(self) -> int:
            nonlocal looks
            looks += 1
            return self.unsent

    for _ in range(998):
        unsent.watch(Looked(1000))
    looks = 0
    for _ in range(100):
        quick = Looked(1500)
        unsent.watch(quick)
        quick.unsent = 0
    assert looks < 20_000
    assert unsent.total <= 1_000_000 * (1 + 2 / SLACK)
    unsent.sweep(now())
    assert unsent.total <= 1_000_000


def test_however_many_there_are_each_has_its_turn() -> None:
    unsent = Unsent(10**9)
    clients = [Transport(1) for _ in range(LOOK_MOST + 1)]
    for one in clients:
        unsent.watch(one)
    late = now() + STALL_S + 1
    unsent.sweep(late)
    assert sum(one.aborted for one in clients) == LOOK_MOST
    unsent.sweep(late)
    assert all(one.aborted for one in clients)


def test_one_that_is_closed_with_something_to_send_is_watched() -> None:
    unsent, transport, done = Unsent(10_000), Transport(10), Transport(0)
    for one in (transport, done):
        unsent.close(one)
        assert one.closed
    assert unsent.total == 10
    unsent.sweep(now() + STALL_S + 1)
    assert transport.aborted
    assert not done.aborted
