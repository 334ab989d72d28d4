"""Taking new connections, and serving the first request of each on the bare socket.

A client that says ``connection: close``, or speaks HTTP/1.0 as proxies do, pays for a transport of the event loop what
its request costs once more: watching the socket, waiting for the client to close it, several turns of the loop. None of
that is needed where nothing comes behind its request and the answer follows soon. So a connection begins without a
transport (:class:`Bare` stands in its place), and is read here until its first request is whole. Where its answer is
the last one, it leaves in one packet with the end of the connection; else the client is waited for a moment, for many
close a connection that is kept.

Every other one, and with its second request this one, is *adopted*: it gets its transport, and what was read. So does
one of which not all is here after a moment, or much of it; one whose answer takes long, for only a transport notices
that the client has gone; one whose answer comes in pieces, or does not fit into the socket; and one on which something
has come behind, since closing a socket with unread bytes resets the connection, and the reset can overtake the answer
(:mod:`frontend.lingering`).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import select
import socket
import termios
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from frontend.lean import LeanConnection

if TYPE_CHECKING:
    from frontend.shared import Shared

AT_ONCE: Final = 32  # connections taken in one turn of the loop
READY_MAX: Final = 1024  # of those that wait, as many as the loop itself takes of its connections: first come
READ_MAX: Final = 16 * 1024  # bytes
PAUSE_S: Final = 0.1  # without taking any, where the system has nothing left for one
SPENT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT if hasattr(select, "epoll") else 0
_NOW: Final = socket.MSG_DONTWAIT
# The last bytes wait for the end of the connection, which follows at once; a packet less, and its client is woken once.
_MORE_MAY_FOLLOW: Final = _NOW | getattr(socket, "MSG_NOSIGNAL", 0)
_LAST: Final = _MORE_MAY_FOLLOW | getattr(socket, "MSG_MORE", 0)
_SIZE: Final = bytearray(4)  # of what has come and is not read: an int of C, which the kernel fills in
_NOTHING: Final = bytes(4)

log = logging.getLogger("stageline.frontend")


class Bare:
    """What a connection has for a transport while there is none. What is written waits for :meth:`finish`,
    :meth:`flush`, or the transport."""

    __slots__ = (
        "_acceptor",
        "_peer",
        "connection",
        "is_aborted",
        "is_adopted",
        "is_known",
        "is_over",
        "sock",
        "written",
    )

    def __init__(self, acceptor: Acceptor, sock: socket.SocketType, peer: Any, connection: LeanConnection) -> None:
        self._acceptor = acceptor
        self._peer = peer
        self.sock = sock
        self.connection = connection
        self.written: list[bytes | memoryview] = []
        self.is_known = False  # to the acceptor's epoll
        self.is_adopted = False  # its transport is on its way, or it needs none
        self.is_over = False  # nothing more is served
        self.is_aborted = False

    def adopt(self) -> None:
        """Let it have a transport."""
        if not self.is_adopted:
            self.is_adopted = True
            self._acceptor.adopt(self)

    def finish(self) -> bool:
        """Send what was written, and close. False: not all of it could be sent, or the client has sent more."""
        try:
            fcntl.ioctl(self.sock, termios.FIONREAD, _SIZE)
            if _SIZE != _NOTHING or not self._send(_LAST):
                return False
        except OSError:
            pass  # the client has gone
        self.sock.close()
        return True

    def flush(self) -> None:
        """Send what was written. The client may ask for more; then there will be a transport."""
        if self.is_adopted:
            return
        try:
            is_sent = self._send(_MORE_MAY_FOLLOW)
        except OSError:
            self.close()  # it has gone
            return
        if is_sent:
            self._acceptor.wait(self)
        else:
            self.adopt()

    def _send(self, flags: int) -> bool:
        """Whether all of it could be. Raises OSError where the client has gone."""
        sock, written = self.sock, self.written
        try:
            while written:
                sent = sock.send(written[0], flags)
                if sent < len(written[0]):
                    written[0] = memoryview(written[0])[sent:]
                    return False
                del written[0]
        except BlockingIOError:
            return False
        return True

    def whole(self) -> socket.socket:
        """The socket as Python's own classes have it."""
        self.sock = whole = socket.socket(fileno=self.sock.detach())
        return whole

    def write(self, data: bytes | memoryview) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.is_over = True
        if not self.is_adopted:
            self.is_adopted = True  # there is nothing to adopt any more
            self._acceptor.drop(self)

    def abort(self) -> None:
        self.is_aborted = True
        self.close()

    def is_closing(self) -> bool:
        return self.is_over

    def get_write_buffer_size(self) -> int:
        return 0  # what the client does not take its transport will have

    def get_extra_info(self, name: str) -> Any:
        return self._peer if name == "peername" else None


class Acceptor:
    """Takes the connections of listening sockets, which are its own from then on."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        shared: Shared,
        has_room: Callable[[], bool],
        room: Callable[[], int],
        *,
        processes: int = 1,
    ) -> None:
        """``has_room``: for one more, which may take some doing; ``room``: for how many there is without. ``processes``
        take from these sockets. Not for TLS."""
        self._loop = asyncio.get_running_loop()
        self._shared = shared
        self._has_room = has_room
        self._room = room
        self._sockets = list(sockets)
        self._at_once = max(1, AT_ONCE // processes**2)  # each shall have its share of those that stay
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._early: dict[int, Bare] = {}  # those of whose request not all is here, by descriptor
        self._adopting: set[asyncio.Task[None]] = set()
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll is not None:
            self._loop.add_reader(self._epoll, self._read_early)
        for sock in sockets:
            self._loop.add_reader(sock, self._accept, sock)

    def close(self) -> None:
        """Take no more, and close the port."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            if (pause := self._pauses.pop(sock, None)) is not None:
                pause.cancel()
            self._loop.remove_reader(sock)
            sock.close()
        for bare in list(self._early.values()):
            bare.adopt()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll)
            self._epoll.close()
            self._epoll = None

    def adopt(self, bare: Bare) -> None:
        self._forget(bare)
        task = self._loop.create_task(self._adopt(bare))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    def drop(self, bare: Bare) -> None:
        """Close it."""
        self._forget(bare)
        bare.sock.close()
        self._loop.call_soon(bare.connection.connection_lost, None)

    async def _adopt(self, bare: Bare) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: bare.connection, bare.whole())
        except OSError as error:
            bare.sock.close()
            bare.connection.connection_lost(error)

    def _accept(self, listening: socket.socket) -> None:
        # As `accept`, which looks each time of what kind the socket is, and makes it twice.
        take = listening._accept  # type: ignore[attr-defined]
        family, kind, proto = int(listening.family), int(listening.type), listening.proto
        room, shared = self._room(), self._shared
        for _ in range(self._at_once):
            try:
                number, peer = take()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._rest(listening, error)
                return
            sock = socket.SocketType(family, kind, proto, number)
            room -= 1
            if room >= 0 or self._has_room():
                connection = LeanConnection(shared)
                bare = Bare(self, sock, peer, connection)
                connection.arrive(bare)
                self._read(bare)
            else:
                sock.close()

    def _rest(self, listening: socket.socket, error: OSError) -> None:
        """It would be as readable in the next turn of the loop, and the next."""
        if error.errno not in SPENT:
            raise error
        log.warning("no connection can be taken", extra={"reason": str(error)})
        self._loop.remove_reader(listening)
        again = self._loop.call_later(PAUSE_S, self._loop.add_reader, listening, self._accept, listening)
        self._pauses[listening] = again

    def _read(self, bare: Bare) -> None:
        """What has come: its request, the beginning of it, or nothing."""
        try:
            data = bare.sock.recv(READ_MAX, _NOW)
        except BlockingIOError:
            self.wait(bare)
            return
        except OSError:
            data = b""
        if not data and not bare.connection.idle:
            bare.adopt()  # in the middle of its request: it is told so
        elif not data:
            bare.close()  # its client has gone
        elif not bare.connection.come(data, bare):
            self.wait(bare)

    def _read_early(self) -> None:
        assert self._epoll is not None
        for number, _ in self._epoll.poll(0, READY_MAX):
            bare = self._early.pop(number, None)
            if bare is not None:
                self._read(bare)

    def wait(self, bare: Bare) -> None:
        """Until more comes: many clients send head and body one after the other, and some have only just connected."""
        if self._epoll is None:
            bare.adopt()
            return
        number = bare.sock.fileno()
        if bare.is_known:
            self._epoll.modify(number, _ONCE)
        else:
            bare.is_known = True
            self._epoll.register(number, _ONCE)
        self._early[number] = bare

    def _forget(self, bare: Bare) -> None:
        if bare.is_known and self._epoll is not None:
            self._epoll.unregister(bare.sock)
            self._early.pop(bare.sock.fileno(), None)
