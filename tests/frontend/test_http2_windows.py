"""HTTP/2 clients that ask for answers and do not take them: what a frontend holds for them is bounded, and others are
served; and that heads mean what they mean over HTTP/1. The clients are h2's, so that what they say is right but for
what they leave out."""

from __future__ import annotations

import json
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
FRAME = 16 * 1024
STREAMS = 100  # of a connection
ROOM = 32 * MIB


class Client:
    """A connection with a window of its own for each of its streams, and for all of them."""

    def __init__(self, running: Running, window: int) -> None:
        self._sock = socket.create_connection(running.address, timeout=PATIENCE_S)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._seen: list[h2.events.ResponseReceived] = []
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._h2.initiate_connection()
        if window:
            self._h2.increment_flow_control_window(window - 65_535)  # of all of them
        self._send()

    def close(self) -> None:
        self._sock.close()

    def count(self, status: int) -> int:
        """Answers of this kind that have come."""
        return sum((b":status", b"%d" % status) in (event.headers or ()) for event in self._seen)

    def ask(self, body: bytes, *fields: tuple[bytes, bytes], path: bytes = b"/inference", ends: bool = True) -> int:
        stream = self._h2.get_next_available_stream_id()
        own = {b":method": b"POST", b":path": path, b":scheme": b"http", b":authority": b"test"}
        self._h2.send_headers(stream, [*own.items(), *fields])
        for at in range(0, max(1, len(body)), FRAME):
            self._h2.send_data(stream, body[at : at + FRAME], end_stream=ends and at + FRAME >= len(body))
        self._send()
        return stream

    def heard(self) -> None:
        """All that was sent has been read."""
        self._h2.ping(bytes(8))
        self._send()
        self.until(h2.events.PingAckReceived, 1)

    def until(self, kind: type[h2.events.Event], count: int) -> list[h2.events.Event]:
        """Read until so many events of a kind have come; no window is ever opened."""
        found: list[h2.events.Event] = []
        while len(found) < count:
            data = self._sock.recv(65536)
            assert data, "it was closed"
            events = self._h2.receive_data(data)
            self._seen += [event for event in events if isinstance(event, h2.events.ResponseReceived)]
            found += [event for event in events if isinstance(event, kind)]
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
            # Those that were cut are there for some turns of the loop, and the allocator keeps some of what is free.
            assert resident(running) - before < 5 * ROOM, "of 300 MiB"


def test_an_answer_that_is_given_up_ends_its_stream_and_not_the_connection(tmp_path: Path) -> None:
    options = {"capacity_bytes": 4 * MIB, "max_request_size": MIB}
    with frontend(tmp_path, **options) as running, clients(running, 1, 0) as (one,):
        streams = [one.ask(b"make %d" % ANSWER) for _ in range(6)]
        (reset, *_) = one.until(h2.events.StreamReset, 2)
        assert isinstance(reset, h2.events.StreamReset)
        assert reset.stream_id in streams
        one.ask(b"")
        one.until(h2.events.StreamEnded, 1)


def test_heads_of_requests_whose_bodies_do_not_come_are_bounded_together(tmp_path: Path) -> None:
    """Each is 60 KB large and costs its client a few bytes, for it only refers to what was said before."""
    heavy = [(b"x-a", b"a" * 4000)] * 15
    with attacked(tmp_path, capacity=16) as running, clients(running, 6, WIDE) as hostile:
        before = resident(running)
        refused = 0
        for one in hostile:
            for _ in range(STREAMS):
                one.ask(b"", *heavy, ends=False)
            one.heard()
            refused += one.count(429)
        assert resident(running) - before < 60 * MIB, "of 120 MiB"
        assert refused > 3 * STREAMS
        with httpx.Client(http1=False, http2=True, base_url=running.url, timeout=PATIENCE_S) as other:
            assert other.get("/healthz").status_code == 200
            hostile[0].close()
            hostile[1].close()
            answers = (other.post("/inference", content=b"good").status_code for _ in range(1000))
            assert 200 in answers  # once it is noticed that they have gone


def test_bodies_behind_answers_that_nobody_takes_are_not_kept(tmp_path: Path) -> None:
    with attacked(tmp_path) as running, clients(running, 5, 0) as hostile:
        before = resident(running)
        for one in hostile:
            for _ in range(STREAMS):
                one.ask(bytes(60_000), path=b"/healthz", ends=False)
                one.heard()  # there is window again
        assert resident(running) - before < 25 * MIB, "of 45 MiB"


@pytest.mark.parametrize("value", [b"caf\xe9", "caf\u00e9".encode(), "\u65e5\u672c".encode()])
def test_bytes_of_a_head_are_told_as_they_came(value: bytes, tmp_path: Path) -> None:
    with frontend(tmp_path, tells=True) as running, clients(running, 1, WIDE) as (one,):
        one.ask(b"1", (b"x-a", value))
        (data, *_) = one.until(h2.events.DataReceived, 1)
        assert isinstance(data, h2.events.DataReceived)
        assert ["x-a", value.decode("latin-1")] in json.loads(data.data)["fields"]
        with running.connect() as plain:
            head = b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nx-a: " + value + b"\r\n\r\n1"
            assert ["x-a", value.decode("latin-1")] in json.loads(plain.send(head).reply().body)["fields"]


TARGETS = (
    b"/inference",
    b"/%69nference?q=%20a",
    b"/inference#a",
    b"/inference?a#b",
    b"//inference",
    b"http://test/second",
    b"/second?",
    b"/inf\xe9",
    b"/inf%e9",
    b"/inference?\xff=1",
    b"/inference?\xc3\xa9",
    b"*",
    b"second",
)


def test_targets_mean_what_they_mean_over_http1(tmp_path: Path) -> None:
    with frontend(tmp_path, tells=True) as running:
        for target in TARGETS:
            with clients(running, 1, WIDE) as (one,), running.connect() as plain:
                one.ask(b"1", path=target)
                (data, *_) = one.until(h2.events.DataReceived, 1)
                assert isinstance(data, h2.events.DataReceived)
                reply = plain.send(b"POST " + target + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n1").reply()
                assert one.count(reply.status) == 1, target
                assert meant(data.data) == meant(reply.body), target
        assert "Traceback" not in running.text()


def meant(body: bytes) -> object:
    """Which route and which query, or the refusal."""
    if not body.startswith(b"{"):
        return body
    told = json.loads(body)
    return told["route"], told["query"]
