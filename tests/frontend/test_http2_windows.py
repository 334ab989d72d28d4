"""HTTP/2 clients that ask for answers and do not take them: what a frontend holds for them is bounded, and others are
served. The clients are h2's, so that what they say is right but for what they leave out."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from h2.settings import SettingCodes, Settings
from running import PATIENCE_S, Running, frontend, post
from test_hostile_clients import MIB, attacked, resident

WIDE = (1 << 31) - 1  # the largest window
ANSWER = MIB
ROOM = 32 * MIB


class Client:
    """A connection with a window of its own for each of its streams, and for all of them."""

    def __init__(self, running: Running, window: int) -> None:
        self._sock = socket.create_connection(running.address, timeout=PATIENCE_S)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._h2.initiate_connection()
        if window:
            self._h2.increment_flow_control_window(window - 65_535)  # of all of them
        self._send()

    def close(self) -> None:
        self._sock.close()

    def ask(self, body: bytes) -> int:
        stream = self._h2.get_next_available_stream_id()
        fields = {":method": "POST", ":path": "/inference", ":scheme": "http", ":authority": "test"}
        self._h2.send_headers(stream, list(fields.items()))
        self._h2.send_data(stream, body, end_stream=True)
        self._send()
        return stream

    def until(self, kind: type[h2.events.Event], count: int) -> list[h2.events.Event]:
        """Read until so many events of a kind have come; no window is ever opened."""
        found: list[h2.events.Event] = []
        while len(found) < count:
            data = self._sock.recv(65536)
            assert data, "it was closed"
            found += [event for event in self._h2.receive_data(data) if isinstance(event, kind)]
            self._send()
        return found

    def _send(self) -> None:
        self._sock.sendall(self._h2.data_to_send())


@contextmanager
def clients(running: Running, count: int, window: int) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        made = [Client(running, window) for _ in range(count)]
        for one in made:
            stack.callback(one.close)
        yield made


@pytest.mark.parametrize("window", [0, WIDE], ids=["no window", "a wide window and nothing read"])
def test_answers_that_nobody_takes_are_bounded_together(window: int, tmp_path: Path) -> None:
    with attacked(tmp_path, capacity_bytes=ROOM, timeout=60.0) as running:
        before = resident(running)
        with (
            clients(running, 3, window) as idle,
            httpx.Client(http1=False, http2=True, base_url=running.url, timeout=PATIENCE_S) as other,
        ):
            for _ in range(100):
                for one in idle:
                    one.ask(b"make %d" % ANSWER)
            assert len(other.post("/inference", content=b"make %d" % ANSWER).content) == ANSWER
            with running.connect() as plain:
                assert plain.send(post(b"good")).reply().body == b"good"
            # Those that were cut are still there for some turns of the loop.
            assert resident(running) - before < 4 * ROOM, "of 300 MiB"


def test_an_answer_that_is_given_up_ends_its_stream_and_not_the_connection(tmp_path: Path) -> None:
    options = {"capacity_bytes": 4 * MIB, "max_request_size": MIB}
    with frontend(tmp_path, **options) as running, clients(running, 1, 0) as (one,):
        streams = [one.ask(b"make %d" % ANSWER) for _ in range(6)]
        (reset, *_) = one.until(h2.events.StreamReset, 2)
        assert isinstance(reset, h2.events.StreamReset)
        assert reset.stream_id in streams
        one.ask(b"")
        one.until(h2.events.StreamEnded, 1)
