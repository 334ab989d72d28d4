"""The frontend's side of the broker as a socket in one asyncio event loop, around the rules of :mod:`engine.core.link`.

Requests that are submitted in one turn of the loop, or in turns that follow each other without a pause, leave in one
parcel (or several, if they are many), and answers come in parcels, so the cost of a message is shared by all that are
under way.

``ZMQ_FD`` is edge-triggered: it becomes readable when something happens in the socket, not while something is there. So
EVENTS is looked at after every send, and reading goes on until nothing is left, in bounded turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from engine import admin, transport, usage
from engine.addresses import Search
from engine.clock import now
from engine.config import Deployment
from engine.core import wording
from engine.core.arena import SHARED_MIN, Ref
from engine.core.call import Answer, BrokerClient, Call, StreamEvent
from engine.core.introduction import FRONTEND, introduce
from engine.core.link import Link, LinkState, Submission, View, once_only_routes
from engine.core.liveness import BEAT_S, CLIENT_RESEND_S, RESEND_S
from engine.core.messages import (
    EVENT_COST,
    NO_QOS,
    Again,
    FrontendBeat,
    FrontendWelcome,
    Place,
    Qos,
    StageState,
    Submit,
)
from engine.core.wire import Buffer, Payload, decode, encode, micros
from engine.errors import ProtocolError, Unavailable
from engine.keyfile import keyring_of
from engine.log import get_logger
from engine.memory import Gone, Store
from engine.metrics import Family, pack

log: Final = get_logger("stageline.client")

PARCELS_PER_TURN: Final = 64


class Client:
    """See the module. Not thread-safe: everything is called in the event loop in which ``start`` ran."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        name: str,
        families: Callable[[], list[Family]] = list,
        cell: int = 0,
        url: str = "",
    ) -> None:
        """``name`` is what logs and metrics call this process, ``families`` gives its metrics, carried by the beats.
        ``cell``: whose broker it is. ``url``: at which address this process is asked, for people."""
        self._endpoints = transport.reaching(deployment, cell)
        self._keys = keyring_of(deployment)
        self._families = families
        self._url = url
        topology = deployment.topology
        self.link = Link(
            introduce(
                FRONTEND,
                topology,
                deployment=deployment.engine.name,
                instance=secrets.token_hex(16),
                host=transport.host_token(),
                pid=os.getpid(),
                name=name,
            ),
            topology,
            once_only=once_only_routes(topology, {stage.name: stage.idempotent for stage in deployment.stages}),
            now=now(),
        )
        self._flushing = False  # a flush is on its way
        self._stalled = False  # the last one found no connection: the next one tries again, after a while
        self._closed = True
        self._told: tuple[LinkState, str, tuple[str, ...]] = (LinkState.SEEKING, "", ())  # of the link, in the log
        self._sock: transport.Socket | None = None
        self._reached: transport.Endpoints | None = None  # the same by the address of its host
        self._store: Store | None = None  # shared memory for large bodies

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect; returns at once, whether the broker is there yet or not."""
        self._loop = asyncio.get_running_loop()
        self._context = transport.context(self._keys)
        self._search = Search(self._endpoints, self._found)
        self._closed = False
        self._open()
        self._beats = self._loop.create_task(self._beat_for_ever())

    async def close(self) -> None:
        """Give up what is waiting (it is told so) and close the sockets."""
        if self._closed:
            return
        self._closed = True
        self._beats.cancel()
        try:
            await self._beats
        except asyncio.CancelledError:
            pass  # as asked
        self.link.close()
        self._drop()
        self._share(None)
        # An admin question may still be under way in a thread of its own; term waits for its socket, so not here.
        await self._loop.run_in_executor(None, self._context.term)

    # --- the connection ----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Connect, as soon as it is known where to."""
        self._search.begin()
        self._connect()

    def _connect(self) -> None:
        self._reached = self._search.result(now())
        if self._reached is not None:
            self._sock = sock = transport.door(self._context, self._reached)
            if sock is not None:
                self._loop.add_reader(sock.fileno(), self._read)
                self._flush_soon()

    def _drop(self) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _found(self) -> None:
        """In another thread: the broker's host has an address."""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._connect_now)

    def _connect_now(self) -> None:
        if self._sock is None and not self._closed:
            self._connect()

    def _see_to_connection(self) -> None:
        """By tcp a connection may be lost without a word, and the broker's host may be another one by now: after a
        while without an answer a new one finds out."""
        if self._sock is not None and transport.is_lost(self._sock):
            self._drop()
        if self._sock is None:
            self._connect_now()
        elif self._endpoints.is_tcp and now() >= self.link.silent_at:
            self._read()  # a loop that was held up finds here what it was told meanwhile
            if now() >= self.link.silent_at:
                log.debug("the broker is silent; trying a new connection")
                self._drop()
                self._open()
                self.link.reconnected(now())

    # --- requests ----------------------------------------------------------------------------------------------------

    def call(self, call: Call, instant: float) -> int:
        """Hand a request to the broker, now; never blocks. Returns the number to :meth:`withdraw` it by.

        Its waiter is told the answer. There is no time limit here: the broker answers by the deadline, and a caller
        that must be sure waits a little longer and withdraws. Raises Unavailable when it is known to be refused.
        """
        if self._closed:
            raise Unavailable(503, wording.STOPPING)
        link = self.link
        seq = link.submit(call, instant)
        if not self._flushing:
            self._flush_soon()
        elif link.is_parcel_full and not self._stalled:
            self._send_all()
        return seq

    def withdraw(self, seq: int) -> None:
        """Nobody waits for this answer any more: the broker is told, the waiter is not."""
        if self.link.withdraw(seq):
            self._flush_soon()

    def consumed(self, seq: int, nbytes: int) -> None:
        """The client of a stream has taken so many bytes of its events: as many more may come."""
        self.link.consumed(seq, nbytes)
        self._flush_soon()

    def give_back(self) -> None:
        """A peak is over: shared memory that nobody reads goes back to the system."""
        if self._store is not None:
            self._store.give_back()

    def view(self) -> View:
        view = self.link.view(now())
        return replace(view, connected=False) if self._closed else view

    def stage(self, name: str) -> StageState | None:
        """How the broker said last that this stage stands; None before its first word of it."""
        return self.link.stages.get(name)

    @property
    def is_joined(self) -> bool:
        """The broker has welcomed this frontend, and said how its stages stand."""
        return self.link.state is LinkState.JOINED and bool(self.link.stages)

    @property
    def is_stalled(self) -> bool:
        """There is no connection to send by."""
        return self._stalled

    def flush(self) -> None:
        """Something is owed that nobody has asked for here."""
        self._flush_soon()

    @property
    def pending(self) -> int:
        """Requests without an answer."""
        return len(self.link.waiting)

    async def ask(self, what: str, *, timeout_s: float = 2.0) -> bytes:
        """An admin question (``status``, ``metrics``). Raises Unavailable when no answer comes in time."""
        if self._closed:
            raise Unavailable(503, "stopping")
        if self._reached is None:
            raise Unavailable(503, "the broker's host is being looked up")
        endpoint = self._reached.admin
        return await self._loop.run_in_executor(None, admin.ask_at, self._context, endpoint, what, timeout_s)

    # --- sending -----------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if not self._flushing and not self._closed:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self._stalled and self.link.gathers():
            self._loop.call_soon(self._flush)
            return
        self._flushing = False
        self._send_all()

    def _send_all(self) -> None:
        if self._closed:
            return
        link = self.link
        instant = now()
        self._stalled = False
        while (owed := link.owed(instant)) is not None:
            sent = self._submit(owed, instant) if type(owed) is Submission else self._send(encode(owed))  # type: ignore[arg-type]  # no Submission
            if not sent:
                self._stalled = True
                if not self._flushing:
                    self._flushing = True
                    self._loop.call_later(CLIENT_RESEND_S, self._flush)
                return
            link.left(owed, instant)

    def _submit(self, submission: Submission, instant: float) -> bool:
        submit = Submit(seqs=[], routes=submission.routes, budgets_us=[], metas=[])
        payloads: list[Payload] = []
        for call in submission.calls:
            submit.seqs.append(call.seq)
            submit.budgets_us.append(micros(call.deadline - instant))
            submit.metas.append(call.meta)
            if call.key:
                submit.keys[call.seq] = call.key
            if call.memo:
                submit.memos[call.seq] = call.memo
            qos = call.qos
            if call.was_sent and not call.passed_on:  # who may have been begun with has until its deadline
                said = qos or NO_QOS
                qos = Qos(micros(call.deadline - instant), said.priority, said.client)
            if qos is not None:
                submit.qos[call.seq] = qos
            payloads.append(call.body if len(call.body) < SHARED_MIN else self._payload(call))
        if self._send(encode(submit, payloads)):
            return True
        if self._store is not None:
            self._store.take_back(payload for payload in payloads if type(payload) is Ref)
        return False

    def _payload(self, call: Call) -> Payload:
        """The body, or where it lies in shared memory. What is sent again goes as it is: the broker may have released
        the block, and the arena may have ended with the session."""
        if self._store is None or call.was_sent:
            return call.body
        return self._store.put(call.body) or call.body

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

    def _send(self, frames: Sequence[Buffer]) -> bool:
        if self._sock is None:
            return False
        sent = transport.send(self._sock, frames)
        if transport.readable(self._sock):
            self._loop.call_soon(self._read)
        return sent

    def _beat(self) -> FrontendBeat:
        used = usage.whole()
        return FrontendBeat(
            pack(self._families()),
            used.resident_bytes,
            used.cpu_us,
            usage.node(),
            self._url,
            usage.version(),
            used.descriptors,
            used.descriptors_most,
            used.began_s,
        )

    async def _beat_for_ever(self) -> None:
        while True:
            pause_s = BEAT_S
            try:
                self._see_to_connection()
                self.link.asked(now())
                if self.link.state is LinkState.JOINED:
                    if not self._send(encode(self._beat())):
                        pause_s = CLIENT_RESEND_S
                else:
                    self._send_all()
                    pause_s = CLIENT_RESEND_S if self._stalled else RESEND_S
            except Exception:
                log.exception("a heartbeat failed")
            if self._endpoints.is_tcp:
                pause_s = min(pause_s, max(self.link.silent_at - now(), RESEND_S))
            await asyncio.sleep(pause_s)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        for _ in range(PARCELS_PER_TURN):
            if self._sock is None:
                return
            frames = transport.recv_ready(self._sock)
            if frames is not None:
                self._handle(frames)
            if self._sock is None or not transport.readable(self._sock):
                return
        self._loop.call_soon(self._read)

    def _handle(self, frames: list[Buffer]) -> None:
        try:
            words, payloads = decode(frames)
        except ProtocolError as error:
            log.warning("malformed parcel dropped", extra={"reason": str(error)})
            return
        link = self.link
        state = link.state
        if not link.handle(words, payloads, now()):
            log.warning("unexpected message dropped", extra={"kind": type(words).__name__})
        if link.troubles:
            for trouble in link.troubles:
                log.error("an answer could not be given", exc_info=trouble)
            link.troubles.clear()
        if type(words) is FrontendWelcome or type(words) is Again or link.has_word:
            self._flush_soon()
        if link.memory is not (self._store.place if self._store is not None else None):
            self._share(link.memory)
        if link.state is not state or link.refusal != self._told[1]:
            self._standing_changed()

    def _standing_changed(self) -> None:
        link = self.link
        told, self._told = self._told, (link.state, link.refusal, link.missing)
        if link.state is LinkState.REFUSED:
            if link.refusal != told[1]:
                log.error("the broker refuses this frontend", extra={"reason": link.refusal})
        elif link.state is LinkState.JOINED:
            log.debug("joined the broker", extra={"session": link.session, "requests": len(link.waiting)})
            if link.missing:
                log.error(
                    "the broker does not serve these routes as this file has them; start both from the same file",
                    extra={"routes": list(link.missing)},
                )
        else:
            log.warning("the broker does not know this frontend any more", extra={"requests": len(link.waiting)})
        self._flush_soon()


def submit(
    client: BrokerClient,
    route: int,
    body: bytes,
    *,
    timeout_s: float,
    meta: bytes = b"",
    on_event: Callable[[StreamEvent], None] | None = None,
) -> asyncio.Future[Answer]:
    """:meth:`Client.call` for callers that want to await a future. Cancelling it withdraws the request; it is cancelled
    when the client is closed first. Events go to ``on_event``; without one they are taken as they come. Raises
    Unavailable."""
    waiter = _Future(client, on_event)
    instant = now()
    waiter.seq = client.call(Call(route, body, instant + timeout_s, meta, waiter), instant)
    waiter.future.add_done_callback(waiter.done)
    return waiter.future


class _Future:
    """A waiter that makes a future of its answer."""

    def __init__(self, client: BrokerClient, on_event: Callable[[StreamEvent], None] | None) -> None:
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.seq = 0
        self._client = client
        self._on_event = on_event

    def answered(self, answer: Answer | None) -> None:
        if answer is None:
            self.future.cancel()
        elif not self.future.done():
            self.future.set_result(answer)

    def event(self, event: StreamEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)
        else:
            self._client.consumed(self.seq, len(event.data) + EVENT_COST)

    def done(self, future: asyncio.Future[Answer]) -> None:
        if future.cancelled():
            self._client.withdraw(self.seq)
