"""OpenTelemetry in a process: asked for by its own variables alone, and never in the way."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from engine import tracing
from engine.core import meta
from engine.core.meta import Traced, head_of, pack, pack_head, traced, traced_of
from engine.errors import ProtocolError

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),  # nowhere to send them
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, False),
    ],
)
def test_traces_are_made_where_the_standard_variables_ask_for_them(environ: dict[str, str], wanted: bool) -> None:
    assert tracing.is_wanted(environ) is wanted


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in ENDPOINT.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_without_the_package_it_is_said_and_nothing_else_happens(
    asked: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    assert tracing.begin("s", "frontend") is None
    assert "stageline[otel]" in caplog.text


def test_an_exporter_that_is_not_known_is_told(asked: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    asked.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    assert tracing.begin("s", "frontend") is None
    assert "zipkin" in caplog.text


def test_a_collector_that_never_answers_does_not_hold_up_the_end(asked: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        asked.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        asked.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
        made = tracing.begin("s", "frontend")
        assert made is not None
        made.decided.start_span("one").end()
        began = time.monotonic()
        made.close()
        assert time.monotonic() - began < tracing.CLOSE_S + 1.0


def test_that_spans_are_lost_is_said_once_and_that_they_are_not_any_more(
    asked: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry.sdk.trace.export import SpanExportResult

    results = [SpanExportResult.FAILURE] * 3 + [SpanExportResult.SUCCESS] * 2

    class Exporter:
        def export(self, spans: object) -> SpanExportResult:
            return results.pop(0)

        def shutdown(self) -> None:
            pass

    asked.setattr(tracing, "_exporter", lambda environ: Exporter())
    made = tracing.begin("s", "frontend")
    assert made is not None
    with caplog.at_level("INFO"):
        for left in range(4, -1, -1):
            made.decided.start_span("one").end()
            made.provider.force_flush()
            end = time.monotonic() + 20.0
            while (
                len(results) > left
            ):  # each by itself: a thread may be about to send it, and the flush not wait for it
                assert time.monotonic() < end
                time.sleep(0.005)
        made.close()
    ours = [record for record in caplog.records if record.name.startswith("stageline")]
    assert [record.message for record in ours] == [
        "traces cannot be sent, and are lost; with --log-level debug the log says why",
        "traces are sent again",
    ]
    assert ours[1].lost == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("environ", "of_events", "of_spans"),
    [
        ({}, tracing.VALUE_MOST, tracing.VALUE_MOST),
        ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "100000"}, 100_000, 100_000),
        ({"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "100000"}, tracing.VALUE_MOST, 100_000),
    ],
)
def test_what_user_code_raises_is_cut_to_a_bound(
    asked: pytest.MonkeyPatch, environ: dict[str, str], of_events: int, of_spans: int
) -> None:
    asked.setenv("OTEL_TRACES_EXPORTER", "console")
    for name, value in environ.items():
        asked.setenv(name, value)
    made = tracing.begin("s", "worker")
    assert made is not None
    try:
        for tracer in (made.deciding, made.decided):
            span: Any = tracer.start_span("one")
            span.record_exception(ValueError("x" * 5_000_000))
            span.set_attribute("long", "x" * 5_000_000)
            (event,) = span.events
            assert len(event.attributes["exception.message"]) == of_events
            assert len(event.attributes["exception.stacktrace"]) == of_events
            assert len(span.attributes["long"]) == of_spans
    finally:
        made.close()


def test_what_clients_write_makes_no_lines_in_the_log(
    asked: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.trace import TraceState

    for name in ("opentelemetry.baggage.propagation", "opentelemetry.trace.span"):
        caplog.set_level("NOTSET", logger=name)  # whoever traced before in this process
    made = tracing.begin("s", "frontend")
    assert made is not None
    made.close()
    W3CBaggagePropagator().extract({"baggage": "no good," * 100})
    TraceState.from_header(["=x,a=1,a=2"])
    assert not caplog.records


def test_the_name_of_the_deployment_is_the_services_unless_it_has_one(asked: pytest.MonkeyPatch) -> None:
    asked.setenv("OTEL_TRACES_EXPORTER", "console")
    for variable, value, name in (
        ("OTEL_SERVICE_NAME", "", "mine"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs", "theirs"),
        ("OTEL_SERVICE_NAME", "another", "another"),
    ):
        asked.setenv(variable, value)
        made = tracing.begin("mine", "worker")
        assert made is not None
        assert made.provider.resource.attributes["service.name"] == name
        made.close()


def test_where_nobody_asks_nothing_is_imported() -> None:
    code = (
        "import sys, frontend.serving.application, frontend.app, stages.runtime.serve, engine.broker.service; "
        "from engine import tracing; assert tracing.begin('s', 'worker') is None; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    env = {"PATH": "/usr/bin"}
    told = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.stdout.strip() == "[]", told.stderr


# --- in a request's meta ---------------------------------------------------------------------------------------------

TRACE = Traced("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=x")


@pytest.mark.parametrize("head", [b"", pack_head(b"a=b", [(b"x-one", b"1")])])
def test_the_trace_of_a_request_travels_beside_what_was_packed_for_many(head: bytes) -> None:
    told = pack("id", traced(head, TRACE))
    assert traced_of(told) == TRACE
    assert meta.request_id_of(told) == "id"
    assert (head_of(told).query, head_of(told).headers) == ((b"a=b", [(b"x-one", b"1")]) if head else (b"", []))
    assert traced_of(pack("id", head)) is None


@pytest.mark.parametrize("told", [b"", b"\x00", b"\x02id"])
def test_a_meta_without_a_head_has_no_trace(told: bytes) -> None:
    assert traced_of(told) is None


@pytest.mark.parametrize("head", [b"\x93", b"\xc1", b"\x93\xc4\x00\x90\x01"])
def test_a_trace_that_cannot_be_read_is_said_so(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        traced_of(pack("id", head))
