"""Two servers, one meaning: the same bytes get the same statuses and words, tell the service the same, and leave the
connection in the same state - read by the quick path or by gunicorn's, whole or in pieces.

Behind what is tried comes a *probe*, a plain request that is always answered: where its answer comes, the connection
was still open and in step; where the connection ends instead, it was not.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import PATIENCE_S, Running, frontend

SERVERS = ("lean", "asgi")
PROBE = b"POST /second HTTP/1.1\r\nhost: probe\r\ncontent-length: 5\r\n\r\nprobe"
OURS = ("content-type", "retry-after", "allow", "vary", "location", "server")  # what is compared of an answer's headers


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compressed"])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    options = {
        "max_request_size": 1000,
        "max_header_size": 4096,
        "header_timeout": 0.3,
        "body_timeout": 0.3,
        "compression": request.param,
        "tells": True,
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(frontend(tmp_path_factory.mktemp(server), server=server, **options))
            for server in SERVERS
        ]


@dataclass(frozen=True)
class Seen:
    """Of one connection: its answers as (status, headers, body), and whether it was open and in step at the end."""

    answers: tuple[tuple[int, tuple[tuple[str, str], ...], object], ...]
    is_open: bool
    is_reset: bool = False  # by bytes that came behind its end, which may have cost the last answers

    def agrees(self, other: Seen) -> bool:
        """Whether the two may have seen the same."""
        least = min(len(self.answers), len(other.answers)) if self.is_reset or other.is_reset else None
        return self.answers[:least] == other.answers[:least] and self.is_open is other.is_open


def look(running: Running, pieces: list[bytes]) -> Seen:
    answers: list[tuple[int, tuple[tuple[str, str], ...], object]] = []
    is_reset = False
    with socket.create_connection(running.address, timeout=PATIENCE_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        got = b""
        try:
            for index, piece in enumerate(pieces):
                if index:
                    time.sleep(0.002)  # else they would be one again on their way
                sock.sendall(piece)
            while True:
                while (answer := _answer(got)) is not None:
                    size, status, headers, body = answer
                    got = got[size:]
                    if (
                        isinstance(body, dict)
                        and body.get("body") == "probe"
                        and dict(body["fields"])["host"] == "probe"
                    ):
                        return Seen(tuple(answers), True)
                    answers.append((status, headers, json.dumps(body, sort_keys=True)))
                data = sock.recv(65536)
                if not data:
                    break
                got += data
        except ConnectionError:
            is_reset = True
    assert is_reset or not got, got
    return Seen(tuple(answers), False, is_reset)


def _answer(data: bytes) -> tuple[int, int, tuple[tuple[str, str], ...], Any] | None:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    status = int(first.split()[1])
    fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    names = [name for name, _ in fields]
    assert len(set(names)) == len(names), f"a header twice in {names}"
    headers = dict(fields)
    length = 0 if status == 100 else int(headers["content-length"])
    if len(rest) < length:
        return None
    body: Any = rest[:length].decode("latin-1")
    if body and headers.get("content-type", "").endswith("json"):
        body = json.loads(body)
        body.pop("request_id", None)
    kept = tuple((name, headers[name]) for name in OURS if name in headers)
    return len(head) + 4 + length, status, kept, body


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % len(data) for place in at} - {0})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def same(servers: list[Running], data: bytes, at: list[int]) -> Seen:
    """Compare; what all of them saw."""
    sent = data + PROBE
    seen = {
        (server, form): look(running, pieces)
        for server, running in zip(SERVERS, servers, strict=True)
        for form, pieces in (("whole", [sent]), ("in pieces", cut(sent, at)))
    }
    first, *others = seen.values()
    assert all(one.agrees(other) for one in (first, *others) for other in others), (sent, seen)
    return max(seen.values(), key=lambda one: len(one.answers))


def request(*fields: str, line: str = "POST /inference HTTP/1.1", body: bytes = b"abc", host: str = "host: x") -> bytes:
    return "\r\n".join([line, *([host] if host else []), *fields]).encode("latin-1") + b"\r\n\r\n" + body


LENGTH = "content-length: 3"
CASES: dict[str, tuple[bytes, int | None, bool]] = {  # what is sent, the status (None: no answer), open afterwards
    "plain": (request(LENGTH), 200, True),
    "two content types": (request(LENGTH, "content-type: a/b", "Content-Type: c/d"), 400, False),
    "two request ids": (request(LENGTH, "x-request-id: a", "x-request-id: b"), 400, True),
    "two timeouts": (request(LENGTH, "x-request-timeout: 1", "x-request-timeout: 2"), 400, True),
    "a name with an underscore": (request(LENGTH, "X_User: admin", "x-user: me"), 200, True),
    "no host": (request(LENGTH, host=""), 400, True),
    "two hosts": (request(LENGTH, "host: y"), 400, False),
    "an absolute target": (request(LENGTH, line="POST http://other/inference?a=b HTTP/1.1"), 200, True),
    "an absolute target of another scheme": (request(LENGTH, line="POST ftp://x/inference HTTP/1.1"), 400, True),
    "two slashes": (request(LENGTH, line="POST //inference HTTP/1.1"), 404, True),
    "two slashes before metrics": (request(line="GET //metrics HTTP/1.1", body=b""), 404, True),
    "two slashes before health": (request(line="GET //healthz HTTP/1.1", body=b""), 404, True),
    "an empty segment": (request(LENGTH, line="POST /inference// HTTP/1.1"), 404, True),
    "a last slash": (request(LENGTH, line="POST /inference/ HTTP/1.1"), 404, True),
    "percent-encoded": (request(LENGTH, line="POST /%69nference HTTP/1.1"), 200, True),
    "a WebSocket handshake": (
        request("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Version: 13", line="GET / HTTP/1.1", body=b""), 400, True,
    ),
    "a length of many digits": (request("content-length: " + "1" * 3000), 400, False),
    "a length that int does not take": (request("content-length: " + "9" * 4000, "a: b"), 400, False),
    "a length with a sign": (request("content-length: +3"), 400, False),
    "an empty length": (request("content-length:"), 400, False),
    "two lengths": (request(LENGTH, LENGTH), 400, False),
    "a length and chunks": (request(LENGTH, "transfer-encoding: chunked"), 400, False),
    "chunks": (request("transfer-encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"), 200, True),
    "an unreadable chunk": (request("transfer-encoding: chunked", body=b"x\r\nabc\r\n0\r\n\r\n"), 400, False),
    "no length at all": (request(body=b""), 200, True),
    "too large": (request("content-length: 1001", body=b""), 413, False),
    "too slow": (request("content-length: 900", body=b"abc"), 408, False),
    "a coding nobody knows": (request(LENGTH, "content-encoding: br"), 415, True),
    "a timeout": (request(LENGTH, "x-request-timeout: 0.5"), 200, True),
    "no timeout": (request(LENGTH, "x-request-timeout: soon"), 400, True),
    "JSON is asked for": (request(LENGTH, "accept: application/json", "x-request-timeout: soon"), 400, True),
    "another method": (request(LENGTH, line="PUT /inference HTTP/1.1"), 405, True),
    "OPTIONS of everything": (request(line="OPTIONS * HTTP/1.1", body=b""), 405, True),
    "to be closed": (request(LENGTH, "connection: close"), 200, False),
    "HTTP/1.0": (request(LENGTH, line="POST /inference HTTP/1.0", host=""), 200, False),
    "HTTP/1.0 to be kept": (request(LENGTH, "connection: keep-alive", line="POST /inference HTTP/1.0"), 200, True),
    "a folded field": (request(LENGTH, "a: b", " c"), 400, False),
    "a bare line feed": (request(LENGTH, "a: b\nc: d"), 400, False),
    "no request": (b"\0\1\2\r\n\r\n", 400, False),
    "many fields": (request(LENGTH, *(f"x-{n}: y" for n in range(200))), 431, False),
    "much in fields": (request(LENGTH, *(f"x-{n}: {'y' * 200}" for n in range(40))), 431, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_same_bytes_mean_the_same(servers: list[Running], name: str) -> None:
    data, status, is_open = CASES[name]
    seen = same(servers, data, [len(data) // 3, len(data) // 2, len(data) - 1])
    assert [answer[0] for answer in seen.answers] == ([] if status is None else [status])
    assert seen.is_open is is_open


def test_what_the_service_sees_is_without_what_was_dropped(servers: list[Running]) -> None:
    (answer,) = same(servers, CASES["a name with an underscore"][0], [10]).answers
    told = json.loads(str(answer[2]))
    assert ["x-user", "me"] in told["fields"]
    assert not [name for name, _ in told["fields"] if "_" in name]


# --- any bytes that look like requests -------------------------------------------------------------------------------

targets = st.sampled_from(
    ["/inference", "/inference", "/inference?a=b&c", "/second", "/", "/healthz", "/nope", "//inference", "/inference/",
     "http://h/inference", "http://h", "https://h:1/second?x", "*", "inference", "/inference#a", "/%2finference",
     "/\xe9"]
)  # fmt: skip
methods = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "OPTIONS", "post", "P(T"])
versions = st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/3"])
fields = st.sampled_from(
    ["host: x", "Host: y", "accept: application/json", "accept: text/plain", "Accept-Encoding: gzip", "x-a: b",
     "X_A: b", "x-a:", "x-a: \t b \t", "content-type: a/b", "connection: keep-alive", "connection: close",
     "Connection: Keep-Alive, close", "x-request-id: mine", "x-request-id: n o", "x-request-timeout: 1",
     "x-request-timeout-ms: 10", "x-request-timeout: x", "content-encoding: identity", "content-encoding: gzip",
     "te: trailers", "upgrade: h2c", "upgrade: websocket", "connection: upgrade", "expect: something",
     "x-\xe9: a", "x-a: \xe9", "x a: b", ": b", "a", " a: b", "x-a: \x01", "cookie: a=1", "cookie: b=2",
     "authorization: a", "transfer-encoding: identity", "content-length: 0"]
)  # fmt: skip
bodies = st.sampled_from([b"", b"{}", b"abc", b"x" * 999, b"x" * 1001, b"POST / HTTP/1.1\r\n\r\n"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = draw(bodies)
    lines = draw(st.lists(fields, max_size=4))
    framing = draw(st.sampled_from(["length", "length", "length", "chunked", "none", "short", "both"]))
    if framing in ("length", "both"):
        lines.append(f"content-length: {len(body)}")
    if framing == "short":
        lines.append(f"content-length: {max(0, len(body) - 1)}")
    if framing in ("chunked", "both"):
        lines.append("transfer-encoding: chunked")
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    if framing == "none":
        body = b""
    host = draw(st.sampled_from(["host: x", "host: x", "host: x", ""]))
    line = f"{draw(methods)} {draw(targets)} {draw(versions)}"
    return request(*draw(st.permutations(lines)), line=line, body=body, host=host)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(requests(), min_size=1, max_size=2).map(b"".join), at=st.lists(st.integers(0, 5000), max_size=4))
def test_any_requests_mean_the_same(servers: list[Running], data: bytes, at: list[int]) -> None:
    same(servers, data, at)
