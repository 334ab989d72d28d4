"""A streamed answer: events and pieces on their way from the broker to one client, and how such an answer ends.

The head of the answer waits for the first event, the end, or HEAD_S, whichever is first: so a refusal by the broker,
which comes at once, is still a plain HTTP answer, and a client that waits for a slow first event knows soon that it was
let in. From then on

* a stream of events (``text/event-stream``) ends in a last event named ``error`` when the request fails - also by its
  deadline, by the death of its worker, or of the broker. An error before the first event ends it in the same way: its
  readers look for events, and the status was 200 for all who came before;
* a body in pieces can only be cut short: without its last chunk (HTTP/1.1) or by a reset of its stream (HTTP/2). An
  error before the first piece is a plain HTTP answer.

What is held for a client is bounded by the worker's window (:data:`engine.core.messages.STREAM_WINDOW`), which opens as
the client takes what it got. A client that takes nothing for STALL_S is dropped; one that leaves has its request
cancelled, at once and whatever is being written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from typing import Final

from engine.client import Answer, StreamEvent
from engine.clock import now
from engine.core import sse
from engine.core.messages import EVENT_COST, STREAM_WINDOW, Flow, StageState
from engine.errors import Unavailable
from frontend import errors
from frontend.broker import BrokerClient
from frontend.door import Door
from frontend.errors import Problem, Refusal
from frontend.exchange import Exchange, Receive

HEAD_S: Final = 0.1
KEEPALIVE_S: Final = 15.0  # without an event; proxies give up after 30 to 60 s
STALL_S: Final = 60.0
WRITE_MAX: Final = 64 * 1024  # bytes handed to the connection at once: what it buffers before it says "wait"
GRANT: Final = STREAM_WINDOW // 4  # bytes; reported together


class Begun(Enum):
    """What :meth:`Stream.begin` found, other than an answer."""

    STREAMING = "streaming"
    GONE = "the client has left"


class Stream:
    """One streamed answer; Falcon iterates over it. Call :meth:`end` when it is over, however it ended."""

    def __init__(self, exchange: Exchange, client: BrokerClient, door: Door, stage: int) -> None:
        """``stage``: the last one of the route."""
        self.flow = Flow.UNKNOWN
        self.mime = ""
        self._exchange = exchange
        self._client = client
        self._door = door
        self._stage = stage
        self._seq = 0  # while the broker owes an answer
        self._limit_at = 0.0
        self._pending: deque[tuple[bytes, int]] = deque()  # what to write, and how much of the window it is
        self._writing = 0  # of the window: handed out, and not written yet
        self._taken = 0  # of the window: written, and not reported yet
        self._answer: Answer | None = None
        self._gone = False
        self._ended = False
        self._wake = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._stall: asyncio.TimerHandle | None = None

    # --- from submission to the head of the answer -------------------------------------------------------------------

    def submit(self, route: int, body: bytes, *, timeout_s: float, grace_s: float, meta: bytes) -> None:
        """Hand the request to the broker. Raises Refusal. ``grace_s``: how late the broker's answer may be."""
        try:
            self._seq = self._client.call(
                route,
                body,
                self._on_answer,
                timeout_s=timeout_s,
                request_id=self._exchange.request_id,
                meta=meta,
                on_event=self._on_event,
            )
        except Unavailable as error:
            raise Refusal(errors.unavailable(error)) from None
        self._door.pending += 1
        self._limit_at = now() + timeout_s + grace_s
        self._watch = asyncio.get_running_loop().create_task(self._watch_client(self._exchange.receive))

    async def begin(self) -> Answer | Begun:
        """Wait for what the head of the answer depends on. An Answer is to be given whole. Raises Refusal: 408, 503."""
        head_at = now() + HEAD_S
        while True:
            self._learn()
            if self._gone:
                return Begun.GONE
            if self._pending:
                return Begun.STREAMING
            if self._answer is not None:
                refused = self._answer.status in (429, 503) and not self._answer.trail  # no worker has seen it
                return self._answer if refused or self.flow is not Flow.EVENTS else Begun.STREAMING
            if self.flow is Flow.EVENTS and now() >= head_at:
                self._pending.append((sse.COMMENT, 0))  # gunicorn keeps the head until there is a body
                return Begun.STREAMING
            if now() >= self._limit_at:
                raise Refusal(self._late())
            await self._wait(head_at if self.flow is Flow.EVENTS else self._limit_at)

    # --- the body ----------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        self._written()
        keepalive_at = now() + KEEPALIVE_S
        while True:
            if self._gone:
                self._exchange.leave()
                raise StopAsyncIteration
            if self._pending:
                return self._take()
            if self._ended:
                raise StopAsyncIteration
            if self._answer is None and now() >= self._limit_at:
                late = self._late()
                self._answer = Answer(late.status, late.detail.encode())
            if self._answer is not None:
                self._ended = True
                self._finish(self._answer)
            elif self.flow is Flow.EVENTS and now() >= keepalive_at:
                self._pending.append((sse.COMMENT, 0))
            else:
                await self._wait(min(keepalive_at, self._limit_at))

    def end(self) -> None:
        """Nobody waits any more: cancel what is still computed. Call it once at least; more does no harm."""
        if self._seq:
            self._client.withdraw(self._seq)
            self._settle()
        if self._watch is not None:
            self._watch.cancel()
        if self._stall is not None:
            self._stall.cancel()
        self._pending.clear()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _on_event(self, event: StreamEvent) -> None:
        cost = len(event.data) + EVENT_COST
        self._learn()
        if self.flow is Flow.UNKNOWN and event.mime:
            self.flow, self.mime = Flow(event.flow), event.mime
        if self.flow is Flow.EVENTS:
            self._pending.append((sse.event(event.data), cost))
        elif self.flow is Flow.CHUNKS and event.flow == Flow.CHUNKS:
            self._pending.append((event.data, cost))
        else:  # progress reported by an earlier stage, where the answer has no place for it
            self._client.consumed(self._seq, cost)
            return
        self._wake.set()

    def _learn(self) -> None:
        if self.flow is Flow.UNKNOWN:
            state = state_of(self._client, self._stage)
            self.flow, self.mime = Flow(state.flow), state.mime

    def _on_answer(self, answer: Answer | None) -> None:
        self._settle()
        self._answer = answer or Answer(errors.DRAINING.status, errors.DRAINING.detail.encode())
        self._wake.set()

    def _settle(self) -> None:
        self._seq = 0
        self._door.pending -= 1

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._seq:  # here, and not where the body is written: that may be waiting for the client itself
            self._client.withdraw(self._seq)
            self._settle()
        self._wake.set()

    async def _wait(self, until: float) -> None:
        timer = asyncio.get_running_loop().call_later(max(0.0, until - now()), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
            self._wake.clear()

    def _late(self) -> Problem:
        """The broker has not answered in time: nobody waits for it any more."""
        problem = errors.TIMEOUT if self._client.view().connected else errors.UNREACHABLE
        if self._seq:
            self._client.withdraw(self._seq)
            self._settle()
        return problem

    def _take(self) -> bytes:
        """The next bytes to write: many small events in one piece, so that a burst is not a write each."""
        parts: list[bytes] = []
        size = 0
        while self._pending and (not parts or size + len(self._pending[0][0]) <= WRITE_MAX):
            data, counted = self._pending.popleft()
            parts.append(data)
            size += len(data)
            self._writing += counted
        self._stall = asyncio.get_running_loop().call_later(STALL_S, self._on_stall)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _written(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        self._taken += self._writing
        self._writing = 0
        if self._taken >= GRANT and self._seq:
            self._client.consumed(self._seq, self._taken)
            self._taken = 0

    def _on_stall(self) -> None:
        self._exchange.cut(at_once=True)  # the watch sees the connection end

    def _finish(self, answer: Answer) -> None:
        if answer.status == 200:
            return
        status = answer.status if 400 <= answer.status <= 599 else 500
        self._exchange.status = status  # for the metrics; the client was told 200 long ago
        if self.flow is Flow.EVENTS:
            self._pending.append((sse.error(status, str(answer.body, "utf-8", "replace")), 0))
        else:
            self._exchange.cut()


_UNHEARD: Final = StageState("", 0, 0, 0, 0, 0, "", Flow.UNKNOWN)


def state_of(client: BrokerClient, stage: int) -> StageState:
    """What the client knows of a stage; its flow is UNKNOWN before the broker's first word."""
    stages = client.stages
    return stages[stage] if stage < len(stages) else _UNHEARD
