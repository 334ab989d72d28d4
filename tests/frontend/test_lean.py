"""What counts as plain: the strict subset of HTTP/1.1 that is answered in place. Everything else is handed over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fakes import READY, FakeClient, deployment, unavailable
from hypothesis import given
from hypothesis import strategies as st

from engine.client import Answer
from engine.config.schema import FrontendSection
from engine.core.messages import Flow, StageState
from engine.core.wire import unpack_meta
from frontend.door import Door
from frontend.lean import BUFFER_MAX, SWEEP_MOST, SWEEP_S, LeanConnection, Shared, Sweeper
from frontend.metrics import FrontendMetrics
from frontend.plain import Head, Reader

READER = Reader(deployment())


def head(*fields: str, line: str = "POST /inference HTTP/1.1") -> bytes:
    return "\r\n".join((line, *fields)).encode("latin-1") + b"\r\n\r\n"


def plain(body: bytes, *fields: str, **more: str) -> bytes:
    return head("Host: x", f"Content-Length: {len(body)}", *fields, **more) + body


PLAIN = {
    "the least": ("host: x", "content-length: 3"),
    "any case": ("HOST: x", "Content-LENGTH: 3"),
    "blanks around a value": ("host: x", "content-length: \t 3 "),
    "keep-alive is the default": ("host: x", "content-length: 3", "connection: Keep-Alive"),
    "an empty value": ("host: x", "content-length: 3", "x-empty:"),
    "bytes above ASCII in a value": ("host: x", "content-length: 3", "x-a: \xe9"),
    "a tab inside a value": ("host: x", "content-length: 3", "x-a: b\tc"),
    "no body": ("host: x", "content-length: 0"),
}


@pytest.mark.parametrize("fields", PLAIN.values(), ids=PLAIN.keys())
def test_plain(fields: tuple[str, ...]) -> None:
    assert READER.read(head(*fields)) is not None


ELSEWHERE = {
    "no length": ("host: x",),
    "two lengths": ("host: x", "content-length: 3", "content-length: 3"),
    "a list of lengths": ("host: x", "content-length: 3, 3"),
    "a signed length": ("host: x", "content-length: +3"),
    "a length in digits of another alphabet": ("host: x", "content-length: \xb2"),
    "too large": ("host: x", "content-length: 99999999"),
    "no host": ("content-length: 3",),
    "two hosts": ("host: x", "host: y", "content-length: 3"),
    "chunked": ("host: x", "transfer-encoding: chunked"),
    "chunked and a length": ("host: x", "content-length: 3", "Transfer-Encoding: chunked"),
    "an odd transfer-encoding": ("host: x", "content-length: 3", "transfer-encoding : chunked"),
    "expect": ("host: x", "content-length: 3", "expect: 100-continue"),
    "content-encoding": ("host: x", "content-length: 3", "content-encoding: gzip"),
    "upgrade": ("host: x", "content-length: 3", "upgrade: h2c"),
    "close": ("host: x", "content-length: 3", "connection: close"),
    "a time of its own": ("host: x", "content-length: 3", "x-request-timeout: 1"),
    "folding": ("host: x", "content-length: 3", "x-a: b", " c"),
    "a blank before the colon": ("host : x", "content-length: 3"),
    "a field without a colon": ("host: x", "content-length: 3", "what"),
    "a name that is no token": ("host: x", "content-length: 3", "x(y): z"),
    "an empty name": ("host: x", "content-length: 3", ": z"),
    "a control character": ("host: x", "content-length: 3", "x-a: \x01"),
    "a bare CR": ("host: x", "content-length: 3", "x-a: b\rc"),
    "a bare LF": ("host: x", "content-length: 3", "x-a: b\nc"),
    "a NUL": ("host: x", "content-length: 3", "x-a: \0"),
    "too many fields": ("host: x", "content-length: 3", *(f"x-{i}: y" for i in range(100))),
}


@pytest.mark.parametrize("fields", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_not_plain(fields: tuple[str, ...]) -> None:
    assert READER.read(head(*fields)) is None


@pytest.mark.parametrize(
    "line",
    [
        "GET /inference HTTP/1.1",
        "post /inference HTTP/1.1",
        "POST  /inference HTTP/1.1",
        "POST /inference HTTP/1.0",
        "POST /inference HTTP/2.0",
        "POST /inference",
        "POST http://x/inference HTTP/1.1",
        "POST /other HTTP/1.1",
        "POST /inference/ HTTP/1.1",
        "POST /%69nference HTTP/1.1",
        "POST /inference#a HTTP/1.1",
        "\r\nPOST /inference HTTP/1.1",
        " POST /inference HTTP/1.1",
        "PRI * HTTP/2.0",
    ],
)
def test_no_other_request_line(line: str) -> None:
    assert READER.read(head("host: x", "content-length: 3", line=line)) is None


def test_what_the_worker_is_told() -> None:
    found = READER.read(
        head("Host: x", "Content-Length: 2", "X-A: b ", "x-request-id: mine", line="POST /second?q=1&r HTTP/1.1")
    )
    assert found is not None
    assert (found.route, found.path, found.length, found.request_id) == (1, "/second", 2, "mine")
    query, fields = unpack_meta(found.meta)
    assert query == b"q=1&r"
    assert fields == [(b"host", b"x"), (b"content-length", b"2"), (b"x-a", b"b"), (b"x-request-id", b"mine")]


def test_an_insane_request_id_is_replaced() -> None:
    found = READER.read(head("host: x", "content-length: 2", "x-request-id: a b"))
    assert found is not None
    assert len(found.request_id) == 32


def test_compression_is_negotiated_elsewhere() -> None:
    reader = Reader(deployment(FrontendSection(compression=True)))
    assert reader.read(head("host: x", "content-length: 2", "accept-encoding: gzip")) is None
    assert READER.read(head("host: x", "content-length: 2", "accept-encoding: gzip")) is not None


@pytest.mark.parametrize("piece", [" ", "\t ", "x-a:  \r\n", ":", "a", "a:b\r\n"])
def test_no_head_takes_long(piece: str) -> None:
    """Ambiguity in the expression would show here as a hang: these fail at their very end."""
    data = b"POST /inference HTTP/1.1\r\nhost: x\r\nx: " + piece.encode() * (15_000 // len(piece)) + b"\0\r\n\r\n"
    assert READER.read(data) is None


@given(st.binary(max_size=80))
def test_no_bytes_are_misread(noise: bytes) -> None:
    for data in (noise, head("host: x", "content-length: 3")[:-2] + noise + b"\r\n\r\n"):
        found = READER.read(data)
        if found is not None:
            lines = data.lower().split(b"\r\n")
            assert sum(line.startswith(b"content-length:") for line in lines) == 1
            assert not any(line.startswith(b"transfer-encoding") for line in lines)
            assert b"\n" not in data.replace(b"\r\n", b"")


# --- connections -----------------------------------------------------------------------------------------------------


class FakeTransport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Bench:
    """A connection with everything around it faked."""

    def __init__(self, **frontend: Any) -> None:
        section = FrontendSection(**frontend)
        self.client = FakeClient()
        self.door = Door(capacity=section.capacity, capacity_bytes=section.capacity_bytes)
        self.metrics = FrontendMetrics("engine", ["/inference", "/second"], 3.0)
        self.handed: list[bytes] = []
        whole = deployment(section)
        self.shared = Shared(whole, self.client, self.door, self.metrics, self._take)
        self.transport = FakeTransport()
        self.connection = LeanConnection(self.shared)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def _take(self, transport: Any, data: bytes) -> asyncio.Protocol:
        assert transport is self.transport
        self.handed.append(data)
        return asyncio.Protocol()

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    @property
    def replies(self) -> list[tuple[int, bytes]]:
        out = []
        rest = self.transport.written
        while rest:
            block, _, rest = rest.partition(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in block.split(b"\r\n") if line.startswith(b"content-length")
            )
            out.append((int(block.split()[1]), rest[:length]))
            rest = rest[length:]
        return out


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_answered_in_place() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.feed(plain(b"abc"))
        await settle()
        assert bench.replies == [(200, b"abc")]
        assert b"server-timing: first-queue;dur=1.50" in bench.transport.written
        assert b"x-request-id: " in bench.transport.written
        assert bench.door.pending == 0
        assert not bench.handed

    run(scenario())


@pytest.mark.parametrize("size", [1, 7, 50])
def test_a_body_in_pieces(size: int) -> None:
    async def scenario() -> None:
        bench = Bench()
        data = plain(b"x" * 120)
        cut = data.index(b"\r\n\r\n") + 4
        bench.feed(data[:cut], *(data[i : i + size] for i in range(cut, len(data), size)))
        await settle()
        assert bench.replies == [(200, b"x" * 120)]
        assert bench.door.held == 0

    run(scenario())


def test_pipelined_requests_keep_their_order_and_are_bounded() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.client.reply = lambda item: None
        bench.feed(plain(b"1") + plain(b"2") + plain(b"3"))
        assert [item.body for item in bench.client.submitted] == [b"1"]
        bench.feed(b"POST" + b"x" * BUFFER_MAX)
        assert not bench.transport.reading
        bench.client.waiting[0].set_result(Answer(200, b"one"))
        await settle()
        assert [item.body for item in bench.client.submitted] == [b"1", b"2"]
        assert bench.replies == [(200, b"one")]

    run(scenario())


def test_a_head_in_pieces_is_handed_over_from_its_first_byte() -> None:
    bench = Bench()
    bench.feed(b"POST /inf")
    assert bench.handed == [b"POST /inf"]


def test_what_is_not_plain_is_handed_over_with_what_follows() -> None:
    async def scenario() -> None:
        bench = Bench()
        odd = head("host: x", line="GET /metrics HTTP/1.1")
        bench.feed(plain(b"1") + odd + plain(b"2"))
        await settle()
        assert bench.replies == [(200, b"1")]
        assert bench.handed == [odd + plain(b"2")]
        assert bench.connection not in bench.shared.connections

    run(scenario())


@pytest.mark.parametrize(
    ("spoil", "status", "reason"),
    [
        (lambda bench: setattr(bench.door, "draining", True), 503, "draining"),
        (lambda bench: setattr(bench.door, "pending", 10_000_000), 429, "capacity"),
        (lambda bench: setattr(bench.client, "reply", lambda item: unavailable()), 503, "unavailable"),
    ],
)
def test_refused_at_the_door_and_not_handed_over(spoil: Any, status: int, reason: str) -> None:
    """An overload must not cost a connection its short way for good."""

    async def scenario() -> None:
        bench = Bench()
        spoil(bench)
        bench.feed(plain(b"1", "x-request-id: mine") + plain(b"2", "accept: application/problem+json"))
        await settle()
        assert {code for code, _ in bench.replies} == {status}
        assert b"retry-after: " in bench.transport.written
        assert b"x-request-id: mine\r\n" in bench.transport.written
        assert not bench.handed
        assert bench.transport.closed is (reason == "draining")
        assert bench.door.held == 0
        names = {s.labels["reason"] for f in bench.metrics.families() for s in f.samples if "reason" in s.labels}
        assert reason in names

    run(scenario())


def test_streams_and_unknown_stages_are_sent_elsewhere() -> None:
    bench = Bench()
    bench.client.current = replace(READY, stages=())
    bench.feed(plain(b"1"))
    assert bench.handed == [plain(b"1")]


def test_a_client_that_does_not_read_is_served_no_more() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.connection.pause_writing()
        bench.feed(plain(b"1"))
        await settle()
        assert bench.replies == []
        bench.connection.resume_writing()
        await settle()
        assert bench.replies == [(200, b"1")]

    run(scenario())


def test_a_failure_of_the_worker_in_the_words_the_client_asked_for() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.client.reply = lambda item: Answer(
            422, b"request validation error: x", headers={"x-code": "7", "x-odd\n": "1"}
        )
        bench.feed(plain(b"1"), plain(b"2", "accept: application/json"))
        await settle()
        (first, text), (second, problem) = bench.replies
        assert (first, second, text) == (422, 422, b"request validation error: x")
        assert b'"detail":"request validation error: x"' in problem
        assert bench.transport.written.count(b"x-code: 7\r\n") == 2
        assert b"x-odd" not in bench.transport.written

    run(scenario())


def test_a_client_that_leaves_withdraws() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.client.reply = lambda item: None
        bench.feed(plain(b"1"))
        bench.connection.connection_lost(None)
        assert bench.client.cancelled == bench.client.waiting
        assert bench.door.pending == 0

    run(scenario())


def test_draining_answers_and_then_closes() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.client.reply = lambda item: None
        bench.feed(plain(b"1"))
        bench.connection.end()
        assert not bench.transport.closed
        bench.client.waiting[0].set_result(Answer(200, b"bye"))
        await settle()
        assert bench.replies == [(200, b"bye")]
        assert b"\r\nconnection: close\r\n" in bench.transport.written
        assert bench.transport.closed

    run(scenario())


def test_time_limits() -> None:
    async def scenario() -> None:
        bench = Bench(timeout=1.0, keepalive=5.0, header_timeout=2.0, body_timeout=3.0)
        start = bench.connection.since
        bench.connection.sweep(start + 1.9)
        assert not bench.transport.closed
        bench.client.reply = lambda item: None
        bench.feed(plain(b"1"))
        bench.connection.sweep(start + 1.0)
        assert bench.replies == []
        bench.connection.sweep(start + 60.0)
        assert bench.replies == [(408, b"inference timeout")]
        assert len(bench.client.cancelled) == 1
        bench.feed(plain(b"abc")[:-1])
        bench.connection.sweep(bench.connection.since + 2.9)
        assert not bench.handed
        bench.connection.sweep(bench.connection.since + 3.1)
        assert bench.handed == [plain(b"abc")[:-1]]
        assert bench.door.held == 0
        for said, limit in ((b"", 2.0), (plain(b"x"), 5.0)):
            bench = Bench(keepalive=5.0, header_timeout=2.0)
            if said:
                bench.feed(said)
                await settle()
            bench.connection.sweep(bench.connection.since + limit - 0.1)
            assert not bench.transport.closed
            bench.connection.sweep(bench.connection.since + limit + 0.1)
            assert bench.transport.closed

    run(scenario())


class FakeLoop:
    """Keeps what is to be called later; the test calls it."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def call_later(self, delay: float, callback: Any) -> None:
        self.delays.append(delay)
        self.callback = callback


def test_a_round_looks_at_every_connection_once_and_at_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    looks: list[LeanConnection] = []
    monkeypatch.setattr(LeanConnection, "sweep", lambda connection, _instant: looks.append(connection))
    bench.shared.connections |= {LeanConnection(bench.shared) for _ in range(3 * SWEEP_MOST)}
    loop = FakeLoop()
    Sweeper(bench.shared, loop)  # type: ignore[arg-type]
    loop.callback()
    assert len(looks) == SWEEP_MOST
    gone = next(connection for connection in bench.shared.connections if connection not in looks)
    bench.shared.connections.discard(gone)
    while len(loop.delays) < 5:
        loop.callback()
    assert len(looks) == len(set(looks)) == 3 * SWEEP_MOST
    assert set(looks) == bench.shared.connections
    assert sum(loop.delays[1:]) == pytest.approx(SWEEP_S)
    loop.callback()
    assert len(looks) == 4 * SWEEP_MOST  # the next round


def test_large_uploads_are_read_elsewhere() -> None:
    bench = Bench()
    begun = head("host: x", f"content-length: {BUFFER_MAX + 1}") + b"x" * 100
    bench.feed(begun)
    assert bench.handed == [begun]


@pytest.mark.parametrize("flow", [Flow.EVENTS, Flow.CHUNKS, Flow.UNKNOWN])
def test_a_stream_is_sent_elsewhere(flow: Flow) -> None:
    bench = Bench()
    stages = tuple(StageState(stage.name, 1, 1, 0, 0, 0, flow=flow) for stage in READY.stages)
    bench.client.current = replace(READY, stages=stages)
    bench.feed(plain(b"1"))
    assert bench.handed == [plain(b"1")]


def test_ids_are_unique_and_the_same_length() -> None:
    bench = Bench()
    ids = {bench.shared.new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(one) for one in ids} == {32}


def test_heads_are_parsed_once() -> None:
    async def scenario() -> None:
        bench = Bench()
        seen: list[bytes] = []
        read = bench.shared.reader.read

        def counting(data: bytes) -> Head | None:
            seen.append(data)
            return read(data)

        bench.shared.reader.read = counting  # type: ignore[method-assign]
        for body in (b"1", b"2", b"33"):
            bench.feed(plain(body))
            await settle()
        assert len(seen) == 2
        assert bench.replies == [(200, b"1"), (200, b"2"), (200, b"33")]

    run(scenario())
