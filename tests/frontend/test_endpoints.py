"""Small endpoints of the service's own: what a handler is given, what becomes of what it gives, and its bounds."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes import Exchange, Response, Service, deployment, run

from engine.config.schema import EndpointSection, FrontendSection, RouteSection
from engine.errors import ClientError, EngineError
from frontend import app, endpoints, errors
from frontend.answer import Answering
from frontend.endpoints import Request
from frontend.head import Head
from frontend.hook import Hook
from frontend.openapi import document


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Their threads end with the test, as they do with the process."""
    made: list[endpoints.Places] = []

    def places() -> endpoints.Places:
        made.append(endpoints.Places())
        return made[-1]

    monkeypatch.setattr(app, "Places", places)
    yield
    for one in made:
        one.close()
        if one._threads is not None:
            one._threads.shutdown(wait=True)


def service(handler: Any, *methods: str, path: str = "/labels", **about: Any) -> Service:
    return Service(endpoints={path: (methods or ("GET",), handler)}, **about)


def test_a_handler_is_given_the_request() -> None:
    seen: list[Request] = []

    def handler(request: Request) -> object:
        seen.append(request)
        return {"n": request.json()["n"], "at": request.params}

    answer = service(handler, "PUT").call(
        "PUT", "/labels", b'{"n": 3}', query="a=1%202&a=3&b=", headers=[("X-A", "é"), ("x-request-id", "me-1")]
    )
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert json.loads(answer.body) == {"n": 3, "at": {"a": "3", "b": ""}}
    (request,) = seen
    assert (request.method, request.path, request.query, request.request_id) == (
        "PUT", "/labels", "a=1%202&a=3&b=", "me-1",
    )  # fmt: skip
    assert request.headers["x-a"] == "é"


@pytest.mark.parametrize(
    ("given", "status", "mime", "body"),
    [
        ([1, {"a": None}], 200, "application/json", b'[1,{"a":null}]'),
        ("größe", 200, "text/plain; charset=utf-8", "größe".encode()),
        (b"\x00", 200, "application/octet-stream", b"\x00"),
        (("a,b", "text/csv"), 200, "text/csv", b"a,b"),
        (("a", "b"), 200, "application/json", b'["a","b"]'),
        (None, 204, None, b""),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_what_it_gives_is_the_answer(given: object, status: int, mime: str, body: bytes, is_async: bool) -> None:
    async def later(request: Request) -> object:
        await asyncio.sleep(0)
        return given

    answer = service(later if is_async else lambda request: given).call("GET", "/labels")
    assert (answer.status, answer.body) == (status, body)
    assert mime is None or answer.headers["content-type"] == mime


def test_a_head_is_a_get_without_its_body() -> None:
    answer = service(lambda request: request.method).call("HEAD", "/labels")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "3")


def test_other_methods_are_not_allowed_and_those_of_a_route_stay() -> None:
    one = service(lambda request: "about it", path="/inference")
    assert one.call("GET", "/inference").body == b"about it"
    assert one.call("POST", "/inference", b"1").body == b"1"
    answer = one.call("DELETE", "/inference")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST, OPTIONS")


class Teapot(EngineError):
    status = 418
    prefix = "teapot"
    headers = {"x-a": "b", "content-length": "3"}


class Own(EngineError):
    status = 429
    body = {"mine": 1}


def raising(error: Exception) -> Any:
    def handler(request: Request) -> object:
        raise error

    return handler


def test_errors_are_those_of_stages(caplog: pytest.LogCaptureFixture) -> None:
    def asked(error: Exception, **about: Any) -> Response:
        return service(raising(error), **about).call("GET", "/labels")

    answer = asked(ClientError("no such label"))
    assert (answer.status, answer.text) == (400, "bad request: no such label")
    answer = asked(Teapot("short"))
    assert (answer.status, answer.text, answer.headers["x-a"]) == (418, "teapot: short", "b")
    answer = asked(Own())
    assert (answer.status, json.loads(answer.body)) == (429, {"mine": 1})
    with caplog.at_level(logging.ERROR):
        answer = asked(ValueError("a secret of the code"))
        assert (answer.status, answer.text) == (500, "internal error")
        assert asked(TimeoutError("of a database")).status == 500
    assert "a secret of the code" in caplog.text
    assert service(lambda request: object()).call("GET", "/labels").status == 500


@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_takes_too_long_is_408(is_async: bool) -> None:
    ended = threading.Event()

    async def later(request: Request) -> object:
        await asyncio.sleep(60)
        return None

    def slow(request: Request) -> object:
        return ended.wait(60)

    one = service(later if is_async else slow)
    try:
        answer = one.call("GET", "/labels", headers=[("x-request-timeout", "0.05")])
        assert (answer.status, answer.text) == (408, "inference timeout")
    finally:
        ended.set()


def test_there_are_not_too_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "WAITING_MOST", 2)

    async def scenario() -> list[int]:
        go = asyncio.Event()

        async def handler(request: Request) -> object:
            await go.wait()
            return 1

        one = service(handler)
        under_way = [asyncio.create_task(Exchange(one.app, "GET", "/labels").response()) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        third = await Exchange(one.app, "GET", "/labels").response()
        go.set()
        return [third.status, *[(await task).status for task in under_way]]

    assert run(scenario()) == [429, 200, 200]


def test_the_services_own_form_of_errors_knows_its_path() -> None:
    own = replace(deployment(), endpoints=(EndpointSection("/labels", "a:b"),))
    answering = Answering.of(own)
    answering.hook = Hook(lambda status, problem, route: (route, "text/plain"))
    assert answering.problem(errors.TIMEOUT, Head("/labels", b"", []), "id").body == b"/labels"
    assert answering.problem(errors.NOT_FOUND, Head("/other", b"", []), "id").body == b""


def test_it_passes_the_gate() -> None:
    one = service(lambda request: 1, "POST", frontend=FrontendSection(max_request_size=10))
    assert one.call("POST", "/labels", b"x" * 11).status == 413
    one.gate.draining = True
    assert one.call("POST", "/labels", b"x").status == 503
    assert one.gate.held == 0


def test_it_is_counted_and_in_the_document() -> None:
    one = service(lambda request: 1)
    one.call("GET", "/labels")
    (answers,) = [family for family in one.metrics.families() if family.name == "engine_throughput"]
    assert answers.samples[0].labels == {"code": "200", "endpoint": "/labels"}
    own = (EndpointSection("/labels", "service:all_labels", ("GET", "PUT")), EndpointSection("/inference", "a:b"))
    paths = document(replace(deployment(), endpoints=own), {})["paths"]
    assert paths["/labels"]["get"]["summary"] == "all labels"
    assert "put" in paths["/labels"]
    assert {"get", "post"} <= set(paths["/inference"])
    under_ui = replace(deployment(), endpoints=(EndpointSection("/ui", "a:b"),))
    assert not under_ui.has_page
    assert replace(deployment(), routes=(RouteSection("/a", ("first",)),), endpoints=own).paths == (
        "/a", "/labels", "/inference",
    )  # fmt: skip
