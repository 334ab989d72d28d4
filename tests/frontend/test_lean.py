"""What counts as plain: the strict subset of HTTP/1.1 that is answered in place. Everything else is handed over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fakes import deployment, echo, unavailable
from hypothesis import given
from hypothesis import strategies as st
from leanbench import FAILED, Bench, StreamBench, head, plain, run, settle

from engine.clock import now
from engine.config.schema import OPENAI, FrontendSection
from engine.core import meta, sse
from engine.core.call import Answer, StreamEvent
from engine.core.messages import EVENT_COST, STREAM_WINDOW, Flow, Speaker
from frontend.gate import BEHIND_ALL, BEHIND_MAX, Gate
from frontend.idempotency import INLINE_MAX
from frontend.lean import JOIN_MAX, LeanConnection
from frontend.pace import LEAST_RATE, STALL_S
from frontend.plain import More, Plain, Reader
from frontend.protocols import openai_event
from frontend.streams import HEAD_S, KEEPALIVE_S
from frontend.sweeper import SWEEP_MOST, SWEEP_S, Sweeper

MIB = 1 << 20
GATE = Gate(FrontendSection())
READER = Reader(deployment().topology, GATE.terms, compressed=False)
PAGES = Reader(deployment().topology, GATE.terms, ["/", "/readyz"], compressed=False)


PLAIN = {
    "the least": ("host: x", "content-length: 3"),
    "any case": ("HOST: x", "Content-LENGTH: 3"),
    "blanks around a value": ("host: x", "content-length: \t 3 "),
    "keep-alive is the default": ("host: x", "content-length: 3", "connection: Keep-Alive"),
    "an empty value": ("host: x", "content-length: 3", "x-empty:"),
    "bytes above ASCII in a value": ("host: x", "content-length: 3", "x-a: \xe9"),
    "a tab inside a value": ("host: x", "content-length: 3", "x-a: b\tc"),
    "no body": ("host: x", "content-length: 0"),
    "a time of its own": ("host: x", "content-length: 3", "x-request-timeout: 1"),
    "no length": ("host: x",),
}


@pytest.mark.parametrize("fields", PLAIN.values(), ids=PLAIN.keys())
def test_plain(fields: tuple[str, ...]) -> None:
    found = READER.read(head(*fields))
    assert found is not None
    assert found.more is None


OLD = "POST /inference HTTP/1.0"
MORE: dict[str, tuple[bytes, More]] = {
    "close": (head("host: x", "content-length: 3", "Connection: Close"), More(is_last=True)),
    "HTTP/1.0": (head("content-length: 3", line=OLD), More(is_last=True, is_old=True)),
    "HTTP/1.0, kept": (head("content-length: 3", "connection: keep-alive", line=OLD), More(is_old=True)),
    "chunked": (head("host: x", "Transfer-Encoding: Chunked"), More(is_chunked=True)),
    "expect": (head("host: x", "content-length: 3", "expect: 100-Continue"), More(expects=True)),
    "a page": (head("host: x", line="GET /readyz?a=b HTTP/1.1"), More(page="/readyz")),
    "a look at a page": (head("host: x", line="HEAD / HTTP/1.1"), More(page="/", is_look=True)),
}


@pytest.mark.parametrize(("data", "more"), MORE.values(), ids=MORE.keys())
def test_plain_and_a_little_more(data: bytes, more: More) -> None:
    found = PAGES.read(data)
    assert found is not None
    assert found.more == more


NOT_MORE = {
    "a page with a body": head("host: x", "content-length: 3", line="GET /readyz HTTP/1.1"),
    "a page with chunks": head("host: x", "transfer-encoding: chunked", line="GET /readyz HTTP/1.1"),
    "chunks over HTTP/1.0": head("transfer-encoding: chunked", line=OLD),
    "an expectation over HTTP/1.0": head("content-length: 3", "expect: 100-continue", line=OLD),
    "another page": head("host: x", line="GET /openapi/swagger HTTP/1.1"),
}


@pytest.mark.parametrize("data", NOT_MORE.values(), ids=NOT_MORE.keys())
def test_a_little_too_much(data: bytes) -> None:
    assert PAGES.read(data) is None


ELSEWHERE = {
    "two lengths": ("host: x", "content-length: 3", "content-length: 3"),
    "a list of lengths": ("host: x", "content-length: 3, 3"),
    "a signed length": ("host: x", "content-length: +3"),
    "a length in digits of another alphabet": ("host: x", "content-length: \xb2"),
    "too large": ("host: x", "content-length: 99999999"),
    "no host": ("content-length: 3",),
    "two hosts": ("host: x", "host: y", "content-length: 3"),
    "chunked twice": ("host: x", "transfer-encoding: chunked", "transfer-encoding: chunked"),
    "chunked at last": ("host: x", "transfer-encoding: gzip, chunked"),
    "chunked and a length": ("host: x", "content-length: 3", "Transfer-Encoding: chunked"),
    "an odd transfer-encoding": ("host: x", "content-length: 3", "transfer-encoding : chunked"),
    "an odd expectation": ("host: x", "content-length: 3", "expect: something"),
    "an unknown content-encoding": ("host: x", "content-length: 3", "content-encoding: br"),
    "content-encoding, where it is off": ("host: x", "content-length: 3", "content-encoding: gzip"),
    "upgrade": ("host: x", "content-length: 3", "upgrade: h2c"),
    "close among others": ("host: x", "content-length: 3", "connection: close, x"),
    "close and its opposite": ("host: x", "content-length: 3", "connection: close", "connection: keep-alive"),
    "a time of its own that is none": ("host: x", "content-length: 3", "x-request-timeout: soon"),
    "two content types": ("host: x", "content-length: 3", "content-type: a/b", "Content-Type: a/b"),
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
        "POST /inference HTTP/2.0",
        "POST /inference HTTP/0.9",
        "PUT /inference HTTP/1.1",
        "GET /metrics HTTP/1.1",
        "POST /healthz HTTP/1.1",
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
    assert (found.route, found.head.path, found.length, found.head.request_id) == (1, "/second", 2, "mine")
    told = meta.head_of(meta.pack("mine", found.meta))
    assert told.query == b"q=1&r"
    assert told.headers == [(b"host", b"x"), (b"content-length", b"2"), (b"x-a", b"b"), (b"x-request-id", b"mine")]


def test_an_insane_request_id_is_replaced() -> None:
    found = READER.read(head("host: x", "content-length: 2", "x-request-id: a b"))
    assert found is not None
    assert found.head.request_id == ""


def test_compression_is_negotiated_where_it_is_on() -> None:
    section = FrontendSection(compression=True)
    reader = Reader(deployment().topology, Gate(section).terms, compressed=True)
    data = head("host: x", "content-length: 2", "accept-encoding: gzip, identity;q=0", "content-encoding: gzip")
    found = reader.read(data)
    assert found is not None
    assert found.more == More(coding="gzip", packing="gzip", packs_all=True)
    assert b"content-encoding" not in dict(meta.head_of(meta.pack("", found.meta)).headers)
    off = READER.read(head("host: x", "content-length: 2", "accept-encoding: gzip"))
    assert off is not None
    assert off.more is None


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


def test_answered_in_place() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.feed(plain(b"abc"))
        await settle()
        assert bench.replies == [(200, b"abc")]
        assert b"server-timing: first-queue;dur=1.50" in bench.transport.written
        assert b"x-request-id: " in bench.transport.written
        assert bench.gate.pending == 0
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
        assert bench.gate.held == 0

    run(scenario())


def test_pipelined_requests_keep_their_order_and_are_bounded() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.client.reply = lambda item: None
        bench.feed(plain(b"1") + plain(b"2") + plain(b"3"))
        assert [item.body for item in bench.client.submitted] == [b"1"]
        bench.feed(b"POST" + b"x" * BEHIND_MAX)
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
        (lambda bench: setattr(bench.gate, "draining", True), 503, "draining"),
        (lambda bench: setattr(bench.gate, "pending", 10_000_000), 429, "capacity"),
        (lambda bench: setattr(bench.client, "reply", lambda item: unavailable()), 503, "unavailable"),
    ],
)
def test_refused_at_the_gate_and_not_handed_over(spoil: Any, status: int, reason: str) -> None:
    """An overload must not cost a connection its short way for good."""

    async def scenario() -> None:
        bench = Bench()
        spoil(bench)
        bench.feed(plain(b"1", "x-request-id: mine") + plain(b"2", "accept: application/problem+json"))
        await settle()
        assert bench.gate.behind == 0
        assert {code for code, _ in bench.replies} == {status}
        assert b"retry-after: " in bench.transport.written
        assert b"x-request-id: mine\r\n" in bench.transport.written
        assert not bench.handed
        assert bench.transport.closed is (reason == "draining")
        assert bench.gate.held == 0
        names = {s.labels["reason"] for f in bench.metrics.families() for s in f.samples if "reason" in s.labels}
        assert reason in names

    run(scenario())


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


def test_many_pipelined_requests_that_are_refused_hold_nobody_up() -> None:
    """By turns and without recursion: their number is up to the client."""

    async def scenario() -> None:
        bench = Bench()
        bench.client.reply = lambda item: None
        count = 256 * 1024 // len(plain(b"x")) - 1
        bench.feed(plain(b"1") + plain(b"x") * count)
        bench.client.reply = lambda item: unavailable()
        bench.client.waiting[0].set_result(Answer(200, b"one"))
        assert 1 < len(bench.replies) < 100
        for _ in range(count):  # turns, of which each answers several
            await asyncio.sleep(0)
        assert bench.replies == [(200, b"one"), *[(503, str(unavailable()).encode())] * count]
        assert bench.gate.pending == bench.gate.held == 0

    run(scenario())


def test_the_buffer_of_pipelined_requests_stays_bounded() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.client.reply = lambda item: None
        many = plain(b"2") * (2 * BEHIND_MAX // len(plain(b"2")))
        bench.feed(plain(b"1"), many)
        assert not bench.transport.reading
        assert bench.gate.behind == len(many)
        bench.client.waiting[-1].set_result(Answer(200, b"one"))
        assert not bench.transport.reading  # there is enough to do
        while len(bench.connection._inbox.data) > BEHIND_MAX - 1000:
            bench.client.waiting[-1].set_result(Answer(200, b"next"))
        assert bench.transport.reading
        assert bench.gate.behind == len(bench.connection._inbox.data)
        bench.connection.connection_lost(None)
        assert bench.gate.behind == 0

    run(scenario())


def test_what_waits_is_not_copied_for_each_request() -> None:
    """The same array all the time, from which what is served disappears."""
    bench = Bench()
    bench.client.reply = lambda item: None
    bench.feed(plain(b"1"), plain(b"2") * 100)
    array = bench.connection._inbox.data
    assert isinstance(array, bytearray)
    for left in range(100, 0, -1):
        assert bench.connection._inbox.data is array
        assert len(array) == left * len(plain(b"2"))
        bench.client.waiting[-1].set_result(Answer(200, b"next"))
    assert bench.connection._inbox.data == b""


def test_what_comes_in_one_piece_with_a_request_is_bounded_as_well() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.client.reply = lambda item: None
        bench.gate.behind = BEHIND_ALL - 10  # of others
        bench.feed(plain(b"first") + plain(b"next"))
        assert bench.gate.behind == BEHIND_ALL - 10
        bench.feed(plain(b"last"))
        bench.client.waiting[0].set_result(Answer(200, b"done"))
        await settle()
        assert bench.replies == [(200, b"done")]
        assert b"connection: close\r\n" in bench.transport.written
        assert bench.transport.closed

    run(scenario())


def test_where_all_send_too_much_in_advance_who_sends_more_is_served_no_further() -> None:
    bench = Bench()
    bench.client.reply = lambda item: None
    bench.gate.behind = BEHIND_ALL - 100  # of others
    bench.feed(plain(b"1"), plain(b"2"))
    bench.feed(plain(b"3"), plain(b"4"))
    assert bench.gate.behind == BEHIND_ALL - 100
    bench.client.waiting[-1].set_result(Answer(200, b"one"))
    assert bench.replies == [(200, b"one")]
    assert b"connection: close\r\n" in bench.transport.written
    assert bench.transport.closed


def test_a_request_of_which_the_rest_is_wanted_is_read_on() -> None:
    bench = Bench()
    bench.client.reply = lambda item: None
    body = b"x" * (MIB // 4)
    bench.feed(plain(b"1"), plain(body)[:-50] + b"")
    bench.feed(b"")
    assert not bench.transport.reading
    bench.client.waiting[-1].set_result(Answer(200, b"one"))
    assert bench.transport.reading
    assert bench.gate.behind == 0
    assert bench.gate.held == len(body) - 50
    bench.feed(b"x" * 50)
    assert [len(item.body) for item in bench.client.submitted] == [1, len(body)]
    assert bench.gate.held == len(body)
    bench.client.waiting[-1].set_result(Answer(200, b"two"))
    assert bench.gate.held == 0


def test_a_body_that_comes_byte_by_byte_is_not_copied_for_each() -> None:
    bench = Bench()
    bench.client.reply = lambda item: None
    data = plain(b"x" * 1000)
    bench.feed(data[:-900])
    array = bench.connection._inbox.data
    for left in range(900, 1, -1):
        bench.feed(b"x")
        assert bench.connection._inbox.data is array
        assert bench.gate.held == 1000 - left + 1
    bench.feed(b"x")
    assert bench.client.submitted[0].body == b"x" * 1000


def test_a_body_that_is_announced_holds_nothing_until_it_comes() -> None:
    bench = Bench(capacity_bytes=10_000, max_request_size=1000)
    bench.feed(plain(b"x" * 1000)[:-990])
    assert bench.gate.held == 10
    bench.feed(b"x" * 90)
    assert bench.gate.held == 100
    bench.connection.connection_lost(None)
    assert bench.gate.held == 0
    assert bench.gate.fits(5000, "192.0.2.1")


def test_a_body_for_which_there_is_no_room_is_refused_elsewhere() -> None:
    """When it is announced, and when others have taken the room while it came."""
    bench = Bench(capacity_bytes=10_000, max_request_size=1000)
    bench.gate.hold(9_500)
    begun = plain(b"x" * 1000)[:-990]
    bench.feed(begun)
    assert bench.handed == [begun]
    bench = Bench(capacity_bytes=10_000, max_request_size=1000)
    bench.feed(begun)
    bench.gate.hold(9_500)
    bench.feed(b"x" * 900)
    assert bench.handed == [begun + b"x" * 900]
    assert bench.gate.held == 9_500


def test_a_large_answer_is_not_copied() -> None:
    bench = Bench()
    bench.client.reply = lambda item: None
    written: list[object] = []
    bench.transport.write = written.append  # type: ignore[assignment,method-assign]
    for size, last in ((JOIN_MAX - 1, False), (JOIN_MAX, False), (JOIN_MAX, True)):
        bench.connection.closing = last
        bench.feed(plain(b"1"))
        body = memoryview(b"x" * size)
        bench.client.waiting[-1].set_result(Answer(200, body, "a/b", echo(bench.client.submitted[-1]).trail))
        assert (written[-1] is body) == (size == JOIN_MAX)
    assert bench.transport.closed


def test_what_is_dropped_is_the_end_of_its_connection_also_where_no_answer_is_owed() -> None:
    """What came behind a piece that was dropped would be read from its middle."""
    bench = Bench()
    bench.connection.pause_writing()
    bench.gate.behind = BEHIND_ALL
    bench.feed(plain(b"dropped")[:30])
    assert bench.transport.closed
    assert bench.gate.behind == BEHIND_ALL


def test_a_connection_that_is_to_end_with_its_next_answer_loses_nothing_before_it() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.connection.pause_writing()
        bench.connection.closing = True
        bench.feed(plain(b"1")[:30], plain(b"1")[30:])
        bench.connection.resume_writing()
        await settle()
        assert bench.replies == [(200, b"1")]
        assert b"connection: close\r\n" in bench.transport.written
        assert bench.transport.closed

    run(scenario())


def test_a_client_that_does_not_read_its_answer_is_not_handed_over_and_is_dropped() -> None:
    bench = Bench(body_timeout=1.0)
    bench.transport.unsent = 100
    bench.connection.pause_writing()
    bench.feed(plain(b"1"))
    assert bench.connection.eof_received() is None
    bench.connection.sweep(now() + STALL_S + 1)
    assert not bench.handed
    assert not bench.transport.closed
    bench.gate.unsent.sweep(now() + STALL_S + 1)
    assert bench.transport.aborted


def test_a_client_that_reads_its_answer_in_time_is_not_dropped() -> None:
    bench = Bench()
    bench.transport.unsent = 10_000_000
    bench.connection.pause_writing()
    began = now()
    while bench.transport.unsent > LEAST_RATE:
        bench.transport.unsent -= LEAST_RATE * 60
        began += 60
        bench.gate.unsent.sweep(began)
        assert not bench.transport.closed
    bench.connection.resume_writing()
    bench.gate.unsent.sweep(began + 1000)
    assert not bench.transport.closed


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
        assert bench.gate.pending == 0

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
        assert bench.replies[1:] == [(408, b"request timeout: the body came too slowly")]
        assert bench.transport.closed
        assert bench.gate.held == 0
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


@pytest.mark.parametrize("behind", [b"", plain(b"next")])
def test_a_large_upload_is_read_here_and_not_copied_without_need(behind: bytes) -> None:
    async def scenario() -> None:
        bench = Bench()
        data = plain(b"x" * MIB)
        bench.feed(*(data[at : at + 100_000] for at in range(0, len(data) - 1, 100_000)))
        bench.feed(behind) if behind else None
        await settle()
        assert bench.replies == [(200, b"x" * MIB)] + [(200, b"next")] * bool(behind)
        assert bench.gate.held == bench.gate.pending == bench.gate.behind == 0

    run(scenario())


def test_a_large_upload_with_a_key_is_read_where_its_digest_is_made_in_a_thread() -> None:
    async def scenario() -> None:
        bench = Bench()
        sent = plain(b"x" * (INLINE_MAX + 1), "idempotency-key: 1")
        bench.feed(plain(b"x", "idempotency-key: 0"), sent)
        await settle()
        assert bench.replies == [(200, b"x")]
        assert bench.handed == [sent]

    run(scenario())


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_events_are_written_as_they_come_whatever_was_known_of_the_stage(known: bool) -> None:
    async def scenario() -> None:
        bench = StreamBench(known=known)
        bench.send(b"one")
        assert bench.body == (b"data: one\n\n", False)
        bench.send(b"two\nlines")
        bench.end()
        assert bench.body == (b"data: one\n\ndata: two\ndata: lines\n\n", True)
        for line in (b"HTTP/1.1 200 OK", b"content-type: text/event-stream", b"transfer-encoding: chunked"):
            assert line + b"\r\n" in bench.head
        assert b"content-length" not in bench.head
        assert (bench.gate.pending, bench.gate.held) == (0, 0)
        assert not bench.handed
        bench.client.reply = echo
        bench.transport.written = b""
        bench.feed(plain(b"next"))
        await settle()
        assert bench.replies == [(200, b"next")]

    run(scenario())


def test_a_failure_of_a_stream_is_its_last_event_also_as_the_first() -> None:
    for events in ((), (b"x",)):
        bench = StreamBench()
        bench.send(*events)
        bench.end(FAILED)
        assert bench.body == (b"".join(map(sse.event, events)) + sse.error(422, "request validation error: no"), True)
        (codes,) = [one for one in bench.metrics.families() if one.name == "engine_throughput"]
        assert [sample.labels["code"] for sample in codes.samples] == ["422"]


def test_on_a_route_that_speaks_openais_api_a_stream_ends_as_its_clients_expect() -> None:
    bench = StreamBench(protocol=OPENAI)
    bench.send(b"{}")
    bench.end(FAILED)
    assert bench.body == (sse.event(b"{}") + openai_event(422, "request validation error: no"), True)


def test_a_refusal_by_the_broker_is_a_plain_answer_and_a_workers_own_is_not() -> None:
    bench = StreamBench()
    bench.end(Answer(503, b"draining", speaker=int(Speaker.DOOR)))
    assert bench.replies == [(503, b"draining")]
    assert b"retry-after: 1\r\n" in bench.head
    bench = StreamBench()
    bench.end(Answer(503, b"not today"))
    assert bench.body == (sse.error(503, "not today"), True)


def test_an_answer_at_once_of_a_stage_that_was_thought_to_stream() -> None:
    bench = StreamBench()
    bench.end(Answer(200, b"whole", "text/plain"))
    assert bench.replies == [(200, b"whole")]
    bench = StreamBench(Flow.CHUNKS)
    bench.end(FAILED)
    assert bench.replies == [(422, b"request validation error: no")]


def test_pieces_end_with_the_last_chunk_or_are_cut() -> None:
    bench = StreamBench(Flow.CHUNKS)
    bench.send(b"\0\n", b"\r")
    bench.end(Answer(200, b"", "image/x-thing"))
    assert bench.body == (b"\0\n\r", True)
    assert not bench.transport.closed
    bench = StreamBench(Flow.CHUNKS)
    bench.send(b"begun")
    bench.end(FAILED)
    assert bench.body == (b"begun", False)
    assert bench.transport.closed


def test_progress_has_a_place_in_events_alone() -> None:
    bench = StreamBench()
    bench.send(b"halfway", mime="")
    bench.send(b"x")
    assert bench.body == (b"data: halfway\n\ndata: x\n\n", False)
    bench = StreamBench(Flow.CHUNKS)
    bench.client.streams[-1](StreamEvent(b"halfway", Flow.EVENTS, ""))
    bench.send(b"piece")
    assert bench.body == (b"piece", False)
    assert bench.client.taken == {1: len(b"halfway") + EVENT_COST}


def test_what_a_client_does_not_take_waits_and_is_not_reported() -> None:
    bench = StreamBench()
    quarter = b"." * (STREAM_WINDOW // 4)
    bench.send(b"small")
    bench.connection.pause_writing()
    bench.send(quarter)
    assert bench.body == (b"data: small\n\n", False)
    assert not bench.client.taken
    bench.connection.resume_writing()
    assert bench.client.taken == {1: len(quarter) + len(b"small") + 2 * EVENT_COST}
    bench.end()
    assert bench.body[1]


def test_a_client_that_takes_nothing_for_long_is_dropped() -> None:
    bench = StreamBench()
    bench.send(b"x")
    bench.transport.unsent = 1000
    bench.connection.pause_writing()
    bench.gate.unsent.sweep(now() + STALL_S - 1)
    assert not bench.transport.closed
    bench.gate.unsent.sweep(now() + STALL_S + 1)
    assert bench.transport.aborted
    bench.connection.connection_lost(None)
    assert len(bench.client.cancelled) == 1
    assert bench.gate.pending == 0


def test_a_waiting_client_is_told_that_it_was_let_in_and_an_idle_one_that_it_still_is() -> None:
    bench = StreamBench(timeout=100.0)
    bench.connection.sweep(now() + HEAD_S / 2)
    assert bench.transport.written == b""
    bench.connection.sweep(now() + HEAD_S * 2)
    assert bench.body == (sse.COMMENT, False)
    bench.connection.sweep(now() + KEEPALIVE_S / 2)
    assert bench.body == (sse.COMMENT, False)
    bench.connection.sweep(now() + KEEPALIVE_S * 2)
    assert bench.body == (sse.COMMENT * 2, False)
    pieces = StreamBench(Flow.CHUNKS, timeout=100.0)
    pieces.connection.sweep(now() + KEEPALIVE_S * 2)
    assert pieces.transport.written == b""  # a body has no place for it


def test_a_broker_that_does_not_answer_in_time_ends_the_stream() -> None:
    bench = StreamBench(timeout=1.0)
    bench.send(b"x")
    bench.connection.sweep(now() + 60)
    assert bench.body == (b"data: x\n\n" + sse.error(408, "inference timeout"), True)
    assert len(bench.client.cancelled) == 1
    bench = StreamBench(timeout=1.0)
    bench.client.current = replace(bench.client.current, connected=False)
    bench.connection.sweep(now() + 60)
    assert bench.replies == [(503, b"service unavailable: the broker cannot be reached")]
    assert b"retry-after: 1\r\n" in bench.head
    assert "unreachable" in reasons(bench)


def reasons(bench: Bench) -> set[str]:
    return {s.labels["reason"] for f in bench.metrics.families() for s in f.samples if "reason" in s.labels}


def test_a_client_that_leaves_its_stream_withdraws_and_is_counted_once() -> None:
    bench = StreamBench()
    bench.send(b"x")
    bench.connection.connection_lost(None)
    assert len(bench.client.cancelled) == 1
    assert bench.gate.pending == 0
    (codes,) = [one for one in bench.metrics.families() if one.name == "engine_throughput"]
    assert [(sample.labels["code"], sample.value) for sample in codes.samples] == [("499", 1)]


def test_draining_lets_a_stream_end_and_then_closes() -> None:
    bench = StreamBench()
    bench.send(b"x")
    bench.connection.end()
    assert not bench.transport.closed
    bench.end()
    assert bench.body == (b"data: x\n\n", True)
    assert bench.transport.closed


def test_requests_behind_a_stream_wait_for_its_end() -> None:
    async def scenario() -> None:
        bench = StreamBench()
        bench.send(b"x")
        bench.client.reply = echo
        bench.feed(plain(b"2"))
        assert len(bench.client.submitted) == 1
        bench.end()
        await settle()
        assert bench.transport.written.endswith(b"\r\n\r\n2")

    run(scenario())


# --- the rest ---------------------------------------------------------------------------------------------------------


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

        def counting(data: bytes) -> Plain | None:
            seen.append(data)
            return read(data)

        bench.shared.reader.read = counting  # type: ignore[method-assign]
        for body in (b"1", b"2", b"33"):
            bench.feed(plain(body))
            await settle()
        assert len(seen) == 2
        assert bench.replies == [(200, b"1"), (200, b"2"), (200, b"33")]

    run(scenario())


def test_the_last_piece_of_a_body_needs_room_as_well() -> None:
    """Else bodies that end together take more than there is, and requests that need none are refused."""

    async def scenario() -> None:
        bench = Bench(capacity_bytes=4 * MIB, max_request_size=MIB)
        data = plain(b"x" * MIB)
        bench.feed(data[:1000])
        assert bench.gate.hold(3 * MIB + MIB // 2)  # what others hold
        bench.feed(data[1000:])
        assert bench.handed == [data]
        assert bench.gate.held == 3 * MIB + MIB // 2

    run(scenario())
