"""A connection of the short way with everything around it faked: what it wrote, submitted and handed over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from fakes import READY, FakeClient, deployment

from engine.config.schema import PLAIN, FrontendSection
from engine.core.call import Answer, StreamEvent
from engine.core.messages import Flow, StageState
from frontend.answer import Answering
from frontend.gate import Gate
from frontend.lean import LeanConnection
from frontend.metrics import FrontendMetrics
from frontend.shared import Shared


def head(*fields: str, line: str = "POST /inference HTTP/1.1") -> bytes:
    return "\r\n".join((line, *fields)).encode("latin-1") + b"\r\n\r\n"


def plain(body: bytes, *fields: str, **more: str) -> bytes:
    return head("Host: x", f"Content-Length: {len(body)}", *fields, **more) + body


class FakeTransport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.aborted = False
        self.reading = True
        self.unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> object:
        assert name == "peername"
        return ("192.0.2.1", 1)

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Bench:
    """A connection with everything around it faked."""

    def __init__(self, *, protocol: str = PLAIN, keys: Any = None, **frontend: Any) -> None:
        section = FrontendSection(**frontend)
        self.client = FakeClient()
        self.gate = Gate(section)
        self.gate.keys = keys
        self.metrics = FrontendMetrics("engine", ["/inference", "/second"], 3.0)
        self.handed: list[bytes] = []
        whole = deployment(section, protocol=protocol)
        answering = Answering.of(whole)
        self.shared = Shared(whole, self.client, self.gate, self.metrics, answering, self._take)
        self.shared.linger = lambda transport: transport.close()  # type: ignore[method-assign]
        self.transport = FakeTransport()
        self.connection = LeanConnection(self.shared)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def _take(self, transport: Any, data: bytes) -> asyncio.Protocol:
        assert transport is self.transport
        self.handed.append(data)
        return asyncio.Protocol()

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    @property
    def replies(self) -> list[tuple[int, bytes]]:
        out = []
        rest = self.transport.written
        while rest:
            block, _, rest = rest.partition(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in block.split(b"\r\n") if line.startswith(b"content-length")
            )
            out.append((int(block.split()[1]), rest[:length]))
            rest = rest[length:]
        return out


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


MIME = "text/event-stream"
END = Answer(200, b"", MIME)
FAILED = Answer(422, b"request validation error: no")


class StreamBench(Bench):
    """A connection with a request under way to a stage that, as far as is known, streams."""

    REQUEST = plain(b"1")

    def __init__(self, flow: Flow = Flow.EVENTS, *, known: bool = True, **frontend: Any) -> None:
        super().__init__(**frontend)
        self.flow = flow
        self.mime = MIME if flow is Flow.EVENTS else "image/x-thing"
        self.client.reply = lambda item: None
        if known:
            stages = tuple(StageState(stage.name, 1, 1, 0, 0, 0, flow=flow) for stage in READY.stages)
            self.client.current = replace(READY, stages=stages)
        self.feed(self.REQUEST)

    def send(self, *texts: bytes, mime: str | None = None) -> None:
        for text in texts:
            self.client.streams[-1](StreamEvent(text, self.flow, self.mime if mime is None else mime))

    def end(self, answer: Answer = END) -> None:
        self.client.waiting[-1].set_result(answer)

    @property
    def head(self) -> bytes:
        return self.transport.written.partition(b"\r\n\r\n")[0] + b"\r\n"

    @property
    def body(self) -> tuple[bytes, bool]:
        """The chunks that were written, and whether the last one was."""
        rest = self.transport.written.partition(b"\r\n\r\n")[2]
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            if size == b"0":
                assert rest == b"\r\n"
                return body, True
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return body, False
