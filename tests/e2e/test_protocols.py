"""The protocols of a deployment's port, through the command line: HTTP/1.1 byte by byte, HTTP/2, TLS, compression."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from harness import Deployed, deployed, write_service

from tests.frontend.certificates import make

SERVICE = """
from engine import Worker

class Echo(Worker):
    def forward(self, data):
        return {"got": data, "coding": self.context().headers.get("content-encoding")}
"""
TOML = """
[frontend]
max_request_size = "1 MiB"
timeout = 10.0

[[stage]]
name = "echo"
worker = "service:Echo"
max_batch_size = 1
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_service(tmp_path_factory.mktemp("protocols"), TOML, SERVICE)


@pytest.fixture(scope="module")
def plain(file: Path) -> Iterator[Deployed]:
    with deployed(file) as running:
        yield running


@contextmanager
def connection(running: Deployed) -> Iterator[socket.socket]:
    port = urlsplit(running.url).port or 0
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        yield sock


def post(body: bytes, *headers: str) -> bytes:
    head = ["POST /inference HTTP/1.1", "host: x", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def sized(body: bytes, *headers: str) -> bytes:
    return post(body, f"content-length: {len(body)}", *headers)


def answers(sock: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Status and body of the next answers."""
    found: list[tuple[int, bytes]] = []
    buffer = b""
    while len(found) < count:
        head, blank, rest = buffer.partition(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if blank and (head.startswith(b"HTTP/1.1 1") or len(rest) >= lengths[0]):
            size = lengths[0] if lengths else 0
            found.append((int(head.split()[1]), rest[:size]))
            buffer = rest[size:]
            continue
        piece = sock.recv(65536)
        assert piece, f"closed after {found} and {buffer!r}"
        buffer += piece
    assert not buffer, f"more than {count} answers: {buffer!r}"
    return found


def got(answer: tuple[int, bytes]) -> object:
    assert answer[0] == 200, answer
    return json.loads(answer[1])["got"]


def test_a_connection_is_kept(plain: Deployed) -> None:
    with connection(plain) as sock:
        for number in range(3):
            sock.sendall(sized(b"%d" % number))
            assert [got(answer) for answer in answers(sock, 1)] == [number]


def test_pipelined_requests_are_answered_in_order_plain_or_not(plain: Deployed) -> None:
    chunked = post(b"1\r\n1\r\n0\r\n\r\n", "transfer-encoding: chunked")
    with connection(plain) as sock:
        sock.sendall(sized(b"0") + chunked + sized(b"2") + sized(b"{") + sized(b"4"))
        zeroth, first, second, wrong, fourth = answers(sock, 5)
    assert [got(one) for one in (zeroth, first, second, fourth)] == [0, 1, 2, 4]
    assert wrong[0] == 400


def test_a_chunked_body_arrives_whole(plain: Deployed) -> None:
    text = json.dumps("x" * 100_000).encode()
    pieces = [text[at : at + 7_001] for at in range(0, len(text), 7_001)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    with connection(plain) as sock:
        sock.sendall(post(body, "transfer-encoding: chunked"))
        assert [got(answer) for answer in answers(sock, 1)] == ["x" * 100_000]


def test_expect_continue_is_answered_before_the_body_comes(plain: Deployed) -> None:
    with connection(plain) as sock:
        sock.sendall(post(b"", "content-length: 1", "expect: 100-continue"))
        assert answers(sock, 1) == [(100, b"")]
        sock.sendall(b"7")
        assert [got(answer) for answer in answers(sock, 1)] == [7]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["content-length: 9000000"], 413),
        (["content-length: 1", "content-encoding: gzip"], 415),
        (["content-length: 1", "x-request-timeout: never"], 400),
    ],
)
def test_expect_continue_is_refused_without_asking_for_the_body(
    plain: Deployed, headers: list[str], status: int
) -> None:
    with connection(plain) as sock:
        sock.sendall(post(b"", *headers, "expect: 100-continue"))
        assert [code for code, _ in answers(sock, 1)] == [status]


def test_http2_by_prior_knowledge_on_the_same_port(plain: Deployed) -> None:
    with plain.client(http1=False, http2=True) as client:
        for number in range(3):
            answer = client.post("/inference", json=number)
            assert (answer.http_version, answer.json()["got"]) == ("HTTP/2", number)


def test_tls_speaks_http2_to_those_who_can(file: Path, tmp_path: Path) -> None:
    certificate = make(tmp_path)
    flags = ("--certfile", str(certificate.cert), "--keyfile", str(certificate.key))
    with deployed(file, *flags) as running:
        assert running.url.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=str(certificate.cert))
        for http2 in (True, False):
            with running.client(verify=trust, http2=http2) as client:
                answer = client.post("/inference", json=http2)
                assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
                assert answer.json()["got"] is http2


def test_a_key_that_cannot_be_read_ends_the_start_with_the_reason(file: Path, tmp_path: Path) -> None:
    certificate = make(tmp_path)
    text = file.read_text().replace("[frontend]", '[frontend]\ncertfile = "cert.pem"\nkeyfile = "absent.pem"')
    other = write_service(tmp_path / "deployment", text, SERVICE)
    (other.parent / "cert.pem").write_bytes(certificate.cert.read_bytes())
    words = r"it ended with 4(?s:.)*deployment/absent.pem for TLS: No such file"
    with pytest.raises(AssertionError, match=words), deployed(other):
        pytest.fail("it started")


def test_compression_is_a_flag(file: Path) -> None:
    data = ["a word"] * 1000
    with deployed(file, "--compression") as running, running.client() as client:
        for accept, coding in (("gzip", "gzip"), ("identity", None), ("br;q=1, gzip;q=0.5", "gzip")):
            answer = client.post(
                "/inference",
                content=gzip.compress(json.dumps(data).encode()),
                headers={"content-encoding": "gzip", "accept-encoding": accept},
            )
            assert answer.headers.get("content-encoding") == coding
            assert answer.headers["vary"] == "accept-encoding"
            assert answer.json() == {"got": data, "coding": None}
        bomb = gzip.compress(bytes(20 << 20))
        assert client.post("/inference", content=bomb, headers={"content-encoding": "gzip"}).status_code == 413
        assert client.post("/inference", content=b"no", headers={"content-encoding": "gzip"}).status_code == 400
        assert client.post("/inference", content=b"1", headers={"content-encoding": "br"}).status_code == 415


def test_a_client_of_httpx_needs_to_know_nothing_of_it(file: Path) -> None:
    with deployed(file, "--compression") as running, httpx.Client(base_url=running.url, trust_env=False) as client:
        answer = client.post("/inference", json=["a word"] * 1000, timeout=30)
        assert answer.headers["content-encoding"] in ("gzip", "zstd")
        assert len(answer.json()["got"]) == 1000
