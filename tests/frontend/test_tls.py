"""TLS: which files are taken, which versions are spoken, and HTTP/2 by negotiation, through a real gunicorn."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from certificates import Certificate, make
from running import Raw, Running, frontend, launched, post, wait_until

from engine.errors import StartError
from engine.exitcodes import ExitCode
from frontend import tls


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make(tmp_path_factory.mktemp("certificate"))


# --- files ---


def test_without_a_certificate_there_is_no_tls() -> None:
    assert tls.context("", "", http2=True) is None


@pytest.mark.parametrize("separate", [True, False])
def test_certificate_and_key_in_two_files_or_one(certificate: Certificate, separate: bool) -> None:
    files = (certificate.cert, certificate.key) if separate else (certificate.both, "")
    context = tls.context(*map(str, files), http2=True)
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_what_cannot_be_used_is_said(certificate: Certificate, tmp_path: Path) -> None:
    stranger = make(tmp_path, "stranger")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    cases = {
        ("", certificate.key): "keyfile is set and certfile is not",
        (tmp_path / "absent.pem", certificate.key): "absent.pem for TLS: No such file or directory",
        (certificate.cert, tmp_path / "absent.pem"): "absent.pem for TLS: No such file or directory",
        (tmp_path, certificate.key): "Is a directory",
        (certificate.cert, ""): "they are no certificate and key in PEM",
        (text, certificate.key): "they are no certificate and key in PEM",
        (certificate.cert, text): "they are no certificate and key in PEM",
        (certificate.key, certificate.cert): "they are no certificate and key in PEM",
        (certificate.cert, stranger.key): "they do not belong together",
        (certificate.cert, certificate.locked): "is encrypted",
    }
    for (cert, key), words in cases.items():
        with pytest.raises(StartError, match=words):
            tls.context(str(cert), str(key), http2=True)


def test_a_frontend_that_cannot_serve_tls_does_not_start(certificate: Certificate, tmp_path: Path) -> None:
    with launched(tmp_path, certfile=str(certificate.cert), keyfile=str(certificate.locked)) as running:
        failed = running.status.wait(lambda line: line["event"] == "failed")
        assert "is encrypted" in failed["reason"]
        assert running.process.wait(20) == ExitCode.START


# --- connections ---


@pytest.fixture(scope="module", params=["lean", "asgi"])
def running(
    request: pytest.FixtureRequest, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    files = {"certfile": str(certificate.cert), "keyfile": str(certificate.key)}
    with frontend(tmp_path_factory.mktemp("frontend"), server=request.param, header_timeout=1.0, **files) as running:
        yield running


@pytest.fixture
def trust(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate.cert))


def port(running: Running) -> int:
    return urlsplit(running.url).port or 0


def connect(running: Running, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port(running)), timeout=20)
    return context.wrap_socket(plain, server_hostname="localhost")


def test_the_url_says_https(running: Running) -> None:
    assert running.url.startswith("https://127.0.0.1:")


@pytest.mark.parametrize("http2", [True, False])
def test_the_protocol_is_negotiated(running: Running, trust: ssl.SSLContext, http2: bool) -> None:
    with httpx.Client(base_url=running.url, verify=trust, http2=http2, trust_env=False) as client:
        for body in (b"1", b"x" * 300_000):
            answer = client.post("/inference", content=body)
            assert (answer.status_code, answer.content) == (200, body)
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None), (["spdy/3"], None)]
)
def test_alpn(running: Running, trust: ssl.SSLContext, offered: list[str], chosen: str | None) -> None:
    if offered:
        trust.set_alpn_protocols(offered)
    with connect(running, trust) as sock:
        assert sock.selected_alpn_protocol() == chosen


def test_without_alpn_it_is_http_1_with_keep_alive_and_pipelining(running: Running, trust: ssl.SSLContext) -> None:
    with connect(running, trust) as sock, Raw(sock) as raw:
        raw.send(post(b"1") + post(b"2"))
        assert [raw.reply().body, raw.reply().body] == [b"1", b"2"]
        assert raw.send(post(b"3")).reply().body == b"3"


@pytest.mark.parametrize("size", [0, 8 << 20])
def test_a_large_body_is_refused_over_tls_with_an_answer(running: Running, trust: ssl.SSLContext, size: int) -> None:
    with connect(running, trust) as sock, Raw(sock) as raw:
        with contextlib.suppress(ConnectionError):  # it need not take all of that
            raw.send(post(b"x" * size, length=1 << 40))
        reply = raw.reply()
        assert (reply.status, reply.closes) == (413, True)
        assert raw.at_end()


def test_a_connection_that_is_to_be_closed_ends_when_its_answer_is_there(
    running: Running, trust: ssl.SSLContext
) -> None:
    with connect(running, trust) as sock, Raw(sock) as raw:
        reply = raw.send(post(b"x" * 300_000, "connection: close")).reply()
        assert (reply.status, reply.body, reply.closes) == (200, b"x" * 300_000, True)
        assert raw.at_end()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_that_are_spoken(running: Running, trust: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    trust.minimum_version = trust.maximum_version = version
    with connect(running, trust) as sock, Raw(sock) as raw:
        assert sock.version() == version.name.replace("_", ".")
        assert raw.send(post(b"1")).reply().status == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_an_old_version_is_not(running: Running, trust: ssl.SSLContext) -> None:
    trust.minimum_version = trust.maximum_version = ssl.TLSVersion.TLSv1_1
    trust.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        connect(running, trust)


def test_clear_text_on_the_port_is_not_answered(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", port(running)), timeout=20) as sock:
        sock.sendall(post(b"1"))
        assert not sock.recv(100).startswith(b"HTTP")


def test_a_handshake_that_does_not_go_on_is_ended(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", port(running)), timeout=20) as sock:
        sock.sendall(b"\x16\x03\x01")
        assert sock.recv(100) == b""


def test_a_client_that_leaves_cancels_its_request(running: Running, trust: ssl.SSLContext) -> None:
    with connect(running, trust) as sock:
        sock.sendall(post(b"hang"))
        running.events.wait(lambda line: line["what"] == "submitted" and line["body"] == "hang")
    running.events.wait(lambda line: line["what"] == "cancelled")


def test_it_drains_over_tls_as_over_clear_text(certificate: Certificate, trust: ssl.SSLContext, tmp_path: Path) -> None:
    with frontend(tmp_path, certfile=str(certificate.both)) as running:
        with connect(running, trust) as sock, Raw(sock) as raw:
            raw.send(post(b"after 0.5"))
            running.events.wait(lambda line: line["what"] == "submitted")
            running.process.terminate()
            reply = raw.reply()
            assert (reply.status, reply.body) == (200, b"after 0.5")
        wait_until(lambda: running.process.poll() is not None)
        assert running.process.returncode == 0
