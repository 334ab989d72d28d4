"""A client that does not read its answer, at gunicorn's protocol: dropped if it takes nothing, not if it is slow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from frontend.serving.connection import Connection
from frontend.streams import STALL_S


class Clock:
    """The event loop's timers, called by hand."""

    def __init__(self) -> None:
        self.timers: list[tuple[Any, tuple[Any, ...]]] = []

    def call_later(self, delay: float, call: Any, *args: Any) -> Any:
        assert delay == STALL_S
        timer = (call, args)
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: self.timers.remove(timer))

    def pass_time(self) -> None:
        call, args = self.timers.pop()
        call(*args)


class Transport:
    unsent = 10_000_000
    aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connection(clock: Clock) -> Connection:
    connection = Connection.__new__(Connection)  # without its worker
    connection.worker = SimpleNamespace(loop=clock)
    connection.transport = Transport()
    connection._stall = None
    connection._flow_control = SimpleNamespace(pause_writing=lambda: None, resume_writing=lambda: None)
    return connection


def test_one_that_takes_nothing_is_dropped(connection: Connection, clock: Clock) -> None:
    connection.pause_writing()
    clock.pass_time()
    assert connection.transport.aborted


def test_one_that_reads_slowly_is_not(connection: Connection, clock: Clock) -> None:
    connection.pause_writing()
    for _ in range(3):
        connection.transport.unsent -= 1_000_000
        clock.pass_time()
        assert not connection.transport.aborted
    clock.pass_time()
    assert connection.transport.aborted


def test_one_that_reads_again_has_no_limit_any_more(connection: Connection, clock: Clock) -> None:
    connection.pause_writing()
    connection.resume_writing()
    assert not clock.timers
    assert not connection.transport.aborted
