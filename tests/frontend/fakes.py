"""A client without a broker, a deployment without a file, and a way to call an ASGI application by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.clock import now
from engine.config.schema import (
    OIP,
    PLAIN,
    Deployment,
    EndpointSection,
    EngineSection,
    FrontendSection,
    RouteSection,
    StageSection,
)
from engine.core import meta
from engine.core.about import pack_all as pack_abouts
from engine.core.call import Answer, Call, StreamEvent
from engine.core.link import View
from engine.core.messages import Qos, StageState
from engine.core.oip import Asked
from engine.core.reasons import CODES
from engine.core.wire import pack_step
from engine.errors import Unavailable
from engine.metrics import Sources, pack_sources
from frontend.answer import Answering
from frontend.app import create
from frontend.exchange import Application, Event
from frontend.gate import Gate
from frontend.metrics import FrontendMetrics

NAME = "fake:1"
READY = View(
    connected=True,
    draining=False,
    headroom=1000,
    stages=(StageState("first", 1, 1, 0, 0, 0), StageState("second stage", 2, 2, 0, 0, 0)),
)


def deployment(
    frontend: FrontendSection | None = None, *, grace: float = 5.0, protocol: str = PLAIN, model: tuple[str, ...] = ()
) -> Deployment:
    """Two stages; ``/inference`` through both, ``/second`` through the second, which speak ``protocol``; of the Open
    Inference Protocol models of these names."""
    paths = ("/inference", "/second")
    if protocol == OIP:
        paths = ("/v2/models/inference/infer", "/v2/models/second/infer")
    return Deployment(
        file=Path("/nowhere/stages.toml"),
        engine=EngineSection(name="fake", grace=grace),
        frontend=frontend or FrontendSection(address="127.0.0.1", port=0),
        stages=(
            StageSection(name="first", worker="service:First"),
            StageSection(name="second stage", worker="service:Second"),
        ),
        routes=(
            RouteSection(path=paths[0], stages=("first", "second stage"), protocol=protocol, model=model),
            RouteSection(path=paths[1], stages=("second stage",), protocol=protocol),
        ),
    )


@dataclass(frozen=True)
class Submitted:
    route: int
    body: bytes
    timeout_s: float
    request_id: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    asked: Asked | None = None
    qos: Qos | None = None
    memo: bytes = b""


@dataclass(eq=False)
class Held:
    """A request that the fake broker has, until the test lets it go."""

    call: Call

    def set_result(self, answer: Answer) -> None:
        self.call.waiter.answered(answer)


@dataclass
class FakeClient:
    """Answers what ``reply`` says: an Answer, an error to raise, or None for no answer at all. Default: echo."""

    reply: Callable[[Submitted], Answer | Exception | None] = lambda item: echo(item)
    current: View = READY
    sources: bytes | Exception = field(default_factory=lambda: pack_sources(Sources()))
    abouts: bytes | Exception = field(default_factory=lambda: pack_abouts({}))
    status: bytes | Exception = b'{"name": "fake", "stages": []}'
    asked: list[str] = field(default_factory=list)  # questions
    submitted: list[Submitted] = field(default_factory=list)
    waiting: list[Held] = field(default_factory=list)
    cancelled: list[Held] = field(default_factory=list)
    started: int = 0
    closed: int = 0
    streams: list[Callable[[StreamEvent], None]] = field(default_factory=list)  # of the calls, in order
    taken: dict[int, int] = field(default_factory=dict)  # bytes of events reported as consumed
    _calls: list[Held] = field(default_factory=list)

    def call(self, call: Call, instant: float) -> int:
        head = meta.head_of(call.meta)
        timeout_s = round(call.deadline - now(), 2)
        request_id = meta.request_id_of(call.meta)
        item = Submitted(
            call.route,
            bytes(call.body),
            timeout_s,
            request_id,
            head.query,
            head.headers,
            head.asked,
            call.qos,
            call.memo,
        )
        self.submitted.append(item)
        reply = self.reply(item)
        if isinstance(reply, Exception):
            raise reply
        held = Held(call)
        self._calls.append(held)
        self.streams.append(call.waiter.event)
        if reply is None:
            self.waiting.append(held)
        else:
            asyncio.get_running_loop().call_soon(self._answer, held, reply)
        return len(self._calls)

    def _answer(self, held: Held, answer: Answer) -> None:
        if held not in self.cancelled:
            held.set_result(answer)

    def consumed(self, seq: int, nbytes: int) -> None:
        self.taken[seq] = self.taken.get(seq, 0) + nbytes

    def withdraw(self, seq: int) -> None:
        self.cancelled.append(self._calls[seq - 1])

    def give_back(self) -> None:
        pass

    def view(self) -> View:
        return self.current

    def stage(self, name: str) -> StageState | None:
        return next((stage for stage in self.current.stages if stage.name == name), None)

    @property
    def is_joined(self) -> bool:
        return bool(self.current.stages)

    async def ask(self, what: str, *, timeout_s: float = 2.0) -> bytes:
        self.asked.append(what)
        found = {"metrics": self.sources, "about": self.abouts, "status": self.status}[what]
        if isinstance(found, Exception):
            raise found
        return found

    async def start(self) -> None:
        self.started += 1

    async def close(self) -> None:
        self.closed += 1


def echo(item: Submitted) -> Answer:
    return Answer(200, item.body, "application/json", pack_step(1496 + CODES["full"], 30, 2000) + pack_step(8, 0, 250))


def unavailable() -> Unavailable:
    return Unavailable(503, "service unavailable: stage first has no worker", retry_after_s=7)


# --- an application under test ---------------------------------------------------------------------------------------


@dataclass
class Service:
    """The application with its collaborators in reach."""

    client: FakeClient = field(default_factory=FakeClient)
    frontend: FrontendSection = field(default_factory=lambda: FrontendSection(address="127.0.0.1", port=0))
    protocol: str = PLAIN
    model: tuple[str, ...] = ()
    endpoints: dict[str, tuple[tuple[str, ...], Any]] = field(default_factory=dict)  # path -> methods, handler

    def __post_init__(self) -> None:
        whole = deployment(self.frontend, protocol=self.protocol, model=self.model)
        own = tuple(EndpointSection(path, "x:y", methods) for path, (methods, _) in self.endpoints.items())
        whole = replace(whole, endpoints=own)
        handlers = {path: handler for path, (_, handler) in self.endpoints.items()}
        paths = whole.paths
        self.metrics = FrontendMetrics(whole.engine.namespace, paths, self.frontend.timeout)
        self.gate = Gate(self.frontend)
        answering = Answering.of(whole)
        self.app: Application = create(
            whole, self.client, self.metrics, self.gate, answering, name=NAME, handlers=handlers
        )

    def view(self, **changes: Any) -> None:
        self.client.current = replace(self.client.current, **changes)

    def call(self, method: str, path: str, body: bytes = b"", **options: Any) -> Response:
        """One request, answered; see :class:`Exchange` for the options."""
        return run(Exchange(self.app, method, path, [body], **options).response())


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it to its end in an event loop of its own; hanging is a failure."""
    return asyncio.run(asyncio.wait_for(work, 20))


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Exchange:
    """One ASGI call, with the client's side in the test's hands: what it sends, when it stops, when it leaves."""

    def __init__(
        self,
        app: Application,
        method: str,
        path: str,
        chunks: Sequence[bytes] = (b"",),
        *,
        headers: Sequence[tuple[str, str]] = (),
        query: str = "",
        length: int | None = None,
        ends: bool = True,
        peer: tuple[str, int] | None = ("127.0.0.1", 1),
        version: str = "1.1",
    ) -> None:
        """``length``: a Content-Length to claim, default the true one. ``ends`` false: the body never ends. ``peer``:
        where the connection comes from; ``version``: what it speaks."""
        self._app = app
        names = {name.lower() for name, _ in headers}
        lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
        if "transfer-encoding" not in names and "content-length" not in names:
            lines.append((b"content-length", str(sum(map(len, chunks)) if length is None else length).encode()))
        if "host" not in names:
            lines.insert(0, (b"host", b"test"))
        self._scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": version,
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": lines,
            "client": peer,
            "server": ("127.0.0.1", 2),
        }
        self._events: list[Event] = [
            {"type": "http.request", "body": chunk, "more_body": not ends or index < len(chunks) - 1}
            for index, chunk in enumerate(chunks)
        ]
        self.received = 0  # body events the application asked for
        self._gone: asyncio.Event | None = None
        self._sent: list[Event] = []

    async def response(self) -> Response:
        self._gone = asyncio.Event()
        await self._app(self._scope, self._receive, self._send)
        start, *rest = self._sent
        headers: dict[str, str] = {}
        for name, value in start["headers"]:
            assert name == name.lower()
            assert name.decode() not in headers, f"{name!r} twice"
            headers[name.decode()] = value.decode("latin-1")
        return Response(start["status"], headers, b"".join(event.get("body", b"") for event in rest))

    async def call(self) -> int:
        """Only run it; gives the number of events the application sent."""
        self._gone = self._gone or asyncio.Event()
        await self._app(self._scope, self._receive, self._send)
        return len(self._sent)

    def leave(self) -> None:
        """The client closes its connection."""
        self._gone = self._gone or asyncio.Event()
        self._gone.set()

    async def _receive(self) -> Event:
        if self.received < len(self._events):
            self.received += 1
            return self._events[self.received - 1]
        assert self._gone is not None
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Event) -> None:
        self._sent.append(event)
