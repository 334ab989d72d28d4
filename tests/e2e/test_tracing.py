"""Traces of a running deployment, as a collector gets them: over two stages and their processes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from collector import Collector, Span, collecting
from harness import Deployed, deployed, wait_for, write_service

TOML = """
[engine]
name = "traced"

[frontend]
timeout = 30.0  # one request waits for a killed worker's start, and for OpenTelemetry in it

[[stage]]
name = "first"
worker = "service:First"
max_batch_size = 2
max_wait_time = 300

[[stage]]
name = "second"
worker = "service:Second"
"""

CODE = """
import os
import signal

from opentelemetry import trace

from engine import Worker

tracer = trace.get_tracer("theirs")


class First(Worker):
    def forward(self, values):
        with tracer.start_as_current_span("theirs in first"):
            for place, value in enumerate(values):
                if value.get("die") and self.context(place).attempt == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
            return values


class Second(Worker):
    def forward(self, value):
        with tracer.start_as_current_span("theirs in second"):
            if value.get("fail"):
                raise RuntimeError("as asked")
            return value
"""

ALL = {"POST /inference", "first queue", "first", "second queue", "second"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def service(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    file = write_service(tmp_path_factory.mktemp("traced"), TOML, CODE)
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with deployed(file, env=env) as running:
        yield running


def post(client: httpx.Client, trace: str, *, flags: str = "01", **value: object) -> httpx.Response:
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-{flags}", "tracestate": "vendor=x"}
    return client.post("/inference", json=value, headers=headers, timeout=30)


def whole(collector: Collector, trace: str, *names: str) -> dict[str, Span]:
    return wait_for(
        "all spans of a request", lambda: named if (named := collector.of(trace)).keys() >= set(names) else {}
    )


def pair(service: Deployed, collector: Collector) -> tuple[list[str], list[httpx.Response]]:
    """Two requests that were computed together: how soon they come after each other is the machine's affair."""

    def sent() -> tuple[list[str], list[httpx.Response]] | None:
        traces = [secrets.token_hex(16) for _ in range(2)]
        with service.client() as client, ThreadPoolExecutor(2) as pool:
            answers = [one.result() for one in [pool.submit(post, client, trace) for trace in traces]]
        sizes = [whole(collector, trace, *ALL)["first"].about["stageline.batch.size"] for trace in traces]
        return (traces, answers) if sizes == [2, 2] else None

    return wait_for("a batch of two", sent)


def test_a_request_is_one_trace_and_its_batch_is_linked(service: Deployed, collector: Collector) -> None:
    traces, answers = pair(service, collector)
    assert {one.status_code for one in answers} == {200}
    for trace, answer in zip(traces, answers, strict=True):
        spans = whole(collector, trace, *ALL, "theirs in second")
        server = spans["POST /inference"]
        assert (server.parent, server.process, server.service) == ("00f067aa0ba902b7", "frontend", "traced")
        assert server.about["http.response.status_code"] == 200
        assert f'traceparent;desc="00-{trace}-{server.id}-01"' in answer.headers["server-timing"]
        for name in ALL - {"POST /inference"}:
            assert spans[name].parent == server.id
            assert spans[name].process == "worker"
            assert spans[name].about["stageline.request_id"] == answer.headers["x-request-id"]
            assert not spans[name].is_error
        assert server.began_ns <= spans["first queue"].ended_ns <= spans["first"].began_ns <= spans["first"].ended_ns
        assert spans["first"].ended_ns <= spans["second"].began_ns <= spans["second"].ended_ns <= server.ended_ns
        assert spans["theirs in second"].parent == spans["second"].id
        assert spans["first queue"].events == ["released"]
    both = [collector.of(trace)["first"] for trace in traces]
    ((batch_trace, batch_id),) = both[0].links
    of_batch = whole(collector, batch_trace, "first batch", "theirs in first")
    batch = of_batch["first batch"]
    assert batch.id == batch_id
    assert (batch.parent, batch.trace in traces) == ("", False)
    assert sorted(batch.links) == sorted((span.trace, span.id) for span in both)
    assert [span.links for span in both] == [[(batch.trace, batch.id)]] * 2
    assert of_batch["theirs in first"].parent == batch.id


def test_spans_of_the_users_own_are_the_requests_where_it_is_computed_alone(
    service: Deployed, collector: Collector
) -> None:
    trace = secrets.token_hex(16)
    with service.client() as client:
        assert post(client, trace).status_code == 200
    spans = whole(collector, trace, *ALL, "theirs in first", "theirs in second")
    assert spans["theirs in first"].parent == spans["first"].id
    assert not spans["first"].links


def test_a_request_that_is_not_sampled_leaves_nothing(service: Deployed, collector: Collector) -> None:
    silent, told = secrets.token_hex(16), secrets.token_hex(16)
    with service.client() as client:
        answer = post(client, silent, flags="00")
        assert "traceparent" not in answer.headers["server-timing"]
        before = len([span for span in collector.spans if span.name.startswith("theirs")])
        post(client, told)
        whole(collector, told, *ALL, "theirs in second")
    assert not collector.of(silent)
    after = len([span for span in collector.spans if span.name.startswith("theirs")])
    assert after - before <= 2  # of the second request, and none of the first


def test_a_failure_is_marked_where_it_happened(service: Deployed, collector: Collector) -> None:
    trace = secrets.token_hex(16)
    with service.client() as client:
        assert post(client, trace, fail=True).status_code == 500
    spans = whole(collector, trace, *ALL)
    assert {name for name, span in spans.items() if span.is_error} == {"POST /inference", "second", "theirs in second"}
    assert spans["second"].events == ["exception"]
    assert spans["POST /inference"].about["error.type"] == "500"


def test_what_is_computed_again_says_which_attempt_it_is(service: Deployed, collector: Collector) -> None:
    """Of the first nothing is sent: its process was killed."""
    trace = secrets.token_hex(16)
    with service.client() as client:
        assert post(client, trace, die=True).status_code == 200
    spans = whole(collector, trace, *ALL)
    assert [spans[name].about["stageline.attempt"] for name in ("first queue", "first", "second")] == [2, 2, 1]


def test_requests_that_go_the_long_way_have_the_same_trace(service: Deployed, collector: Collector) -> None:
    trace = secrets.token_hex(16)
    with service.client() as client:
        answer = client.post(  # a trailer is nothing that the short way knows
            "/inference", json={}, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "te": "trailers"}
        )
        assert answer.status_code == 200
        assert trace in answer.headers["server-timing"]
        server = whole(collector, trace, *ALL)["POST /inference"]
        told = client.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
    assert server.parent == "00f067aa0ba902b7"
    assert 'trace_id="' in told  # what is in a bucket of the latencies can be looked at
