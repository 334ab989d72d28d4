"""HTTP/2 as those speak it who mean harm: raw frames to a real frontend."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import httpx
import pytest
from running import Running, frontend
from test_frames import CONTINUATION, GOAWAY, HEADERS, NOTHING, PREFACE, SETTINGS, frame

CALM = 0xB  # ENHANCE_YOUR_CALM


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with frontend(tmp_path_factory.mktemp("frontend")) as running:
        yield running


def end_of(sock: socket.socket, more: bytes = b"") -> int:
    """The error with which the server ends the connection. ``more`` is sent whenever it has nothing to say: the slower
    it is, the more it allows meanwhile."""
    data = b""
    while True:
        if more and not select.select([sock], [], [], 0.2)[0]:
            sock.sendall(more)
        elif part := sock.recv(65536):
            data += part
        else:
            break
    while data:
        size, kind = int.from_bytes(data[:3], "big"), data[3]
        if kind == GOAWAY:
            return int.from_bytes(data[13:17], "big")
        data = data[9 + size :]
    raise AssertionError("it ended without GOAWAY")


@pytest.mark.parametrize("name", ["PRIORITY", "WINDOW_UPDATE", "SETTINGS ACK", "PING ACK", "ALTSVC", "an unknown type"])
def test_a_flood_ends_its_connection_and_no_other(running: Running, name: str) -> None:
    with (
        httpx.Client(http1=False, http2=True, base_url=running.url, timeout=20) as client,
        socket.create_connection(running.address, timeout=20) as sock,
    ):
        assert client.post("/inference", content=b"before").content == b"before"
        # No more than the server reads before it ends: behind unread bytes the end could be a reset.
        sock.sendall(PREFACE + frame(SETTINGS) + NOTHING[name] * 505)
        assert end_of(sock, more=NOTHING[name] * 50) == CALM
        assert client.post("/inference", content=b"after").content == b"after"


def test_a_head_that_does_not_end_ends_its_connection(running: Running) -> None:
    with socket.create_connection(running.address, timeout=20) as sock:
        head = frame(HEADERS, bytes(16_000), stream=1) + frame(CONTINUATION, bytes(16_000), stream=1) * 3
        sock.sendall(PREFACE + frame(SETTINGS) + head + frame(CONTINUATION, bytes(8_000), stream=1))
        assert end_of(sock) == CALM


def test_many_requests_over_one_connection_are_no_flood(running: Running) -> None:
    with httpx.Client(http1=False, http2=True, base_url=running.url, timeout=20) as client:
        for number in range(300):
            assert client.post("/inference", content=b"%d" % number).content == b"%d" % number


def test_nothing_of_all_this_was_our_mistake(running: Running) -> None:
    assert "Traceback" not in running.text()
