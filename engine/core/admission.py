"""Who is let in: what the door knows of the stages, and why a request is refused. Pure.

* 503 while draining, or when a stage of the route has nobody or is not fed; 408 when its time is over already; 429 past
  the capacity in requests or bytes, or when a stage of the route holds all it may;
* 429 at once as well when, as the stages of its route see their next seconds (Outlook), its answer would come later
  than it is wanted (:mod:`engine.core.goals`). Nobody is refused whom an idle worker could begin with: what is expected
  may be wrong, and who refuses everybody never finds out;
* while not everybody can be served, who is over its share or of a lower class may use only a part of the time and the
  room there is (:mod:`engine.core.fairness`). Others are not refused for its sake, so this counts for it alone;
* whoever is refused for want of room or time is told when to come again: one after the other, as fast as requests have
  been leaving lately; and of a stage that is not fed, when it is tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, TypeAlias

from engine.core import wording
from engine.core.actions import Foresee, News
from engine.core.fairness import Client, Priority, Shares
from engine.core.goals import Goals
from engine.core.messages import Flow, Speaker, StageState, Status
from engine.core.predict import Outlook
from engine.core.routing import FINAL, JOIN, Topology

Rejection: TypeAlias = tuple[str, Status, str, Speaker]  # metric label, status, text, whose word it is

NO_ROUTE: Final[Rejection] = "malformed", Status.FAILED, wording.NO_ROUTE, Speaker.DOOR
DRAINING: Final[Rejection] = "draining", Status.UNAVAILABLE, wording.DRAINING, Speaker.DOOR
NO_TIME: Final[Rejection] = "deadline", Status.TIMEOUT, wording.TIMEOUT, Speaker.DOOR
BODIES_FILL: Final[Rejection] = "capacity_bytes", Status.OVERLOADED, wording.BODIES_FILL, Speaker.DOOR
PREDICTED: Final[Rejection] = "predicted", Status.OVERLOADED, wording.PREDICTED, Speaker.FORECAST
SHARE: Final[Rejection] = "share", Status.OVERLOADED, wording.SHARE, Speaker.FORECAST
PRIORITY: Final[Rejection] = "priority", Status.OVERLOADED, wording.PRIORITY, Speaker.FORECAST
POISON: Final[Rejection] = "poison", Status.UNPROCESSABLE, wording.QUARANTINED, Speaker.DOOR
KEY_REUSED: Final[Rejection] = "key_reused", Status.UNPROCESSABLE, wording.KEY_REUSED, Speaker.DOOR
KEY_IN_USE: Final[Rejection] = "key_in_use", Status.CONFLICT, wording.KEY_IN_USE, Speaker.DOOR

MEASURE_S: Final = 0.25  # over which it is counted how many requests leave
RETRY_MOST_S: Final = 10.0  # beyond that nothing is known
RETRY_UNKNOWN_S: Final = 1.0  # where nothing has left lately
PARTS_SMOOTHING: Final = 0.05  # weight of the newest request in the running mean of how many parts they have


def at_capacity(count: int) -> Rejection:
    """So many requests are being served."""
    return "capacity", Status.OVERLOADED, wording.being_served(count), Speaker.DOOR


@dataclass(slots=True, eq=False)
class StageView:
    """What the front knows of a stage, from its last News; until the first one, nothing. On another thread the stage
    may be ahead of it, so what is decided by it must be right for the stage as it was a moment ago too."""

    state: StageState
    absent_at: float = 0.0
    full: bool = False
    outlook: Outlook | None = None  # None: nobody waits there for long, or nothing is known
    handed: int = 0  # items it was given from here
    closed_until: float = 0.0
    goes: Mapping[int, float] = field(
        default_factory=dict
    )  # what part of its results goes to which stage, if they vary


Leg: TypeAlias = tuple[int, float, int]  # a stage, the share of those before it that come, other items of a request


class Admission:
    """See the module."""

    def __init__(self, topology: Topology, absent_at: float) -> None:
        self.stages = [
            StageView(StageState(name, 0, 0, 0, 0, 0, flow=int(Flow.UNKNOWN)), absent_at) for name in topology.stages
        ]
        self.draining = False
        self.goals = Goals(topology)
        self.shares = Shares()
        self.has_classes = False  # somebody may be of another class than others
        self.priorities = [Priority.NORMAL] * len(topology.routes)
        self.is_pressed = False  # some stage has an outlook
        self._routes = topology.routes
        self._topology = topology
        # By route: its stages, each with the share of routes through the one before that go on to it, and how many
        # items beside its own a request has there.
        self._ways: list[list[Leg]] = [
            [
                (stage, self._share(route.stages[hop - 1], stage) if hop else 0.0, 0)
                for hop, stage in enumerate(route.stages)
            ]
            for route in topology.routes
        ]
        self._in_parts = [bool(route.splits) for route in topology.routes]
        self._parts: dict[tuple[int, int], float] = {}  # by route and stage: how many parts a request has behind it
        self._straight = self._ways.copy()  # as most go
        # Those of each route that not every request of it has to pass.
        self._optional = [
            frozenset(stage for stage, part in topology.visits(number).items() if part < 1.0)
            for number in range(len(topology.routes))
        ]
        for number, route in enumerate(topology.routes):
            if route.after:
                self._straighten(number)
        self._rate = 0.0  # requests that left in a second, lately
        self._measured_at = 0.0
        self._left = 0  # requests that had left then
        self._turn_at = 0.0  # when the one who was refused last may come again

    def _share(self, former: int, stage: int) -> float:
        through = [route.stages for route in self._routes if former in route.stages]
        return sum([stage in stages for stages in through]) / len(through)

    def _straighten(self, route: int) -> None:
        """The way that most requests of a route take, as far as is known: what a request meets beside it, it is told
        there."""
        way: list[Leg] = []
        self._follow(route, self._routes[route].stages[0], 0.0, 1.0, way)
        self._straight[route] = way

    def _follow(self, route: int, stage: int, share: float, items: float, way: list[Leg]) -> None:
        """Add the way from a stage on: ``share`` of what is at the stage before comes to it, and a request has so many
        items there."""
        topology = self._topology
        while stage >= 0:
            way.append((stage, share, int(items + 0.5) - 1))
            goes = self.stages[stage].goes
            following = topology.following(route, stage)
            may_be = {one: goes[one] for one in (*topology.later(route, stage), FINAL, JOIN) if one in goes}
            former, stage = stage, max(may_be, key=may_be.__getitem__) if may_be else following[0]
            if stage >= 0:
                share = may_be.get(stage) or self._share(former, stage) / len(following)
            split = topology.split(route, former)
            if split is not None and stage == split.gather:
                # Of branches, that which takes the longest alone.
                head = max(split.heads, key=self.goals.rest_s[route].__getitem__)
                parts = 1.0 if split.names else max(self._parts.get((route, former), 1.0), 1.0)
                self._follow(route, head, share * parts, items * parts, way)
                share = 1.0 / parts

    @property
    def parts(self) -> Mapping[tuple[int, int], float]:
        """By route and stage: how many parts a request has behind it, lately."""
        return self._parts

    def spread(self, route: int, stage: int, parts: int) -> None:
        """A request went on in so many parts behind this stage."""
        known = self._parts.get((route, stage))
        told = parts if known is None else known + (parts - known) * PARTS_SMOOTHING
        self._parts[route, stage] = told
        if known is None or int(told + 0.5) != int(known + 0.5):
            self._straighten(route)

    def change(self, slos_s: Sequence[float], priorities: Sequence[Priority], clients: Mapping[bytes, Client]) -> None:
        """Of each route the goal and the class, and the clients that the file names, from now on."""
        self.goals.change(slos_s)
        self.shares.change(clients)
        self.priorities = [*priorities, *[Priority.NORMAL] * (len(self._routes) - len(priorities))]
        named = [client.priority for client in clients.values()]
        self.has_classes = any(one not in (None, Priority.NORMAL) for one in (*self.priorities, *named))

    # --- from stages -------------------------------------------------------------------------------------------------

    def heard_of(self, news: News) -> None:
        """A stage says how it stands."""
        view = self.stages[news.stage]
        view.state, view.absent_at, view.full = news.state, news.absent_at, news.full
        view.closed_until = news.closed_until

    def foresee(self, foresee: Foresee) -> bool:
        """What a stage expects. Whether some goal has come within reach by this, or out of it."""
        view = self.stages[foresee.stage]
        view.outlook = foresee.outlook
        if foresee.goes is not view.goes:
            view.goes = foresee.goes
            for number, route in enumerate(self._routes):
                if foresee.stage in route.stages:
                    self._straighten(number)
        self.is_pressed = any(view.outlook is not None for view in self.stages)
        has_changed = self.goals.hear(foresee.stage, foresee.alone_s)
        for number, route in enumerate(self._routes):
            if self._in_parts[number] and foresee.stage in route.stages:
                self._straighten(number)
        return has_changed

    # --- refusing ----------------------------------------------------------------------------------------------------

    def blocked(self, route: int, now: float) -> Rejection | None:
        """Why nothing is admitted on a route; None when something may be."""
        if not 0 <= route < len(self._routes):
            return NO_ROUTE
        if self.draining:
            return DRAINING
        for stage in self._routes[route].stages:
            view = self.stages[stage]
            if view.absent_at <= now:
                return "absent", Status.UNAVAILABLE, wording.absent(view.state.name), Speaker.STAGE
            if view.closed_until > now:
                return "broken", Status.UNAVAILABLE, wording.broken(view.state.name), Speaker.STAGE
            if view.full and stage not in self._optional[route]:
                return "stage_full", Status.OVERLOADED, wording.full(view.state.name), Speaker.STAGE
        return None

    def done_at(self, route: int, rank: float, now: float, *, overtaking: float = 0.0) -> float:
        """When a request of this rank would be done if it was admitted now; 0: nothing is known, or everybody is idle
        who has to do with it. ``overtaking``: others who are still to come, and go before it."""
        coming = 0.0  # items on their way to the next stage of the route, before this one
        done_at = now
        is_free = True
        for stage, share, others in self._straight[route]:
            view = self.stages[stage]
            outlook = view.outlook
            if outlook is None or not outlook.frees:
                continue
            waiting = outlook.queued + view.handed - outlook.taken + coming * share
            ahead = int((waiting * outlook.before(rank) if outlook.ranks else waiting) + overtaking) + others
            is_free = is_free and not ahead and outlook.is_free(now)
            done_at = max(outlook.finish(ahead, now), done_at + outlook.alone_s)
            coming = waiting + outlook.in_flight
        return 0.0 if is_free else done_at

    def surely_done_at(self, route: int, coming: int, now: float) -> float:
        """When the last of ``coming`` requests that are let in now, one after the other, would be done at the latest,
        whatever their ranks. One look at this saves one at each, where nobody is near to being late."""
        if self._in_parts[route]:
            return inf  # nobody knows in how many
        done_at = now
        before = coming
        for stage, _, _ in self._ways[route]:
            view = self.stages[stage]
            outlook = view.outlook
            if outlook is None or not outlook.frees:
                continue
            ahead = before + outlook.queued + view.handed - outlook.taken
            done_at = max(outlook.at_most(ahead, now), done_at + outlook.alone_s)
            before = ahead + outlook.in_flight
        return done_at

    def computing_s(self, route: int) -> float:
        """How long a request is computed on its way, where others wait."""
        outlooks = [self.stages[stage].outlook for stage, _, _ in self._straight[route]]
        return sum([outlook.whole_s for outlook in outlooks if outlook is not None])

    def retry_s(
        self, status: int, route: int, late_s: float, left: int, now: float, client: bytes | None = None
    ) -> float:
        """When somebody who is answered so had better come again, in seconds; 0: nobody knows. ``route`` may be none's.
        ``late_s``: by how much it would be late. ``left``: how many requests have left so far. ``client``: who has been
        refused for its own sake, and keeps no others waiting."""
        if status == Status.OVERLOADED:
            return self._turn_s(late_s, left, now, client)
        if status == Status.UNAVAILABLE and 0 <= route < len(self._routes):
            return max(0.0, max(self.stages[stage].closed_until for stage in self._routes[route].stages) - now)
        return 0.0

    def _turn_s(self, late_s: float, left: int, now: float, client: bytes | None) -> float:
        """Those who are refused come one after the other, as fast as requests have been leaving lately, and none before
        it could have been done in time."""
        past = now - self._measured_at
        if past >= MEASURE_S:
            self._rate = (left - self._left) / past
            self._measured_at, self._left = now, left
        if self._rate <= 0.0:
            return RETRY_UNKNOWN_S
        if client is not None:
            return self.shares.turn(client, self._rate, now, RETRY_MOST_S)
        turn_at = max(self._turn_at, now) + 1.0 / self._rate
        self._turn_at = turn_at = min(turn_at, now + RETRY_MOST_S)
        return min(turn_at - now + late_s, RETRY_MOST_S)
