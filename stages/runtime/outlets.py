"""The main thread's sockets: the lane that batches come from, and the outlets that results leave by.

It may lend the lane for a while (:mod:`stages.runtime.aside`). Of connections to another host that results went by
and that are lost the control thread hears, which is told of each socket.

A parcel that finds no connection waits in its outlet and keeps its place: what follows it queues behind it. Nothing
here is bounded by a number, because the broker's credit is: without answers no new batches come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from engine import transport
from engine.core.routing import FINAL
from engine.core.wire import Buffer
from engine.mailbox import Bell, Mailbox
from stages.runtime.shared import ToMain

LINGER_MS: Final = 500  # at the end: for the last results to leave


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
        self._poller = transport.Poller()
        self._poller.register(bell.fileno(), transport.READABLE)
        self._pushes: dict[int, transport.Socket] = {}
        self._made = 0  # of them, so far
        self._waiting: dict[int, deque[list[Buffer]]] = {}

    def switch(self, endpoints: transport.Endpoints, lane: str, targets: Iterable[int], *, forget: bool) -> None:
        """Take batches from this lane, and send results to these targets of a broker, from now on. ``forget``: nobody
        knows the unsent results any more."""
        self._close_lane()
        # The broker is elsewhere, or was found to have another key.
        if endpoints != self._endpoints or any(sock.is_outdated for sock in self._pushes.values()):
            self._endpoints = endpoints
            for sock in self._pushes.values():
                sock.close(linger=LINGER_MS)
            self._pushes.clear()
        for target in {*targets, *self._waiting} - self._pushes.keys():
            self._open(target, endpoints)
        self._lane = transport.lane_end(self._ctx, lane)
        self._poller.register(self._lane, transport.READABLE)
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
        poller = transport.Poller()
        poller.register(recall, transport.READABLE)
        if self._lane is not None:
            poller.register(self._lane, transport.READABLE)
        return recall not in dict(poller.poll())

    def send(self, target: int, frames: list[Buffer]) -> None:
        """Send a parcel, or keep it until it can be sent. Its frames must not be changed afterwards. To a stage that
        does not come next by the file, the way is made with the first one."""
        if target not in self._pushes:
            assert self._endpoints is not None  # a batch came from there
            self._open(target, self._endpoints)
        waiting = self._waiting[target]
        if waiting or not transport.send(self._pushes[target], frames):
            waiting.append(frames)

    def flush(self) -> bool:
        """Send what waits, as far as it goes. True when nothing is left."""
        done = True
        for target, waiting in self._waiting.items():
            while waiting and transport.send(self._pushes[target], waiting[0]):
                waiting.popleft()
            done = done and not waiting
        return done

    def wait(self, timeout_s: float | None) -> bool:
        """Until there is a batch, a letter, room for what waits, or the time is over. None: no limit.

        True when there is a batch and no letter: it can be received at once.
        """
        blocked = [self._pushes[target] for target, waiting in self._waiting.items() if waiting]
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
        if self._bell.fileno() in ready:
            self._bell.silence()
        return self._lane in ready and not self._mailbox.letters

    def close(self) -> None:
        self._close_lane()
        for sock in self._pushes.values():
            sock.close(linger=LINGER_MS)

    def _close_lane(self) -> None:
        if self._lane is not None:
            self._poller.unregister(self._lane)
            self._lane.close(linger=0)
            self._lane = None
