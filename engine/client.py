"""The frontend's side of the broker: submits requests, awaits answers. Lives in one asyncio event loop.

Requests that are submitted in one turn of the loop, or in turns that follow each other without a pause, leave in one
parcel (or several, if they are many), and answers come in parcels, so the cost of a message is shared by all that are
under way. The body of a request is kept until its answer: when the broker's *session* changes (it was restarted, or the
connection was cut and made anew) everything unanswered is submitted again; a broker that has it already recognises its
number. Not so a stream of which events have come: it ends, as a failure.

``ZMQ_FD`` is edge-triggered: it becomes readable when something happens in the socket, not while something is there. So
EVENTS is looked at after every send, and reading goes on until nothing is left, in bounded turns.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import msgspec

from engine import admin, transport
from engine.clock import now
from engine.core.arena import SHARED_MIN, Ref
from engine.core.liveness import BEAT_S, CLIENT_RESEND_S, LOST_S
from engine.core.messages import (
    EVENT_COST,
    Answers,
    Cancel,
    Consumed,
    Events,
    FrontendBeat,
    FrontendPulse,
    Message,
    Place,
    StageState,
    Status,
    Submit,
)
from engine.core.wire import Buffer, Payload, decode, encode, micros
from engine.errors import ProtocolError, Unavailable
from engine.log import get_logger
from engine.memory import Gone, Store
from engine.metrics import Family, pack
from engine.transport import Endpoints

log: Final = get_logger("stageline.client")

FULL_S: Final = 0.02  # how long a 429 of the broker's stands for the next request, which need not be read then
PARCELS_PER_TURN: Final = 64
PARCEL_ITEMS: Final = 32  # requests that are enough for a parcel: the broker can begin while others are still read
PARCEL_TURNS: Final = 16  # of the event loop that a parcel is filled for at most, so that its first request is not late


class Answer(msgspec.Struct, frozen=True):
    """What a request got. ``status`` 200 carries the body; any other the message the client may see (UTF-8)."""

    status: int
    body: bytes | memoryview
    mime: str = "application/json"
    trail: bytes = b""  # engine.core.wire.unpack_trail
    headers: dict[str, str] = {}  # of each Answer its own: msgspec copies an empty default


class StreamEvent(NamedTuple):
    """Something of an answer that is still being computed. ``mime`` is empty if it is not from the last stage."""

    data: bytes
    flow: int  # engine.core.messages.Flow
    mime: str


OnEvent: TypeAlias = Callable[[StreamEvent], None]
TORN: Final = b"internal error: the broker was lost while this request was streamed"


@dataclass(frozen=True)
class View:
    """What the broker said last. ``connected`` false: it has not been heard for LOST_S.

    ``headroom`` is 0 while the broker is known to refuse, and else what it was at the last beat, at least 1: a count
    that is a second old is no reason to refuse anybody.
    """

    connected: bool
    draining: bool
    headroom: int
    stages: tuple[StageState, ...]


class _Pending(msgspec.Struct, eq=False):
    done: Callable[[Answer | None], None]
    seq: int
    route: int
    body: bytes
    deadline: float
    request_id: str
    meta: bytes
    on_event: OnEvent | None
    begun: bool = False  # events have come
    sent: bool = False  # once at least


class Client:
    """See the module. Not thread-safe: everything is called in the event loop in which ``start`` ran."""

    def __init__(self, endpoints: Endpoints, *, name: str, families: Callable[[], list[Family]] = list) -> None:
        self._endpoints = endpoints
        self._name = name
        self._families = families  # this process's metrics, carried by the beats
        self._host = transport.host_token()
        self._pending: dict[int, _Pending] = {}
        self._by_answer: dict[asyncio.Future[Answer], int] = {}
        self._outgoing: list[_Pending] = []
        self._cancelled: list[int] = []
        self._consumed: dict[int, int] = {}
        self._flushing = False  # a flush is on its way
        self._stalled = False  # the last one found no connection: the next one tries again, after a while
        self._seq = 0
        self._seen = 0  # requests that waited to be sent when they were looked at last
        self._turns = 0  # for which they have waited
        self._session = -1
        self._pulse: FrontendPulse | None = None
        self._heard = 0.0
        self._full_until = 0.0
        self._closed = True
        self._store: Store | None = None  # shared memory for large bodies

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect; returns at once, whether the broker is there yet or not."""
        self._loop = asyncio.get_running_loop()
        self._context = transport.context()
        self._sock = transport.dealer(self._context, self._endpoints.front)
        self._fd = self._sock.fileno()
        self._loop.add_reader(self._fd, self._read)
        self._closed = False
        self._heard = now()
        self._beats = self._loop.create_task(self._beat_for_ever())

    async def close(self) -> None:
        """Give up what is pending (its futures are cancelled) and close the sockets."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._beats.cancel()
        try:
            await self._beats
        except asyncio.CancelledError:
            pass  # as asked
        pending, self._pending = self._pending, {}
        for one in pending.values():
            one.done(None)
        self._sock.close()
        self._share(None)
        # An admin question may still be under way in a thread of its own; term waits for its socket, so not here.
        await self._loop.run_in_executor(None, self._context.term)

    # --- requests ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        route: int,
        body: bytes,
        *,
        timeout_s: float,
        request_id: str,
        meta: bytes = b"",
        on_event: OnEvent | None = None,
    ) -> asyncio.Future[Answer]:
        """Hand a request to the broker; never blocks.

        The future is done when the answer comes. It has no time limit of its own: the broker answers by the deadline,
        and a caller that must be sure waits a little longer and calls :meth:`cancel`. ``on_event`` gets the stream
        events that come before the answer. Raises Unavailable when the request is known to be refused.
        """
        answer: asyncio.Future[Answer] = self._loop.create_future()

        def done(got: Answer | None) -> None:
            self._by_answer.pop(answer, None)
            if got is None:
                answer.cancel()
            elif not answer.done():
                answer.set_result(got)

        self._by_answer[answer] = self.call(
            route, body, done, timeout_s=timeout_s, request_id=request_id, meta=meta, on_event=on_event
        )
        return answer

    def call(
        self,
        route: int,
        body: bytes,
        done: Callable[[Answer | None], None],
        *,
        timeout_s: float,
        request_id: str,
        meta: bytes,
        on_event: OnEvent | None = None,
    ) -> int:
        """:meth:`submit` without a future, for the path where one would cost: ``done`` is called with the answer, or
        with None when the client is closed first. Returns the number to :meth:`withdraw` it by."""
        if self._closed:
            raise Unavailable(503, "service unavailable: stopping")
        if self._pulse is not None and self._pulse.draining:
            raise Unavailable(503, "service unavailable: draining")
        instant = now()
        if instant - self._heard > LOST_S:
            raise Unavailable(503, "service unavailable: the broker cannot be reached")
        if instant < self._full_until:
            raise Unavailable(429, "too many requests: at capacity")
        seq = self._seq = self._seq + 1
        pending = _Pending(done, seq, route, body, instant + timeout_s, request_id, meta, on_event)
        self._pending[seq] = pending
        self._outgoing.append(pending)
        if len(self._outgoing) >= PARCEL_ITEMS and not self._stalled:
            self._send_all()
        else:
            self._flush_soon()
        return seq

    def cancel(self, answer: asyncio.Future[Answer]) -> None:
        """Nobody waits any more: tell the broker, forget the answer."""
        seq = self._by_answer.pop(answer, None)
        answer.cancel()
        if seq is not None:
            self.withdraw(seq)

    def withdraw(self, seq: int) -> None:
        """The same for a :meth:`call`; ``done`` will not be called."""
        if self._pending.pop(seq, None) is not None:
            self._cancelled.append(seq)
            self._flush_soon()

    def view(self) -> View:
        pulse = self._pulse
        connected = not self._closed and pulse is not None and now() - self._heard <= LOST_S
        if pulse is None:
            return View(connected, False, 1, ())
        headroom = 0 if now() < self._full_until else max(1, pulse.headroom)
        return View(connected, pulse.draining, headroom, tuple(pulse.stages))

    @property
    def stages(self) -> list[StageState]:
        """The stages as the broker told last; empty before its first word."""
        return self._pulse.stages if self._pulse is not None else []

    @property
    def pending(self) -> int:
        """Requests without an answer."""
        return len(self._pending)

    async def ask(self, what: str, *, timeout_s: float = 2.0) -> bytes:
        """An admin question (``status``, ``metrics``). Raises Unavailable when no answer comes in time."""
        if self._closed:
            raise Unavailable(503, "stopping")
        endpoint = self._endpoints.admin
        return await self._loop.run_in_executor(None, admin.ask_at, self._context, endpoint, what, timeout_s)

    def consumed(self, seq: int, nbytes: int) -> None:
        """The client of a stream (a :meth:`call`) has taken so many bytes of its events: as many more may come."""
        if seq in self._pending:
            self._consumed[seq] = self._consumed.get(seq, 0) + nbytes
            self._flush_soon()

    # --- sending -----------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        # Clients that were answered together come back one by one. While each turn of the loop brings more of them, the
        # next turn is waited for: what it carries shares a parcel's cost on its whole way. A lone request never waits.
        if 1 < len(self._outgoing) > self._seen and self._turns < PARCEL_TURNS and not self._stalled:
            self._seen = len(self._outgoing)
            self._turns += 1
            self._loop.call_soon(self._flush)
            return
        self._flushing = False
        self._send_all()

    def _send_all(self) -> None:
        self._seen = self._turns = 0
        if self._closed:
            return
        sent = True
        if self._outgoing:
            sent = self._submit_all(self._outgoing)
            if sent:
                self._outgoing = []
        if sent and self._cancelled:
            sent = self._send(Cancel(self._cancelled))
            if sent:
                self._cancelled = []
        if sent and self._consumed:
            sent = self._send(Consumed(self._consumed))
            if sent:
                self._consumed = {}
        self._stalled = not sent
        if self._stalled and not self._flushing:
            self._flushing = True
            self._loop.call_later(CLIENT_RESEND_S, self._flush)

    def _submit_all(self, batch: Sequence[_Pending]) -> bool:
        instant = now()
        # What was cancelled or answered before it could be sent is left out.
        batch = [one for one in batch if one.seq in self._pending]
        if not batch:
            return True
        submit = Submit([], [], [], [], [])
        payloads: list[Payload] = []
        for one in batch:
            submit.seqs.append(one.seq)
            submit.routes.append(one.route)
            submit.budgets_us.append(micros(one.deadline - instant))
            submit.request_ids.append(one.request_id)
            submit.metas.append(one.meta)
            payloads.append(one.body if len(one.body) < SHARED_MIN else self._payload(one))
        if self._send(submit, payloads):
            for one in batch:
                one.sent = True
            return True
        if self._store is not None:
            self._store.take_back(payload for payload in payloads if type(payload) is Ref)
        return False

    def _payload(self, one: _Pending) -> Payload:
        """The body, or where it lies in shared memory. What is sent again goes as it is: the broker may have released
        the block, and the arena may have ended with the session."""
        if self._store is None or one.sent:
            return one.body
        return self._store.put(one.body) or one.body

    def _share(self, place: Place | None) -> None:
        """Put large bodies there from now on."""
        if place == (self._store.place if self._store is not None else None):
            return
        if self._store is not None:
            self._store.close()
        self._store = None
        if place is not None:
            try:
                self._store = Store(place)
            except (Gone, OSError) as error:
                log.warning("no shared memory", extra={"reason": str(error)})

    def _send(self, message: Message, payloads: Sequence[Payload] = ()) -> bool:
        sent = transport.send(self._sock, encode(message, payloads))
        if transport.readable(self._sock):
            self._loop.call_soon(self._read)
        return sent

    async def _beat_for_ever(self) -> None:
        while True:
            try:
                families = pack(self._families())
                beat = FrontendBeat(self._name, os.getpid(), len(self._pending), families, self._host)
                sent = self._send(beat)
            except Exception:
                log.exception("a heartbeat failed")
                sent = True
            await asyncio.sleep(BEAT_S if sent else CLIENT_RESEND_S)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        if self._closed:
            return
        for _ in range(PARCELS_PER_TURN):
            frames = transport.recv_ready(self._sock)
            if frames is not None:
                self._handle(frames)
            if not transport.readable(self._sock):
                return
        self._loop.call_soon(self._read)

    def _handle(self, frames: list[Buffer]) -> None:
        try:
            message, payloads = decode(frames)
        except ProtocolError as error:
            log.warning("malformed parcel dropped", extra={"reason": str(error)})
            return
        self._heard = now()
        if type(message) is Answers:
            self._handle_answers(message, payloads)
        elif type(message) is FrontendPulse:
            self._handle_pulse(message)
        elif type(message) is Events:
            self._handle_events(message, payloads)

    def _handle_answers(self, answers: Answers, payloads: Sequence[Payload]) -> None:
        headers = answers.headers
        columns = zip(answers.seqs, answers.statuses, answers.mimes, answers.trails, payloads, strict=True)
        for index, (seq, status, mime, trail, payload) in enumerate(columns):
            pending = self._pending.pop(seq, None)
            if pending is None:
                continue  # cancelled, or the second answer to a request that was submitted again
            if status == Status.OVERLOADED:
                self._full_until = self._heard + FULL_S
            pending.done(Answer(status, _joined(payload), mime, trail, headers.get(index, {}) if headers else {}))

    def _handle_pulse(self, pulse: FrontendPulse) -> None:
        self._pulse = pulse
        self._share(pulse.memory)
        if pulse.session == self._session:
            return
        if self._session != -1 and self._pending:
            log.warning("new session: submitting again", extra={"requests": len(self._pending)})
        self._session = pulse.session
        for one in [one for one in self._pending.values() if one.begun]:
            del self._pending[one.seq]
            one.done(Answer(Status.FAILED, TORN))
        waiting = {one.seq for one in self._outgoing}
        self._outgoing.extend(one for seq, one in self._pending.items() if seq not in waiting)
        if self._outgoing:
            self._flush_soon()

    def _handle_events(self, events: Events, payloads: Sequence[Payload]) -> None:
        for seq, payload in zip(events.seqs, payloads, strict=True):
            pending = self._pending.get(seq)
            if pending is None:
                continue
            data = bytes(_joined(payload))
            if pending.on_event is None:  # an answer that is given whole: a stage of its route sends what nobody reads
                self.consumed(seq, len(data) + EVENT_COST)
                continue
            pending.begun = True
            pending.on_event(StreamEvent(data, events.flow, events.mime))


def _joined(payload: Payload) -> bytes | memoryview:
    if isinstance(payload, tuple):
        return b"".join(payload)  # type: ignore[arg-type]  # what the broker sends to frontends has no references
    return payload if isinstance(payload, bytes | memoryview) else bytes(payload)  # type: ignore[arg-type]  # as above
