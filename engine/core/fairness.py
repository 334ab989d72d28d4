"""Who may use how much of what there is, while not everybody can be served: classes and fair shares. Pure.

To sort a full queue by class or by client wrecks it: who was admitted is overtaken, waits, and is late after all. So it
is decided at the door. Two may use only a PART of what there is - of the time in which they must be answered, and of
the room at the door:

* a *client* who has been admitted more than its fair share, by weights, of what all who ask were;
* a *class* (high, normal, low) for each higher one that asks as well, but for a FLOOR of what is admitted.

So the others find a queue short enough for them, and what they leave is used all the same. The queue goes on by when
requests are due; those of the highest class are put forward in it (:data:`HASTE`), for they are to be quick and not
only sure.

What was asked and admitted fades in half a second. Clients are known by a digest of what they authenticate with, which
nobody has checked here. So those who send nothing are one client together, and so is everybody whose token has not been
seen for a moment: who draws another for each request gains nothing. Where the file names clients, all others are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from math import exp
from typing import Final, NamedTuple

WINDOW_S: Final = 0.5  # over which shares are counted
PART: Final = 0.7  # at .85 the others are not sure of being served
FLOOR: Final = 0.05  # of what is admitted, for a class however low
HASTE: Final = 0.3  # of the time it has, after which a request of the highest class is treated as due
ACTIVE: Final = 0.1  # of one request: who asked less lately does not ask
SWEEP_S: Final = 0.1
LEAD_SMOOTHING: Final = 0.1
APART_S: Final = 1.2  # after which one who does not ask again claims nothing: ACTIVE is left of one then
CLAIMS_MOST: Final = 4096  # clients that are told apart at a time, and tokens that are remembered
KNOWN_S: Final = 0.2  # after which a token that comes again is somebody's


class Priority(IntEnum):
    """Classes of service."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class Standing(NamedTuple):
    """What one who asks may use, as a part of what there is; ``over``: it is over its own fair share. ``haste``: the
    part of its time after which it is treated as due."""

    part: float = 1.0
    over: bool = False
    haste: float = 1.0


WHOLE: Final = Standing()
_HASTY: Final = Standing(haste=HASTE)


@dataclass(frozen=True)
class Client:
    """One that the file names. ``priority``: None leaves it to the route."""

    name: str
    weight: int = 1
    priority: Priority | None = None


ANYBODY: Final = Client("")


@dataclass(slots=True)
class Faded:
    """A count that fades."""

    value: float = 0.0
    at: float = 0.0

    def read(self, now: float) -> float:
        """It, now. Time that goes backwards is no time."""
        past = now - self.at
        if past > 0.0:
            self.value *= exp(-past / WINDOW_S)
            self.at = now
        return self.value

    def add(self, now: float) -> None:
        self.value = self.read(now) + 1.0


@dataclass(slots=True)
class Claim:
    """One who asks."""

    weight: float = 1.0
    asked: Faded = field(default_factory=Faded)
    admitted: Faded = field(default_factory=Faded)
    turn_at: float = 0.0  # when the one of its requests that was refused last may come again


class Shares:
    """See the module. To be asked only while not everybody can be served: what is asked then is what counts."""

    def __init__(self, clients: Mapping[bytes, Client] | None = None) -> None:
        self.change(clients or {})

    def change(self, clients: Mapping[bytes, Client]) -> None:
        """The file names these from now on; what was counted is forgotten."""
        self.clients = dict(clients)
        self._claims: dict[bytes, Claim] = {}
        self._seen: dict[bytes, float] = {}  # tokens, in the order in which they came first
        self._classes = [Claim() for _ in Priority]
        self._admitted = Faded()
        self._weights = 0.0
        self._sweep_at = 0.0
        self.apart_until = 0.0  # somebody asks who is told apart from others; else there is nothing to share out
        self._lead_s = 0.0  # from when one of the highest class comes until its rank

    def priority(self, client: bytes, of_route: Priority, lowered: int) -> Priority:
        """The class of a request: its client's, else its route's; or the lower one that it asks for itself."""
        own = self.clients.get(client, ANYBODY).priority if self.clients else None
        return max(of_route if own is None else own, Priority(lowered))

    def ask(self, client: bytes, priority: Priority, now: float) -> Standing:
        """One asks to be let in."""
        if client or priority != Priority.NORMAL:
            self.apart_until = now + APART_S
        if now >= self._sweep_at:
            self._sweep(now)
        claim = self._claims.get(client) or self._begin(client, now)
        claim.asked.add(now)
        own = self._classes[priority]
        own.asked.add(now)
        admitted = self._admitted.read(now)
        over = len(self._claims) > 1 and claim.admitted.read(now) * self._weights > admitted * claim.weight
        part = PART if over else 1.0
        haste = HASTE if priority == Priority.HIGH else 1.0
        higher = sum([one.asked.read(now) > ACTIVE for one in self._classes[:priority]])
        if higher:
            if own.admitted.read(now) < FLOOR * admitted:
                haste = HASTE
            else:
                part *= PART**higher
        return Standing(part, over, haste)

    def overtaking(self, rank: float, now: float) -> tuple[float, float]:
        """Who comes now with this rank is overtaken by so many in a second, for so many seconds: those of the highest
        class who come until then are put before it."""
        rate = self._classes[Priority.HIGH].admitted.read(now) / WINDOW_S
        return rate, max(0.0, rank - now - self._lead_s)

    def turn(self, client: bytes, rate: float, now: float, most_s: float) -> float:
        """In how many seconds, at most ``most_s``, somebody may come again who has just asked and was refused for its
        share or its class: behind its own others, as fast as its share of ``rate`` requests in a second."""
        claim = self._claims.get(client) or self._claims[b""]
        mine = rate * claim.weight / self._weights
        claim.turn_at = min(max(claim.turn_at, now) + 1.0 / mine, now + most_s)
        return claim.turn_at - now

    def admit(self, client: bytes, priority: Priority, now: float, lead_s: float) -> None:
        """One who has just asked was let in, with a rank so many seconds from now."""
        self._admitted.add(now)
        self._classes[priority].admitted.add(now)
        if priority == Priority.HIGH:
            self._lead_s += (lead_s - self._lead_s) * (LEAD_SMOOTHING if self._lead_s else 1.0)
        (self._claims.get(client) or self._claims[b""]).admitted.add(now)

    def _begin(self, client: bytes, now: float) -> Claim:
        if client not in self.clients and (self.clients or not self._is_known(client, now)):
            client = b""
            if found := self._claims.get(client):
                return found
        claim = self._claims[client] = Claim(self.clients.get(client, ANYBODY).weight)
        self._weights += claim.weight
        return claim

    def _is_known(self, client: bytes, now: float) -> bool:
        """Whether a token is somebody's."""
        if not client:
            return False
        seen = self._seen
        if client not in seen:
            if len(seen) >= CLAIMS_MOST:
                del seen[next(iter(seen))]
            seen[client] = now
        return now - seen[client] >= KNOWN_S and len(self._claims) < CLAIMS_MOST

    def _sweep(self, now: float) -> None:
        """Who does not ask any more claims nothing."""
        self._sweep_at = now + SWEEP_S
        self._claims = {key: claim for key, claim in self._claims.items() if claim.asked.read(now) > ACTIVE}
        self._weights = sum([claim.weight for claim in self._claims.values()])


def unpressed(priority: Priority) -> Standing:
    """Of one who asks while everybody can be served."""
    return _HASTY if priority == Priority.HIGH else WHOLE
