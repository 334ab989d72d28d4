"""A request on its way through the application: handed to the broker, waited for, and its answer given to Falcon.

Whoever serves it waits for the first of: the answer, the beginning of a stream, the deadline plus a small grace, and
the client's leaving, upon which the request is cancelled, at once and whatever is being written. What is held for a
client is bounded by the worker's window, which opens as the client takes what it got.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

from engine.clock import now
from engine.core import sse
from engine.core.call import Answer, BrokerClient, Call, StreamEvent
from engine.core.liveness import ANSWER_GRACE_S
from engine.core.messages import Flow, Qos, Speaker
from engine.core.routing import Topology
from engine.errors import Unavailable
from frontend import errors
from frontend.errors import Problem, Refusal
from frontend.exchange import Exchange, Receive
from frontend.gate import Gate
from frontend.pace import STALL_S
from frontend.streams import GRANT, HEAD_S, KEEPALIVE_S, Stream

QUICK_S: Final = 0.02  # most answers are there by then; a watch for the client's leaving costs a task


class Begun(Enum):
    """What :meth:`Waiting.begin` found, other than an answer."""

    STREAMING = "streaming"
    GONE = "the client has left"


class Waiting:
    """One request; Falcon iterates over it if its answer is a stream. Call :meth:`end` when it is over, however."""

    def __init__(
        self,
        exchange: Exchange,
        client: BrokerClient,
        gate: Gate,
        stages: Sequence[str],
        error: Callable[[int, str], bytes] = sse.error,
    ) -> None:
        """``stages``: those with which the route may end; ``error``: the last event of a stream that fails."""
        self.stream = Stream(error)
        self._exchange = exchange
        self._client = client
        self._gate = gate
        self._stages = stages
        self._seq = 0  # while the broker owes an answer
        self._limit_at = 0.0
        self._writing = 0  # of the window: handed out, and not written yet
        self._taken = 0  # of the window: written, and not reported yet
        self._gone = False
        self._is_lost = False  # the client of the broker was closed first
        self._wake = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._stall: asyncio.TimerHandle | None = None

    # --- from submission to the head of the answer -------------------------------------------------------------------

    def submit(
        self,
        route: int,
        body: bytes,
        *,
        timeout_s: float,
        meta: bytes,
        key: bytes = b"",
        qos: Qos | None = None,
        memo: bytes = b"",
    ) -> None:
        """Hand the request to the broker. Raises Refusal."""
        instant = now()
        try:
            self._seq = self._client.call(Call(route, body, instant + timeout_s, meta, self, key, qos, memo), instant)
        except Unavailable as error:
            raise Refusal(errors.unavailable(error)) from None
        self._gate.pending += 1
        self._limit_at = instant + timeout_s + ANSWER_GRACE_S

    async def begin(self) -> Answer | Begun:
        """Wait for what the head of the answer depends on. An Answer is to be given whole. Raises Refusal: 408, 503."""
        stream = self.stream
        head_at = now() + HEAD_S
        quick_at = now() + QUICK_S
        while True:
            if self._gone:
                return Begun.GONE
            if self._is_lost:
                raise Refusal(errors.UNREACHABLE)
            if stream.flow is not Flow.UNKNOWN:
                return Begun.STREAMING
            if stream.answer is not None:
                return stream.answer
            instant = now()
            if instant >= self._limit_at:
                raise Refusal(self._late())
            until = self._limit_at
            if self._watch is None:
                if instant < quick_at:
                    until = min(until, quick_at)
                else:
                    self._watch = asyncio.get_running_loop().create_task(self._watch_client(self._exchange.receive))
            if self._hint() is Flow.EVENTS:
                if instant >= head_at:
                    stream.comment()  # gunicorn keeps the head until there is a body
                    continue
                until = min(until, head_at)
            await self._wait(until)

    # --- the body ----------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Waiting:
        return self

    async def __anext__(self) -> bytes:
        self._written()
        stream = self.stream
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._watch_client(self._exchange.receive))
        keepalive_at = now() + KEEPALIVE_S
        while True:
            if self._gone:
                self._exchange.leave()
                raise StopAsyncIteration
            data, self._writing = stream.take()
            if data:
                self._stall = asyncio.get_running_loop().call_later(STALL_S, self._on_stall)
                return data
            if stream.answer is not None:
                if stream.status != 200:
                    self._exchange.status = stream.status  # for the metrics
                if stream.is_cut or self._exchange.is_old:
                    # HTTP/1.0 has no other mark for the end of a stream than that of the connection.
                    self._exchange.cut(at_once=stream.is_cut and self._exchange.is_old)
                raise StopAsyncIteration
            if now() >= self._limit_at:
                late = self._late()
                stream.answered(Answer(late.status, late.detail.encode(), speaker=int(Speaker.DOOR)), stream.flow)
            elif stream.flow is Flow.EVENTS and now() >= keepalive_at:
                stream.comment()
            else:
                await self._wait(min(keepalive_at, self._limit_at))

    def end(self) -> None:
        """Nobody waits any more: cancel what is still computed. Call it once at least; more does no harm."""
        self._withdraw()
        if self._watch is not None:
            self._watch.cancel()
            # A cancelled task keeps the frames it was cancelled in, and so this and its answer: no circle, which would
            # have a large answer wait for the garbage collector.
            self._watch = None
        if self._stall is not None:
            self._stall.cancel()

    # --- from the broker's client ------------------------------------------------------------------------------------

    def answered(self, answer: Answer | None) -> None:
        self._settle()
        if answer is None:
            self._is_lost = True
            answer = Answer(errors.DRAINING.status, errors.DRAINING.detail.encode(), speaker=int(Speaker.DOOR))
        self.stream.answered(answer, self._hint())
        self._wake.set()

    def event(self, event: StreamEvent) -> None:
        freed = self.stream.event(event, self._hint())
        if freed:
            self._client.consumed(self._seq, freed)
        self._wake.set()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _hint(self) -> Flow:
        return hint(self._client, self._stages)

    def _settle(self) -> None:
        self._seq = 0
        self._gate.pending -= 1

    def _withdraw(self) -> None:
        if self._seq:
            self._client.withdraw(self._seq)
            self._settle()

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._withdraw()  # here, and not where the body is written: that may be waiting for the client itself
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
        self._withdraw()
        return problem

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


def last_stages(topology: Topology, route: int) -> tuple[str, ...]:
    """The names of those with which a route may end."""
    return tuple(topology.stages[stage] for stage in topology.ends(route))


def hint(client: BrokerClient, stages: Sequence[str]) -> Flow:
    """How these give their answers, as the broker said last; UNKNOWN before its first word of a worker of them, and
    where they differ."""
    flows = {Flow.UNKNOWN if (state := client.stage(one)) is None else Flow(state.flow) for one in stages}
    return flows.pop() if len(flows) == 1 else Flow.UNKNOWN
