"""Spans of what a worker does for requests that are sampled: that they waited, the batch, and each one's computing.

In the trace of each request, below its frontend's span:

    STAGE queue   from its arrival at the stage until the worker begins with its batch
    STAGE         its computing, decoding and encoding too

and, of a batch of several requests, ``STAGE batch`` in a trace of its own, which is linked to those that are sampled
and they to it. While ``forward`` runs, the current span is the request's where it gets one value, and the batch's
where it gets several; so spans of the user's own, and what their libraries send, belong where they should. Where
nobody is sampled, what is current says so, and samplers that look at their parent make nothing of the user's either.

The main thread alone comes here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.core.messages import Batch
from engine.core.messages import Status as Code
from engine.core.meta import traced_of
from engine.core.reasons import TIME
from engine.errors import ProtocolError
from engine.tracing import Tracing, epoch_ns
from stages.compute import OK, Outcome
from stages.context import PADDING, ItemIn

TEXT_MOST: Final = 256  # bytes of an error's text

_propagator = TraceContextTextMapPropagator()
_UNSAMPLED: Final = trace.set_span_in_context(
    NonRecordingSpan(SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.DEFAULT))), Context()
)


class Traces:
    """Of a worker. Made when user code has been loaded, which may have an idea of its own of who makes its spans."""

    def __init__(self, tracing: Tracing, stage: str, slot: int) -> None:
        self._tracing = tracing
        self._stage = stage
        self._about: dict[str, str | int] = {"stageline.stage": stage, "stageline.worker": slot}
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(tracing.provider)
        contexts.attach(_UNSAMPLED)

    def begin(self, batch: Batch, items: Sequence[ItemIn], since_ns: int) -> Spans | None:
        """A batch that left the queue at ``since_ns``; None: nobody in it is sampled."""
        parents = [(place, parent) for place, item in enumerate(items) if (parent := _parent_of(item)) is not None]
        if not parents:
            return None
        tracer = self._tracing.decided
        began, left = epoch_ns(time.monotonic_ns()), epoch_ns(since_ns)
        about: dict[str, str | int] = {
            **self._about,
            "stageline.batch.size": len(items),
            "stageline.batch.reason": batch.reason,
        }
        own: dict[int, Span] = {}
        for place, parent in parents:
            item = items[place]
            each = {**about, "stageline.request_id": item.request_id, "stageline.attempt": item.attempt}
            came = left - (batch.queues_us[place] & TIME) * 1000
            queue = tracer.start_span(f"{self._stage} queue", parent, attributes=each, start_time=came)
            queue.add_event("released", {"stageline.batch.reason": batch.reason}, left)
            queue.end(began)
            own[place] = tracer.start_span(self._stage, parent, attributes=each, start_time=began)
        whole = None
        if len(items) > 1:
            links = [Link(span.get_span_context()) for span in own.values()]
            name = f"{self._stage} batch"
            whole = tracer.start_span(name, Context(), attributes=about, links=links, start_time=began)
            for span in own.values():
                span.add_link(whole.get_span_context())
        return Spans(own, whole, items)

    def close(self) -> None:
        self._tracing.close()


class Spans:
    """Of one batch."""

    def __init__(self, own: dict[int, Span], whole: Span | None, items: Sequence[ItemIn]) -> None:
        self._own = own
        self._whole = whole
        self._by_uid = {items[place].uid: span for place, span in own.items()}

    @contextmanager
    def current(self, items: Sequence[ItemIn]) -> Iterator[None]:
        """While ``forward`` computes these."""
        real = [item.uid for item in items if item.uid != PADDING]
        span = self._by_uid.get(real[0]) if len(real) == 1 else self._whole
        token = contexts.attach(_UNSAMPLED if span is None else trace.set_span_in_context(span, Context()))
        try:
            yield
        finally:
            contexts.detach(token)

    def failed(self, place: int, error: BaseException) -> None:
        """What user code raised for the item at this place."""
        if (span := self._own.get(place)) is not None:
            span.record_exception(error)

    def end(self, outcomes: Sequence[Outcome]) -> None:
        """It has been computed: what became of each."""
        errors = 0
        for place, span in self._own.items():
            errors += _say(span, outcomes[place])
            span.end()
        if self._whole is not None:
            if errors == len(self._own):
                self._whole.set_status(Status(StatusCode.ERROR))
            self._whole.end()

    def broken(self, error: BaseException) -> None:
        """The worker is of no more use: others compute these."""
        for span in (*self._own.values(), *([self._whole] if self._whole is not None else [])):
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, "the worker is replaced"))
            span.end()


def _say(span: Span, outcome: Outcome) -> bool:
    """Whether it is an error: the client's own faults are none of the service's."""
    if outcome.status == OK:
        return False
    if outcome.status == Code.SKIPPED:
        span.set_attribute("stageline.skipped", True)
        return False
    span.set_attribute("stageline.status", outcome.status)
    if outcome.status < Code.FAILED and outcome.status != Code.TIMEOUT:
        return False
    text = outcome.payload if isinstance(outcome.payload, bytes) else b""
    span.set_status(Status(StatusCode.ERROR, text[:TEXT_MOST].decode("utf-8", "replace")))
    return True


def _parent_of(item: ItemIn) -> Context | None:
    try:
        told = traced_of(item.meta)
    except ProtocolError:  # whoever asks for its headers is told so
        return None
    if told is None:
        return None
    return _propagator.extract({"traceparent": told.parent, "tracestate": told.state}, Context())
