"""Results that are kept, and computations that several requests wait for: the cache of a stage. Pure.

Where a stage has a ``cache``, what comes to it comes by way of the hub (:mod:`engine.core.hub`), with a *key*: a
digest of what is asked, of the whole value or of some of its fields, made by whoever had the value in its hands. What
is kept under the key is the result. What is being computed under it is waited for: the computation is a request of its
own in the ledger, for SHARED, a frontend that nobody is, and outlives who asked first.

A result is kept by route, stage and key, for ``ttl_s`` at most, and not longer than there is room: those that were
asked for longest ago go first. What has failed is not kept, nor what began before it was all forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from engine.core.arena import Ref
from engine.core.items import Request
from engine.core.routing import FINAL
from engine.core.wire import Payload, payload_size, refs_of

SHARED: Final = b"\0shared"  # who asks for computations that several may wait for; frontends are named otherwise
ENTRY_BYTES: Final = 256  # that a kept result costs beside its own bytes, roughly


@dataclass(frozen=True)
class CacheSpec:
    """Bytes of results that a stage keeps at most, and how long, in seconds."""

    size: int
    ttl_s: float


class Place(NamedTuple):
    """What a result is kept by."""

    route: int
    stage: int
    key: bytes


class Found(NamedTuple):
    """A result: the payload, and where it goes. ``key``: by what the stage there knows it, if it has a cache."""

    target: int
    payload: Payload
    mime: str = ""
    headers: Mapping[str, str] = {}
    key: bytes = b""


class Asker(NamedTuple):
    """A request that waits for a computation. ``payload``: what it would be computed of; the first one's is the
    computation's."""

    request: Request
    payload: Payload | None
    trail: bytes


@dataclass(slots=True, eq=False)
class Flight:
    """One computation, of request ``uid``, and who waits for it, in the order in which they came."""

    place: Place
    uid: int
    era: int
    rank: float  # the earliest of who waits: nobody waits longer for what another asked for than it would have alone
    waiters: dict[int, Asker] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """Of one stage: requests that were given what was kept, that waited for another's, that were computed; results that
    went for want of room; and what is kept."""

    hits: int = 0
    joined: int = 0
    misses: int = 0
    evicted: int = 0
    entries: int = 0
    nbytes: int = 0


class Memo:
    """Of all stages of one broker."""

    def __init__(self, specs: Mapping[int, CacheSpec]) -> None:
        """``specs``: of the stages that have a cache."""
        self._specs = specs
        self._kept: dict[int, dict[Place, tuple[Found, float, int]]] = {}  # by stage, the one asked for last at the end
        self.tallies: dict[int, Tally] = {}
        self._flights: dict[Place, Flight] = {}
        self._by_uid: dict[int, Flight] = {}
        self._waiting: dict[int, Flight] = {}  # by uid of who waits
        self._eras: dict[int, int] = {}  # by stage: how often it was forgotten
        self.change(specs)

    def __len__(self) -> int:
        """Computations under way."""
        return len(self._by_uid)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def change(self, specs: Mapping[int, CacheSpec]) -> None:
        """By these numbers from now on, and of nothing that is known."""
        self._specs = specs
        self.clear()
        for stage in specs:
            self._kept.setdefault(stage, {})
            self.tallies.setdefault(stage, Tally())

    def clear(self) -> None:
        """What was computed so far, or is being, may be another's answer from now on: who waits has it, and nobody
        else will."""
        for stage in self._kept:
            self.forget(stage)

    def forget(self, stage: int) -> None:
        """The same of one stage."""
        kept = self._kept.get(stage)
        if kept is None:
            return
        kept.clear()
        self.tallies[stage].entries = self.tallies[stage].nbytes = 0
        self._eras[stage] = self._eras.get(stage, 0) + 1
        for place in [place for place in self._flights if place.stage == stage]:
            del self._flights[place]

    def has(self, stage: int) -> bool:
        return stage in self._specs

    def get(self, place: Place, now: float) -> Found | None:
        """What is kept."""
        kept = self._kept[place.stage]
        entry = kept.pop(place, None)
        if entry is None:
            return None
        found, until, nbytes = entry
        if until <= now:
            self._forget(place.stage, nbytes)
            return None
        kept[place] = entry
        self.tallies[place.stage].hits += 1
        return found

    def answer(self, place: Place, now: float) -> Found | None:
        """The same, if it is the answer."""
        entry = self._kept[place.stage].get(place)
        return self.get(place, now) if entry is not None and entry[0].target == FINAL else None

    def join(self, place: Place, waiter: Asker) -> Flight | None:
        """Wait for what is being computed. None: nothing is."""
        flight = self._flights.get(place)
        if flight is not None:
            self._wait(flight, waiter)
            self.tallies[place.stage].joined += 1
        return flight

    def begin(self, place: Place, uid: int, waiter: Asker) -> None:
        """Request ``uid`` computes it, for who waits first."""
        flight = self._flights[place] = self._by_uid[uid] = Flight(
            place, uid, self._eras.get(place.stage, 0), waiter.request.rank
        )
        self._wait(flight, waiter)
        self.tallies[place.stage].misses += 1

    def _wait(self, flight: Flight, waiter: Asker) -> None:
        flight.waiters[waiter.request.uid] = waiter
        self._waiting[waiter.request.uid] = flight

    def end(self, uid: int) -> tuple[Flight, list[Ref]]:
        """A computation is over, whatever came of it. What the others would have been computed of is not needed then,
        unless they are to be (:meth:`begin`)."""
        flight = self._by_uid.pop(uid)
        if self._flights.get(flight.place) is flight:
            del self._flights[flight.place]
        for waiting in flight.waiters:
            del self._waiting[waiting]
        return flight, [ref for waiter in flight.waiters.values() for ref in _refs(waiter)]

    def keep(self, flight: Flight, found: Found, now: float) -> None:
        """What came of it, if it is still true and there is room."""
        stage = flight.place.stage
        spec, nbytes = self._specs.get(stage), payload_size(found.payload) + ENTRY_BYTES
        if spec is None or flight.era != self._eras.get(stage, 0) or nbytes > spec.size or refs_of(found.payload):
            return
        kept, tally = self._kept[stage], self.tallies[stage]
        if (former := kept.pop(flight.place, None)) is not None:
            self._forget(stage, former[2])
        kept[flight.place] = found, now + spec.ttl_s, nbytes
        tally.entries += 1
        tally.nbytes += nbytes
        while tally.nbytes > spec.size:
            oldest = next(iter(kept))
            self._forget(stage, kept.pop(oldest)[2])
            tally.evicted += 1

    def leave(self, request: Request) -> tuple[int | None, list[Ref]]:
        """One who waited has gone. The uid of the computation, if nobody waits for it any more: it is forgotten; and
        what nobody will read."""
        flight = self._waiting.pop(request.uid)
        refs = [*_refs(flight.waiters.pop(request.uid))]
        if flight.waiters:
            return None, refs
        self.end(flight.uid)
        return flight.uid, refs

    def waits(self, request: Request) -> bool:
        return request.uid in self._waiting

    def flight(self, uid: int) -> Flight | None:
        """The computation that this request is."""
        return self._by_uid.get(uid)

    def _forget(self, stage: int, nbytes: int) -> None:
        tally = self.tallies[stage]
        tally.entries -= 1
        tally.nbytes -= nbytes


def _refs(waiter: Asker) -> Iterable[Ref]:
    return refs_of(waiter.payload) if waiter.payload is not None else ()
