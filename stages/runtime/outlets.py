"""The main thread's sockets: the lane that batches come from, and the outlets that results leave by.

It may lend the lane for a while (:mod:`stages.runtime.aside`). Of connections to another host that results went by
and that are lost the control thread hears, which is told of each socket.

A parcel that finds no connection waits in its outlet and keeps its place: what follows it queues behind it. Nothing
here is bounded by a number, because the broker's credit is: without answers no new batches come. Within one host no
thread of ZeroMQ's sends on what the broker has not taken at once: the main one stays a moment, then another one does
(:mod:`stages.runtime.sender`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from engine import transport, unix
from engine.core.routing import FINAL
from engine.core.wire import Buffer
from engine.mailbox import Bell, Mailbox
from stages.runtime.sender import Sender
from stages.runtime.shared import ToMain

LINGER_MS: Final = 500  # at the end: for the last results to leave
TAKEN_S: Final = 0.02  # for the broker to take what it is sent; one that works takes far less
AGAIN_S: Final = 0.01  # until it is tried again where no descriptor tells when


class Outlets:
    """Made, used and closed by the main thread, but for the lane while it is lent."""

    def __init__(
        self,
        ctx: transport.Context,
        mailbox: Mailbox[ToMain],
        bell: Bell,
        opened: Callable[[str], object] = lambda name: None,
    ) -> None:
        """``opened``: is told by what name the losses of a socket for results can be heard."""
        self._ctx = ctx
        self._endpoints: transport.Endpoints | None = None  # of the broker, at which the outlets end
        self._mailbox = mailbox
        self._bell = bell  # of that mailbox
        self._opened = opened
        self._lane: transport.Socket | None = None
        self._is_near = False  # the sockets are unix ones
        self._poller = self._made_poller()
        self._pushes: dict[int, transport.Socket] = {}
        self._made = 0  # of them, so far
        self._waiting: dict[int, deque[list[Buffer]]] = {}
        self._sender = Sender()

    def switch(self, endpoints: transport.Endpoints, lane: str, targets: Iterable[int], *, forget: bool) -> None:
        """Take batches from this lane, and send results to these targets of a broker, from now on, by sockets like that
        lane. ``forget``: nobody knows the unsent results any more."""
        self._close_lane()
        if transport.is_unix(lane):
            endpoints = endpoints.near or endpoints
        self._is_near = endpoints.is_near
        # The broker is elsewhere, or was found to have another key.
        if endpoints != self._endpoints or any(sock.is_outdated for sock in self._pushes.values()):
            self._endpoints = endpoints
            for sock in self._pushes.values():
                sock.close(linger=LINGER_MS)
            self._pushes.clear()
        for target in {*targets, *self._waiting} - self._pushes.keys():
            self._open(target, endpoints)
        self._lane = transport.lane_end(self._ctx, lane)
        self._poller = self._made_poller()
        if forget:
            for waiting in self._waiting.values():
                waiting.clear()

    def _open(self, target: int, endpoints: transport.Endpoints) -> None:
        endpoint = endpoints.egress if target == FINAL else endpoints.intake(target)
        self._pushes[target] = transport.push(self._ctx, endpoint)
        self._waiting.setdefault(target, deque())
        if endpoints.is_tcp:
            self._made += 1
            transport.tell_losses(self._pushes[target], name := f"results-{self._made}")
            self._opened(name)

    def receive(self) -> list[Buffer] | None:
        """The next parcel of the lane, if there is one now."""
        return None if self._lane is None else transport.recv(self._lane)

    def wait_lane(self, recall: int) -> bool:
        """Until the lane has a batch (True) or ``recall`` is readable."""
        poller = transport.poller(self._lane)
        poller.register(recall, transport.READABLE)
        return recall not in dict(poller.poll())

    def send(self, target: int, frames: list[Buffer]) -> None:
        """Send a parcel, or keep it until it can be sent. Its frames must not be changed afterwards. To a stage that
        does not come next by the file, the way is made with the first one."""
        if target not in self._pushes:
            assert self._endpoints is not None  # a batch came from there
            self._open(target, self._endpoints)
        waiting, sock = self._waiting[target], self._pushes[target]
        if waiting or not transport.send(sock, frames):
            waiting.append(frames)
        elif not transport.keeps_nothing(sock, TAKEN_S) and isinstance(sock, unix.Socket):
            self._sender.see_to(sock)

    def flush(self) -> bool:
        """Send what waits, as far as it goes. True when nothing is left."""
        done = True
        for target, waiting in self._waiting.items():
            sock = self._pushes[target]
            while waiting and transport.send(sock, waiting[0]):
                waiting.popleft()
            done = transport.keeps_nothing(sock) and done and not waiting
        return done

    def wait(self, timeout_s: float | None) -> bool:
        """Until there is a batch, a letter, room for what waits, or the time is over. None: no limit.

        True when there is a batch and no letter: it can be received at once.
        """
        blocked = [self._pushes[target] for target, waiting in self._waiting.items() if waiting]
        if self._is_near and not self.flush():
            blocked, timeout_s = [], AGAIN_S if timeout_s is None else min(timeout_s, AGAIN_S)
        for sock in blocked:
            self._poller.register(sock, transport.WRITABLE)
        wait_ms = None if timeout_s is None else int(max(0.0, timeout_s) * 1000) + 1
        self._bell.asleep = True
        try:
            ready = dict(self._poller.poll(0 if self._mailbox.letters else wait_ms))
        finally:
            self._bell.asleep = False
            for sock in blocked:
                self._poller.unregister(sock)
        if rang := self._bell.fileno() in ready:
            self._bell.silence()
        return len(ready) > rang and not self._mailbox.letters

    def close(self) -> None:
        self._close_lane()
        self._sender.stop()
        for sock in self._pushes.values():
            sock.close(linger=LINGER_MS)

    def _close_lane(self) -> None:
        if self._lane is not None:
            self._lane.close(linger=0)
            self._lane = None
            self._poller = self._made_poller()

    def _made_poller(self) -> transport.AnyPoller:
        made = transport.poller(self._lane)
        made.register(self._bell.fileno(), transport.READABLE)
        return made
