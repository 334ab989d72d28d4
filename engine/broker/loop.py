"""The life of the broker's parts and of the thread that carries them: set up, pass after pass, close.

A pass is bounded: so many letters, so many parcels of each socket, then time limits, then sending; so no source can
keep the others waiting. A thread that fails ends the process: the supervisor starts a new broker, whose epoch tells
everybody to submit and to say hello again, which is a state that is tested, unlike a broker with a missing thread.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from math import ceil, inf
from typing import Any, Final, Generic, TypeVar

import zmq

from engine import transport
from engine.broker.mailbox import Bell, Mailbox
from engine.clock import now
from engine.core.messages import AnyMessage
from engine.core.wire import Payload, decode
from engine.errors import ProtocolError

log: Final = logging.getLogger("stageline.broker")

PARCELS_PER_PASS: Final = 64  # of one socket; a parcel may carry hundreds of items
LONGEST_POLL_S: Final = (
    1.0  # an upper bound on every wait: nothing depends on it, it only limits the damage of a mistake
)

Letter = TypeVar("Letter")


class Part(ABC, Generic[Letter]):
    """One machine with its sockets and its mailbox, carried by a :class:`PartThread`, which alone calls it."""

    def __init__(self) -> None:
        self.mailbox: Mailbox[Letter] = Mailbox()
        self.wake = 0.0  # when it wants to be called at the latest
        self._sources: list[object] = []
        self._sockets: list[zmq.Socket[bytes]] = []

    @abstractmethod
    def open(self, poller: zmq.Poller) -> None:
        """Make and register sockets. StartError when an address cannot be bound."""

    @abstractmethod
    def work(self, events: dict[object, int]) -> float:
        """Do what there is to do; returns when to come again at the latest."""

    def close(self) -> None:
        """Close what ``open`` made, as far as it came."""
        for sock in self._sockets:
            sock.close()

    def is_due(self, events: dict[object, int], instant: float) -> bool:
        """Whether anything is there to do."""
        return instant >= self.wake or bool(self.mailbox) or any(source in events for source in self._sources)

    def _own(self, poller: zmq.Poller, sock: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        """Poll a socket, and close it in the end."""
        self._sockets.append(sock)
        self._listen(poller, sock)
        return sock

    def _listen(self, poller: zmq.Poller, source: zmq.Socket[bytes] | int) -> None:
        poller.register(source, zmq.POLLIN)
        self._sources.append(source)


class PartThread:
    """A thread that carries parts: opens them, works them pass after pass until it is stopped, closes them."""

    def __init__(self, name: str, parts: Sequence[Part[Any]], failed: Callable[[], None]) -> None:
        self.started = threading.Event()
        self.error: Exception | None = None  # why it could not start
        self._parts = tuple(parts)
        self._failed = failed
        self._bell = Bell()
        for part in parts:
            part.mailbox.bell = self._bell
        self._poller = zmq.Poller()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End it and wait; False when it is still running. From any thread but its own."""
        self._stopping = True
        self._bell.ring()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        for part in self._parts:
            part.mailbox.bell = None  # its descriptor may soon be somebody else's
        self._bell.close()
        return True

    def _main(self) -> None:
        try:
            try:
                for part in self._parts:
                    part.open(self._poller)
            except Exception as error:
                self.error = error
                return
            finally:
                self.started.set()
            self._poller.register(self._bell.fileno(), zmq.POLLIN)
            while not self._stopping:
                events = self._wait()
                instant = now()
                for part in self._parts:
                    if part.is_due(events, instant):
                        part.wake = part.work(events)
        except Exception:
            log.critical("%s failed", self._thread.name, exc_info=True)
            self._failed()
        finally:
            for part in self._parts:
                part.close()

    def _wait(self) -> dict[object, int]:
        """Poll until something is readable, a letter came, or a part wants to be called."""
        wake = min([part.wake for part in self._parts])
        timeout = min(max(0.0, wake - now()), LONGEST_POLL_S) if wake != inf else LONGEST_POLL_S
        bell = self._bell
        bell.asleep = True
        if self._stopping or any(part.mailbox for part in self._parts):
            timeout = 0.0
        # Rounded up: a wake-up that is a fraction of a millisecond early would poll again and again until it is due.
        events: dict[object, int] = dict(self._poller.poll(ceil(timeout * 1000)))
        bell.asleep = False
        if bell.fileno() in events:
            bell.silence()
        return events


def parcels(sock: zmq.Socket[bytes]) -> Iterator[tuple[AnyMessage, list[Payload]]]:
    """What a PULL socket has now, at most PARCELS_PER_PASS; what cannot be read is logged and left out."""
    for _ in range(PARCELS_PER_PASS):
        frames = transport.recv(sock)
        if frames is None:
            return
        try:
            yield decode(frames)
        except ProtocolError as error:
            log.warning("malformed parcel dropped", extra={"reason": str(error)})


def letters_from(sock: zmq.Socket[bytes]) -> Iterator[tuple[bytes, AnyMessage, list[Payload]]]:
    """The same for a ROUTER socket: with the peer that sent it."""
    for _ in range(PARCELS_PER_PASS):
        frames = transport.recv(sock)
        if frames is None:
            return
        try:
            message, payloads = decode(frames[1:])
        except ProtocolError as error:
            log.warning("malformed parcel dropped", extra={"reason": str(error)})
            continue
        yield bytes(frames[0]), message, payloads
