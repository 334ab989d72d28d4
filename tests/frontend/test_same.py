"""Two servers, one meaning: the same bytes get the same statuses and words, tell the service the same, and leave the
connection in the same state - read by the quick path or by gunicorn's, whole or in pieces.

Behind what is tried comes a *probe*, a plain request that is always answered: where its answer comes, the connection
was still open and in step; where the connection ends instead, it was not.
"""

from __future__ import annotations

import gzip
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
OURS = (
    "connection",
    "content-encoding",
    "content-type",
    "retry-after",
    "allow",
    "vary",
    "location",
    "server",
)  # what is compared of an answer's headers


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


@pytest.fixture(scope="module")
def openais(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    """The same, whose routes speak OpenAI's API."""
    options = {
        "max_request_size": 1000,
        "max_header_size": 4096,
        "header_timeout": 0.3,
        "body_timeout": 0.3,
        "tells": True,
        "protocol": "openai",
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
                    if status != 100:  # it depends on what of the body came with the head
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
    coded = rest[:length]
    body: Any = (gzip.decompress(coded) if headers.get("content-encoding") == "gzip" else coded).decode("latin-1")
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
PACKED = gzip.compress(b"abc" * 300, mtime=0)
BOMB = gzip.compress(b"abc" * 10_000, mtime=0)
# What is sent, the status (None: it depends on the options), and whether the connection is open afterwards.
CASES: dict[str, tuple[bytes, int | None, bool]] = {
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
    "HTTP/1.0 to be kept, and refused": (
        request(LENGTH, "connection: keep-alive", "x-request-timeout: soon", line="POST /inference HTTP/1.0"), 400, True
    ),
    "to be closed, and refused": (request(LENGTH, "connection: close", "x-request-timeout: soon"), 400, False),
    "a page": (request(line="GET /readyz HTTP/1.1", body=b""), 200, True),
    "a page to be closed": (request("connection: close", line="GET / HTTP/1.1", body=b""), 200, False),
    "a page over HTTP/1.0": (request(line="GET /healthz HTTP/1.0", body=b"", host=""), 200, False),
    "a page with a body": (request(LENGTH, line="GET /healthz HTTP/1.1"), 200, True),
    "to be told to go on": (request(LENGTH, "expect: 100-continue"), 200, True),
    "chunks of gzip": (
        request("transfer-encoding: chunked", "content-encoding: gzip", "accept-encoding: gzip",
                body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(PACKED), PACKED)), None, True,
    ),
    "gzip": (request(f"content-length: {len(PACKED)}", "content-encoding: gzip", body=PACKED), None, True),
    "gzip that is too much": (
        request(f"content-length: {len(BOMB)}", "content-encoding: gzip", body=BOMB), None, True
    ),
    "an answer in gzip": (
        request("content-length: 999", "accept-encoding: gzip, identity;q=0", body=b"x" * 999), 200, True
    ),
    "a folded field": (request(LENGTH, "a: b", " c"), 400, False),
    "a bare line feed": (request(LENGTH, "a: b\nc: d"), 400, False),
    "no request": (b"\0\1\2\r\n\r\n", 400, False),
    "many fields": (request(LENGTH, *(f"x-{n}: y" for n in range(200))), 431, False),
    "much in fields": (request(LENGTH, *(f"x-{n}: {'y' * 200}" for n in range(40))), 431, False),
}  # fmt: skip


CHUNKED = "transfer-encoding: chunked"
END = b"0\r\n\r\n"
OLD = "POST /inference HTTP/1.0"


def chunks(body: bytes, *fields: str) -> bytes:
    return request(CHUNKED, *fields, body=body)


GOOD, BAD = (200, True), (400, False)
# What RFC 9112 lets a request look like and what it does not, class by class: each is a way to smuggle a request past
# somebody who reads it otherwise, or to be refused by a server that is stricter than the rest.
CLASSES: dict[str, tuple[bytes, int, bool]] = {
    name: (data, *expected)
    for name, data, expected in [
        # --- the request line
        ("an empty line before it", b"\r\n" + request(LENGTH), GOOD),
        ("two empty lines before it", b"\r\n\r\n" + request(LENGTH), BAD),
        ("a blank before it", b" " + request(LENGTH), BAD),
        ("a zero before it", b"\0" + request(LENGTH), BAD),
        ("two blanks in it", request(LENGTH, line="POST  /inference HTTP/1.1"), BAD),
        ("a blank behind it", request(LENGTH, line="POST /inference HTTP/1.1 "), BAD),
        ("tabs in it", request(LENGTH, line="POST\t/inference\tHTTP/1.1"), BAD),
        ("a form feed in it", request(LENGTH, line="POST /inference\x0cHTTP/1.1"), BAD),
        ("no target", request(LENGTH, line="POST HTTP/1.1"), BAD),
        ("no version", request(LENGTH, line="POST /inference"), BAD),
        ("no name of a protocol", request(LENGTH, line="POST /inference 1.1"), BAD),
        ("small letters in the version", request(LENGTH, line="POST /inference http/1.1"), BAD),
        ("a version of two digits", request(LENGTH, line="POST /inference HTTP/1.10"), BAD),
        ("a version without a point", request(LENGTH, line="POST /inference HTTP/11"), BAD),
        ("a version with something behind it", request(LENGTH, line="POST /inference HTTP/1.1x"), BAD),
        ("a version of HTTP/2", request(LENGTH, line="POST /inference HTTP/2.0"), BAD),
        ("a version before 1", request(LENGTH, line="POST /inference HTTP/0.9"), BAD),
        ("no method", request(LENGTH, line="/inference HTTP/1.1"), BAD),
        ("an empty method", request(LENGTH, line=" /inference HTTP/1.1"), BAD),
        ("a method that is no token", request(LENGTH, line="PO{ST /inference HTTP/1.1"), BAD),
        ("a method in quotes", request(LENGTH, line='"POST" /inference HTTP/1.1'), BAD),
        ("a target with a blank", request(LENGTH, line="POST /infer ence HTTP/1.1"), BAD),
        ("a target with a control character", request(LENGTH, line="POST /infer\x7fence HTTP/1.1"), BAD),
        ("a target with a byte above ASCII", request(LENGTH, line="POST /inf\xe9rence HTTP/1.1"), BAD),
        ("a target that begins nowhere", request(LENGTH, line="POST inference HTTP/1.1"), BAD),
        ("a star", request(LENGTH, line="POST * HTTP/1.1"), BAD),
        ("a fragment", request(LENGTH, line="POST /inference#here HTTP/1.1"), (404, True)),
        ("a question in the query", request(LENGTH, line="POST /inference?a?b=c?&d HTTP/1.1"), GOOD),
        ("an empty query", request(LENGTH, line="POST /inference? HTTP/1.1"), GOOD),
        ("a percent sign alone", request(LENGTH, line="POST /inference?% HTTP/1.1"), GOOD),
        ("a percent sign alone in the path", request(LENGTH, line="POST /infe%rence HTTP/1.1"), (404, True)),
        ("an absolute target without a path", request(LENGTH, line="POST http://x HTTP/1.1"), (405, True)),
        ("a method nobody has", request(LENGTH, line="BREW /inference HTTP/1.1"), (400, True)),
        # --- fields
        ("no blank behind the colon", request("content-length:3"), GOOD),
        ("blanks and tabs around a value", request("content-length: \t 3 \t "), GOOD),
        ("an empty value", request(LENGTH, "x-a:"), GOOD),
        ("colons in a value", request(LENGTH, "x-a: b:c: d"), GOOD),
        ("bytes above ASCII in a value", request(LENGTH, "x-a: \xe9\xff"), GOOD),
        ("any letter case of a name", request("CONTENT-length: 3", "X-A: b"), GOOD),
        ("every character of a name", request(LENGTH, "!#$%&'*+-.^`|~09az: b"), GOOD),
        ("a field many times", request(LENGTH, *["x-a: b"] * 20), GOOD),
        ("no name", request(LENGTH, ": b"), BAD),
        ("no colon", request(LENGTH, "x-a"), BAD),
        ("a blank before the colon", request("content-length : 3"), BAD),
        ("a tab before the colon", request("content-length\t: 3"), BAD),
        ("a blank before a name", request(LENGTH, " x-a: b"), BAD),
        ("a blank before the first name", request(LENGTH, host=" host: x"), BAD),
        ("brackets in a name", request(LENGTH, "x(a): b"), BAD),
        ("a byte above ASCII in a name", request(LENGTH, "x-\xe9: b"), BAD),
        ("a zero in a value", request(LENGTH, "x-a: b\0c"), BAD),
        ("a carriage return in a value", request(LENGTH, "x-a: b\rc"), BAD),
        ("a carriage return at the end of a value", request(LENGTH, "x-a: b\r"), BAD),
        ("a vertical tab in a value", request(LENGTH, "x-a: b\x0bc"), BAD),
        ("a name of zeros", request(LENGTH, "\0\0: b"), BAD),
        ("a folded field of a tab", request(LENGTH, "x-a: b", "\tc"), BAD),
        ("line feeds alone", request(LENGTH).replace(b"\r\n", b"\n"), BAD),
        ("an end of line feeds alone", request(LENGTH).replace(b"\r\n\r\n", b"\r\n\n"), BAD),
        ("many hosts in one", request(LENGTH, host="host: x, y"), GOOD),
        ("an empty host", request(LENGTH, host="host:"), GOOD),
        # --- lengths
        ("zeros before a length", request("content-length: 0003"), GOOD),
        ("a negative length", request("content-length: -3"), BAD),
        ("a length in hexadecimal", request("content-length: 0x3"), BAD),
        ("a length with a point", request("content-length: 3.0"), BAD),
        ("a length with an underscore", request("content-length: 1_0"), BAD),
        ("a length with a blank in it", request("content-length: 1 0"), BAD),
        ("a list of equal lengths", request("content-length: 3, 3"), BAD),
        ("a list of lengths", request("content-length: 3, 4"), BAD),
        ("digits of another alphabet", request("content-length: \xb3"), BAD),
        ("two lengths that differ", request(LENGTH, "Content-Length: 4"), BAD),
        ("a body of GET", request(LENGTH, line="GET / HTTP/1.1"), GOOD),
        # --- codings
        ("a coding in capitals", chunks(b"3\r\nabc\r\n0\r\n\r\n").replace(b"chunked", b"CHUNKED"), GOOD),
        ("a coding nobody knows before chunks", request("transfer-encoding: x, chunked", body=END), (501, False)),
        ("chunks twice", request("transfer-encoding: chunked, chunked", body=b"0\r\n\r\n"), BAD),
        ("chunks in two fields", request(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), BAD),
        ("chunks that are not the last", request("transfer-encoding: chunked, gzip", body=b"0\r\n\r\n"), BAD),
        ("chunks before identity", request("transfer-encoding: chunked, identity", body=b"0\r\n\r\n"), BAD),
        ("no chunks at all", request("transfer-encoding: gzip", body=b"abc"), BAD),
        ("an empty coding", request("transfer-encoding:", body=b"abc"), (501, False)),
        ("a coding with something before it", request("transfer-encoding: \x0bchunked", body=b"0\r\n\r\n"), BAD),
        ("a coding in quotes", request('transfer-encoding: "chunked"', body=b"0\r\n\r\n"), (501, False)),
        ("chunks over HTTP/1.0", request(CHUNKED, line="POST /inference HTTP/1.0", body=b"0\r\n\r\n"), BAD),
        ("a length and chunks over HTTP/1.0", request(CHUNKED, LENGTH, line="POST /inference HTTP/1.0"), BAD),
        # --- chunks
        ("no chunk", chunks(b"0\r\n\r\n"), GOOD),
        ("many chunks", chunks(b"1\r\na\r\n" * 9 + b"0\r\n\r\n"), GOOD),
        ("sizes in any letter case", chunks(b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n"), GOOD),
        ("zeros before a size", chunks(b"0003\r\nabc\r\n000\r\n\r\n"), GOOD),
        ("an extension", chunks(b"3;a=b\r\nabc\r\n0;c\r\n\r\n"), GOOD),
        ("an extension in quotes", chunks(b'3;a="b;c"\r\nabc\r\n0\r\n\r\n'), GOOD),
        ("trailers", chunks(b"3\r\nabc\r\n0\r\nx-a: b\r\nx-c: d\r\n\r\n"), GOOD),
        ("a size in hexadecimal by name", chunks(b"0x3\r\nabc\r\n0\r\n\r\n"), BAD),
        ("a size with a sign", chunks(b"+3\r\nabc\r\n0\r\n\r\n"), BAD),
        ("a negative size", chunks(b"-3\r\nabc\r\n0\r\n\r\n"), BAD),
        ("a size with an underscore", chunks(b"0_3\r\nabc\r\n0\r\n\r\n"), BAD),
        ("a size with a blank before it", chunks(b" 3\r\nabc\r\n0\r\n\r\n"), BAD),
        ("a size with a blank behind it", chunks(b"3 \r\nabc\r\n0\r\n\r\n"), BAD),
        ("an empty size", chunks(b"\r\nabc\r\n0\r\n\r\n"), BAD),
        ("a size that is an extension", chunks(b";a=b\r\nabc\r\n0\r\n\r\n"), BAD),
        ("a size with a zero behind it", chunks(b"3\0\r\nabc\r\n0\r\n\r\n"), BAD),
        ("a line feed alone behind a size", chunks(b"3\nabc\r\n0\r\n\r\n"), BAD),
        ("a line feed alone behind a chunk", chunks(b"3\r\nabc\n0\r\n\r\n"), BAD),
        ("a carriage return in an extension", chunks(b"3;a\rb\r\nabc\r\n0\r\n\r\n"), BAD),
        ("more in a chunk than its size", chunks(b"3\r\nabcd\r\n0\r\n\r\n"), BAD),
        ("less in a chunk than its size", chunks(b"4\r\nabc\r\n0\r\n\r\n"), BAD),
        ("a size beyond all bounds", chunks(b"f" * 17 + b"\r\n"), BAD),
        ("a size above the bound on bodies", chunks(b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"), (413, True)),
        ("a chunk too many", chunks(b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n0\r\n\r\n"), (413, True)),
        # --- connections
        ("close among others", request(LENGTH, "connection: x, close"), (200, False)),
        ("close in capitals", request(LENGTH, "connection: CLOSE"), (200, False)),
        ("HTTP/1.0 to be closed", request(LENGTH, "connection: close", line=OLD), (200, False)),
        ("an upgrade to HTTP/2", request(
            LENGTH, "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQ"
        ), GOOD),
    ]
}  # fmt: skip


@pytest.mark.parametrize("servers", [False], ids=["plain"], indirect=True)
@pytest.mark.parametrize("name", CLASSES)
def test_what_a_request_may_look_like_and_what_not(servers: list[Running], name: str) -> None:
    data, status, is_open = CLASSES[name]
    seen = same(servers, data, [len(data) // 3, len(data) // 2, len(data) - 1])
    assert [answer[0] for answer in seen.answers] == [status]
    assert seen.is_open is is_open


@pytest.mark.parametrize("name", CASES)
def test_the_same_bytes_mean_the_same(servers: list[Running], name: str) -> None:
    data, status, is_open = CASES[name]
    seen = same(servers, data, [len(data) // 3, len(data) // 2, len(data) - 1])
    assert status is None or [answer[0] for answer in seen.answers] == [status]
    assert seen.is_open is is_open


@pytest.mark.parametrize("name", [*CASES, *CLASSES])
def test_every_refusal_of_a_route_that_speaks_openais_api_has_its_form(openais: list[Running], name: str) -> None:
    data = CASES[name][0] if name in CASES else CLASSES[name][0]
    is_page = name in ("a page", "a page with a body", "a WebSocket handshake", "an absolute target without a path")
    for status, headers, body in same(openais, data, [len(data) // 2]).answers:
        if status != 200 and not is_page:
            said = json.loads(str(body))["error"]
            assert dict(headers)["content-type"] == "application/json"
            assert list(said) == ["code", "message", "param", "type"]
            assert said["message"]


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
     "expect: 100-continue",
     "x-\xe9: a", "x-a: \xe9", "x a: b", ": b", "a", " a: b", "x-a: \x01", "cookie: a=1", "cookie: b=2",
     "authorization: a", "x-api-key: a", "x-slo: 0.2", "x-slo: x", "x-priority: low", "x-priority: x",
     "transfer-encoding: identity", "content-length: 0"]
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
