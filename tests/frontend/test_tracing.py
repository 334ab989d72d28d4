"""A request to a route has one span, however it ends, and only where it is sampled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from fakes import unavailable
from leanbench import END, FAILED, Bench, StreamBench, plain, run, settle
from opentelemetry import baggage
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased

from engine.core.call import Answer
from engine.core.liveness import ANSWER_GRACE_S
from engine.core.meta import traced_of
from engine.tracing import Tracing
from frontend.tracing import Traces

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"traceparent: 00-{TRACE}-b7ad6b7169203331-01"
NOT_SAMPLED = PARENT[:-2] + "00"


def traces(sampler: Sampler | None = None) -> tuple[Traces, InMemorySpanExporter]:
    kept = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(processor := SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("stageline")
    return Traces(Tracing(tracer, tracer, provider, processor)), kept


def of(bench: Bench, sampler: Sampler | None = None) -> InMemorySpanExporter:
    made, kept = traces(sampler)
    bench.metrics.traces = bench.shared.traces = made
    return kept


def only(kept: InMemorySpanExporter) -> ReadableSpan:
    (span,) = kept.get_finished_spans()
    return span


def refusing(spoil: Callable[[Bench], object]) -> Callable[[Bench], None]:
    def sent(bench: Bench) -> None:
        spoil(bench)
        bench.feed(plain(b"1", PARENT))

    return sent


def answering(answer: Answer, *fields: str) -> Callable[[Bench], None]:
    def sent(bench: Bench) -> None:
        bench.client.reply = lambda item: answer
        bench.feed(plain(b"1", PARENT, *fields))

    return sent


def leaving(bench: Bench) -> None:
    bench.client.reply = lambda item: None
    bench.feed(plain(b"1", PARENT))
    bench.connection.connection_lost(None)


def waiting_too_long(bench: Bench) -> None:
    bench.client.reply = lambda item: None
    bench.feed(plain(b"1", PARENT))
    bench.connection.sweep(bench.connection._began + 60.0 + ANSWER_GRACE_S)


def gone(item: object) -> Exception:
    return unavailable()


LONG = Answer(200, b"x" * 4096, "text/plain")


@pytest.mark.parametrize(
    ("happens", "status", "reason", "is_error"),
    [
        pytest.param(answering(Answer(200, b"yes")), 200, None, False, id="answered"),
        pytest.param(answering(LONG, "accept-encoding: gzip"), 200, None, False, id="packed"),
        pytest.param(answering(FAILED), 422, None, False, id="the client's fault"),
        pytest.param(answering(Answer(500, b"no")), 500, None, True, id="failed"),
        pytest.param(leaving, 499, "client_gone", False, id="left"),
        pytest.param(waiting_too_long, 408, "timeout", False, id="late"),
        pytest.param(refusing(lambda b: setattr(b.gate, "pending", 10**7)), 429, "capacity", False, id="full"),
        pytest.param(
            refusing(lambda b: setattr(b.client, "reply", gone)), 503, "unavailable", True, id="away"
        ),
    ],
)  # fmt: skip
def test_however_it_ends_a_request_has_one_span(
    happens: Callable[[Bench], None], status: int, reason: str | None, is_error: bool
) -> None:
    async def scenario() -> None:
        bench = Bench(compression=True)
        kept = of(bench)
        happens(bench)
        await settle()
        span = only(kept)
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == TRACE
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        told: Any = span.attributes
        assert told["http.response.status_code"] == status
        assert told.get("stageline.refused") == reason
        assert span.status.is_ok is not is_error
        if status in (200, 422, 500):
            says = f'server-timing: traceparent;desc="00-{TRACE}-{span.context.span_id:016x}-01"\r\n'.encode()
            assert bench.transport.written.count(says) == 1
        assert bench.connection._trace is None

    run(scenario())


@pytest.mark.parametrize("ends", ["whole", "left"])
def test_a_stream_is_a_span_until_its_end(ends: str) -> None:
    async def scenario() -> None:
        bench = StreamBench()
        kept = of(bench)
        bench.end()  # the one that was begun before
        await settle()
        bench.transport.written = b""
        bench.feed(plain(b"1", PARENT))
        bench.send(b"one")
        await settle()
        assert not kept.get_finished_spans()
        assert TRACE.encode() in bench.head
        if ends == "whole":
            bench.end(END)
        else:
            bench.connection.connection_lost(None)
        await settle()
        told: Any = only(kept).attributes
        assert told["http.response.status_code"] == (200 if ends == "whole" else 499)

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "sampler", "sampled"),
    [
        ((PARENT,), None, True),
        ((NOT_SAMPLED,), None, False),
        ((), None, True),
        ((), ParentBased(TraceIdRatioBased(0.0)), False),
        ((PARENT,), ParentBased(TraceIdRatioBased(0.0)), True),  # whose client has decided
        ((PARENT,), TraceIdRatioBased(0.0), False),  # that lets no client decide
        (("traceparent: 00-0-0-01",), None, True),  # that says nothing: a trace of its own
    ],
)
def test_the_sampler_decides_and_only_what_is_sampled_travels(
    fields: tuple[str, ...], sampler: Sampler | None, sampled: bool
) -> None:
    async def scenario() -> None:
        bench = Bench()
        kept = of(bench, sampler)
        calls: list[Any] = []
        hand = bench.client.call

        def call(one: Any, instant: float) -> int:
            calls.append(one)
            return hand(one, instant)

        bench.client.call = call  # type: ignore[method-assign]
        bench.feed(plain(b"1", *fields))
        await settle()
        assert len(kept.get_finished_spans()) == sampled
        told = traced_of(calls[0].meta)
        assert (told is not None) is sampled
        assert (b"traceparent" in bench.transport.written) is sampled
        if told is not None:
            context = only(kept).context
            assert context is not None
            assert told.parent == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    run(scenario())


def test_a_sampler_that_fails_costs_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Sampler):
        def should_sample(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no")

        def get_description(self) -> str:
            return "fails"

    async def scenario() -> None:
        bench = Bench()
        of(bench, Failing())
        bench.feed(plain(b"1"), plain(b"2"))
        await settle()
        assert [code for code, _ in bench.replies] == [200, 200]

    run(scenario())
    assert caplog.text.count("a request cannot be traced") == 1


BAGGAGE = "opentelemetry.baggage.propagation"


@pytest.mark.parametrize(("propagators", "read"), [("", None), ("tracecontext,baggage", "1"), ("  ", None)])
def test_baggage_is_read_only_where_it_is_asked_for(
    propagators: str, read: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", propagators)
    caplog.set_level("WARNING", logger=BAGGAGE)  # as it is where nobody has set it
    found: list[object] = []

    class Looking(TraceIdRatioBased):
        def should_sample(self, parent_context: Any, *rest: Any, **more: Any) -> Any:
            found.append(baggage.get_baggage("good", parent_context))
            return super().should_sample(parent_context, *rest, **more)

    async def scenario() -> None:
        bench = Bench()
        of(bench, Looking(1.0))
        bench.feed(plain(b"1", "baggage: good=1," + "no good," * 100))
        await settle()
        assert [code for code, _ in bench.replies] == [200]

    run(scenario())
    assert found == [read]
    assert bool([one for one in caplog.records if one.name == BAGGAGE]) is (read is not None)


def test_a_propagator_that_cannot_be_had_is_said_and_costs_no_trace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "pigeon")
    monkeypatch.setitem(sys.modules, "opentelemetry.propagate", None)  # it reads the variable when it is imported

    async def scenario() -> None:
        bench = Bench()
        kept = of(bench)
        bench.feed(plain(b"1", PARENT))
        await settle()
        context = only(kept).context
        assert context is not None
        assert f"{context.trace_id:032x}" == TRACE

    run(scenario())
    assert caplog.text.count("OTEL_PROPAGATORS cannot be had") == 1
