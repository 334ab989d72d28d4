"""Pages of other origins: whose may ask, and what an answer says of it, over both ways in."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from fakes import Response, Service, deployment, unavailable
from running import PATIENCE_S, Running, frontend
from test_same import SERVERS, request

from engine.config.build import read_key
from engine.config.schema import OPENAI, FrontendSection
from frontend.answer import Answering
from frontend.cors import Cors, varied

PAGE = "https://app.example"
ALLOW = "access-control-allow-origin"


def service(*cors: str, **about: object) -> Service:
    return Service(frontend=FrontendSection(address="127.0.0.1", port=0, cors=cors), **about)  # type: ignore[arg-type]


def call(one: Service, method: str = "POST", path: str = "/inference", origin: str = PAGE, **more: str) -> Response:
    headers = [("origin", origin)] if origin else []
    return one.call(
        method, path, headers=[*headers, *[(name.replace("_", "-"), value) for name, value in more.items()]]
    )


def test_a_page_that_may_ask_reads_the_answer_and_errors_too() -> None:
    one = service(PAGE, "https://other.example")
    answer = call(one)
    assert (answer.status, answer.headers[ALLOW], answer.headers["vary"]) == (200, PAGE, "origin")
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "inference-header-content-length" in answer.headers["access-control-expose-headers"]
    one.client.reply = lambda item: unavailable()
    assert (call(one).status, call(one).headers[ALLOW]) == (503, PAGE)
    assert (call(one, path="/nothing").status, call(one, path="/nothing").headers[ALLOW]) == (404, PAGE)
    assert call(one, "GET", "/readyz").headers[ALLOW] == PAGE


@pytest.mark.parametrize(
    "origin", ["", "https://evil.example", "https://app.example.evil", "null", "http://app.example"]
)
def test_others_are_told_nothing_and_caches_that_it_depends(origin: str) -> None:
    answer = call(service(PAGE), origin=origin)
    assert answer.status == 200
    assert ALLOW not in answer.headers
    assert answer.headers["vary"] == "origin"


def test_where_all_may_it_depends_on_nothing() -> None:
    answer = call(service("*"))
    assert answer.headers[ALLOW] == "*"
    assert "vary" not in answer.headers
    assert ALLOW not in call(service("*"), origin="").headers
    assert ALLOW not in call(service()).headers


@pytest.mark.parametrize("path", ["/metrics", "/openapi/metadata.json", "/ui/", "/ui/data"])
def test_what_tells_about_the_service_stays_closed(path: str) -> None:
    one = service("*")
    assert ALLOW not in call(one, "GET", path, host="localhost").headers
    preflight = call(one, "OPTIONS", path, host="localhost", access_control_request_method="GET")
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


def test_a_preflight_is_answered_without_a_key_and_asks_nobody() -> None:
    one = service(PAGE)
    answer = call(
        one,
        "OPTIONS",
        access_control_request_method="POST",
        access_control_request_headers="authorization,content-type",
    )
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers[ALLOW] == PAGE
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert answer.headers["access-control-max-age"] == "7200"
    assert answer.headers["vary"] == "origin, access-control-request-headers"
    assert not one.client.submitted


@pytest.mark.parametrize(
    ("origin", "asked"),
    [
        ("https://evil.example", {"access_control_request_method": "POST"}),
        ("", {"access_control_request_method": "POST"}),
        (PAGE, {}),
        (PAGE, {"access_control_request_method": "CONNECT"}),
        (PAGE, {"access_control_request_method": "POST", "access_control_request_headers": "a: b"}),
    ],
)
def test_what_is_no_preflight_of_a_page_that_may_ask_is_not_answered_as_one(origin: str, asked: dict[str, str]) -> None:
    answer = call(service(PAGE), "OPTIONS", origin=origin, **asked)
    assert "access-control-allow-methods" not in answer.headers
    assert answer.headers["allow"] == "POST"


def test_caches_are_told_once() -> None:
    assert varied([], "origin") == [(b"vary", b"origin")]
    assert varied([(b"a", b"b"), (b"vary", b"accept")], "origin") == [(b"a", b"b"), (b"vary", b"accept, origin")]
    assert varied([(b"vary", b"accept, origin")], "origin") == [(b"vary", b"accept, origin")]
    assert varied([(b"cache-control", b"no-store")], "origin") == [(b"cache-control", b"no-store")]
    assert varied([], "") == []
    both = replace(deployment(), frontend=FrontendSection(cors=(PAGE,), compression=True))
    assert Answering.of(both).vary == "accept-encoding, origin"
    assert Answering.of(replace(both, frontend=FrontendSection(cors=("*", PAGE)))).vary == ""
    assert Cors(("*", PAGE)).vary == ""


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("*", ("*",)),
        ("https://A.example", ("https://a.example",)),
        ("https://a.example:443", ("https://a.example",)),
        ("http://a.example:80", ("http://a.example",)),
        ("http://a.example:443", ("http://a.example:443",)),
        (["http://localhost:3000", "tauri://localhost", "http://[::1]:3000"],) * 2,
        ("https://a.example, https://b.example", ("https://a.example", "https://b.example")),
        ([], ()),
        ("", ()),
    ],
)
def test_origins_as_browsers_write_them(value: object, read: tuple[str, ...]) -> None:
    assert read_key("frontend", "cors", value) == tuple(read)


@pytest.mark.parametrize(
    "value", ["a.example", "https://a.example/", "https://*.example", "null", [1], 3, "https://a b"]
)
def test_what_is_no_origin_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match='expected "\\*", or an origin like'):
        read_key("frontend", "cors", value)


# --- both ways in ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    options = {"cors": [PAGE], "tells": True, "compression": True, "protocol": OPENAI, "max_request_size": 1000}
    with ExitStack() as stack:
        yield [
            stack.enter_context(frontend(tmp_path_factory.mktemp(server), server=server, **options))
            for server in SERVERS
        ]


def ask(running: Running, data: bytes) -> dict[str, str]:
    """What an answer says that browsers look at, with its status."""
    with socket.create_connection(running.address, timeout=PATIENCE_S) as sock:
        sock.sendall(data)
        got = b""
        while True:
            head, end, body = got.partition(b"\r\n\r\n")
            fields = [tuple(line.split(": ", 1)) for line in head.decode("latin-1").split("\r\n")[1:]] if end else []
            lengths = [int(value) for name, value in fields if name.lower() == "content-length"]
            if lengths and len(body) >= lengths[0]:
                break
            more = sock.recv(65536)
            assert more, got
            got += more
    names = [name.lower() for name, _ in fields]
    assert len(set(names)) == len(names), names
    kept = {
        name.lower(): value for name, value in fields if name.lower().startswith(("access-", "vary", "content-enc"))
    }
    return {"status": head.split()[1].decode(), **kept}


LENGTH = "content-length: 3"


@pytest.mark.parametrize("origin", [f"origin: {PAGE}", "origin: https://evil.example", "x-origin: none"])
@pytest.mark.parametrize(
    "data",
    [
        request(LENGTH, "ORIGIN"),
        request(LENGTH, "ORIGIN", "connection: close"),
        request("content-length: 999", "ORIGIN", "accept-encoding: gzip, identity;q=0", body=b"x" * 999),
        request(LENGTH, "ORIGIN", "x-request-timeout: soon"),
        request("content-length: 1001", "ORIGIN", body=b""),
        request("ORIGIN", line="GET /readyz HTTP/1.1", body=b""),
        request("ORIGIN", line="HEAD /readyz HTTP/1.1", body=b"").replace(b"HEAD /readyz", b"GET /healthz"),
        request("ORIGIN", line="GET /models HTTP/1.1", body=b""),
        request(LENGTH, "ORIGIN", line="POST /nothing HTTP/1.1"),
        request("ORIGIN", "access-control-request-method: POST", line="OPTIONS /inference HTTP/1.1", body=b""),
    ],
)
def test_both_servers_say_the_same(pairs: list[Running], data: bytes, origin: str) -> None:
    sent = data.replace(b"ORIGIN", origin.encode())
    lean, asgi = [ask(running, sent) for running in pairs]
    assert lean == asgi
    assert (ALLOW in lean) is (PAGE in origin)


def test_two_origins_are_refused(pairs: list[Running]) -> None:
    for running in pairs:
        assert ask(running, request(LENGTH, f"origin: {PAGE}", f"Origin: {PAGE}"))["status"] == "400"


def test_the_same_connection_may_ask_for_several_pages(pairs: list[Running]) -> None:
    """Heads that are alike but for their origin are not taken for one another."""
    for running in pairs:
        with running.connect() as raw:
            for origin in (PAGE, PAGE, PAGE, "https://evil.example", PAGE, "https://evil.example"):
                raw.send(request(LENGTH, f"origin: {origin}"))
                answer = raw.reply()
                assert json.loads(answer.body)["body"] == "abc"
                assert (ALLOW in answer.headers) is (origin == PAGE)
