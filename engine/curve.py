"""Sockets that let in whoever has the deployment's secret, and nobody else: ZeroMQ's CURVE, out of a key file.

A context is told the keys; each socket of it that speaks over tcp is encrypted by them (:func:`guard`, :func:`reach`),
and none over ipc, where the system says whose process it is. A bound one fails closed: without the broker's answer to
ZAP, ZeroMQ's question who may come in (:mod:`engine.broker.guard`), nobody does. One that connects looks, when it finds
no connection to send by, whether it was turned away, and tries the next line of its key file (:class:`Turns`); on the
way that works nothing is looked at.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

import zmq
from zmq.utils import z85

from engine.clock import now
from engine.core.keys import MALFORMED, NO_KEY, UNFINISHED, WRONG_KEY, Handshakes, Secret, Turns
from engine.core.wire import Buffer
from engine.errors import StartError
from engine.keyfile import Keyring
from engine.log import get_logger

log: Final = get_logger("stageline.keys")

ZAP: Final = "inproc://zeromq.zap.01"  # RFC 27 of ZeroMQ: where it asks
DOMAIN: Final = b"stageline"
ENFORCE_DOMAIN: Final = 93  # ZMQ_ZAP_ENFORCE_DOMAIN, which pyzmq does not name: with nobody to ask, nobody gets in

# A peer with another key is not told apart from a connection that broke, and libzmq begins anew with every connection
# that was made, so it would try every 20 ms for ever: 0.5 ms of the broker each.
RECONNECT_MS: Final = 100

_event: Final = struct.Struct("=HI")  # zmq_socket_monitor(3): what, and a number
_numbers: Final = itertools.count()  # of monitors, of all contexts

_FAILED: Final = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_BROKEN: Final = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_BEGUN: Final = int(zmq.EVENT_ACCEPTED)
_DONE: Final = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_ENDED: Final = int(zmq.EVENT_DISCONNECTED)
_STOPPED: Final = int(zmq.EVENT_MONITOR_STOPPED)
_AUTH: Final = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
VISITS: Final = _BEGUN | _DONE | _FAILED | _BROKEN | _ENDED | _STOPPED  # all that Visitors wants to hear
LOSSES: Final = _FAILED | _BROKEN | _ENDED | _STOPPED  # of a socket that connects
_BROKEN_BECAUSE: Final[Mapping[int, str]] = {
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: WRONG_KEY,
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: NO_KEY,
}


@dataclass(frozen=True, repr=False)
class Pairs:
    """The key pairs that one line of a key file stands for, as ZeroMQ takes them."""

    broker_secret: bytes
    broker_public: bytes
    peer_secret: bytes
    peer_public: bytes


def pairs_of(secret: Secret) -> Pairs:
    broker, peer = secret.broker(), secret.peer()
    return Pairs(broker, _public(broker), peer, _public(peer))


def _public(secret: bytes) -> bytes:
    return z85.decode(zmq.curve_public(z85.encode(secret)))


class Socket(zmq.Socket[bytes]):
    """One of a :class:`Context`. Used by its thread alone."""

    endpoint: str = ""  # of one that connects over tcp
    pairs: Pairs | None = None  # that it was connected with
    monitor_end: Socket | None = None  # where it is told how its connections begin
    is_away: bool = False  # it was turned away, and not let in since
    again_at: float = inf

    def close(self, linger: int | None = None) -> None:
        self._unwatch()
        super().close(linger)

    def knock(self) -> None:
        """There is no connection to send by: see whether that is because of the keys, and try others."""
        ctx = self.context
        if self.monitor_end is None or not isinstance(ctx, Context):
            if self.is_outdated:
                self._disconnect()
                self._connect()
            return
        instant = now()
        if self._was_turned_away(ctx.turns):
            if ctx.reread():
                ctx.turns.let_in()
            wait_s = ctx.turns.turned_away(ctx.lines)
            if ctx.turns.is_to_be_told(ctx.lines, instant):
                log.error("%s; trying again", ctx.complaint, extra={"broker": self.endpoint})
            self._disconnect()  # at its own pace: libzmq's would never end, or has ended
            self.again_at = instant + wait_s
        if instant >= self.again_at:
            self.again_at = inf
            ctx.turn()
            self._connect()

    @property
    def complaint(self) -> str:
        """Why there is no connection, where that is because of the keys; else ""."""
        ctx = self.context
        return ctx.complaint if self.is_away and isinstance(ctx, Context) else ""

    @property
    def is_outdated(self) -> bool:
        """It was connected by another line than the one that was found good meanwhile."""
        ctx = self.context
        return bool(self.endpoint) and isinstance(ctx, Context) and self.pairs is not ctx.pairs

    def watch(self, events: int) -> Socket:
        """Have it told how connections begin and end, at the socket that is returned: at once, and as much as there is,
        for ZeroMQ's own thread waits where nobody listens."""
        address = f"inproc://monitor-{next(_numbers)}"
        self.monitor(address, events)
        end: Socket = self.context.socket(zmq.PAIR)
        end.rcvhwm = 0
        end.connect(address)
        return end

    def reach(self, endpoint: str, *, is_door: bool) -> None:
        """Connect. ``is_door``: it finds out which line is right, for all of its context."""
        if not endpoint.startswith("tcp://"):
            self.connect(endpoint)
            return
        self.endpoint = endpoint
        if isinstance(self.context, Context):
            self.context.reread()
        if is_door:
            self.monitor_end = self.watch(_FAILED | _BROKEN | _DONE)
        self._connect()

    def _connect(self) -> None:
        ctx = self.context
        assert isinstance(ctx, Context)
        self.pairs = pairs = ctx.pairs
        if pairs is not None:
            self.curve_serverkey = pairs.broker_public
            self.curve_publickey = pairs.peer_public
            self.curve_secretkey = pairs.peer_secret
            if self.getsockopt(zmq.RECONNECT_IVL) != -1:  # else it is for one connection
                self.reconnect_ivl = RECONNECT_MS
        self.connect(self.endpoint)

    def _disconnect(self) -> None:
        with contextlib.suppress(zmq.ZMQError):  # refused for good: it has given up by itself
            self.disconnect(self.endpoint)

    def _was_turned_away(self, turns: Turns) -> bool:
        assert self.monitor_end is not None
        away = False
        while self.monitor_end.poll(0):
            what, number = event(self.monitor_end.recv_multipart())
            self.is_away = away = what != _DONE
            ctx = self.context
            if not away:
                turns.let_in()
            if isinstance(ctx, Context):  # it is not always told: the broker may have closed before it is seen
                unlike = what == _BROKEN and number == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
                ctx.is_unlike = away and (unlike or ctx.is_unlike)
        return away

    def _unwatch(self) -> None:
        end, self.monitor_end = self.monitor_end, None
        if end is not None and not self.closed:
            self.monitor(None, 0)  # first: see watch
            end.close(linger=0)


class Context(zmq.Context[Socket]):
    """A context with the keys of a deployment, or with none."""

    _socket_class = Socket
    keyring: Keyring | None = None
    pairs: Pairs | None = None  # that links are made with now
    refused: Callable[[str], object] | None = None  # is told by others of a connection that was, and why
    bound: Callable[[Socket], object] | None = None  # is given, of each socket that lets peers in, where it tells how
    is_unlike: bool = False  # the broker has keys and we have none, or the other way round: it has said so
    turns: Turns  # of all its doors, one after the other: who makes a socket anew begins nothing anew
    _all: tuple[Pairs, ...] = ()

    def take(self, keyring: Keyring | None) -> None:
        """Make links by these keys from now on. StartError where libzmq cannot."""
        self.turns = Turns()
        if keyring is None:
            return
        if not zmq.has("curve"):
            raise StartError("this libzmq has no CURVE, which engine.key needs: pyzmq's own wheels bring one that has")
        self.keyring = keyring
        self._all = tuple(map(pairs_of, keyring.secrets))
        self.pairs = self._all[0]

    @property
    def lines(self) -> int:
        return len(self._all)

    @property
    def complaint(self) -> str:
        """What is told of a broker that turns us away. A connection that is closed before a word is all that is known
        of a wrong key; a proxy with nobody behind it does the same."""
        if self.keyring is None and self.is_unlike:
            return "the broker refuses this process: it wants a key, and no engine.key names one here"
        if self.keyring is None:
            return (
                "connections to the broker's address end before a word is said: either it wants a key, and no "
                "engine.key names one here, or no broker listens there"
            )
        if self.is_unlike:
            return f"the broker refuses this process: the broker has no key, and this process has {self.keyring.path}"
        return (
            "connections to the broker's address end before a word is said: either none of the keys in "
            f"{self.keyring.path} is the broker's (wrong key, or the broker has none), or no broker listens there"
        )

    def reread(self) -> bool:
        """Other lines may be in the key file by now; True when there are. What is not any more is good for nothing."""
        if self.keyring is None or not self.keyring.reread():
            return False
        self._all = tuple(map(pairs_of, self.keyring.secrets))
        if self.pairs not in self._all:
            self.pairs = self._all[0]
        return True

    def turn(self) -> None:
        """The next line."""
        if self._all:
            at = self._all.index(self.pairs) + 1 if self.pairs in self._all else 0
            self.pairs = self._all[at % len(self._all)]


def guard(sock: Socket, endpoint: str, *, is_watched: bool) -> None:
    """Let in only who has the key, at a socket that is about to be bound to ``endpoint``. ``is_watched``: who is
    refused is heard by somebody else (a socket can be listened to by one)."""
    ctx = sock.context
    if not endpoint.startswith("tcp://") or not isinstance(ctx, Context) or ctx.pairs is None:
        return
    sock.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    sock.setsockopt(ENFORCE_DOMAIN, 1)
    sock.curve_server = 1
    sock.curve_secretkey = ctx.pairs.broker_secret
    if ctx.bound is not None and not is_watched:
        ctx.bound(sock.watch(VISITS))


def event(frames: Sequence[Buffer]) -> tuple[int, int]:
    """What a monitor tells in a parcel, and the number that goes with it."""
    what, number = _event.unpack(frames[0])
    return what, number


class Visitors:
    """How the connections of one bound socket have begun: by the words of its monitor."""

    def __init__(self) -> None:
        self.is_over = False  # the socket is closed
        self._handshakes = Handshakes()

    def heard(self, what: int, number: int) -> str:
        """LOST, a connection has ended; one of :data:`engine.core.keys.REASONS`, one was refused; or "". (Those with
        another key of their own are told of by whoever was asked.)"""
        if what == _BEGUN:
            self._handshakes.accepted(number)
        elif what == _DONE:
            self._handshakes.succeeded()
        elif what == _ENDED:
            return self._handshakes.ended(number)
        elif what == _STOPPED:
            self.is_over = True
        else:
            self._handshakes.failed()
            if what == _BROKEN:
                return _BROKEN_BECAUSE.get(number, MALFORMED)
            return UNFINISHED if what != _AUTH else ""
        return ""
