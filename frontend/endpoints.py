"""Small endpoints of the service's own, beside its stages: ``[[endpoint]]``, a function for a path.

    def labels(request):
        return ["cat", "dog"]

It runs in the frontend process: an ``async def`` in its event loop, any other in one of a few threads, so that a slow
one holds up neither the stages' requests nor, beyond a bound, anybody else. A function in a thread cannot be
interrupted: its client is answered 408, and the thread is missing until it comes back.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import falcon.asgi
import msgspec

from engine.clock import Deadline
from engine.errors import EngineError
from frontend import errors, media
from frontend import head as heads
from frontend.answer import Reply
from frontend.body import Body
from frontend.errors import Problem, Refusal
from frontend.exchange import Exchange
from frontend.gate import Gate
from frontend.handlers import fill
from frontend.head import Head

THREADS: Final = 8  # of a process, for all of its endpoints
WAITING_MOST: Final = 64  # requests of them that are served or wait for a thread

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

Handler = Callable[..., Any]  # Any: user code, which gives what it likes

log = logging.getLogger("stageline.frontend")


@dataclass(frozen=True)
class Request:
    """What a handler is given. ``headers`` by names in small letters, the last of one that stands there twice;
    ``query`` as it came."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str

    def json(self) -> Any:  # whatever JSON can say
        """The body. Raises ValueError."""
        return _decode(self.body)

    @property
    def params(self) -> dict[str, str]:
        """The query's parameters, decoded; the last of one that stands there twice."""
        from urllib.parse import parse_qsl

        return dict(parse_qsl(self.query, keep_blank_values=True))


class Places:
    """How many may be served at a time, and the threads for it; one for all endpoints of a process."""

    def __init__(self) -> None:
        self.taken = 0
        self._threads: ThreadPoolExecutor | None = None

    @property
    def threads(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="endpoint")
        return self._threads

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


class Endpoint:
    """One path. ``methods`` are added to a resource that has the path already, if one does."""

    def __init__(self, handler: Handler, gate: Gate, places: Places, *, draining: Callable[[], bool], pause_s: float):
        self._handler = handler
        self._gate = gate
        self._places = places
        self._is_draining = draining
        self._pause_s = pause_s

    def on(self, resource: object, methods: tuple[str, ...]) -> None:
        """Serve these methods of a Falcon resource."""
        for method in methods:
            setattr(resource, f"on_{method.lower()}", self.serve)
        if "GET" in methods:
            resource.on_head = self.serve  # type: ignore[attr-defined]

    async def serve(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        exchange = Exchange.of(req.scope)
        head = exchange.head
        assert head is not None
        if self._is_draining():
            raise Refusal(errors.DRAINING)
        if not exchange.fits or self._places.taken >= WAITING_MOST:
            raise Refusal(errors.CAPACITY)
        terms = self._gate.terms(head)
        body = Body(exchange, head, self._gate, terms, pause_s=self._pause_s)
        exchange.at_end.append(body.release)
        data = await body.read() if head.length or head.transfer_encoding else b""
        told = heads.told(head, undone=bool(terms.coding), keyed=self._gate.keys is not None)
        headers = {str(name, "latin-1"): str(value, "latin-1") for name, value in told}
        query = str(head.query, "latin-1")
        method = "GET" if req.method == "HEAD" else req.method
        request = Request(method, head.path, query, headers, data, exchange.request_id)
        fill(resp, await self._answer(head, request, body.left_s))

    async def _answer(self, head: Head, request: Request, left_s: float) -> Reply:
        self._places.taken += 1
        deadline = Deadline(left_s)
        try:
            if inspect.iscoroutinefunction(self._handler):
                given = await asyncio.wait_for(self._handler(request), left_s)
            else:
                loop = asyncio.get_running_loop()
                given = await asyncio.wait_for(
                    loop.run_in_executor(self._places.threads, self._handler, request), left_s
                )
            return _read(given)
        except EngineError as error:
            return self._failed(error)
        except Refusal:
            raise
        except Exception as error:  # user code
            if isinstance(error, TimeoutError | asyncio.TimeoutError) and deadline.passed:  # two before Python 3.11
                raise Refusal(errors.TIMEOUT) from None
            log.error("endpoint %s failed", head.path, exc_info=error, extra={"request_id": request.request_id})
            raise Refusal(errors.INTERNAL) from None
        finally:
            self._places.taken -= 1

    def _failed(self, error: EngineError) -> Reply:
        """An error that it raised on purpose, as of a stage."""
        status = error.status if 300 <= error.status <= 599 else 500
        headers = media.passable(dict(error.headers))
        if error.body is not None:
            mime, body = _body(error.body)
            return Reply(status, media.content_type(error.mime) if error.mime else mime, body, headers)
        raise Refusal(Problem("", status, error.text, headers=dict(headers)))


def _read(given: object) -> Reply:
    """What a handler gave. Raises TypeError where it is nothing that can be sent."""
    if given is None:
        return Reply(204, media.TEXT, b"")
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str) and "/" in given[1]:
        _, body = _body(given[0])
        return Reply(200, media.content_type(given[1]), body)
    mime, body = _body(given)
    return Reply(200, mime, body)


def _body(value: object) -> tuple[str, bytes]:
    if isinstance(value, bytes):
        return "application/octet-stream", value
    if isinstance(value, str):
        return media.TEXT, value.encode()
    return "application/json", _encode(value)
