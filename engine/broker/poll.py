"""What a thread of the broker waits for, in one system call: ZeroMQ sockets by their descriptors, and plain ones.

ZeroMQ's own poll asks every socket before and after it waits, four system calls each; with one stage that is more than
the work it finds. Its descriptors are edge-triggered: one is silent although a parcel is there when the socket was used
in between (a send takes in what has come as well) or when reading stopped early. Such sockets are *in doubt*, and are
asked once more before the thread sleeps.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Final, Protocol

from engine import transport, unix
from engine.broker.complaints import MALFORMED, Complaints
from engine.core.wire import AnyWords, Buffer, Payload, decode
from engine.errors import ProtocolError

PARCELS_PER_PASS: Final = 64  # of one socket; a parcel may carry hundreds of items


class Owner(Protocol):
    """Who sees to a source; ``due`` is set when one of them is ready, and cleared by who looked."""

    due: bool


class Source:
    """A descriptor that is polled. ``ready`` is set by the poll and cleared by who sees to it."""

    __slots__ = ("fd", "owner", "ready")

    def __init__(self, fd: int, owner: Owner) -> None:
        self.fd = fd
        self.owner = owner
        self.ready = False


class Inlet(Source):
    """A bound socket of a part: the parcels that have come, and for a ROUTER the way back."""

    __slots__ = ("_complaints", "_doubts", "is_near", "sock")

    def __init__(self, sock: transport.Socket, owner: Owner, poll: Poll, complaints: Complaints) -> None:
        super().__init__(sock.fileno(), owner)
        self.sock = sock
        self.is_near = isinstance(sock, unix.Socket)
        self._complaints = complaints
        self._doubts = poll.doubts

    def parcels(self) -> Iterator[tuple[AnyWords, list[Payload]]]:
        """What a PULL socket has now, at most PARCELS_PER_PASS; what cannot be read is noted and left out."""
        for frames, _ in self._parcels():
            try:
                message, payloads = decode(frames)
            except ProtocolError as error:
                self._complaints.note(MALFORMED, "malformed parcel dropped", reason=str(error))
                continue
            yield message, payloads

    def letters(
        self, unreadable: Callable[[bytes], None]
    ) -> Iterator[tuple[bytes, AnyWords, list[Payload], transport.Origin]]:
        """The same for a ROUTER socket: with the peer that sent it, and where it came from (:func:`transport.pid_of`).
        ``unreadable`` is told whose words were not."""
        for frames, origin in self._parcels():
            try:
                message, payloads = decode(frames[1:])
            except ProtocolError as error:
                self._complaints.note(MALFORMED, "malformed parcel dropped", reason=str(error))
                unreadable(bytes(frames[0]))
                continue
            yield bytes(frames[0]), message, payloads, origin

    def frames(self) -> Iterator[list[Buffer]]:
        """The same as it came, of those who do not speak our words."""
        for frames, _ in self._parcels():
            yield frames

    def _parcels(self) -> Iterator[tuple[list[Buffer], transport.Origin]]:
        self.ready = False
        for _ in range(PARCELS_PER_PASS):
            parcel = transport.recv_from(self.sock)
            if parcel is not None:
                yield parcel
            if not transport.readable(self.sock):
                return
        self._doubts.add(self)

    def send(self, frames: Sequence[Buffer], to: bytes) -> bool:
        """See :func:`engine.transport.send`."""
        self._doubts.add(self)
        return transport.send(self.sock, frames, to=to)


class Inlets:
    """Several for the same: by whichever way a peer comes (:func:`engine.transport.ways`), the quickest first."""

    __slots__ = ("_inlets",)

    def __init__(self, inlets: Sequence[Inlet]) -> None:
        self._inlets = tuple(inlets)

    def parcels(self) -> Iterator[tuple[AnyWords, list[Payload]]]:
        """See :meth:`Inlet.parcels`."""
        for inlet in self._inlets:
            if inlet.ready:
                yield from inlet.parcels()

    def letters(
        self, unreadable: Callable[[bytes], None]
    ) -> Iterator[tuple[bytes, AnyWords, list[Payload], transport.Origin]]:
        """See :meth:`Inlet.letters`. ZeroMQ lets a peer choose its name: one that chose another's is not heard."""
        for inlet in self._inlets:
            if inlet.ready:
                for letter in inlet.letters(unreadable):
                    if transport.is_near(letter[0]) is inlet.is_near:
                        yield letter

    def listen_again(self) -> None:
        """To be called now and then (:meth:`engine.unix.Listening.listen_again`)."""
        for inlet in self._inlets:
            if isinstance(inlet.sock, unix.Listening):
                inlet.sock.listen_again()

    def send(self, frames: Sequence[Buffer], to: bytes) -> bool:
        """See :func:`engine.transport.send`."""
        return self._inlets[0 if transport.is_near(to) else -1].send(frames, to)


class Losses(Inlet):
    """What is heard of connections that were lost (:class:`engine.transport.Losses`)."""

    __slots__ = ("_losses",)

    def __init__(self, losses: transport.Losses, owner: Owner, poll: Poll, complaints: Complaints) -> None:
        super().__init__(losses.sock, owner, poll, complaints)
        self._losses = losses

    def hear(self, name: str) -> None:
        """Of the socket of this name as well."""
        self._losses.hear(name)
        self._doubts.add(self)

    def ports(self) -> Iterator[int]:
        """Where connections were lost that had been made."""
        for frames in self.frames():
            if (port := self._losses.lost(frames)) is not None:
                yield port


class Poll:
    """See the module. One thread."""

    def __init__(self) -> None:
        self.doubts: set[Inlet] = set()
        self._poll = select.poll()
        self._sources: dict[int, Source] = {}

    def add(self, source: Source) -> None:
        self._sources[source.fd] = source
        self._poll.register(source.fd, select.POLLIN)

    def remove(self, source: Source) -> None:
        """Before its descriptor is closed."""
        del self._sources[source.fd]
        self._poll.unregister(source.fd)
        self.doubts.discard(source)

    def wait(self, timeout_s: float) -> None:
        """Sets ``ready`` of all sources that have something; returns when one has, or after ``timeout_s``."""
        doubts = self.doubts
        if doubts:
            for inlet in doubts:
                if transport.readable(inlet.sock):
                    inlet.ready = inlet.owner.due = True
                    timeout_s = 0.0
            doubts.clear()
        # Rounded up: a wake-up that is a fraction of a millisecond early would poll again and again until it is due.
        for fd, _ in self._poll.poll(ceil(timeout_s * 1000)):
            source = self._sources[fd]
            source.ready = source.owner.due = True
