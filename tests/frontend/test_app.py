"""The whole table of answers, through the application, with a fake client behind it and no sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import weakref
from dataclasses import replace

import pytest
from fakes import Exchange, FakeClient, Response, Service, Submitted, echo, run, unavailable
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from engine.config.schema import FrontendSection
from engine.core import meta
from engine.core.call import Answer
from engine.core.messages import Speaker, StageState
from engine.errors import Unavailable
from frontend import exchange as asgi
from frontend.exchange import Event
from frontend.waiting import QUICK_S, Waiting

ROUTE = "/inference"


def service(reply: object = None, **frontend: object) -> Service:
    client = FakeClient()
    if reply is not None:
        client.reply = lambda item: reply  # type: ignore[assignment,return-value]
    section = FrontendSection(address="127.0.0.1", port=0)
    return Service(client, replace(section, **frontend))  # type: ignore[arg-type]


def never() -> Service:
    """A service that is never answered, with a short deadline."""
    made = service(timeout=0.05)
    made.client.reply = lambda item: None
    return made


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_result_comes_back_with_its_type_id_and_timing() -> None:
    one = service()
    answer = one.call("POST", ROUTE, b'{"x": 1}', headers=[("X-Request-Id", "abc-1")])
    assert (answer.status, answer.body) == (200, b'{"x": 1}')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == "8"
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["server-timing"].startswith(
        'first-queue;dur=1.50;desc="full", first-batch;dur=0.03, first;dur=2.00, '
    )
    assert "second-stage;dur=0.25, total;dur=" in answer.headers["server-timing"]


def test_body_query_headers_route_and_deadline_reach_the_client() -> None:
    one = service()
    one.call("POST", "/second", b"body", query="a=1&b=%20", headers=[("X-Extra", "yes"), ("x-request-id", "r")])
    item = one.client.submitted[0]
    assert (item.route, item.body, item.request_id, item.query) == (1, b"body", "r", b"a=1&b=%20")
    assert (b"x-extra", b"yes") in item.headers
    assert item.timeout_s == 3.0


def test_an_empty_body_is_passed_on_like_any_other() -> None:
    one = service()
    assert one.call("POST", ROUTE).status == 200
    assert one.client.submitted[0].body == b""


def test_a_body_in_pieces_is_one_body() -> None:
    one = service()
    chunked = Exchange(one.app, "POST", ROUTE, [b"a", b"", b"bc"], headers=[("transfer-encoding", "chunked")])
    assert run(chunked.response()).body == b"abc"
    assert run(Exchange(one.app, "POST", ROUTE, [b"a", b"bc"]).response()).body == b"abc"


def test_a_client_may_ask_for_less_time() -> None:
    one = service()
    one.call("POST", ROUTE, headers=[("X-Request-Timeout", "0.5")])
    one.call("POST", ROUTE, headers=[("X-Request-Timeout-Ms", "100")])
    one.call("POST", ROUTE, headers=[("X-Request-Timeout", "500")])
    assert [item.timeout_s for item in one.client.submitted] == [0.5, 0.1, 3.0]


def test_a_workers_headers_are_passed_on_where_harmless() -> None:
    headers = {"X-Model": "m", "Set-Cookie": "a=b", "content-length": "9", "x-bad": "a\r\nb: c"}
    answer = service(Answer(200, b"ok", "text/plain", headers=headers)).call("POST", ROUTE)
    assert answer.headers["x-model"] == "m"
    assert answer.headers["set-cookie"] == "a=b"
    assert answer.headers["content-length"] == "2"
    assert "x-bad" not in answer.headers


def test_a_result_in_borrowed_memory_is_written_out() -> None:
    assert service(Answer(200, memoryview(b"large"))).call("POST", ROUTE).body == b"large"


# --- failures that come from behind ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "bad request: no"),
        (408, "inference timeout"),
        (418, "short and stout"),
        (422, "request validation error: 'x'"),
        (429, "too many requests: at capacity"),
        (500, "inference internal error"),
        (503, "service unavailable: no worker of stage first"),
    ],
)
def test_a_failed_item_is_answered_with_its_status_and_words(status: int, message: str) -> None:
    for speaker in Speaker:
        answer = service(Answer(status, message.encode(), speaker=int(speaker))).call("POST", ROUTE)
        assert (answer.status, answer.text) == (status, message)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        # When to come again is said by who refuses; what a worker answers is its own affair.
        assert ("retry-after" in answer.headers) is (status in (429, 503) and speaker is not Speaker.WORKER)
        assert "total;dur=" in answer.headers["server-timing"]


def test_a_failed_items_headers_are_its_own() -> None:
    answer = service(Answer(503, b"later", headers={"Retry-After": "30"})).call("POST", ROUTE)
    assert answer.headers["retry-after"] == "30"


def test_a_redirection_of_the_services_own() -> None:
    answer = service(Answer(307, b"elsewhere", headers={"location": "/there"})).call("POST", ROUTE)
    assert (answer.status, answer.headers["location"], answer.text) == (307, "/there", "elsewhere")
    assert service(Answer(304, b"not modified", headers={"etag": '"a"'})).call("POST", ROUTE).body == b""


@pytest.mark.parametrize("status", [0, 99, 204, 299, 600])
def test_a_status_that_is_no_failure_is_not_passed_on_as_one(status: int) -> None:
    assert service(Answer(status, b"odd")).call("POST", ROUTE).status == 500


def test_a_message_that_is_no_text_is_answered_all_the_same() -> None:
    assert service(Answer(400, b"\xff\xfe")).call("POST", ROUTE).status == 400


def test_problem_details_for_a_client_that_asks_for_json() -> None:
    accept = [("Accept", "application/json"), ("x-request-id", "p1")]
    answer = service(Answer(422, b"request validation error: 'x'")).call("POST", ROUTE, headers=accept)
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "request validation error: 'x'",
        "request_id": "p1",
    }


# --- refused here ----------------------------------------------------------------------------------------------------


def refused(answer: Response, status: int, words: str) -> None:
    assert (answer.status, answer.text) == (status, words)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert len(answer.headers["x-request-id"]) == 32


def test_an_unknown_path_is_404() -> None:
    refused(service().call("POST", "/nowhere"), 404, "not found")
    refused(service().call("GET", "/openapi/nothing"), 404, "not found")
    refused(service().call("POST", ROUTE + "/"), 404, "not found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method_is_405_and_says_what_is_allowed(method: str) -> None:
    answer = service().call(method, ROUTE)
    refused(answer, 405, "method not allowed")
    assert "POST" in answer.headers["allow"].split(", ")


def test_options_says_what_is_allowed() -> None:
    answer = service().call("OPTIONS", ROUTE)
    assert answer.status == 200
    assert "POST" in answer.headers["allow"]


@pytest.fixture
def all_bodies_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a body that is refused is read to keep the connection."""
    monkeypatch.setattr("frontend.exchange.SMALL_BODY", -1)


@pytest.mark.parametrize("framing", [(), (("transfer-encoding", "chunked"),)])
def test_a_small_body_that_is_refused_is_read_to_its_end_first(framing: tuple[tuple[str, str], ...]) -> None:
    one = service()
    one.gate.draining = True
    exchange = Exchange(one.app, "POST", ROUTE, [b"a", b"b", b"c"], headers=framing)
    assert run(exchange.response()).status == 503
    assert exchange.received == 3
    asks = Exchange(one.app, "POST", ROUTE, [b"a", b"b"], headers=[*framing, ("expect", "100-continue")])
    assert run(asks.response()).status == 503
    assert asks.received == 0


def test_a_small_body_that_does_not_come_holds_its_refusal_up_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("frontend.exchange.SMALL_BODY_S", 0.01)
    one = service()
    one.gate.draining = True
    assert run(Exchange(one.app, "POST", ROUTE, [b"a"], length=5, ends=False).response()).status == 503


@pytest.mark.usefixtures("all_bodies_are_large")
def test_a_declared_length_past_the_limit_is_413_before_anything_is_read() -> None:
    one = service(max_request_size=10)
    exchange = Exchange(one.app, "POST", ROUTE, [b"x" * 11])
    refused(run(exchange.response()), 413, "request body too large")
    assert exchange.received == 0
    assert one.client.submitted == []


@pytest.mark.usefixtures("all_bodies_are_large")
def test_a_chunked_body_is_413_with_the_chunk_that_goes_too_far() -> None:
    one = service(max_request_size=10)
    chunks = [b"x" * 6, b"x" * 6, b"x" * 6, b"x" * 6]
    exchange = Exchange(one.app, "POST", ROUTE, chunks, headers=[("transfer-encoding", "chunked")])
    refused(run(exchange.response()), 413, "request body too large")
    assert exchange.received == 2
    assert one.gate.held == 0


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    assert service(max_request_size=10).call("POST", ROUTE, b"x" * 10).status == 200


@pytest.mark.parametrize("length", [5, 2])
def test_a_body_of_another_length_than_declared_is_400(length: int) -> None:
    answer = service().call("POST", ROUTE, b"abc", length=length)
    refused(answer, 400, "bad request: the body ended before its declared length")


@pytest.mark.parametrize("headers", [[("content-length", "100")], [("transfer-encoding", "chunked")]])
def test_a_client_cut_off_in_its_body_submits_nothing(headers: list[tuple[str, str]]) -> None:
    one = service()
    exchange = Exchange(one.app, "POST", ROUTE, [b"abc"], headers=headers, ends=False)
    exchange_response = exchange.response

    async def cut() -> Response:
        task = asyncio.ensure_future(exchange_response())
        await until(lambda: exchange.received == 1)
        exchange.leave()
        return await task

    assert run(cut()).status == 400
    assert one.client.submitted == []
    assert one.gate.held == 0


@pytest.mark.parametrize("text", ["-1", "1 0", "0x10", "ten", "9" * 30])
def test_an_unreadable_length_is_400(text: str) -> None:
    answer = service().call("POST", ROUTE, headers=[("content-length", text)])
    refused(answer, 400, "bad request: unreadable content-length")


def test_a_body_that_stalls_is_408() -> None:
    one = service(body_timeout=0.05)
    answer = run(Exchange(one.app, "POST", ROUTE, [b"abc"], length=10, ends=False).response())
    refused(answer, 408, "request timeout: the body came too slowly")
    assert one.gate.held == 0


def test_a_content_encoding_is_415() -> None:
    one = service()
    answer = one.call("POST", ROUTE, b"x", headers=[("Content-Encoding", "gzip")])
    refused(answer, 415, "unsupported content-encoding")
    assert answer.headers["accept-encoding"] == "identity"
    assert one.call("POST", ROUTE, b"x", headers=[("Content-Encoding", "Identity")]).status == 200


def test_a_transfer_coding_other_than_chunked_is_501() -> None:
    answer = service().call("POST", ROUTE, b"x", headers=[("transfer-encoding", "gzip, chunked")])
    assert answer.status == 501


@pytest.mark.parametrize("header", [("x-request-timeout", "soon"), ("x-request-timeout-ms", "0")])
def test_an_unreadable_timeout_is_400(header: tuple[str, str]) -> None:
    assert service().call("POST", ROUTE, headers=[header]).status == 400


@pytest.mark.usefixtures("all_bodies_are_large")
def test_over_capacity_is_429_before_anything_is_read() -> None:
    one = service()
    one.view(headroom=0)
    exchange = Exchange(one.app, "POST", ROUTE, [b"x"])
    answer = run(exchange.response())
    refused(answer, 429, "too many requests: at capacity")
    assert answer.headers["retry-after"] == "1"
    assert exchange.received == 0


@pytest.mark.usefixtures("all_bodies_are_large")
def test_too_many_bytes_waiting_is_429_before_anything_is_read() -> None:
    one = service(capacity_bytes=100)
    one.gate.hold(95)
    exchange = Exchange(one.app, "POST", ROUTE, [b"x" * 6])
    answer = run(exchange.response())
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert exchange.received == 0
    assert one.call("POST", ROUTE, b"x" * 5).status == 200
    assert one.gate.held == 95


@pytest.mark.usefixtures("all_bodies_are_large")
def test_too_many_bytes_in_chunks_is_429_with_the_chunk_that_goes_too_far() -> None:
    one = service(capacity_bytes=10)
    chunks = [b"x" * 6, b"x" * 6, b"x"]
    exchange = Exchange(one.app, "POST", ROUTE, chunks, headers=[("transfer-encoding", "chunked")])
    assert run(exchange.response()).status == 429
    assert exchange.received == 2
    assert one.gate.held == 0


def test_draining_is_503() -> None:
    one = service()
    one.gate.draining = True
    answer = one.call("POST", ROUTE)
    refused(answer, 503, "service unavailable: shutting down")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(("status", "reason"), [(429, "capacity"), (503, "unavailable")])
def test_what_the_client_refuses_is_answered_with_its_words(status: int, reason: str) -> None:
    answer = service(Unavailable(status, "in other words", retry_after_s=7)).call("POST", ROUTE)
    assert (answer.status, answer.text, answer.headers["retry-after"]) == (status, "in other words", "7")


# --- waiting ---------------------------------------------------------------------------------------------------------


async def until(condition: object, timeout_s: float = 10.0) -> None:
    """Let others run until it holds."""
    assert callable(condition)
    end = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it never came true"
        await asyncio.sleep(0)


def test_no_answer_in_time_is_408_and_cancels() -> None:
    one = never()
    refused(one.call("POST", ROUTE), 408, "inference timeout")
    assert one.client.cancelled == one.client.waiting
    assert one.gate.pending == 0


def test_no_answer_from_a_broker_that_was_never_reached_is_503() -> None:
    one = never()
    one.view(connected=False)
    answer = one.call("POST", ROUTE)
    refused(answer, 503, "service unavailable: the broker cannot be reached")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("turns", [0, 1])
def test_an_answer_is_awaited_past_the_quick_wait(turns: int) -> None:
    one = service()
    one.client.reply = lambda item: None

    async def answered() -> Response:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(Exchange(one.app, "POST", ROUTE).response())
        await until(lambda: bool(one.client.waiting))
        assert one.gate.pending == 1
        loop.call_later(0.05 * turns, one.client.waiting[0].set_result, Answer(200, b"late"))
        response: Response = await task
        return response

    assert run(answered()).body == b"late"
    assert one.client.cancelled == []
    assert one.gate.pending == 0


def test_a_request_that_is_over_does_not_wait_for_the_garbage_collector() -> None:
    """Which looks rarely: large answers would pile up until then."""
    one = service()
    one.client.reply = lambda item: None

    async def receive() -> Event:
        await asyncio.Event().wait()
        raise AssertionError

    async def served() -> weakref.ref[Waiting]:
        waiting = Waiting(asgi.Exchange(None, "", receive), one.client, one.gate, "first")
        waiting.submit(0, b"", timeout_s=20.0, meta=meta.pack("", meta.pack_head(b"", [])))
        asyncio.get_running_loop().call_later(3 * QUICK_S, one.client.waiting[0].set_result, Answer(200, b"late"))
        await waiting.begin()
        waiting.end()
        for held in (one.client.waiting, one.client._calls, one.client.streams):
            held.clear()
        return weakref.ref(waiting)

    async def over() -> None:
        waiting = await served()
        await until(lambda: waiting() is None)

    gc.collect()
    gc.disable()
    try:
        run(over())
    finally:
        gc.enable()


def test_a_client_that_leaves_cancels_its_item_and_gets_nothing() -> None:
    one = service()
    one.client.reply = lambda item: None
    exchange = Exchange(one.app, "POST", ROUTE)

    async def leave() -> int:
        task = asyncio.ensure_future(exchange.call())
        await until(lambda: bool(one.client.waiting))
        exchange.leave()
        return await task

    assert run(leave()) == 0
    assert one.client.cancelled == one.client.waiting
    assert one.gate.pending == one.gate.held == 0
    assert 'engine_throughput_total{code="499",endpoint="/inference"} 1' in one.call("GET", "/metrics").text


def test_a_call_that_is_stopped_from_outside_cancels_its_item() -> None:
    one = service()
    one.client.reply = lambda item: None

    async def stop() -> None:
        task = asyncio.ensure_future(Exchange(one.app, "POST", ROUTE).call())
        await until(lambda: bool(one.client.waiting))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(stop())
    assert one.client.cancelled == one.client.waiting
    assert one.gate.pending == 0


def test_capacity_of_this_process_is_429_for_the_next() -> None:
    one = service(capacity=2)
    one.client.reply = lambda item: None

    async def fill() -> list[Response]:
        calls = [asyncio.ensure_future(Exchange(one.app, "POST", ROUTE).response()) for _ in range(2)]
        await until(lambda: len(one.client.waiting) == 2)
        third = await Exchange(one.app, "POST", ROUTE).response()
        for future in one.client.waiting:
            future.set_result(Answer(200, b"ok"))
        one.client.reply = echo
        return [third, *await asyncio.gather(*calls), await Exchange(one.app, "POST", ROUTE).response()]

    assert [answer.status for answer in run(fill())] == [429, 200, 200, 200]


# --- our own mistakes ------------------------------------------------------------------------------------------------


def test_a_mistake_of_ours_is_500_once_in_the_log_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    one = service(RuntimeError("secret /etc/passwd"))
    with caplog.at_level(logging.DEBUG):
        answer = one.call("POST", ROUTE, headers=[("x-request-id", "oops")])
    assert (answer.status, answer.text) == (500, "internal error")
    assert answer.headers["x-request-id"] == "oops"
    found = [record for record in caplog.records if record.exc_info]
    assert len(found) == 1
    assert found[0].request_id == "oops"  # type: ignore[attr-defined]
    assert one.gate.pending == one.gate.held == 0


# --- health ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_health_is_200_and_never_cached(path: str) -> None:
    answer = service().call("GET", path)
    assert answer.status == 200
    assert json.loads(answer.body)["status"] in ("ok", "ready")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics"])
def test_head_is_get_without_a_body(path: str) -> None:
    answer = service().call("HEAD", path)
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


def test_health_while_draining() -> None:
    one = service()
    one.gate.draining = True
    assert [one.call("GET", path).status for path in ("/", "/healthz", "/readyz")] == [503, 200, 503]


def test_ready_only_when_every_stage_has_a_warm_worker() -> None:
    one = service()
    one.view(stages=(StageState("first", 1, 0, 1, 0, 0), one.client.current.stages[1]))
    answer = one.call("GET", "/readyz")
    assert answer.status == 503
    assert json.loads(answer.body)["stages"][0] == {"name": "first", "ready": 0, "wanted": 1, "starting": 1}
    assert one.call("GET", "/").status == 200


def test_health_is_get_only() -> None:
    answer = service().call("POST", "/healthz")
    assert answer.status == 405
    assert "GET" in answer.headers["allow"]


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_count_answers_by_code_and_endpoint_with_bounded_labels() -> None:
    one = service()
    one.call("POST", ROUTE, b"1234")
    one.call("POST", ROUTE, b"1234")
    for number in range(5):
        one.call("GET", f"/nowhere/{number}")
    one.call("GET", "/healthz")
    one.client.reply = lambda item: Answer(422, b"no")
    one.call("POST", "/second")
    text = one.call("GET", "/metrics").text
    assert 'engine_throughput_total{code="200",endpoint="/inference"} 2' in text
    assert 'engine_throughput_total{code="404",endpoint="other"} 5' in text
    assert 'engine_throughput_total{code="422",endpoint="/second"} 1' in text
    assert 'engine_rejections_total{reason="not_found"} 5' in text
    assert 'engine_request_duration_second_count{endpoint="/inference"} 2' in text
    assert 'engine_process_duration_second_count{connection="total",stage="total"} 3' in text
    assert "engine_request_bytes_total 8" in text
    assert "engine_frontend_pending 0" in text
    assert "engine_broker_up 1" in text
    assert text.count("engine_throughput_total{") == 3


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,*/*;q=0.8", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
         "text/plain;version=0.0.4;q=0.3,*/*;q=0.2", True),  # Prometheus 2
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;"
         "version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,"
         "*/*;q=0.2", True),  # Prometheus 3
        ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.5", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
        ("openmetrics", False),
    ],
)  # fmt: skip
def test_metrics_are_openmetrics_for_whoever_would_rather_have_that(accept: str, is_open: bool) -> None:
    one = service()
    one.call("POST", ROUTE, b"1234")
    answer = one.call("GET", "/metrics", headers=[("accept", accept)] if accept else [])
    assert answer.headers["vary"] == "accept"
    assert answer.headers["content-type"].startswith(
        "application/openmetrics-text; version=1.0.0" if is_open else "text/plain"
    )
    assert ("# EOF" in answer.text) is is_open
    found = [
        line for line in answer.text.splitlines() if 'request_duration_second_bucket{endpoint="/inference"' in line
    ]
    assert any("request_id" in line for line in found) is is_open
    if is_open:
        families = {family.name for family in text_string_to_metric_families(answer.text)}
        assert "engine_request_duration_second" in families


@pytest.mark.parametrize("trouble", [unavailable(), b"garbage"])
def test_metrics_without_the_broker_are_this_process_own(trouble: bytes | Exception) -> None:
    one = service()
    one.client.sources = trouble
    one.call("POST", ROUTE)
    answer = one.call("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "engine_broker_up 0" in answer.text
    assert 'engine_throughput_total{code="200",endpoint="/inference"} 1' in answer.text


# --- life ------------------------------------------------------------------------------------------------------------


def test_the_lifespan_starts_and_closes_the_client() -> None:
    one = service()
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> dict[str, object]:
        return next(events)

    async def send(event: dict[str, object]) -> None:
        sent.append(str(event["type"]))
        if len(sent) == 1:
            assert (one.client.started, one.client.closed) == (1, 0)

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
    run(one.app(scope, receive, send))  # type: ignore[arg-type]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert (one.client.started, one.client.closed) == (1, 1)


def test_the_fake_echoes() -> None:
    assert echo(Submitted(0, b"x", 1.0, "r", b"", [])).body == b"x"
