"""The only module that knows ZeroMQ, but for its encryption (:mod:`engine.curve`): sockets with their options, and
moving parcels. Within one host the parcels that carry work go by unix sockets instead (:mod:`engine.unix`); whoever
moves them need not know which it is.

Every option is set once, here, with its reason (:func:`_common` and the makers below). Rules its users keep: a
context is made after fork; a socket is made, used and closed by one thread; a socket under credit or admission has no
high-water mark of its own, because marks do not bound TCP buffers and the broker's own books do.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket as stdsocket
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import zmq

from engine import curve, unix
from engine.config import Deployment, run_dir
from engine.config.endpoints import NEAR, PATH_MAX, cell_dir, is_lane, length, loopback_of
from engine.config.endpoints import Endpoints as Endpoints  # for those who make sockets
from engine.core.keys import LOST
from engine.core.liveness import CONNECT_S, LIMIT_S, PROBE_S, PROBES, RECONNECT_FAR_S, RECONNECT_MOST_S
from engine.core.wire import Buffer
from engine.errors import StartError
from engine.keyfile import Keyring

Socket: TypeAlias = curve.Socket | unix.Socket
Context: TypeAlias = curve.Context
Poller: TypeAlias = zmq.Poller
AnyPoller: TypeAlias = "zmq.Poller | select.poll"
Origin: TypeAlias = zmq.Frame | unix.Stream  # what is known of the connection that a parcel came by

COPY_BELOW: Final = 64 * 1024  # bytes; below it a copy is cheaper than pyzmq's zero-copy bookkeeping
# As plain numbers: to combine or to compare members of pyzmq's enumerations costs as much as what is done with them.
NOW: Final = int(zmq.NOBLOCK)
NOW_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
READABLE: Final = int(zmq.POLLIN)
WRITABLE: Final = int(zmq.POLLOUT)

_send: Final = zmq.backend.Socket.send  # zmq.Socket's is a function of Python around it, for options of other patterns

_ucred: Final = struct.Struct("3i")  # of unix(7): pid, uid, gid

# Of a context: a lane has one, and so has what is told of its losses. ZeroMQ's own bound is 1,023.
SOCKETS: Final = 40_000
HANDSHAKE_MOST: Final = 4096  # bytes of a frame to whoever takes nothing but handshakes

ANY: Final = -1  # frames of any size


def listening(deployment: Deployment, cell: int = 0) -> Endpoints:
    """Where a broker of this deployment listens: that of a cell."""
    base = deployment.engine.bind or str(cell_dir(run_dir(deployment), cell))
    return Endpoints(base, tuple(stage.name for stage in deployment.stages))


def poller(lane: Socket | None) -> AnyPoller:
    """For descriptors, this socket and others of its kind. A system's own costs half as much as ZeroMQ's; both take
    READABLE, and tell of a descriptor by its number."""
    made = select.poll() if isinstance(lane, unix.Socket) else zmq.Poller()
    if lane is not None:
        made.register(lane, READABLE)
    return made


def ways(endpoints: Endpoints) -> list[Endpoints]:
    """By what the sockets that carry work are to be reached, the quickest first: ZeroMQ's are bound beside the unix
    ones, for peers of a version that does not know these."""
    near = endpoints.near if unix.IS_THERE else None
    return [endpoints] if near is None else [near, endpoints]


def reaching(deployment: Deployment, cell: int = 0) -> Endpoints:
    """By what everybody else reaches that broker. Its host may be a name (:mod:`engine.addresses`)."""
    brokers = deployment.engine.broker
    if brokers:
        return replace(listening(deployment), base=f"tcp://{brokers[cell]}")
    found = listening(deployment, cell)
    return found.at(loopback_of(found.host)) if found.is_tcp else found


# --- sockets ---------------------------------------------------------------------------------------------------------


def context(keys: Keyring | None = None) -> Context:
    """A context of this process, whose links over tcp are made by these keys; without any they are open to everybody.
    Linger 0: the default makes ``term()`` hang on an undelivered message."""
    made = curve.Context(io_threads=1)
    made.max_sockets = SOCKETS
    made.linger = 0
    made.take(keys)
    return made


def _common(sock: curve.Socket, endpoint: str) -> None:
    # Books are kept by the broker in items and bytes; a mark would only drop or block without telling anybody.
    sock.sndhwm = 0
    sock.rcvhwm = 0
    # A peer that connects and never speaks does not hold a slot for the default 30 s.
    sock.handshake_ivl = 5_000
    # Come back fast, then back off: without a maximum there is no back-off at all.
    sock.reconnect_ivl = 20
    sock.reconnect_ivl_max = int(RECONNECT_MOST_S * 1000)
    sock.ipv6 = "[" in endpoint  # else 127.0.0.1 would be bound as ::ffff:127.0.0.1
    if endpoint.startswith("tcp://"):
        _limit(sock)


def _limit(sock: curve.Socket) -> None:
    """A connection whose other host has vanished ends within LIMIT_S, by the kernel's doing at each end, whatever the
    threads of this process are kept from: what is not acknowledged by then ends it (TCP_USER_TIMEOUT), an idle one is
    probed, and one that does not come about is tried anew."""
    sock.tcp_maxrt = int(LIMIT_S * 1000)
    sock.tcp_keepalive = 1
    sock.tcp_keepalive_idle = int(PROBE_S)
    sock.tcp_keepalive_intvl = int(PROBE_S)
    sock.tcp_keepalive_cnt = PROBES
    sock.connect_timeout = int(CONNECT_S * 1000)
    sock.reconnect_ivl_max = int(RECONNECT_FAR_S * 1000)


def router(ctx: Context, endpoint: str, *, largest: int = ANY) -> Socket:
    """A bound ROUTER: front, admin, control. Mandatory: an answer to a vanished peer is an error, not silence.
    ``largest``: the most bytes of a frame; a longer one cuts its connection before it is read."""
    if is_unix(endpoint):
        return _listening(endpoint, largest, is_named=True)
    sock = _bound_kind(ctx, zmq.ROUTER, endpoint)
    sock.router_mandatory = 1
    sock.maxmsgsize = largest
    _bind(sock, endpoint)
    return sock


def pull(ctx: Context, endpoint: str, *, largest: int = ANY) -> Socket:
    """A bound PULL: intake, egress. ``largest`` as for :func:`router`: its senders see to it that none is larger."""
    if is_unix(endpoint):
        return _listening(endpoint, largest)
    sock = _bound_kind(ctx, zmq.PULL, endpoint)
    sock.maxmsgsize = largest
    _bind(sock, endpoint)
    return sock


def lane(ctx: Context, endpoint: str, *, reader: int | None = None) -> Socket:
    """A bound PUSH for exactly one worker, process ``reader``, of this host.

    A PUSH deals to whoever is connected, so a second PULL would get every other batch. The kernel's word decides who
    may connect: the connections of all other processes are closed before a byte is exchanged. None leaves it out.
    """
    if is_unix(endpoint):
        return _listening(endpoint, is_single=True, only=reader or 0)
    sock = _bound_kind(ctx, zmq.PUSH, endpoint)
    if reader is not None:
        with contextlib.suppress(zmq.ZMQError):  # a system without SO_PEERCRED
            sock.setsockopt(zmq.IPC_FILTER_PID, reader)
    _bind(sock, endpoint)
    return sock


def lane_of(ctx: Context, endpoints: Endpoints, offsets: Iterable[int]) -> tuple[Socket, int]:
    """A bound PUSH for one worker over tcp, at the first of these ports that is free, and which one that is. StartError
    when none is."""
    for offset in offsets:
        endpoint = endpoints.lane_port(offset)
        sock = _bound_kind(ctx, zmq.PUSH, endpoint, is_watched=True)
        sock.maxmsgsize = HANDSHAKE_MOST
        try:
            sock.bind(endpoint)
        except zmq.ZMQError as error:
            sock.close()
            if error.errno != zmq.EADDRINUSE:
                raise StartError(f"cannot listen on {endpoint}: {error}") from error
        else:
            return sock, offset
    raise StartError("all ports for lanes are in use; set a higher engine.lanes")


def lane_end(ctx: Context, endpoint: str) -> Socket:
    """The worker's PULL end of its lane. A lane by tcp is for one connection: its port may be another worker's when it
    is made anew, and batches would go astray. Who loses it is given another one. So is one within a host."""
    if is_unix(endpoint):
        return unix.Connecting(endpoint.removeprefix(NEAR), is_lasting=False)
    sock = ctx.socket(zmq.PULL)
    _common(sock, endpoint)
    if endpoint.startswith("tcp://"):
        sock.reconnect_ivl = -1
    sock.reach(endpoint, is_door=False)
    return sock


def door(ctx: Context, endpoints: Endpoints) -> Socket | None:
    """A frontend's socket, by the quickest way that there is; None while nobody listens. A broker of a version that
    has no unix sockets is reached by ipc."""
    first, *others = ways(endpoints)
    if not others:
        return dealer(ctx, endpoints.front)
    near = unix.Connecting(first.front.removeprefix(NEAR))
    if near.is_connected:
        return near
    near.close()
    return dealer(ctx, endpoints.front) if unix.is_heard(endpoints.front.removeprefix("ipc://")) else None


def dealer(ctx: Context, endpoint: str) -> curve.Socket:
    """A connecting DEALER: frontends, workers' control, admin questions.

    IMMEDIATE: with no connection a send says EAGAIN instead of queueing for a broker that may never come. The routing
    id is left to the ROUTER, which draws a random one per connection: a fixed one would be ignored while its
    predecessor's connection lingers.
    """
    sock = ctx.socket(zmq.DEALER)
    _common(sock, endpoint)
    sock.immediate = 1
    sock.reach(endpoint, is_door=True)
    return sock


def push(ctx: Context, endpoint: str) -> Socket:
    """A worker's PUSH to an intake or the egress. IMMEDIATE for the same reason as :func:`dealer`."""
    if is_unix(endpoint):
        return unix.Connecting(endpoint.removeprefix(NEAR))
    sock = ctx.socket(zmq.PUSH)
    _common(sock, endpoint)
    sock.immediate = 1
    sock.reach(endpoint, is_door=False)
    return sock


def tell_losses(sock: Socket, name: str) -> None:
    """From now on whoever listens for ``name`` (:class:`Losses`) hears of each connection that ``sock`` loses. By the
    thread that owns it. Within a host there is nothing to hear: a connection there ends with one of its processes."""
    assert isinstance(sock, curve.Socket)
    sock.monitor(_losses(name), curve.LOSSES if sock.endpoint else curve.VISITS)


class Losses:
    """Which connections were lost, of any number of sockets, by one descriptor of one thread.

    A monitor is a PAIR that binds, and within a process ZeroMQ does not ask of what kind its peer is, so one PULL hears
    all. ZeroMQ's thread tells of a connection as soon as it has read its end: a millisecond after a ``kill -9``,
    LIMIT_S after a host has vanished. The descriptor tells of nothing before it was asked once (:func:`readable`).
    """

    def __init__(self, ctx: Context) -> None:
        self.sock: curve.Socket = ctx.socket(zmq.PULL)
        self.sock.rcvhwm = 0
        self._ctx = ctx
        self._visitors: dict[bytes, curve.Visitors] = {}  # by the end at which they come or go

    def hear(self, name: str) -> None:
        """From now on, or from when on there is one to tell of it."""
        self.sock.connect(_losses(name))

    def lost(self, frames: Sequence[Buffer]) -> int | None:
        """Of a parcel of ``sock``: the port at the bound end of a connection that was lost. None: it was not made, for
        whoever wanted it does not speak as we do, or may not come in; of that ZeroMQ tells right before its end."""
        where = bytes(frames[-1])
        visitors = self._visitors.setdefault(where, curve.Visitors())
        heard = visitors.heard(*curve.event(frames))
        if visitors.is_over:
            del self._visitors[where]
        if heard == LOST:
            return int(where.rpartition(b":")[2])
        if heard and self._ctx.refused is not None:
            self._ctx.refused(heard)
        return None


def _losses(name: str) -> str:
    return f"inproc://losses-{name}"


def _bound_kind(ctx: Context, kind: int, endpoint: str, *, is_watched: bool = False) -> curve.Socket:
    """A socket that will be bound to ``endpoint``. ``is_watched``: who comes and goes is heard by whoever
    asks for it (:func:`tell_losses`). StartError when the system has none to give."""
    try:
        sock = ctx.socket(kind)
    except zmq.ZMQError as error:  # out of descriptors
        raise StartError(f"cannot make a socket for {endpoint}: {error}") from error
    _common(sock, endpoint)
    curve.guard(sock, endpoint, is_watched=is_watched)
    return sock


def _listening(
    endpoint: str, largest: int = ANY, *, is_named: bool = False, is_single: bool = False, only: int = 0
) -> Socket:
    path = _short(endpoint.removeprefix(NEAR))
    try:
        return unix.Listening(path, largest, is_named=is_named, is_single=is_single, only=only)
    except OSError as error:
        raise StartError(f"cannot listen on {endpoint}: {error}") from error


def _short(path: str) -> str:
    if length(path) > PATH_MAX:  # of a deployment that was read from no file
        raise StartError(f"the socket path {path} is too long; set a shorter run_dir")
    return path


def _bind(sock: curve.Socket, endpoint: str) -> None:
    if endpoint.startswith("ipc://"):
        try:
            path = _short(endpoint.removeprefix("ipc://"))
        except StartError:
            sock.close()
            raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by a broker that was killed; the run directory's lock says it is gone
    try:
        sock.bind(endpoint)
    except zmq.ZMQError as error:
        sock.close()
        raise StartError(f"cannot listen on {endpoint}: {error}") from error


def bound(sock: Socket) -> str:
    """The endpoint that a peer connects to, with the port that the system chose."""
    if isinstance(sock, unix.Socket):
        return f"{NEAR}{sock.path}"
    endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def port_of(sock: Socket) -> int:
    """Of a socket that is bound over tcp."""
    return int(bound(sock).rpartition(":")[2])


def unbind(sock: Socket) -> None:
    """Close a bound socket, and remove the file that an ipc one leaves behind: lanes come and go."""
    if isinstance(sock, unix.Socket):
        sock.close()
        return
    endpoint = bound(sock)
    if not endpoint.startswith("ipc://"):
        sock.monitor(None, 0)  # what we end ourselves is no loss
    sock.close()
    if endpoint.startswith("ipc://"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(endpoint.removeprefix("ipc://"))


def remove_lanes(endpoints: Endpoints) -> None:
    """Remove the files of the lanes of a broker that was killed, which no other would ever bind again."""
    if endpoints.is_tcp:
        return
    with contextlib.suppress(FileNotFoundError), os.scandir(endpoints.base) as entries:
        for entry in entries:
            if is_lane(entry.name) and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                os.unlink(entry.path)


# --- parcels ---------------------------------------------------------------------------------------------------------


def send(sock: Socket, frames: Sequence[Buffer], *, to: bytes | None = None) -> bool:
    """Send a parcel without blocking. False when there is no connection or the peer has gone; then nothing was sent.

    Large frames are handed over without a copy: the caller must not change them afterwards.
    """
    if isinstance(sock, unix.Socket):
        return sock.send(frames, to)
    left = len(frames)
    try:
        if to is not None:
            _send(sock, to, NOW_MORE)
        for part in frames:
            left -= 1
            size = part.nbytes if type(part) is memoryview else len(part)
            _send(sock, part, NOW_MORE if left else NOW, size < COPY_BELOW)  # type: ignore[call-overload]
    except zmq.Again:
        sock.knock()
        return False
    except zmq.ZMQError as error:
        if error.errno == zmq.EHOSTUNREACH:  # ROUTER_MANDATORY: the peer has gone
            return False
        raise
    return True


def is_near(peer: bytes) -> bool:
    """Whether who has this identity is connected by a unix socket."""
    return peer.startswith(unix.NAMED)


def keeps_some(sock: Socket) -> bool:
    """Whether there is something that :func:`keeps_nothing` would send on. Then its descriptor tells when."""
    return isinstance(sock, unix.Socket) and sock.has_unsent


def is_lost(sock: Socket) -> bool:
    """It is without a connection, and of a kind that says so. Then :func:`door` knows whether there is a way."""
    return isinstance(sock, unix.Connecting) and not sock.is_connected


def is_unix(endpoint: str) -> bool:
    """Whether it is one of :mod:`engine.unix`."""
    return endpoint.startswith(NEAR)


def keeps_nothing(sock: Socket, timeout_s: float = 0.0) -> bool:
    """Send on what the other end has not taken at once, for as long as that. True when nothing is left, or ZeroMQ's
    own thread sees to it."""
    return not isinstance(sock, unix.Socket) or not sock.has_unsent or sock.go_on(timeout_s)


def recv(sock: Socket) -> list[Buffer] | None:
    """The next parcel, or None when there is none now. A ROUTER's parcel begins with the peer's identity.

    Frames of COPY_BELOW bytes and more stay in ZeroMQ's memory (a memoryview keeps them alive); smaller ones are bytes.
    """
    # A look costs less than half the exception that says so.
    return recv_ready(sock) if isinstance(sock, unix.Socket) or readable(sock) else None


def recv_ready(sock: Socket) -> list[Buffer] | None:
    """The same where a parcel is probably there, as its descriptor said: without the look, but for the exception."""
    parcel = recv_from(sock)
    return parcel[0] if parcel is not None else None


def recv_from(sock: Socket) -> tuple[list[Buffer], Origin] | None:
    """The same with where it came from."""
    if isinstance(sock, unix.Socket):
        return sock.recv()
    frames: list[Buffer] = []
    try:
        while True:
            frame = sock.recv(NOW, copy=False)
            frames.append(frame.bytes if len(frame) < COPY_BELOW else frame.buffer)
            if not frame.more:
                return frames, frame
    except zmq.Again:
        return None


def pid_of(origin: Origin) -> int | None:
    """Which process sent this, by the kernel's word (``SO_PEERCRED``) and not its own. None over tcp, where the system
    does not say, and when the connection is closed already.

    To be asked at once: a descriptor that ZeroMQ has closed may soon be another peer's. So whoever acts on the answer
    compares it with what the sender says of itself: to be mistaken for a process, a peer must name that one, and win a
    race against its connection.
    """
    if isinstance(origin, unix.Stream):
        return origin.pid or None
    try:
        with _connection_of(origin) as sock:
            if sock.family != stdsocket.AF_UNIX:
                return None
            told = sock.getsockopt(stdsocket.SOL_SOCKET, stdsocket.SO_PEERCRED, _ucred.size)
    except (OSError, zmq.ZMQError, AttributeError):  # the last: a system without SO_PEERCRED
        return None
    pid: int = _ucred.unpack(told)[0]
    return pid or None  # 0: of a process namespace that this one cannot see into


def _connection_of(origin: zmq.Frame) -> stdsocket.socket:
    """What this came by, to be closed. Raises OSError and ZMQError when it has been closed meanwhile."""
    return stdsocket.socket(fileno=os.dup(origin.get(zmq.SRCFD)))


def is_here(origin: Origin) -> bool:
    """Whether the connection that this came by begins on this host, as far as the kernel tells: by a socket file, or
    from the very address at which it was accepted. Two machines may give the same :func:`host_token`, where both began
    as one snapshot of a third; then to share memory, clocks or pids with the other would be to take somebody else's.
    False when the connection is closed already."""
    if isinstance(origin, unix.Stream):
        return True
    try:
        with _connection_of(origin) as sock:
            if sock.family == stdsocket.AF_UNIX:
                return True
            there, here = sock.getpeername(), sock.getsockname()
            return bool(there[0] == here[0])
    except (OSError, zmq.ZMQError):
        return False


def readable(sock: Socket) -> bool:
    """Whether a parcel is here. To be asked after every send by users of the edge-triggered descriptor. A unix
    socket's is not, and tells of all but the parcels that were read together with others."""
    if isinstance(sock, unix.Socket):
        return sock.has_parcels
    events: int = sock.getsockopt(zmq.EVENTS)  # type: ignore[assignment]  # the type covers every option
    return bool(events & READABLE)


def has_peer(sock: Socket) -> bool:
    """Whether a PUSH of ZeroMQ's is connected with anybody: without a mark it can send then, and only then."""
    assert isinstance(sock, curve.Socket)
    events: int = sock.getsockopt(zmq.EVENTS)  # type: ignore[assignment]  # the type covers every option
    return bool(events & WRITABLE)


def host_token() -> str:
    """Equal in two processes only if they share a machine and a process namespace: one can watch the other's pid."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{stdsocket.gethostname()}:{os.getppid()}"
