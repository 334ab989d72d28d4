"""From a Batch to items, and from their outcomes to Results. Pure: no sockets, no clock.

Every item of a batch appears in exactly one Results or Parts of it: that is what frees the batch at the broker. Results
go where their items go next - the next stage's intake, or the egress for what is final, failed or skipped - and Parts
to the egress too. All name stage, worker and batch, so that the one who gets them can tell this stage's books.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import Final, TypeAlias

from msgspec.structs import replace

from engine.core.messages import Batch, Parts, Results, Role, Status
from engine.core.routing import FINAL, JOIN, Topology
from engine.core.wire import HEAD_ITEMS, STEP_BYTES, WITH_HEADERS, Buffer, Payload, encode, pack_steps, payload_size
from engine.core.wording import TOO_MANY_PIECES
from engine.errors import ProtocolError
from engine.log import get_logger
from stages.compute import OK, Outcome
from stages.context import ItemIn
from stages.ways import KNOWN_SINCE, Way, way_of

NO_COSTS: Final[Mapping[int, float]] = {}
NO_TARGETS: Final[Mapping[int, int]] = {}

DONE: Final = int(Role.DONE)
FRAME: Final = int(Role.FRAME)
PART: Final = int(Role.PART)

PARCEL_BYTES: Final = 8 << 20  # from there on what goes by way of the front goes in another parcel

Parcel: TypeAlias = tuple[int, Results | Parts, list[Payload]]  # where to: a stage, FINAL, or JOIN


@dataclass(frozen=True)
class Origin:
    """Whose results they are."""

    stage: int
    worker: int


class Plan:
    """Where items of each route come from and go to, for one stage. All numbers are the broker's."""

    def __init__(self, topology: Topology, stage: int, *, protocol: int = KNOWN_SINCE) -> None:
        """``protocol``: the broker's."""
        self.stage = stage
        is_told = protocol >= KNOWN_SINCE
        self.ways: dict[int, Way] = {
            route: way_of(topology, route, stage, is_told=is_told) for route in topology.hops(stage)
        }
        self._items_of = {route: (way.first, way.last, way) for route, way in self.ways.items()}
        self.is_forked = any(way.fork is not None for way in self.ways.values())
        self.splits = any(way.split is not None or bool(way.known) for way in self.ways.values())
        self.gathers = any(way.gathers is not None for way in self.ways.values())
        self.following = {route: way.after for route, way in self.ways.items()}
        # Where results can go by the file; the egress always, for failures.
        following = {one for route in self.ways for one in topology.following(route, stage)}
        self.targets = frozenset({*following, FINAL} - {JOIN})
        # What a trail has for the stages between here and where results go, by route and target, as far as there are
        # any: so each step stands where its stage does.
        self._gaps: dict[tuple[int, int], bytes] = {}
        for route in self.ways:
            here, end = topology.hop(route, stage), len(topology.routes[route].stages)
            for target in (*topology.later(route, stage), FINAL):
                left_out = (end if target == FINAL else topology.hop(route, target)) - here - 1
                if left_out:
                    self._gaps[route, target] = bytes(left_out * STEP_BYTES)
        self._straight = frozenset(
            route
            for route, way in self.ways.items()
            if way.fork is None and not way.by_front(way.after) and (route, way.after) not in self._gaps
        )

    def items(self, batch: Batch, payloads: Sequence[Payload], since_ns: int) -> list[ItemIn]:
        """The batch's items; their budgets count from ``since_ns``. ProtocolError if a route does not pass here."""
        try:
            return [
                ItemIn(
                    uid=uid,
                    payload=payload,
                    first=first,
                    last=last,
                    meta=meta,
                    attempt=attempt,
                    deadline_ns=since_ns + budget_us * 1000,
                    way=way,
                )
                for uid, payload, (first, last, way), meta, attempt, budget_us in zip(
                    batch.uids,
                    payloads,
                    map(self._items_of.__getitem__, batch.routes),
                    batch.metas,
                    batch.attempts,
                    batch.budgets_us,
                    strict=True,
                )
            ]
        except KeyError as error:
            raise ProtocolError(f"a batch with items of route {error}, which does not pass this stage") from error

    def results(
        self,
        origin: Origin,
        batch: Batch,
        outcomes: Sequence[Outcome],
        *,
        mime: str,
        batch_us: int = 0,
        compute_us: int = 0,
        costs: Mapping[int, float] = NO_COSTS,
        targets: Mapping[int, int] = NO_TARGETS,
        steps: Sequence[bytes] | None = None,
    ) -> list[Parcel]:
        """The outcomes by where they go: the next stage, or FINAL; several parcels where one would be too large.

        ``compute_us`` goes into each item's trail, and as a total into one of the parcels. ``steps``: of their trails,
        where these are not alike. ``costs``: of those items whose cost is known, by position. ``targets``: likewise, of
        those that do not simply go on.
        """

        def made(target: int, uids: list[int], statuses: list[int], trails: list[bytes], compute_us: int) -> Results:
            return Results(
                stage=origin.stage,
                worker=origin.worker,
                batch=batch.batch,
                uids=uids,
                statuses=statuses,
                trails=trails,
                mime=mime if target == FINAL else "",
                compute_us=compute_us,
                headers={},
                costs={},
            )

        if steps is None:
            steps = pack_steps(batch.queues_us, batch_us, compute_us)
        count = len(outcomes)
        payloads = [outcome.payload for outcome in outcomes if outcome.status == OK and not outcome.headers]
        route = batch.routes[0] if batch.routes else -1
        if (
            0 < len(payloads) == count <= WITH_HEADERS
            and count == batch.routes.count(route)
            and not targets
            and route in self._straight
        ):
            target = self.following[route]  # of all of them: nearly always
            results = made(target, batch.uids, [OK] * count, [*map(add, batch.trails, steps)], compute_us)
            results.costs.update(costs)
            return [(target, results, payloads)]
        gaps = self._gaps
        parcels: dict[int, tuple[int, Results, list[Payload]]] = {}
        in_parts: tuple[int, Parts, list[Payload]] | None = None
        full: list[Parcel] = []
        nbytes = 0  # of what is in ``in_parts``
        most = HEAD_ITEMS
        if len(outcomes) > WITH_HEADERS and any(outcome.headers for outcome in outcomes):
            most = WITH_HEADERS
        # One loop: a comprehension per column is a call per column, which a small batch pays for nothing.
        for position, outcome in enumerate(outcomes):
            route = batch.routes[position]
            trail = batch.trails[position] + steps[position]
            target = FINAL
            if outcome.status == OK:
                target = targets.get(position, self.following[route]) if targets else self.following[route]
                trail += gaps.get((route, target), b"")
            told_us = 0 if full or parcels or in_parts else compute_us  # which is told once
            if outcome.status == OK and self.ways[route].by_front(target):
                # What belongs together stays so.
                if in_parts is None or len(in_parts[2]) >= HEAD_ITEMS or nbytes >= PARCEL_BYTES:
                    if in_parts is not None:
                        full.append(in_parts)
                    parts = Parts(
                        origin.stage, origin.worker, batch.batch, [], [], [], told_us, costs={}, mime=mime, headers={}
                    )
                    in_parts, nbytes = (JOIN, parts, []), 0
                _, parts, payloads = in_parts
                if position in costs:
                    parts.costs[len(parts.uids)] = costs[position]
                if outcome.headers:
                    parts.headers[len(parts.uids)] = outcome.headers
                others = outcome.parts or ()
                parts.uids.extend([batch.uids[position]] * (1 + len(others)))
                parts.roles.extend([DONE if outcome.parts is None else FRAME, *[PART] * len(others)])
                parts.trails.extend([trail, *[b""] * len(others)])
                parts.targets.extend([target, *[JOIN] * len(others)])
                parts.keys.extend([outcome.key, *(outcome.keys or [b""] * len(others))])
                payloads += [outcome.payload, *others]
                nbytes += payload_size(outcome.payload) + sum(map(payload_size, others))
                continue
            parcel = parcels.get(target)
            if parcel is None or len(parcel[2]) == most:
                if parcel is not None:
                    full.append(parcel)
                parcel = parcels[target] = (target, made(target, [], [], [], told_us), [])
            _, results, payloads = parcel
            if outcome.headers:
                results.headers[len(results.uids)] = outcome.headers
            if position in costs:
                results.costs[len(results.uids)] = costs[position]
            results.uids.append(batch.uids[position])
            results.statuses.append(outcome.status)
            results.trails.append(trail)
            payloads.append(outcome.payload)
        return [*full, *parcels.values(), *((in_parts,) if in_parts is not None else ())]


def encoded(parcels: list[Parcel]) -> list[list[Buffer]]:
    """Their frames. In the place of one that is in too many pieces for anybody another one stands afterwards, which
    says that its items have failed."""
    frames = []
    for place, (_, results, payloads) in enumerate(parcels):
        try:
            frames.append(encode(results, payloads))
        except ProtocolError as error:
            get_logger().error("results cannot be sent: %s", error)
            _, told, texts = parcels[place] = _failed(results)
            frames.append(encode(told, texts))
    return frames


def _failed(results: Results | Parts) -> Parcel:
    trails = dict(zip(reversed(results.uids), reversed(results.trails), strict=True))  # each item's own is its first
    uids = [*trails]
    statuses = [int(Status.FAILED)] * len(uids)
    told = Results(results.stage, results.worker, results.batch, uids, statuses, [*trails.values()], headers={})
    return FINAL, replace(told, compute_us=results.compute_us), [TOO_MANY_PIECES.encode()] * len(uids)


NOWHERE: Final = Plan(Topology((), ()), -1)
