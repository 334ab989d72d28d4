"""Errors in a form of the service's own, whoever makes them, and what becomes of a function that does not work."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fakes import deployment
from hooks import body
from running import Running, frontend, launched
from test_same import SERVERS, request

from engine.config.build import read_key
from engine.config.schema import OPENAI
from engine.core.call import Answer
from engine.loader import load_function
from frontend import errors, media
from frontend.answer import Answering, Reply
from frontend.head import Head
from frontend.hook import Hook

HEAD = Head("/inference", b"", [], accept=b"application/json")


def answering(function: Any, protocol: str = "plain") -> Answering:
    made = Answering.of(deployment(protocol=protocol))
    made.hook = Hook(function)
    return made


def test_it_writes_refusals_and_failures_of_any_route() -> None:
    one = answering(body, OPENAI)
    reply = one.problem(errors.CAPACITY, HEAD, "id")
    assert (reply.status, reply.mime) == (429, "application/x+json")
    assert json.loads(reply.body) == {
        "oops": errors.CAPACITY.detail, "why": "capacity", "at": "/inference", "status": 429,
    }  # fmt: skip
    assert ("retry-after", "1") in reply.headers
    failed = one.result(0, HEAD, Answer(422, b"request validation error: x"), "id", 0.0)
    assert json.loads(failed.body)["oops"] == "request validation error: x"
    assert json.loads(one.problem(errors.TWICE, None, "id", "/etc").body)["at"] == ""


def test_it_leaves_results_and_bodies_of_error_classes_alone() -> None:
    one = answering(body)
    assert one.result(0, HEAD, Answer(200, b"1"), "id", 0.0).body == b"1"
    own = Answer(409, b"{}", headers={"content-type": "application/x-mine"})
    assert one.result(0, HEAD, own, "id", 0.0).mime == "application/x-mine"


def test_it_may_leave_an_error_as_it_is() -> None:
    assert answering(body).problem(errors.NOT_FOUND, HEAD, "id").mime == media.PROBLEM


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("text", TypeError),
        (("text",), TypeError),
        (("text", b"text/plain"), TypeError),
        ((object(), "application/json"), TypeError),
        (("x", "text/plain\r\nx-a: b"), ValueError),
        (("x" * (1 << 21), "text/plain"), ValueError),
        (RuntimeError("of the user's"), RuntimeError),
    ],
)
def test_what_makes_no_sense_is_passed_over_and_told_once(
    given: object, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def function(status: int, problem: dict[str, Any], route: str) -> object:
        if isinstance(given, Exception):
            raise given
        return given

    one = answering(function)
    with caplog.at_level(logging.ERROR):
        replies: list[Reply] = [one.problem(errors.CAPACITY, HEAD, "id") for _ in range(3)]
    assert {reply.mime for reply in replies} == {media.PROBLEM}
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is kind


def test_text_and_bytes_go_as_they_are() -> None:
    for given in ("größe", "größe".encode()):
        reply = answering(lambda *_, given=given: (given, "text/plain; charset=utf-8")).problem(
            errors.CAPACITY, HEAD, ""
        )
        assert (reply.mime, reply.body.decode()) == ("text/plain; charset=utf-8", "größe")


def test_a_function_is_found_like_a_class(tmp_path: Any) -> None:
    (tmp_path / "sl_hooks.py").write_text("def body(status, problem, route):\n    return None\n\nx = 1\n")
    assert load_function("sl_hooks:body", tmp_path)(1, {}, "") is None
    with pytest.raises(Exception, match=r"has no bodi; did you mean body\?"):
        load_function("sl_hooks:bodi", tmp_path)
    with pytest.raises(Exception, match="x is no function but int"):
        load_function("sl_hooks:x", tmp_path)
    assert read_key("frontend", "errors", "a.b:c") == "a.b:c"
    with pytest.raises(ValueError, match='expected "module:function"'):
        read_key("frontend", "errors", "a.b")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    options = {"max_request_size": 1000, "errors": "tests.frontend.hooks:body"}
    with ExitStack() as stack:
        yield [
            stack.enter_context(frontend(tmp_path_factory.mktemp(server), server=server, **options))
            for server in SERVERS
        ]


@pytest.mark.parametrize(
    ("data", "status", "mime"),
    [
        (request("content-length: 3", "x-request-timeout: soon"), 400, "application/x+json"),
        (request("content-length: 3", line="PUT /inference HTTP/1.1"), 405, "application/x+json"),
        (request("content-length: x"), 400, "application/x+json"),
        (request("content-length: 2000", body=b""), 413, "text/plain; charset=utf-8"),
        (request("content-length: 3", line="POST /nothing HTTP/1.1"), 404, "text/plain; charset=utf-8"),
    ],
)
def test_both_servers_write_the_same(servers: list[Running], data: bytes, status: int, mime: str) -> None:
    seen = []
    for running in servers:
        with running.connect() as raw:
            reply = raw.send(data).reply()
        assert (reply.status, reply.headers["content-type"]) == (status, mime)
        seen.append(reply.body)
    assert seen[0] == seen[1]


def test_a_start_without_the_function_fails(tmp_path_factory: pytest.TempPathFactory) -> None:
    with launched(tmp_path_factory.mktemp("broken"), errors="tests.frontend.hooks:nothing") as running:
        assert running.status.wait(lambda line: line["event"] == "failed")
        assert running.process.wait(20) != 0
        assert "has no nothing" in running.text()
