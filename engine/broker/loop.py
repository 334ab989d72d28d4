"""The life of a broker thread, the same for the front and for stages: set up, pass after pass, close.

A pass is bounded: so many letters, so many parcels of each socket, then time limits, then sending; so no source can
keep the others waiting. A thread that fails ends the process: the supervisor starts a new broker, whose epoch tells
everybody to submit and to say hello again, which is a state that is tested, unlike a broker with a missing thread.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from math import ceil, inf
from typing import Final, Generic, TypeVar

import zmq

from engine import transport
from engine.broker.mailbox import Mailbox
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


class BrokerThread(ABC, Generic[Letter]):
    """Runs ``_open``, then ``_pass`` until it is told to stop, then ``_close``, all in its own thread."""

    def __init__(self, name: str, failed: Callable[[], None]) -> None:
        self.mailbox: Mailbox[Letter] = Mailbox()
        self.started = threading.Event()
        self.error: Exception | None = None  # why it could not start
        self.poller = zmq.Poller()
        self._failed = failed
        self._stopping = False
        self._sockets: list[zmq.Socket[bytes]] = []
        self._thread = threading.Thread(target=self._main, name=name)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; False when the thread is still running."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """To be called by the thread itself, on a Stop letter."""
        self._stopping = True

    def _main(self) -> None:
        try:
            try:
                self._open()
            except Exception as error:
                self.error = error
                return
            finally:
                self.started.set()
            self.poller.register(self.mailbox.fileno(), zmq.POLLIN)
            wake = 0.0
            while not self._stopping:
                wake = self._pass(self._wait(wake))
        except Exception:
            log.critical("%s failed", self._thread.name, exc_info=True)
            self._failed()
        finally:
            self._close()

    def _wait(self, wake: float) -> dict[object, int]:
        """Poll until something is readable, a letter came, or ``wake``."""
        timeout = min(max(0.0, wake - now()), LONGEST_POLL_S) if wake != inf else LONGEST_POLL_S
        if not self.mailbox.may_sleep():
            timeout = 0.0
        # Rounded up: a wake-up that is a fraction of a millisecond early would poll again and again until it is due.
        events: dict[object, int] = dict(self.poller.poll(ceil(timeout * 1000)))
        if self.mailbox.fileno() in events:
            self.mailbox.clear_signal()
        return events

    @abstractmethod
    def _open(self) -> None:
        """Make and register sockets. StartError when an address cannot be bound."""

    @abstractmethod
    def _pass(self, events: dict[object, int]) -> float:
        """Do what there is to do; returns when to come again at the latest."""

    def _own(self, sock: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        """Poll a socket, and close it in the end."""
        self._sockets.append(sock)
        self.poller.register(sock, zmq.POLLIN)
        return sock

    def _close(self) -> None:
        """Close what ``_open`` made, as far as it came."""
        for sock in self._sockets:
            sock.close()


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
