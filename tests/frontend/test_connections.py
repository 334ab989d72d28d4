"""HTTP as it is spoken: real TCP to a real gunicorn, byte by byte, with a fake client behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import httpx
import pytest
from running import Raw, Running, frontend, post


@pytest.fixture(scope="module", params=["lean", "asgi"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = {
        "server": request.param,
        "max_request_size": 1 << 20,
        "max_header_size": 16 << 10,
        "header_timeout": 0.4,
        "body_timeout": 0.4,
        "keepalive": 30.0,
        "timeout": 5.0,
    }
    with frontend(tmp_path_factory.mktemp("frontend"), **options) as running:
        yield running


@pytest.fixture
def raw(running: Running) -> Iterator[Raw]:
    with running.connect() as raw:
        yield raw


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_connection_serves_one_request_after_another(raw: Raw) -> None:
    for number in range(3):
        reply = raw.send(post(b"%d" % number)).reply()
        assert (reply.status, reply.body) == (200, b"%d" % number)
        assert not reply.closes
        assert reply.headers["server"] == "stageline"
        assert len(reply.headers["x-request-id"]) == 32


def test_pipelined_requests_are_answered_in_order(raw: Raw) -> None:
    raw.send(post(b"after 0.1") + post(b"two") + b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" + post(b"four"))
    replies = [raw.reply() for _ in range(4)]
    assert [reply.status for reply in replies] == [200, 200, 200, 200]
    assert [replies[0].body, replies[1].body, replies[3].body] == [b"after 0.1", b"two", b"four"]


def test_a_request_may_come_byte_by_byte(raw: Raw) -> None:
    raw.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in post(b"drop by drop"):
        raw.send(bytes([byte]))
    assert raw.reply().body == b"drop by drop"


def test_a_client_may_ask_for_the_end_of_the_connection(raw: Raw) -> None:
    reply = raw.send(post(b"last", "connection: close")).reply()
    assert reply.closes
    assert raw.at_end()


def test_http_1_0_is_answered_and_closed(raw: Raw) -> None:
    assert raw.send(b"GET /healthz HTTP/1.0\r\n\r\n").reply().status == 200
    assert raw.at_end()


def test_a_chunked_body_arrives_whole(raw: Raw) -> None:
    head = b"POST /inference HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    assert raw.send(head + b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n").reply().body == b"abcdefg"


def test_a_large_body_goes_and_comes_back(running: Running) -> None:
    body = bytes(range(256)) * 4096
    answer = httpx.post(f"{running.url}/inference", content=body, timeout=20)
    assert (answer.status_code, answer.content) == (200, body)


def test_expect_continue_is_answered_when_the_body_is_wanted(raw: Raw) -> None:
    raw.send(post(b"", "expect: 100-continue", length=4))
    assert raw.sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert raw.send(b"body").reply().body == b"body"


def test_expect_continue_is_refused_without_the_body(raw: Raw) -> None:
    assert raw.send(post(b"", "expect: 100-continue", length=2 << 20)).reply().status == 413


# --- bodies that are refused -----------------------------------------------------------------------------------------


def test_a_large_body_is_413_before_it_is_read(raw: Raw) -> None:
    reply = raw.send(post(b"begin", length=2 << 20)).reply()
    assert (reply.status, reply.body) == (413, b"request body too large")
    assert reply.closes


def test_a_client_that_sends_it_all_before_it_listens_sees_the_413(raw: Raw) -> None:
    reply = raw.send(post(b"x" * (8 << 20))).reply()
    assert reply.status == 413
    assert raw.half_close().at_end()


def test_a_chunked_body_is_413_when_it_grows_too_large(raw: Raw) -> None:
    raw.send(b"POST /inference HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    assert raw.send(chunk * 40).reply().status == 413


@pytest.mark.parametrize("body", [b"", b"abc"])
def test_a_body_cut_short_is_400(raw: Raw, body: bytes) -> None:
    reply = raw.send(post(body, length=100)).half_close().reply()
    assert (reply.status, reply.closes) == (400, True)
    assert raw.at_end()


def test_a_chunked_body_cut_short_is_400(raw: Raw) -> None:
    head = b"POST /inference HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    assert raw.send(head + b"3\r\nabc\r\n").half_close().reply().status == 400


def test_a_body_that_stalls_is_408_and_the_connection_ends(raw: Raw) -> None:
    reply = raw.send(post(b"abc", length=10)).reply()
    assert (reply.status, reply.closes) == (408, True)
    assert raw.half_close().at_end()


def test_a_404_with_a_body_that_is_still_coming_ends_the_connection(raw: Raw) -> None:
    reply = raw.send(post(b"", path="/nowhere", length=10)).reply()
    assert (reply.status, reply.closes) == (404, True)


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"P", b"POST /inference HTTP/1.1\r\n", b"POST /inference HTTP/1.1\r\nhost: x\r\n"])
def test_headers_that_do_not_come_are_408(raw: Raw, begun: bytes) -> None:
    reply = raw.send(begun).reply()
    assert (reply.status, reply.closes) == (408, True)
    assert reply.headers["x-request-id"]
    assert raw.half_close().at_end()


def test_the_headers_of_a_later_request_have_the_same_time(raw: Raw) -> None:
    raw.send(post(b"first") + b"POST /inf").reply()
    assert raw.reply().status == 408


def test_a_connection_on_which_nothing_is_said_is_closed_without_a_word(raw: Raw) -> None:
    assert raw.at_end()


@pytest.mark.parametrize("count", [20, 99])
def test_headers_that_are_too_large_together_are_431(raw: Raw, count: int) -> None:
    field = b"x-filler: " + b"x" * (20_000 // count) + b"\r\n"
    reply = raw.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + field * count + b"\r\n").reply()
    assert (reply.status, reply.body) == (431, b"request headers too large")


def test_too_many_headers_are_431(raw: Raw) -> None:
    assert raw.send(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 101 + b"\r\n").reply().status == 431


def test_headers_that_never_end_are_431(raw: Raw) -> None:
    assert raw.send(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"x" * 20_000).reply().status == 431


def test_a_target_that_is_too_long_is_414(raw: Raw) -> None:
    assert raw.send(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n").reply().status == 414


def test_large_headers_within_the_bound_are_served(raw: Raw) -> None:
    assert raw.send(post(b"ok", "x-large: " + "x" * 15_000)).reply().status == 200


def test_a_large_body_in_one_piece_with_its_headers_is_no_header(raw: Raw) -> None:
    assert raw.send(post(b"x" * 60_000)).reply().status == 200


# --- malformed and smuggled ------------------------------------------------------------------------------------------

HEAD = b"POST /inference HTTP/1.1\r\nhost: x\r\n"
MALFORMED = {
    "length and chunked": HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": HEAD + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "the same length twice": HEAD + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "a list of lengths": HEAD + b"content-length: 3, 3\r\n\r\nabc",
    "a signed length": HEAD + b"content-length: +3\r\n\r\nabc",
    "a negative length": HEAD + b"content-length: -1\r\n\r\n",
    "a length with an underscore": HEAD + b"content-length: 1_0\r\n\r\nabc",
    "chunked twice": HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked is not last": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "not chunked at all": HEAD + b"transfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /inference HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": HEAD + b"content-length : 3\r\n\r\nabc",
    "a folded header": HEAD + b"x-a: b\r\n content-length: 3\r\n\r\nabc",
    "bare line feeds": b"POST /inference HTTP/1.1\nhost: x\ncontent-length: 3\n\nabc",
    "a null in a value": HEAD + b"x-a: b\0c\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "another version": b"GET / HTTP/3.0\r\n\r\n",
    "a method with a space": b"GE T / HTTP/1.1\r\n\r\n",
    "control bytes in the target": b"GET /\x01 HTTP/1.1\r\n\r\n",
    "TLS to the wrong port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a chunk size that is no number": HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "a chunk size with a sign": HEAD + b"transfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    "a chunk size of 17 digits": HEAD + b"transfer-encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than it says": HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    "a chunk with a bare line feed": HEAD + b"transfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http_is_400_once_and_the_connection_ends(running: Running, raw: Raw, name: str) -> None:
    smuggled = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    reply = raw.send(MALFORMED[name] + smuggled).reply()
    assert reply.status == 400
    assert reply.closes
    assert reply.body.startswith(b"bad request")
    assert raw.half_close().at_end(), "what followed was answered too"


def test_an_unknown_transfer_coding_is_501(raw: Raw) -> None:
    assert raw.send(HEAD + b"transfer-encoding: zebra\r\n\r\n").reply().status == 501


def test_an_upgrade_to_http2_is_not_taken(raw: Raw) -> None:
    settings = "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA"
    reply = raw.send(post(b"plain", "connection: Upgrade, HTTP2-Settings", "upgrade: h2c", settings)).reply()
    assert (reply.status, reply.body) == (200, b"plain")


def test_malformed_requests_are_counted(running: Running, raw: Raw) -> None:
    raw.send(b"nonsense\r\n\r\n").reply()
    page = httpx.get(f"{running.url}/metrics", timeout=20).text
    line = next(line for line in page.splitlines() if line.startswith('engine_rejections_total{reason="bad_request"}'))
    assert float(line.split()[1]) >= 1


# --- clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_a_client_that_leaves_cancels_its_item(running: Running, how: str) -> None:
    with running.connect() as raw:
        raw.send(post(b"hang"))
        running.events.what("submitted", body="hang")
        if how == "half":
            raw.half_close()
        elif how == "reset":
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how != "half":
            raw.sock.close()
        running.events.what("cancelled")


def test_a_client_that_leaves_in_its_body_submits_nothing(running: Running) -> None:
    with running.connect() as raw:
        raw.send(post(b"never whole", length=100))
    with running.connect() as raw:
        raw.send(post(b"the next")).reply()
    assert not [line for line in running.events.seen if line["body"] == "never whole"]


# --- HTTP/2 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def http2(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(http1=False, http2=True, base_url=running.url, timeout=20) as client:
        yield client


def test_http2_by_prior_knowledge_on_the_same_port(http2: httpx.Client) -> None:
    answer = http2.post("/inference", content=b"two", headers={"x-request-id": "h2"})
    assert (answer.http_version, answer.status_code, answer.content) == ("HTTP/2", 200, b"two")
    assert answer.headers["x-request-id"] == "h2"
    assert "server-timing" in answer.headers
    assert http2.get("/healthz").status_code == 200
    assert http2.get("/nowhere").status_code == 404


def test_http2_carries_large_bodies_both_ways(http2: httpx.Client) -> None:
    body = bytes(range(256)) * 2048
    assert http2.post("/inference", content=body).content == body


def test_http2_refuses_a_large_body(http2: httpx.Client) -> None:
    assert http2.post("/inference", content=b"x" * (2 << 20)).status_code == 413


def test_http2_runs_requests_side_by_side(running: Running) -> None:
    """On one thread: httpcore's HTTP/2 takes turns neither for a stream's number nor for the table of headers."""
    bodies = [b"after 0.3", *[b"%d" % number for number in range(8)]]

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(http1=False, http2=True, base_url=running.url, timeout=20) as client:
            return await asyncio.gather(*(client.post("/inference", content=body) for body in bodies))

    assert [answer.content for answer in asyncio.run(ask_all())] == bodies


def test_nothing_of_all_this_was_our_mistake(running: Running) -> None:
    assert "Traceback" not in running.text()
