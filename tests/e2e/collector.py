"""A collector of traces for tests: takes what processes send by OTLP over HTTP, and keeps the spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """As it came; ids in hex."""

    name: str
    trace: str
    id: str
    parent: str
    began_ns: int
    ended_ns: int
    about: dict[str, Any]
    links: list[tuple[str, str]]  # trace, span
    is_error: bool
    events: list[str]
    process: str  # which of ours has sent it
    service: str


@dataclass
class Collector:
    url: str = ""
    spans: list[Span] = field(default_factory=list)

    def of(self, trace: str) -> dict[str, Span]:
        """Of one trace, by name."""
        return {span.name: span for span in [*self.spans] if span.trace == trace}


@contextmanager
def collecting() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            found.spans += spans_of(sent)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass  # not on the tests' output

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def spans_of(sent: ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            name=one.name,
            trace=one.trace_id.hex(),
            id=one.span_id.hex(),
            parent=one.parent_span_id.hex(),
            began_ns=one.start_time_unix_nano,
            ended_ns=one.end_time_unix_nano,
            about=values(one.attributes),
            links=[(link.trace_id.hex(), link.span_id.hex()) for link in one.links],
            is_error=one.status.code == 2,
            events=[event.name for event in one.events],
            process=values(part.resource.attributes).get("stageline.process", ""),
            service=values(part.resource.attributes).get("service.name", ""),
        )
        for part in sent.resource_spans
        for scope in part.scope_spans
        for one in scope.spans
    ]


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
