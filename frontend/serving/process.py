"""A worker process of the frontend: gunicorn's asgi worker, with an orderly drain.

gunicorn's own ends when its connections do, idle ones included, or when its time is up. This one listens only when it
is known what routes there are, ends idle connections at once, answers what it has within ``engine.grace``, and gives
each connection first to :mod:`frontend.lean`.

Another worker class can take this one's place: :mod:`frontend.serving.options` names it, and asks of it only what
gunicorn asks of a worker, plus ``app.booted()`` once it listens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
from typing import TYPE_CHECKING, Any, Final

from gunicorn.arbiter import Arbiter
from gunicorn.asgi.lifespan import LifespanManager
from gunicorn.workers.gasgi import ASGIWorker

from engine import descriptors
from engine.clock import Deadline, now
from engine.core.ebb import Ebb
from engine.core.liveness import ACCEPT_S
from engine.process import give_back, tune_garbage_collection
from frontend.accepting import Acceptor
from frontend.crowd import Crowd
from frontend.lean import LeanConnection
from frontend.listening import take_no_more
from frontend.pace import FRESH_S
from frontend.serving import http2
from frontend.serving.connection import Connection
from frontend.shared import Shared
from frontend.sweeper import SWEEP_S, Sweeper

if TYPE_CHECKING:
    from frontend.serving.application import Application

BROKER_S: Final = 1.0  # how long the first word of the broker is waited for
# Held back from the master's fork of this process until its event loop runs: before `init_signals` the child would put
# them into the master's queue, which nobody reads here, and uvloop drops one that comes between `add_signal_handler`
# and the start of the loop.
HELD: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGABRT})

WHY_S: Final = 0.5  # how long a master may take to say that all stop, after this process was told to

HEARTBEAT_S: Final = 1.0  # gunicorn's master kills a worker that has not beaten for its time-out, 30 s and more


log = logging.getLogger("stageline.frontend")


class Worker(ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """A gunicorn worker process: lifespan, listening, heartbeat, drain."""

    app: Application

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: set[Connection] = set()
        self.crowd = Crowd(descriptors.limit)
        self.lean: Shared | None = None  # when plain requests are answered in place
        self.changed = asyncio.Event()  # the process was told to stop, or a connection ended since
        self._ebb = Ebb()

    def init_signals(self) -> None:
        super().init_signals()
        # A terminal sends Ctrl-C to the whole group; the master alone decides what it means, and says so by SIGTERM.
        self.loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def handle_exit_signal(self) -> None:
        self.alive = False
        self.changed.set()

    def handle_quit_signal(self) -> None:
        super().handle_quit_signal()
        self.alive = False
        self.changed.set()

    def connection_ended(self) -> None:
        """Or falls idle. While the process serves nobody waits for that, and they may be thousands a second."""
        if not self.alive:
            self.changed.set()

    async def _serve(self) -> None:
        self.changed = asyncio.Event()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        lifespan = LifespanManager(self.asgi, self.log, self.state)
        try:
            await lifespan.startup()
        except Exception as error:
            self.log.error("cannot start: %s", error)
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from error
        await self._meet_broker()
        if not self.alive:
            await lifespan.shutdown()
            return
        http2.install(self.app.gate, self.app.deployment.frontend.max_header_size)
        self.app.metrics.dropped = lambda: (self.crowd.ended, self.crowd.refused)
        tune_garbage_collection()
        context = self._get_ssl_context()
        sweeper = None
        if self.app.deployment.frontend.server == "lean":
            self.lean = self.app.lean(self._take_over)
            self.lean.changed = self.connection_ended
            sweeper = Sweeper(self.lean, self.loop)
        handshake_s = self.app.deployment.frontend.header_timeout if context is not None else None
        # asyncio listens once more, and lets a hundred clients wait where it is not told how many: the first packets of
        # others are dropped, and they try again a second later.
        servers: list[Acceptor | asyncio.AbstractServer]
        if self.lean is not None and context is None:
            processes = self.app.deployment.frontend.processes
            sockets = [sock.sock for sock in self.sockets]
            servers = [Acceptor(sockets, self.lean, self._has_room, self._room, processes=processes)]
        else:
            servers = [
                await self.loop.create_server(
                    self._connect,
                    sock=sock.sock,
                    backlog=self.cfg.backlog,
                    ssl=context,
                    ssl_handshake_timeout=handshake_s,
                )
                for sock in self.sockets
            ]
        self.app.booted()
        self._sweep_unsent()
        while self.alive:
            self.notify()
            if self.ppid != os.getppid():
                self.log.warning("the master has gone, stopping")
                self.app.stop()
                break
            await self._wait_changed(HEARTBEAT_S)
        self.alive = False
        await self._hear_why()
        if self.app.is_stopping:
            await self._take_no_more()
        for server in servers:
            server.close()
        deadline = Deadline(self.app.deployment.engine.grace)
        if not self.app.is_stopping:
            await self._retire(deadline)
        self.app.gate.draining = True
        await self._drain_connections(deadline)
        if sweeper is not None:
            sweeper.stop()
        await lifespan.shutdown()

    def _sweep_unsent(self) -> None:
        self.loop.call_later(SWEEP_S, self._sweep_unsent)
        gate, instant = self.app.gate, now()
        if gate.keys is not None:
            gate.keys.look(instant)
        gate.unsent.sweep(instant)
        if self._ebb.is_over(gate.held + gate.unsent.total, instant):
            self.app.client.give_back()
            give_back()

    async def _hear_why(self) -> None:
        """Whether this process alone stops, or the frontend does. A signal to all processes of a service comes to this
        one and to the master, which says so, at the same instant. Until it has had the time to, the port stays open:
        the master closes its own, and who stands in the queue of both would be cut off."""
        patience = Deadline(WHY_S)
        while not self.app.is_stopping and not patience.passed and not self._quick_shutdown:
            await self._wait_changed(0.005)

    async def _take_no_more(self) -> None:
        """Let nobody else in, without cutting anybody off.

        With a ``drain_delay`` new requests are refused in words for so long while the port is still open, so that
        whoever looks at /readyz sends nothing more. Without one, whoever comes is to find out by a connection that is
        refused: so who has got one, or has had an answer just now and may be asking again, is served once more.
        Whom the kernel has accepted for us counts as well; closing the port would cut him off.
        """
        delay_s = self.app.deployment.frontend.drain_delay
        self.app.gate.draining = delay_s > 0
        delay = Deadline(delay_s)
        while not delay.passed and not self._quick_shutdown:
            self.notify()
            await self._wait_changed(min(HEARTBEAT_S, delay.remaining()))
        sockets = [sock.sock for sock in self.sockets]
        for sock in sockets:
            take_no_more(sock)
        self.app.gate.closing = True
        patience, calm = Deadline(ACCEPT_S), 0
        while calm < 2 and not patience.passed and not self._quick_shutdown:
            instant, is_busy = now(), bool(select.select(sockets, [], [], 0)[0])
            is_busy = is_busy or (not self.app.gate.draining and any(item.is_fresh(instant) for item in self._all))
            calm = 0 if is_busy else calm + 1
            await asyncio.sleep(0.005)  # in any case: one that was taken from the queue is not a connection at once

    async def _retire(self, deadline: Deadline) -> None:
        """Another process has taken this one's place and accepts what comes: serve the connections that are here, each
        for one request more, whose answer says ``connection: close``. One that is closed while its client sends the
        next request would cost that one. Whoever has sent nothing for half of the grace is closed then."""
        until = deadline.remaining() / 2
        while self._all and deadline.remaining() > until and not self.app.is_stopping:
            for connection in self.lean.connections if self.lean is not None else ():
                connection.closing = True
            self.notify()
            await self._wait_changed(min(HEARTBEAT_S, deadline.remaining()))

    async def _meet_broker(self) -> None:
        """Listen only when the broker knows this process, or after a moment: without one the health pages must answer
        all the same."""
        patience = Deadline(BROKER_S)
        while not self.app.client.is_joined and not patience.passed and self.alive:
            await self._wait_changed(0.01)

    def _connect(self) -> asyncio.Protocol:
        if not self._has_room():
            return _Refused()
        if self.lean is not None:
            return LeanConnection(self.lean)
        connection: asyncio.Protocol = Connection(self)
        return connection

    def _has_room(self) -> bool:
        """Whether there is a descriptor for one more connection; others may have to end for it."""
        former = self.crowd.ended + self.crowd.refused
        idle = self.crowd.admit(self._count, lambda: self._all, _idle_since)
        if not former and idle != []:
            log.warning(
                "as many connections as there are descriptors: idle ones end for new ones; raise the hard limit "
                "(ulimit -Hn), or run more frontend workers",
                extra={"limit": descriptors.limit()},
            )
        for one in idle or ():
            one.end()
        return idle is not None

    def _room(self) -> int:
        return self.crowd.room(self._count)

    @property
    def _count(self) -> int:
        lean = self.lean
        return len(self.connections) + (len(lean.connections) + len(lean.lingering) if lean is not None else 0)

    def _take_over(self, transport: asyncio.Transport, data: bytes) -> asyncio.Protocol:
        """A lean connection met something that is not plain: from here on it is gunicorn's."""
        connection: asyncio.Protocol = Connection(self)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if data:
            connection.data_received(data)
        return connection

    @property
    def _all(self) -> list[Connection | LeanConnection]:
        return [*self.connections, *(self.lean.connections if self.lean is not None else ())]

    async def _drain_connections(self, deadline: Deadline) -> None:
        """Answer what is being served, then end every connection.

        Every answer says ``connection: close`` (gunicorn looks at ``alive``), and a request that still arrives on a
        kept-alive connection is answered 503 by the gate. A connection that has just been made is given the time that
        its first request takes.
        """
        while self._all and not self._quick_shutdown:
            instant = now()
            fresh = {item for item in self._all if item.is_fresh(instant)}
            for connection in self._all:
                if connection not in fresh and (connection.idle or isinstance(connection, LeanConnection)):
                    connection.end()
            if deadline.passed or all(item.idle and item not in fresh for item in self._all):
                break
            self.notify()
            await self._wait_changed(min(FRESH_S if fresh else HEARTBEAT_S, deadline.remaining()))
        busy = sum(not item.idle for item in self._all)
        if busy:
            self.log.warning("stopping with %d requests unanswered", busy)
        for connection in self._all:
            connection.end()
        farewell = Deadline(1.0)  # for buffers to empty and GOAWAY frames to leave
        while (self._all or self._lingering) and not farewell.passed and not self._quick_shutdown:
            await self._wait_changed(farewell.remaining())

    @property
    def _lingering(self) -> bool:
        return self.lean is not None and bool(self.lean.lingering)

    async def _wait_changed(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self.changed.wait(), timeout_s)
        except asyncio.TimeoutError:
            pass  # looking around once in a while is the point
        self.changed.clear()


class _Refused(asyncio.Protocol):
    """A connection for which there is no descriptor to spare."""

    def connection_made(self, transport: Any) -> None:  # uvloop's have no common type with asyncio's
        transport.abort()


def _idle_since(connection: Connection | LeanConnection) -> float:
    return connection.since if isinstance(connection, LeanConnection) else 0.0
