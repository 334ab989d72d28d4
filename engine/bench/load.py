"""The open-loop client: sends at instants fixed beforehand, whether or not answers have come.

Plain non-blocking sockets and one epoll, some 20 us of CPU per request: asyncio and uvloop round their timers to
milliseconds, which would be a tenth of the latencies that are measured; ``select`` sleeps to the microsecond, and waits
here for the epoll descriptor. What the client itself adds - it was busy, or all connections were in use - is a part of
the latency, and told apart as its lag, so that one which cannot keep up is noticed.

Connections are made when none is free, up to a number; one that the server closes costs the request on it, which
counts as failed, and nothing else.
"""

from __future__ import annotations

import errno
import gc
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from engine.bench.figures import CUT, LATE, Outcome, Sample
from engine.bench.http import Answer, BadAnswer
from engine.bench.target import Target

START_S: Final = 0.02  # between now and the first instant
RECEIVE: Final = 64 << 10
TELL_S: Final = 0.1  # between two looks at how far it is
LOOK_S: Final = 0.05  # at requests that have had their time
_COMING: Final = (errno.EINPROGRESS, errno.EAGAIN)


class Connection:
    """One, and what is under way on it."""

    def __init__(self, address: tuple[object, ...], family: int, tls: ssl.SSLContext | None, name: str) -> None:
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.sock.connect_ex(address)
        if code and code not in _COMING:
            self.sock.close()
            raise OSError(code, "cannot connect")
        self.fd = self.sock.fileno()
        self.is_open = False  # it is connected, and TLS agreed on
        self.number = -1  # of the request under way
        self.sent_at = 0.0
        self.first_at = 0.0
        self.unsent = b""
        self.answer: Answer | None = None
        self.waits_to_write = True
        self._tls, self._name = tls, name

    def progress(self) -> bool:
        """Go on with connecting; whether it is open. Raises OSError."""
        if self.is_open:
            return True
        if code := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, "cannot connect")
        if self._tls is not None:
            if not isinstance(self.sock, ssl.SSLSocket):
                try:
                    self.sock.getpeername()
                except OSError:
                    return False  # not connected yet
                self.sock = self._tls.wrap_socket(
                    self.sock, server_hostname=self._name, do_handshake_on_connect=False, suppress_ragged_eofs=True
                )
            assert isinstance(self.sock, ssl.SSLSocket)
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                self.waits_to_write = False
                return False
            except ssl.SSLWantWriteError:
                self.waits_to_write = True
                return False
        self.is_open = True
        return True

    def send(self) -> None:
        """As much of the request as goes. Raises OSError."""
        while self.unsent:
            try:
                sent = self.sock.send(self.unsent)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self.waits_to_write = True
                return
            self.unsent = self.unsent[sent:]
        self.waits_to_write = False

    def received(self) -> Iterator[bytes]:
        """What has come; b"" at last where the server has closed it. Raises OSError."""
        while True:
            try:
                data = self.sock.recv(RECEIVE)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            yield data
            if not data:
                return
            if len(data) < RECEIVE and not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()):
                return


class Client:
    """Asks one target. ``requests`` are whole, and take turns."""

    def __init__(
        self, target: Target, requests: Sequence[bytes], *, connections: int, timeout_s: float, method: str = "POST"
    ) -> None:
        self._epoll = select.epoll()  # made first: select() below takes descriptors under 1024 only
        self._target = target
        self._requests = requests
        self._method = method
        self._most = connections
        self._timeout_s = timeout_s
        self._tls = target.tls_context() if target.tls else None
        self._family, self._address = target.looked_up()
        self._connections: dict[int, Connection] = {}
        self._free: deque[Connection] = deque()
        self._under_way: dict[int, Connection] = {}  # by number, in the order of sending

    def close(self) -> None:
        for connection in self._connections.values():
            connection.sock.close()
        self._epoll.close()

    def run(self, due: Sequence[float], told: Callable[[float, int], object] = lambda at, done: None) -> Outcome:
        """Ask once at each of these instants, in seconds from now and in order, and wait for the answers. ``told`` is
        called now and then with the seconds that have passed and the number of requests that are done."""
        self._due = due
        self._samples: list[Sample] = []
        self._wrong: dict[int, str] = {}
        self._waiting: deque[int] = deque()
        self._waited = 0
        self._peak = len(self._connections)
        with _quiet():
            self._begin = time.monotonic() + START_S
            self._send_all(told)
        return Outcome(self._samples, self._wrong, self._peak, self._waited)

    def _send_all(self, told: Callable[[float, int], object]) -> None:
        due, count, begin = self._due, len(self._due), self._begin
        coming, tell_at, look_at = 0, begin, begin
        while coming < count or self._under_way or self._waiting:
            now = time.monotonic()
            while coming < count and begin + due[coming] <= now:
                self._ask(coming)
                coming += 1
                now = time.monotonic()
            if now >= look_at:
                look_at = now + LOOK_S
                self._give_up(now)
            if now >= tell_at:
                tell_at = now + TELL_S
                told(now - begin, len(self._samples))
            until = min(begin + due[coming], look_at) if coming < count else look_at
            select.select([self._epoll], [], [], max(until - time.monotonic(), 0.0))
            for fd, _ in self._epoll.poll(0):
                connection = self._connections.get(fd)
                if connection is not None:
                    self._serve(connection)
        told(time.monotonic() - begin, len(self._samples))

    # --- asking ------------------------------------------------------------------------------------------------------

    def _ask(self, number: int) -> None:
        if self._free:
            self._give(self._free.pop(), number)  # the last one used: an idle one may be closed, and that is rare so
        elif len(self._connections) < self._most:
            self._open(number)
        else:
            self._waited += 1
            self._waiting.append(number)

    def _open(self, number: int) -> None:
        try:
            connection = Connection(self._address, self._family, self._tls, self._target.host)
        except OSError as error:
            self._failed(number, 0.0, str(error))
            return
        self._connections[connection.fd] = connection
        self._peak = max(self._peak, len(self._connections))
        self._epoll.register(connection.fd, select.EPOLLIN | select.EPOLLOUT)
        self._give(connection, number)

    def _give(self, connection: Connection, number: int) -> None:
        connection.number = number
        connection.sent_at = time.monotonic()
        connection.first_at = 0.0
        connection.answer = Answer(self._method)
        connection.unsent = self._requests[number % len(self._requests)]
        self._under_way[number] = connection
        if connection.is_open:
            self._push(connection)

    def _push(self, connection: Connection) -> None:
        waited = connection.waits_to_write
        try:
            connection.send()
        except OSError as error:
            self._hear_last(connection, str(error))
            return
        if connection.waits_to_write is not waited:
            self._watch(connection)

    def _hear_last(self, connection: Connection, why: str) -> None:
        """It takes no more of the request: perhaps it has said why."""
        try:
            self._receive(connection)
        except (OSError, BadAnswer):
            pass
        self._drop(connection, why)

    def _watch(self, connection: Connection) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if connection.waits_to_write else 0)
        self._epoll.modify(connection.fd, events)

    # --- hearing -----------------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection) -> None:
        try:
            if not connection.is_open:
                waited = connection.waits_to_write
                if not connection.progress():
                    if connection.waits_to_write is not waited:
                        self._watch(connection)
                    return
            if connection.unsent:
                self._push(connection)
                if connection.fd not in self._connections:
                    return
            elif connection.waits_to_write:
                connection.waits_to_write = False
                self._watch(connection)
            self._receive(connection)
        except (OSError, BadAnswer) as error:
            self._drop(connection, str(error))

    def _receive(self, connection: Connection) -> None:
        for data in connection.received():
            answer = connection.answer
            if answer is None:  # nothing is under way: the server closes it
                self._drop(connection, "")
                return
            if not connection.first_at and data:
                connection.first_at = time.monotonic()
            if answer.feed(data) if data else answer.ended():
                self._done(connection, answer)
                if not data or answer.closes or connection.unsent:  # it was refused before all of it had gone
                    self._drop(connection, "")
                    return
                self._next(connection)
            elif not data:
                self._drop(connection, "the connection was closed before the answer was whole")
                return

    def _done(self, connection: Connection, answer: Answer) -> None:
        now, number = time.monotonic(), connection.number
        at = self._begin + self._due[number]
        self._samples.append(
            Sample(
                self._due[number],
                connection.sent_at - at,
                connection.first_at - at,
                now - at,
                answer.status,
                answer.nbytes,
            )
        )
        if answer.status >= 400 and answer.status not in self._wrong:
            self._wrong[answer.status] = " ".join(answer.begun.decode(errors="replace").split())
        del self._under_way[number]
        connection.answer = None
        connection.number = -1

    def _next(self, connection: Connection) -> None:
        if self._waiting:
            self._give(connection, self._waiting.popleft())
        else:
            self._free.append(connection)

    def _failed(self, number: int, sent_at: float, why: str, status: int = CUT) -> None:
        now = time.monotonic()
        at = self._begin + self._due[number]
        self._wrong.setdefault(status, why)
        self._samples.append(Sample(self._due[number], max(sent_at - at, 0.0), now - at, now - at, status, 0))

    def _drop(self, connection: Connection, why: str, status: int = CUT) -> None:
        """It is of no use any more, and what was under way on it has failed."""
        if self._connections.pop(connection.fd, None) is None:
            return
        self._epoll.unregister(connection.fd)
        connection.sock.close()
        if connection.answer is None:
            if connection in self._free:
                self._free.remove(connection)
        else:
            del self._under_way[connection.number]
            self._failed(connection.number, connection.sent_at, why, status)
        if self._waiting:
            self._open(self._waiting.popleft())

    def _give_up(self, now: float) -> None:
        """What has had its time."""
        while self._under_way:
            connection = next(iter(self._under_way.values()))
            if now < connection.sent_at + self._timeout_s:
                break
            self._drop(connection, "no answer in time", LATE)
        while self._waiting and now >= self._begin + self._due[self._waiting[0]] + self._timeout_s:
            self._failed(self._waiting.popleft(), now, "no connection was free in time", LATE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without pauses of the garbage collector: nothing that is made in a run is a cycle."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
