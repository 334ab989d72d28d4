"""OpenTelemetry in one process, where its standard variables ask for it: who makes spans, and who sends them.

Nothing of OpenTelemetry is imported unless one of VARIABLES is set. What it does then is said by its own variables
(``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER`` and so on), and none of ours.

A frontend decides of each request whether it is sampled, and workers are told (:mod:`engine.core.meta`): so there are
two tracers, one that asks the sampler and one for what has been decided. Spans are handed to a thread of the SDK, which
sends them and drops what is too much; a collector that is away costs spans and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.log import get_logger

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.trace import Tracer

VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
CLOSE_S: Final = 2.0  # for the last spans to leave
VALUE_MOST: Final = 8192  # characters of an attribute: user code may raise megabytes, and thousands of spans may wait
_EXPORTERS: Final = {"otlp", "console"}
_TALKATIVE: Final = ("opentelemetry.baggage.propagation", "opentelemetry.trace.span")  # by what clients write


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether somebody asks for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporter != "none" and any(environ.get(name, "").strip() for name in VARIABLES)


@dataclass(frozen=True)
class Tracing:
    """Of a process. ``deciding`` asks the sampler, ``decided`` makes every span that is asked for; ``provider`` is for
    spans of the user's own."""

    deciding: Tracer
    decided: Tracer
    provider: TracerProvider
    _processor: Any

    def close(self) -> None:
        """Send what there is, for CLOSE_S at most: who is being stopped does not wait for a collector."""
        closing = threading.Thread(target=self._close, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    def _close(self) -> None:
        try:
            self._processor.shutdown()
        except Exception:
            get_logger().exception("the last spans cannot be sent")


def begin(service: str, process: str, **about: str | int) -> Tracing | None:
    """The tracing of this process, part ``process`` of deployment ``service``; None where nobody asks for it, or it
    cannot be had, which is said. Not before a fork: the thread that sends would stay behind."""
    if not is_wanted(os.environ):
        return None
    try:
        return _begin(service, process, about)
    except ImportError as error:
        get_logger().warning(
            "no traces, although OTEL_ variables ask for them: pip install 'stageline[otel]'",
            extra={"reason": str(error)},
        )
    except Exception as error:  # a variable that makes no sense to the SDK: requests are served all the same
        get_logger().error("no traces, although OTEL_ variables ask for them: %s", error)
    return None


def _begin(service: str, process: str, about: Mapping[str, str | int]) -> Tracing | None:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    exporter = _exporter(os.environ)
    if exporter is None:
        return None
    name = f"{os.uname().nodename}:{os.getpid()}"
    attributes: dict[str, str | int] = {"service.instance.id": name, "stageline.process": process, **about}
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in given:
        attributes["service.name"] = service
    resource = Resource.create(attributes)
    processor = BatchSpanProcessor(_telling(exporter))
    # The variable for spans alone overrules it, and leaves events, which hold what was raised, to this bound.
    limits = SpanLimits(max_attribute_length=None if "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in os.environ else VALUE_MOST)
    # Its own way to exit may take half a minute.
    deciding = TracerProvider(resource=resource, shutdown_on_exit=False, span_limits=limits)
    decided = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, span_limits=limits)
    for talkative in _TALKATIVE:  # a line for each malformed member of a header of theirs
        logging.getLogger(talkative).setLevel(logging.ERROR)
    for provider in (deciding, decided):
        provider.add_span_processor(processor)
    return Tracing(deciding.get_tracer("stageline"), decided.get_tracer("stageline"), deciding, processor)


def _exporter(environ: Mapping[str, str]) -> Any:
    """As the variables say; None, and a line in the log, for one that is not known."""
    which = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if which not in _EXPORTERS:
        get_logger().error("no traces: OTEL_TRACES_EXPORTER is %s, and may be otlp, console or none", which)
        return None
    if which == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol == "grpc":  # its package is not of the extra: it is large
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # type: ignore[import-not-found,unused-ignore]
            OTLPSpanExporter as OverGrpc,
        )

        return OverGrpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _telling(exporter: Any) -> Any:
    """The same, but it says when spans begin to be lost and when they are not any more, where the SDK's own would say
    several times a second that they are."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    log = get_logger()
    if not log.isEnabledFor(logging.DEBUG):
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    class Telling(SpanExporter):
        def __init__(self) -> None:
            self._lost = 0

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result: SpanExportResult = exporter.export(spans)
            if result is not SpanExportResult.SUCCESS:
                if not self._lost:
                    log.warning("traces cannot be sent, and are lost; with --log-level debug the log says why")
                self._lost += len(spans)
            elif self._lost:
                log.info("traces are sent again", extra={"lost": self._lost})
                self._lost = 0
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Telling()


def epoch_ns(monotonic_ns: int) -> int:
    """When that was by the clock on the wall, as it is now: what spans begin and end by."""
    return time.time_ns() - time.monotonic_ns() + monotonic_ns
