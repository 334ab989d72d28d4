"""Requests that carry an ``Idempotency-Key``: one computation, and one answer, for all tries of one request. Pure.

A client that has not got its answer - its connection broke, its patience ended, the process it spoke to was killed -
sends the request again with the same key. Which process of which frontend that comes to is chance, so the front of the
broker, which all requests pass, keeps the books; a frontend only says of each what it is (*key*: 16 bytes of whose key
it is, 16 of what is asked). Rules held here and by :class:`engine.core.tries.Tries`:

* tries that come while another is computed *join* it, and get its answer when it comes;
* what a worker answered - a result, or an error of the item's own (below 500) - is kept for HOLD_S, in a bounded number
  of bytes, the oldest giving way; later tries get it from there. Nothing else is: after a refusal, a time that was
  over, or a failure of the service, a try is what computes again;
* the same key with something else asked is a mistake of the client's, and refused;
* a computation goes on when its client leaves, for the next try. Unless its answer is a stream, which nobody can join
  in its middle: it ends with its reader, is not kept, and a try beside it is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final, TypeAlias

from engine.core.items import Request
from engine.core.messages import KEY_SIZE, Status

HOLD_S: Final = 120.0  # clients' libraries give up within a minute or two
HEADER: Final = "idempotent-replayed"  # of an answer that was not computed for the try that gets it

_IDENTITY_SIZE: Final = KEY_SIZE // 2
OVERHEAD: Final = 512  # bytes that an answer counts beside its body and headers: what keeping it costs, roughly
_LARGEST_SHARE: Final = 4  # of the room; an answer that would take more is not kept, for the others' sake
_LATE_SLACK: Final = 64

# Below 500, and not the item's own: its time was over, or somebody asks to be left alone for now.
_PASSING: Final = frozenset({408, 425, 429})

Waiter: TypeAlias = tuple[bytes, int]  # frontend's peer, its number for the request


@dataclass(slots=True, eq=False)
class Flight:
    """A request that is being computed, and who waits for it, with their deadlines."""

    identity: bytes
    asked: bytes
    request: Request
    first: Waiter  # for whom it was begun
    waiters: dict[Waiter, float]


@dataclass(slots=True, eq=False, frozen=True)
class Kept:
    """An answer, until ``until``."""

    asked: bytes
    status: int
    mime: str
    headers: Mapping[str, str]
    body: bytes
    until: float
    nbytes: int


class Keys:
    """See the module."""

    def __init__(self) -> None:
        self.nbytes = 0  # of the answers that are kept
        self.due_at = inf  # when :meth:`expire` has something to do
        self.waiting = 0  # tries that wait for an answer, beyond one of each flight
        self._flights: dict[bytes, Flight] = {}
        self._by_uid: dict[int, Flight] = {}
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()  # the oldest first
        self._late: list[tuple[float, int, Waiter]] = []  # tries that have less time than what they have joined; uid

    def __len__(self) -> int:
        """Answers that are kept."""
        return len(self._kept)

    @property
    def in_flight(self) -> int:
        """Requests with a key that are being computed."""
        return len(self._by_uid)

    def find(self, key: bytes, now: float) -> Flight | Kept | None:
        """What there is of this client's key, whatever was asked with it (:func:`is_same`)."""
        identity = key[:_IDENTITY_SIZE]
        flight = self._flights.get(identity)
        if flight is not None:
            return flight
        kept = self._kept.get(identity)
        return kept if kept is not None and kept.until > now else None

    def begin(self, key: bytes, request: Request, waiter: Waiter) -> None:
        """The first try has been admitted."""
        identity = key[:_IDENTITY_SIZE]
        flight = Flight(identity, key[_IDENTITY_SIZE:], request, waiter, {waiter: request.deadline})
        self._flights[identity] = self._by_uid[request.uid] = flight

    def join(self, flight: Flight, waiter: Waiter, deadline: float) -> None:
        """Another one waits for the same."""
        self.waiting += bool(flight.waiters)
        flight.waiters[waiter] = deadline
        if deadline < flight.request.deadline:
            if len(self._late) > 2 * self.waiting + _LATE_SLACK:
                self._late = [entry for entry in self._late if self._is_waiting(entry)]
                heapify(self._late)
            heappush(self._late, (deadline, flight.request.uid, waiter))
            self.due_at = min(self.due_at, deadline)

    def flight(self, uid: int) -> Flight:
        """Of a request with a key that is being computed. Raises KeyError."""
        return self._by_uid[uid]

    def leave(self, flight: Flight, waiter: Waiter) -> None:
        """Somebody does not wait any more. The computation goes on."""
        if flight.waiters.pop(waiter, None) is not None:
            self.waiting -= bool(flight.waiters)

    def end(self, uid: int) -> Flight:
        """It has been answered, or was given up. Raises KeyError."""
        flight = self._by_uid.pop(uid)
        del self._flights[flight.identity]
        self.waiting -= max(0, len(flight.waiters) - 1)
        return flight

    def keep(
        self, flight: Flight, status: int, mime: str, headers: Mapping[str, str], body: bytes, now: float, room: int
    ) -> None:
        """A worker's answer, if it is one to keep; older ones give way to it. ``room``: bytes for all."""
        if status >= Status.FAILED or status in _PASSING:
            return
        nbytes = OVERHEAD + len(body) + sum([len(name) + len(value) for name, value in headers.items()])
        if nbytes > room // _LARGEST_SHARE:
            return
        former = self._kept.pop(flight.identity, None)  # which had grown too old
        self.nbytes -= former.nbytes if former is not None else 0
        while self._kept and self.nbytes + nbytes > room:
            self._drop_oldest()
        self.nbytes += nbytes
        self._kept[flight.identity] = kept = Kept(flight.asked, status, mime, headers, body, now + HOLD_S, nbytes)
        self.due_at = min(self.due_at, kept.until)

    def expire(self, now: float) -> list[Waiter]:
        """Forget what is old; returns the tries whose time is over before that of the one they have joined."""
        late: list[Waiter] = []
        while self._late and (self._late[0][0] <= now or not self._is_waiting(self._late[0])):
            entry = heappop(self._late)
            if self._is_waiting(entry):
                self.leave(self._by_uid[entry[1]], entry[2])
                late.append(entry[2])
        while self._kept and self._oldest_until() <= now:
            self._drop_oldest()
        self.due_at = min(self._oldest_until(), self._late[0][0] if self._late else inf)
        return late

    def _is_waiting(self, entry: tuple[float, int, Waiter]) -> bool:
        flight = self._by_uid.get(entry[1])
        return flight is not None and flight.waiters.get(entry[2]) == entry[0]

    def _oldest_until(self) -> float:
        return next(iter(self._kept.values())).until if self._kept else inf

    def _drop_oldest(self) -> None:
        self.nbytes -= self._kept.popitem(last=False)[1].nbytes


def is_same(found: Flight | Kept, key: bytes) -> bool:
    """Whether this key asks for what was asked with it before."""
    return found.asked == key[_IDENTITY_SIZE:]
