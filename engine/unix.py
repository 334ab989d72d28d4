"""Parcels between the processes of one host, over unix stream sockets: what ZeroMQ's patterns are over tcp, without a
thread of its own on either side.

A parcel that ZeroMQ carries passes two of its threads, and each has to be woken; here the sender's call wakes the
receiver. A parcel is its number of frames (u32, little-endian) and the bytes of each (u64), then the frames.

Nothing here blocks. What a connection does not take at once it keeps, in order, and whoever owns the socket has it
moved on by looking at it again: its descriptor, which is the same for as long as it is open, is readable while there
is something to do, and it is level-triggered. Rules kept from the other transport: a socket is used by one thread at a
time, but for what is said below; nothing bounds what waits here, for the broker's own books do.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from time import monotonic
from typing import Final

from engine.core.wire import FRAMES_MAX, Buffer

READ: Final = 64 * 1024  # bytes at a time, and of a frame that is handed on without a copy
DIRECT: Final = 8 * 1024  # what is missing of a parcel, from which on frames are read into their own memory
AHEAD: Final = 4 << 20  # bytes of several frames for which there is memory before they come
READS: Final = 8  # of one connection at a time, where each brings so many
KEPT: Final = 1 << 20  # bytes that the system may hold of a connection; it takes less than it is asked for
JOINED: Final = 16 * 1024  # bytes of a parcel that is put together and sent as one piece of memory
PIECES: Final = 512  # of memory that a system call takes, at most; Linux: 1,024
WAITING: Final = 4096  # connections that wait to be accepted; the system has its own limit
FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)  # user code may have set SIGPIPE to its default
LOOKS: Final = 16  # at the only connection there is, until it is looked whether others come
NAMED: Final = b"\xff"  # what the names of peers begin with; ZeroMQ's begin with a zero byte

_number: Final = struct.Struct("<I")
_single: Final = struct.Struct("<IQ")  # the head of a parcel of one frame
_unsent: Final = attrgetter("unsent")
_ucred: Final = struct.Struct("3i")  # of unix(7): pid, uid, gid

IS_THERE: Final = hasattr(select, "epoll") and hasattr(socket, "SO_PEERCRED")
_IN: Final[int] = getattr(select, "EPOLLIN", 0)
_OUT: Final[int] = getattr(select, "EPOLLOUT", 0)

Parcel = tuple[list[Buffer], "Stream"]


class Stream:
    """One connection. Its methods raise OSError when it is over."""

    __slots__ = (
        "_filling", "_frames", "_largest", "_made", "_rest", "_sizes", "has_more", "name", "pid", "sock", "unsent",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, largest: int, *, name: bytes = b"", pid: int = 0) -> None:
        """``name``: the first frame of each parcel that comes. ``largest``: see :func:`engine.transport.router`."""
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KEPT)
        self.sock = sock
        self.name = name
        self.pid = pid  # who is at the other end, by the kernel's word
        self.unsent: deque[memoryview] = deque()
        self._largest = largest
        self._rest = b""  # came, and is not whole
        self._sizes: list[int] | None = None  # of the frames of the parcel that is being read, once its head is here
        self._frames: list[Buffer] = []  # of it, as far as they are here
        self._made: list[bytearray] = []  # the next of them, which are read into their own memory
        self._filling: list[memoryview] = []  # what is missing of these
        self.has_more = False  # the last read brought as much as it may

    def send(self, frames: Sequence[Buffer]) -> None:
        """All of it, now or by :meth:`go_on`."""
        if len(frames) == 1:
            frame = frames[0]
            size = len(frame) if type(frame) is bytes else memoryview(frame).nbytes
            if size <= JOINED and not self.unsent:
                data = _single.pack(1, size) + frame
                try:
                    sent = self.sock.send(data, FLAGS)
                except BlockingIOError:
                    sent = 0
                if sent != len(data):
                    self.unsent.append(memoryview(data)[sent:])
                return
        self._send(frames)

    def _send(self, frames: Sequence[Buffer]) -> None:
        # What has a zero in its shape cannot be cast.
        views = [view.cast("B") if view.nbytes else memoryview(b"") for view in [memoryview(frame) for frame in frames]]
        sizes = [view.nbytes for view in views]
        head = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        if sum(sizes) <= JOINED or len(views) >= PIECES:
            views = [memoryview(b"".join([head, *views]))]
        else:
            views.insert(0, memoryview(head))
        unsent = self.unsent
        if not unsent:
            try:
                sent = self.sock.sendmsg(views, (), FLAGS)
            except BlockingIOError:
                sent = 0
            views = _after(views, sent)
        unsent.extend(views)

    def go_on(self) -> bool:
        """Send what is kept. True when nothing is left."""
        unsent = self.unsent
        while unsent:
            views = [unsent[at] for at in range(min(len(unsent), PIECES))]
            try:
                sent = self.sock.sendmsg(views, (), FLAGS)
            except BlockingIOError:
                return False
            for _ in views:
                unsent.popleft()
            unsent.extendleft(reversed(_after(views, sent)))
        return True

    def read(self, parcels: deque[Parcel]) -> bool:
        """Read once, and add the parcels that are whole. False when nothing was there. EOFError at the end, and for
        bytes that no parcel is made of."""
        if self._filling:
            try:
                got = self.sock.recvmsg_into(self._filling)[0]
            except BlockingIOError:
                return False
            if not got:
                raise EOFError
            self._filling = _after(self._filling, got)
            self.has_more = True
            if self._filling:
                return True
            self._frames += [bytes(one) if len(one) <= READ else memoryview(one).toreadonly() for one in self._made]
            self._made, data = [], b""
        else:
            try:
                data = self.sock.recv(READ)
            except BlockingIOError:
                return False
            if not data:
                raise EOFError
            self.has_more = len(data) == READ
            if self._rest:
                data, self._rest = self._rest + data, b""
        self._take(data, parcels)
        return True

    def _take(self, data: bytes, parcels: deque[Parcel]) -> None:
        at, end = 0, len(data)
        while True:
            sizes = self._sizes
            if sizes is None:
                if end - at < 4:
                    break
                (count,) = _number.unpack_from(data, at)
                if not 1 <= count <= FRAMES_MAX + 1:
                    raise EOFError
                if end - at < 4 + 8 * count:
                    break
                sizes = list(struct.unpack_from(f"<{count}Q", data, at + 4))
                if 0 <= self._largest < max(sizes):
                    raise EOFError
                at += 4 + 8 * count
                self._sizes = sizes
                self._frames = [self.name] if self.name else []
            frames = self._frames
            first = len(frames) - bool(self.name)
            for size in sizes[first:] if first else sizes:
                if end - at >= size:
                    frames.append(data[at : at + size])
                    at += size
                else:
                    left = sizes[len(frames) - bool(self.name) :]
                    if sum(left) - (end - at) < DIRECT:
                        self._rest = data[at:]
                    else:
                        self._fill(left, data[at:])
                    return
            self._sizes = None
            parcels.append((frames, self))
            if at == end:
                return
        self._rest = data[at:]

    def _fill(self, sizes: list[int], data: bytes) -> None:
        """Read the next frames into their own memory, of which this is the beginning."""
        self._made = [bytearray(sizes[0])]
        ahead = sizes[0]
        for size in sizes[1:PIECES]:
            ahead += size
            if ahead > AHEAD:
                break
            self._made.append(bytearray(size))
        self._made[0][: len(data)] = data
        self._filling = _after([memoryview(one) for one in self._made], len(data))


def _after(views: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of these when so many bytes have been sent."""
    for at, view in enumerate(views):
        if sent < view.nbytes:
            return [view[sent:], *views[at + 1 :]]
        sent -= view.nbytes
    return []


class Socket:
    """What a listening and a connecting one have in common. Its owner looks at it (:meth:`recv`) when its descriptor
    is readable."""

    is_outdated = False  # it has no keys
    streams: dict[int, Stream]

    def __init__(self, path: str, largest: int) -> None:
        self.path = path
        self.streams = {}  # by descriptor
        self._looks = 0
        self._pid = os.getpid()
        self._largest = largest
        self._epoll = select.epoll()
        self._parcels: deque[Parcel] = deque()

    def fileno(self) -> int:
        return self._epoll.fileno()

    @property
    def has_parcels(self) -> bool:
        """Parcels that were read and not taken: the descriptor does not tell of these."""
        return bool(self._parcels)

    @property
    def has_unsent(self) -> bool:
        return any(map(_unsent, self.streams.values()))

    def recv(self) -> Parcel | None:
        """The next parcel, and by which connection it came; None when there is none now."""
        parcels = self._parcels
        if not parcels:
            self._look()
            if not parcels:
                return None
        return parcels.popleft()

    # No abstract class: to ask whether a socket is one of these would cost five times as much, on every parcel's way.
    def send(self, frames: Sequence[Buffer], to: bytes | None = None) -> bool:
        """False when there is no connection, or it has just ended; then nothing was sent."""
        raise NotImplementedError

    def _look(self) -> None:
        """Read what has come, and send on what is kept."""
        raise NotImplementedError

    def _read(self, stream: Stream) -> bool:
        """False when there was nothing."""
        try:
            is_there = stream.read(self._parcels)
            for _ in range(READS):
                if not stream.has_more or not stream.read(self._parcels):
                    break
            return is_there
        except (OSError, EOFError, MemoryError):
            self._end(stream)
            return True

    def _add(self, stream: Stream) -> None:
        fd = stream.sock.fileno()
        self.streams[fd] = stream
        self._epoll.register(fd, _IN)

    def _send(self, stream: Stream, frames: Sequence[Buffer]) -> bool:
        waited = bool(stream.unsent)
        try:
            stream.send(frames)
        except OSError:
            self._lose(stream)
            return False
        except BaseException:  # a signal's handler has raised: nobody knows what of it was sent
            self._end(stream)
            raise
        if stream.unsent and not waited:
            self._epoll.modify(stream.sock.fileno(), _IN | _OUT)
        return True

    def _go_on(self, stream: Stream) -> None:
        try:
            if stream.go_on():
                self._epoll.modify(stream.sock.fileno(), _IN)
        except OSError:
            self._lose(stream)
        except BaseException:  # as above
            self._end(stream)
            raise

    def go_on(self, timeout_s: float = 0.0) -> bool:
        """Send what is kept, for as long as somebody takes it within that time. True when nothing is left."""
        if not self.has_unsent:
            return True
        until = monotonic() + timeout_s
        while True:
            for stream in list(self.streams.values()):
                if stream.unsent:
                    self._go_on(stream)
            stuck = [fd for fd, stream in self.streams.items() if stream.unsent]
            left = until - monotonic()
            if not stuck or left <= 0:
                return not stuck
            poll = select.poll()
            for fd in stuck:
                poll.register(fd, select.POLLOUT)
            poll.poll(left * 1000 + 1)

    def _lose(self, stream: Stream) -> None:
        """It takes no more. What its peer sent before that is read; more than a connection holds there is not."""
        for _ in range(LOOKS):
            if not self._read(stream) or stream.sock.fileno() < 0:
                break
        self._end(stream)

    def _end(self, stream: Stream) -> None:
        fd = stream.sock.fileno()
        if self.streams.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            stream.unsent.clear()
            stream.sock.close()

    def close(self, linger: int = 0) -> None:
        """``linger``: milliseconds for what is kept."""
        if self._epoll.closed:
            return
        if linger and os.getpid() == self._pid:  # a child that was forked would send it twice
            self.go_on(linger / 1000)
        for stream in list(self.streams.values()):
            self._end(stream)
        self._epoll.close()


class Listening(Socket):
    """A bound one. ``is_named``: each peer has a name, by which it is answered, and which its parcels begin with.
    ``is_single``: it takes one connection, and listens until then. ``only``: of this process; 0: of any."""

    def __init__(
        self, path: str, largest: int = -1, *, is_named: bool = False, is_single: bool = False, only: int = 0
    ) -> None:
        """Raises OSError."""
        super().__init__(path, largest)
        self._is_named = is_named
        self._is_single = is_single
        self._only = only
        self._count = 0
        self._by_name: dict[bytes, Stream] = {}
        self._is_deaf = False  # there was no descriptor for who came: others wait
        self._listener: socket.socket | None = None
        try:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._listener.bind(path)
            self._listener.listen(WAITING)
            self._listener.setblocking(False)
            self._epoll.register(self._listener.fileno(), _IN)
        except OSError:
            self.close()
            raise

    def send(self, frames: Sequence[Buffer], to: bytes | None = None) -> bool:
        if to is not None:
            stream = self._by_name.get(to)
        else:
            if not self.streams:
                self._accept()
            stream = next(iter(self.streams.values()), None)
        return stream is not None and self._send(stream, frames)

    def is_over(self) -> bool:
        """It was to take one connection, and that has ended."""
        self._look()
        return self._listener is None and not self.streams

    def listen_again(self) -> None:
        """To be called now and then: without a descriptor for a connection this one would be readable for ever, so it
        does not listen for a while. Who wants to connect, and what it has sent, waits."""
        if self._is_deaf and self._listener is not None:
            self._is_deaf = False
            self._epoll.register(self._listener.fileno(), _IN)

    def _look(self) -> None:
        if len(self.streams) == 1 and self._looks < LOOKS:  # which one is readable need not be asked
            self._looks += 1
            (stream,) = self.streams.values()
            if not stream.unsent and self._read(stream):
                return
        self._looks = 0
        for fd, events in self._epoll.poll(0):
            found = self.streams.get(fd)
            if found is None:
                self._accept()
                continue
            if events & _OUT:
                self._go_on(found)
            if events & ~_OUT and found.sock.fileno() >= 0:
                self._read(found)

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                if not self._is_deaf:
                    self._is_deaf = True
                    self._epoll.unregister(self._listener.fileno())
                return
            pid, _, _ = _ucred.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _ucred.size))
            if self._only and pid != self._only:
                sock.close()
                continue
            self._count += 1
            name = NAMED + self._count.to_bytes(7, "big") if self._is_named else b""
            stream = Stream(sock, self._largest, name=name, pid=pid)
            self._add(stream)
            if self._is_named:
                self._by_name[name] = stream
            if self._is_single:
                self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError, ValueError):  # it is not registered, or that is closed
                # A child that was forked keeps both.
                self._epoll.unregister(self._listener.fileno())
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def _end(self, stream: Stream) -> None:
        super()._end(stream)
        self._by_name.pop(stream.name, None)
        self.listen_again()

    def close(self, linger: int = 0) -> None:
        super().close(linger)
        self._stop_listening()


def is_heard(path: str) -> bool:
    """Whether anybody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:  # so many wait
            return True
        except OSError:
            return False
        return True


class Connecting(Socket):
    """One connection to a listening one. ``is_lasting``: when it has ended the next send makes it anew. One thread may
    call :meth:`go_on` while another sends."""

    def __init__(self, path: str, largest: int = -1, *, is_lasting: bool = True) -> None:
        super().__init__(path, largest)
        self._lock = threading.RLock()
        self._is_lasting = is_lasting
        self._stream: Stream | None = None  # the one that there is
        self._dial()

    @property
    def is_connected(self) -> bool:
        return self._stream is not None

    @property
    def has_unsent(self) -> bool:
        stream = self._stream
        return stream is not None and bool(stream.unsent)

    def send(self, frames: Sequence[Buffer], to: bytes | None = None) -> bool:
        with self._lock:
            stream = self._stream
            if stream is None:
                if not (self._is_lasting and self._dial()):
                    return False
                stream = self._stream
                assert stream is not None  # it has just been made
            return self._send(stream, frames)

    def go_on(self, timeout_s: float = 0.0) -> bool:
        with self._lock:
            return super().go_on(timeout_s)

    def close(self, linger: int = 0) -> None:
        with self._lock:
            super().close(linger)

    def _look(self) -> None:
        stream = self._stream
        if stream is not None and stream.unsent:
            self._go_on(stream)
        if stream is not None and stream is self._stream:
            self._read(stream)

    def _end(self, stream: Stream) -> None:
        super()._end(stream)
        self._stream = None

    def _dial(self) -> bool:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:  # out of descriptors
            return False
        sock.setblocking(False)  # a full queue of connections is one that is not made
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            return False
        self._stream = Stream(sock, self._largest)
        self._add(self._stream)
        return True
