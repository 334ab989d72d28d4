"""A span for each request to a route, where traces are asked for and the request is sampled.

Its parent is what the client's ``traceparent`` says, whose sampled flag counts as OTEL_TRACES_SAMPLER has it. Of a
request that is not sampled nothing is kept, and nothing travels. The names of attributes are OpenTelemetry's for HTTP.
"""

from __future__ import annotations

import os
from typing import Final

from opentelemetry import trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.core.meta import Traced
from engine.log import get_logger
from engine.tracing import Tracing, epoch_ns
from frontend.answer import Reply
from frontend.head import Head
from frontend.timing import HEADER

GONE: Final = 499  # for a client that left, as it is counted


class Traces:
    """Of a frontend process."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._propagator = _propagator()
        self._complained = False

    def begin(self, head: Head, began_s: float, request_id: str) -> Trace | None:
        """A request to a route; None: it is not sampled. ``began_s``: an instant of the monotonic clock."""
        try:
            carrier = {str(name, "latin-1"): str(value, "latin-1") for name, value in head.fields}
            span = self._tracing.deciding.start_span(
                f"POST {head.path}",
                context=self._propagator.extract(carrier),
                kind=SpanKind.SERVER,
                attributes={
                    "http.request.method": "POST",
                    "http.route": head.path,
                    "url.path": head.path,
                    "stageline.request_id": request_id,
                },
                start_time=epoch_ns(int(began_s * 1e9)),
            )
        except Exception:  # of a sampler or propagator that the variables name; the request is served all the same
            if not self._complained:
                self._complained = True
                get_logger("stageline.frontend").exception("a request cannot be traced")
            return None
        return Trace(span) if span.get_span_context().trace_flags.sampled else None

    def close(self) -> None:
        self._tracing.close()


def _propagator() -> TextMapPropagator:
    """Who reads what clients say of their traces. The SDK's default would read ``baggage`` too, which is used for
    nothing here, and writes a line into the log for each malformed member of it: only where it is asked for."""
    if os.environ.get("OTEL_PROPAGATORS", "").strip():
        try:
            from opentelemetry.propagate import get_global_textmap

            return get_global_textmap()
        except Exception as error:  # of a name that nobody knows: requests are served all the same
            get_logger("stageline.frontend").error("OTEL_PROPAGATORS cannot be had, tracecontext counts: %s", error)
    return TraceContextTextMapPropagator()


class Trace:
    """Of one request that is sampled. ``label``: by what it is found, for metrics; ``told``: for those who compute it;
    ``timing``: for its client, as a part of server-timing."""

    __slots__ = ("_span", "label", "timing", "told")

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        trace_id, flags = trace.format_trace_id(context.trace_id), f"{context.trace_flags & 0xFF:02x}"
        parent = f"00-{trace_id}-{trace.format_span_id(context.span_id)}-{flags}"
        self.label = ("trace_id", trace_id)
        self.told = Traced(parent, context.trace_state.to_header())
        self.timing = f'traceparent;desc="{parent}"'

    def told_in(self, reply: Reply) -> Reply:
        """An answer that says how to find it."""
        return reply._replace(headers=[*reply.headers, (HEADER, self.timing)])

    def end(self, status: int, reason: str = "") -> None:
        """It has been answered, refused, or its client has gone."""
        span, status = self._span, status or GONE
        span.set_attribute("http.response.status_code", status)
        if reason:
            span.set_attribute("stageline.refused", reason)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
        span.end()
