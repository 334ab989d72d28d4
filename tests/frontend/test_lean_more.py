"""What some requests ask for besides an answer, and get on the short way: another version of HTTP, an end of the
connection, chunks, a word that the body may come, codings, a health page."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from itertools import pairwise

import pytest
from fakes import unavailable
from hypothesis import given
from hypothesis import strategies as st
from leanbench import FAILED, Bench, StreamBench, head, plain, run, settle

from engine.core.call import Answer
from engine.core.messages import Flow
from engine.core.sse import event
from frontend import chunked, compression
from frontend.lean import GO_ON
from frontend.pace import LEAST_RATE

OLD = "POST /inference HTTP/1.0"
CHUNKED = head("host: x", "transfer-encoding: chunked")


def fields_of(bench: Bench) -> list[dict[bytes, bytes]]:
    """The header fields of each answer that was written."""
    out = []
    rest = bench.transport.written
    while rest:
        block, _, rest = rest.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in block.split(b"\r\n")[1:])
        out.append(fields)
        rest = rest[int(fields.get(b"content-length", b"0")) :]
    return out


def test_a_connection_that_is_to_be_closed_ends_behind_its_answer() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.feed(plain(b"1"), plain(b"2", "connection: close") + plain(b"3"), plain(b"4"))
        await settle()
        assert bench.replies == [(200, b"1"), (200, b"2")]
        assert [fields.get(b"connection") for fields in fields_of(bench)] == [None, b"close"]
        assert bench.transport.closed
        assert not bench.handed
        assert [item.body for item in bench.client.submitted] == [b"1", b"2"]
        assert bench.gate.pending == bench.gate.held == bench.gate.behind == 0

    run(scenario())


@pytest.mark.parametrize("kept", [False, True])
def test_over_http_1_0_a_connection_ends_unless_it_is_to_be_kept_which_is_said(kept: bool) -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.client.reply = lambda item: unavailable() if item.body == b"2" else Answer(200, item.body)
        fields = ["connection: Keep-Alive"] if kept else []
        for body in (b"1", b"2")[: 1 + kept]:
            bench.feed(head(f"content-length: {len(body)}", *fields, line=OLD) + body)
            await settle()
        assert [status for status, _ in bench.replies] == [200, 503][: 1 + kept]
        said = [fields.get(b"connection") for fields in fields_of(bench)]
        assert said == ([b"keep-alive"] * 2 if kept else [b"close"])
        assert bench.transport.closed is not kept
        assert not bench.handed

    run(scenario())


class OldBench(StreamBench):
    REQUEST = head("content-length: 1", line=OLD) + b"1"


def test_a_stream_over_http_1_0_ends_with_its_connection() -> None:
    bench = OldBench()
    bench.send(b"one", b"two")
    bench.end()
    assert b"connection: close\r\n" in bench.head
    assert b"transfer-encoding" not in bench.head
    assert bench.transport.written.partition(b"\r\n\r\n")[2] == event(b"one") + event(b"two")
    assert bench.transport.closed
    assert not bench.transport.aborted


def test_pieces_that_are_cut_over_http_1_0_end_in_a_reset() -> None:
    """An end like any other would say that all is there."""
    bench = OldBench(Flow.CHUNKS)
    bench.send(b"one")
    bench.end(FAILED)
    assert bench.transport.aborted


# --- chunks ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    st.lists(st.integers(1, 250), max_size=5),
)
def test_a_body_in_chunks_however_it_comes(pieces: list[bytes], cuts: list[int]) -> None:
    async def scenario() -> None:
        bench = Bench()
        body = b"".join(map(chunked.chunk, pieces)) + chunked.LAST_CHUNK
        data = body + plain(b"next")
        places = sorted({0, *(cut for cut in cuts if cut < len(body)), len(data)})
        bench.feed(CHUNKED + data[: places[1]], *(data[a:b] for a, b in pairwise(places[1:])))
        await settle()
        assert bench.replies == [(200, b"".join(pieces)), (200, b"next")]
        assert not bench.handed
        assert bench.gate.held == bench.gate.behind == bench.gate.pending == 0

    run(scenario())


ODD = {
    "no size": b"x\r\n",
    "a blank": b"3 \r\nabc\r\n",
    "an extension": b"3;a=b\r\nabc\r\n",
    "a trailer": b"3\r\nabc\r\n0\r\na: b\r\n\r\n",
    "a chunk that is longer": b"3\r\nabcd\r\n",
    "a line feed alone": b"3\nabc\r\n",
    "a carriage return alone": b"\r\n",
    "a size of many digits": b"000000003\r\nabc\r\n",
    "many chunks": chunked.chunk(b"x") * (chunked.CHUNKS_MAX + 1),
    "one that is larger than it may be": b"%x\r\n" % (1 << 30),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("whole", [True, False])
def test_other_chunks_are_handed_over_from_the_first_byte_of_the_request(data: bytes, whole: bool) -> None:
    bench = Bench()
    sent = CHUNKED + b"1\r\nA\r\n" + data
    if whole:
        bench.feed(sent)
    else:
        for at in range(len(CHUNKED), len(sent) + 1):
            if not bench.handed:
                bench.feed(sent[:at] if at == len(CHUNKED) else sent[at - 1 : at])
    (handed,) = bench.handed
    assert sent.startswith(handed)
    assert bench.gate.held == bench.gate.behind == 0


def test_chunks_that_come_too_slowly_are_given_up_whatever_comes_meanwhile() -> None:
    async def scenario() -> None:
        bench = Bench(body_timeout=1.0)
        bench.feed(CHUNKED)
        start = bench.connection.since
        for number in range(10):
            bench.feed(chunked.chunk(b"x"))
            assert bench.connection.since == start, number
        bench.connection.sweep(start + 1.0)
        assert not bench.transport.closed
        bench.connection.sweep(start + 1.1 + 60 / LEAST_RATE)
        assert [status for status, _ in bench.replies] == [408]
        assert bench.transport.closed
        assert bench.gate.held == 0

    run(scenario())


def test_chunks_that_come_to_too_much_are_handed_over() -> None:
    bench = Bench(max_request_size=1000)
    sent = CHUNKED + chunked.chunk(b"x" * 600) * 2 + chunked.LAST_CHUNK
    bench.feed(sent)
    assert bench.handed == [sent]


# --- expectations ----------------------------------------------------------------------------------------------------

ASKS = head("host: x", "content-length: 3", "expect: 100-continue")


def test_who_asks_first_is_told_to_go_on_once() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.feed(ASKS)
        assert bench.transport.written == GO_ON
        bench.feed(b"a", b"b", b"c")
        await settle()
        assert bench.transport.written.startswith(GO_ON + b"HTTP/1.1 200 OK\r\n")
        assert bench.transport.written.count(GO_ON) == 1

    run(scenario())


@pytest.mark.parametrize("sent", [b"a", b"abc"])
def test_who_sends_all_the_same_is_not_told(sent: bytes) -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.feed(ASKS + sent)
        if sent != b"abc":
            bench.feed(b"bc")
        await settle()
        assert bench.replies == [(200, b"abc")]

    run(scenario())


def test_who_would_be_refused_is_not_asked_for_the_body() -> None:
    bench = Bench()
    bench.gate.pending = 10_000_000
    bench.feed(ASKS)
    assert not bench.transport.written
    assert bench.handed == [ASKS]


# --- codings ---------------------------------------------------------------------------------------------------------


def test_a_small_body_is_undone_here() -> None:
    async def scenario() -> None:
        bench = Bench(compression=True)
        body = b"abc" * 1000
        bench.feed(plain(gzip.compress(body), "content-encoding: gzip"))
        await settle()
        assert bench.replies == [(200, body)]
        assert "content-encoding" not in dict(bench.client.submitted[0].headers)
        assert bench.gate.held == 0

    run(scenario())


@pytest.mark.parametrize(
    "body", [gzip.compress(bytes(10 << 20)), b"abc", gzip.compress(b"x")[:-1]], ids=["large", "not packed", "cut off"]
)  # named, for gzip writes the second into what it packs and every process of a run must collect the same names
def test_a_body_that_takes_long_to_undo_or_cannot_be_is_handed_over(body: bytes) -> None:
    bench = Bench(compression=True)
    sent = plain(body, "content-encoding: gzip")
    bench.feed(sent)
    assert bench.handed == [sent]
    assert bench.gate.held == 0


@pytest.mark.parametrize("size", [10, 10_000, 4 * compression.INLINE_MAX])
def test_an_answer_has_the_coding_that_its_client_likes_where_it_is_worth_it(size: int) -> None:
    async def scenario() -> None:
        bench = Bench(compression=True)
        bench.feed(plain(b"x" * size, "accept-encoding: gzip") + plain(b"next"))
        await settle()
        packing = [task for task in threading.enumerate() if "asyncio" in task.name]
        await asyncio.get_running_loop().shutdown_default_executor()
        await settle()
        assert bool(packing) is (size > compression.INLINE_MAX)
        first, second = fields_of(bench)
        coded = size >= compression.SMALL
        assert first.get(b"content-encoding") == (b"gzip" if coded else None)
        assert first[b"vary"] == second[b"vary"] == b"accept-encoding"
        assert b"server-timing" in first
        body = bench.replies[0][1]
        assert (gzip.decompress(body) if coded else body) == b"x" * size
        assert bench.replies[1] == (200, b"next")
        assert not bench.handed

    run(scenario())


def test_an_answer_that_cannot_be_packed_goes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(coding: str, body: bytes) -> bytes:
        raise MemoryError

    async def scenario() -> None:
        monkeypatch.setattr(compression, "pack", fail)
        bench = Bench(compression=True)
        bench.feed(plain(b"x" * 1_000_000, "accept-encoding: gzip"))
        await settle()
        await asyncio.get_running_loop().shutdown_default_executor()
        await settle()
        assert bench.replies == [(200, b"x" * 1_000_000)]

    run(scenario())


@pytest.mark.parametrize("field", ["content-encoding: gzip", "idempotency-key: k"])
def test_what_will_take_long_is_handed_over_before_it_comes(field: str) -> None:
    bench = Bench(compression=True)
    begun = head("host: x", "content-length: 1000000", field)
    bench.feed(begun)
    assert bench.handed == [begun]


def test_a_client_that_leaves_while_its_answer_is_packed_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left = threading.Event()
    pack = compression.pack

    def pack_when_it_left(coding: str, body: bytes) -> bytes:
        assert left.wait(10)
        return pack(coding, body)

    monkeypatch.setattr(compression, "pack", pack_when_it_left)

    async def scenario() -> None:
        bench = Bench(compression=True)
        bench.feed(plain(b"x" * 1_000_000, "accept-encoding: gzip"))
        await settle()
        assert not bench.connection.idle
        bench.connection.connection_lost(None)
        assert bench.connection.idle
        left.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        await settle()
        assert bench.transport.written == b""
        counted = {s.labels["code"]: s.value for f in bench.metrics.families() for s in f.samples if "code" in s.labels}
        assert counted == {"499": 1}

    run(scenario())


# --- health pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_health_page(method: str) -> None:
    async def scenario() -> None:
        bench = Bench()
        page = head("host: x", "x-request-id: mine", line=f"{method} /readyz HTTP/1.1")
        bench.feed(page + plain(b"next"))
        await settle()
        assert not bench.handed
        first = bench.transport.written.partition(b"\r\n\r\n")[0]
        assert b"x-request-id: mine" in first
        assert b"cache-control: no-store" in first
        if method == "GET":
            (status, document), second = bench.replies
            assert (status, json.loads(document)["status"]) == (200, "ready")
            assert second == (200, b"next")
        else:
            assert int(first.partition(b"content-length: ")[2].split()[0]) > 0
            assert bench.transport.written.partition(b"\r\n\r\n")[2].startswith(b"HTTP/1.1 200 OK\r\n")

    run(scenario())


def test_a_page_of_a_process_that_drains_is_the_last_answer() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.gate.draining = True
        bench.feed(head("host: x", line="GET / HTTP/1.1"))
        ((status, _),) = bench.replies
        assert status == 503
        assert bench.transport.closed
        assert b"retry-after: " in bench.transport.written

    run(scenario())


def test_what_a_request_came_as_is_what_is_counted() -> None:
    async def scenario() -> None:
        bench = Bench(compression=True)
        packed = gzip.compress(b"x" * 50_000)
        bench.feed(plain(packed, "content-encoding: gzip"), CHUNKED + chunked.chunk(b"abc") + chunked.LAST_CHUNK)
        await settle()
        (counted,) = [f for f in bench.metrics.families() if f.name == "engine_request_bytes"]
        assert counted.samples[0].value == len(packed) + 3

    run(scenario())
