"""The door as a state machine: who is let into the ledger, answers, duplicates and deadlines.

Events come in as method calls with ``now``; what must happen comes out in :attr:`FrontMachine.actions` and, grouped by
frontend, from :meth:`FrontMachine.take_answers`. Rules held here:

* a frontend that has not introduced itself is not listened to: its numbers may mean other routes than ours;
* a request is admitted or answered at once (:mod:`engine.core.admission`);
* an admitted request is in the ledger (:mod:`engine.core.ledger`) until it is answered, exactly once; what comes for
  one that is not is a duplicate, and only frees the credit of whoever computed it;
* a request whose deadline passes is answered 408 wherever it is;
* the events of a request at one hop come from one worker: a client that has read half of one computation is not given
  half of another, but the failure that it was;
* when a frontend dies or its client leaves, the request is closed and its items are dropped wherever they are;
* a request with an Idempotency-Key outlives who asked (:mod:`engine.core.tries`);
* what comes back midway, to go on in parts or by way of a cache, is the hub's (:mod:`engine.core.hub`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count as numbers
from math import ceil, inf
from typing import Final, NamedTuple

from msgspec.structs import replace

from engine.core import wording
from engine.core.actions import Admit, Drop, Fail, FrontAction, Grant, News, Release, Settle
from engine.core.admission import (
    BODIES_FILL,
    DRAINING,
    NO_TIME,
    POISON,
    PREDICTED,
    PRIORITY,
    SHARE,
    Admission,
    Rejection,
    StageView,
    at_capacity,
)
from engine.core.arena import Ref
from engine.core.ends import EXPIRED
from engine.core.fairness import Client, Priority, unpressed
from engine.core.foretold import EVERY
from engine.core.hub import MISSED, Hub
from engine.core.introduction import Introduction, Refusal, agreed, refuse_frontend
from engine.core.items import Item, Request
from engine.core.ledger import FAILED, FAILURE, NOBODY, Ledger, modest, said
from engine.core.liveness import FRONTEND_SILENCE_S, Looks
from engine.core.memo import CacheSpec, Place
from engine.core.messages import (
    EVENT_COST,
    NO_QOS,
    Again,
    Answers,
    Events,
    Flow,
    FrontendBeat,
    FrontendWelcome,
    Poison,
    Qos,
    Refused,
    Results,
    Speaker,
    Status,
    StreamEvents,
    Submit,
)
from engine.core.quarantine import Quarantine
from engine.core.routing import Topology
from engine.core.tries import KEYED, Tries
from engine.core.window import Counts, Marks, Window
from engine.core.wire import HEAD_ITEMS, MICROS, Payload, joined, payload_size, refs_of

OK: Final = int(Status.OK)  # comparing with a member of an enumeration costs a call
SKIPPED: Final = int(Status.SKIPPED)

EPOCH_SHIFT: Final = 40  # bits of a uid below the epoch: a year at 30,000 requests/s
EPOCHS: Final = 1 << 22
SESSION_SHIFT: Final = 32

TOLD_MOST: Final = 256 << 10  # bytes of what a frontend has counted, of which former ones are kept: many routes' worth

GUESSES: Final = 3  # at how long one waits who is overtaken

# Answered requests stay in the heap of deadlines, to be taken out together when they are the larger part of it.
DEADLINES_SLACK: Final = 1024

OVER: Final = Refused(EXPIRED)


@dataclass(frozen=True)
class FrontSpec:
    """Bounds of the admission: requests and bytes of request bodies; and of the answers that are kept for further tries
    of their requests. Of each route its goal in seconds (0 or left out: none) and its class; by the digest of what they
    authenticate with, the clients that the file names. ``gathering``: bytes that may wait to be gathered, by stage,
    before no more requests begin to go on in parts. ``caches``: of the stages that have one."""

    capacity: int
    capacity_bytes: int
    idempotency_bytes: int = 64 << 20
    slos_s: tuple[float, ...] = ()
    priorities: tuple[Priority, ...] = ()
    clients: Mapping[bytes, Client] = field(default_factory=dict)
    gathering: Mapping[int, int] = field(default_factory=dict)
    caches: Mapping[int, CacheSpec] = field(default_factory=dict)


class Judged(NamedTuple):
    """What is found of a request: see :class:`engine.core.items.Request` for the first two. ``late_s``: by how much it
    would be late. ``claim``: the client and the class that claim a part of what not everybody can have now.
    ``done_at``: when it is expected to be done; 0: nobody knows."""

    due: float
    rank: float
    late_s: float = 0.0
    rejection: Rejection | None = None
    claim: tuple[bytes, Priority] | None = None
    done_at: float = 0.0


class Way(NamedTuple):
    """What is the same for all requests of a parcel on one route: why none is admitted, the first stage and those who
    go there, when an answer is wanted by the route's goal (inf: it has none), by when all are done for sure, whether
    several could take a result (:attr:`engine.core.items.Request.claims`), the first stage's number, and whether it has
    a cache."""

    rejection: Rejection | None
    first: StageView
    items: list[Item]
    goal_at: float
    surely_at: float
    is_open: bool
    stage: int
    is_cached: bool


@dataclass(slots=True, eq=False)
class Said:
    """What a frontend has counted, packed as it came with a beat. ``read``: the same as somebody has read it who keeps
    it here, so that what many ask for is read once, and nothing while nobody asks."""

    packed: bytes = b""
    read: object = None


@dataclass(slots=True, eq=False)
class Frontend:
    peer: bytes
    session: int
    who: Introduction
    heard: float
    slot: int = 0  # its number among those that are there, from 1 on; another takes it when it has gone
    said: Said = field(default_factory=Said)
    told: Marks[Said] = field(default_factory=Marks)  # the same of the last seconds
    resident_bytes: int = 0  # as it says, like all that follows
    cpu_us: int = 0
    window: Window = field(default_factory=Window)  # of its CPU time
    node: str = ""
    url: str = ""
    version: str = ""
    descriptors: int = 0
    descriptors_most: int = 0
    began_s: float = 0.0
    requests: dict[int, Request] = field(default_factory=dict)  # by its own number

    @property
    def families(self) -> bytes:
        return self.said.packed


class FrontMachine:
    """See the module. Not thread-safe: one thread calls it, and alone reads what it holds."""

    def __init__(
        self,
        spec: FrontSpec,
        topology: Topology,
        epoch: int,
        *,
        deployment: str = "",
        absent_at: float = 0.0,
        read: Callable[[Payload], Payload] = lambda payload: payload,
    ) -> None:
        """``read`` gives a payload without references to shared memory."""
        self.spec = spec
        self.deployment = deployment
        self.topology = topology
        self.epoch = epoch
        self.frontends: dict[bytes, Frontend] = {}
        self.quarantine = Quarantine()
        self._read = read
        self._looks = Looks()
        self.door = Admission(topology, absent_at)
        self.door.change(spec.slos_s, spec.priorities, spec.clients)
        self.stages = self.door.stages
        self.ledger = Ledger(topology, self.door, spec.caches, epoch << EPOCH_SHIFT)
        self.hub = Hub(self.ledger, spec.gathering, read)
        self.stats = self.ledger.stats
        self.trace = self.ledger.trace
        self.failures = self.ledger.failures
        self.foretold = self.ledger.foretold
        self.window = Window()  # of :meth:`counts`
        self.tries = Tries(self.ledger, spec.capacity, spec.idempotency_bytes)
        self._gone: dict[int, int] = {}  # by stage: workers that have ended, as was heard last
        self._sessions = 0
        self._deadlines: list[tuple[float, int]] = []
        numbers_of = range(len(topology.routes))
        self._is_open = [topology.is_open(route) for route in numbers_of]
        self._ends = [topology.ends(route) for route in numbers_of]

    @property
    def actions(self) -> list[FrontAction]:
        """What must happen, until it is taken (:meth:`take_actions`)."""
        return self.ledger.actions

    def take_actions(self) -> list[FrontAction]:
        """All since the last call."""
        actions, self.ledger.actions = self.ledger.actions, []
        return actions

    def change(self, spec: FrontSpec) -> None:
        """By these bounds, goals, classes and clients from now on."""
        self.spec = spec
        self.door.change(spec.slos_s, spec.priorities, spec.clients)
        self.ledger.memo.change(spec.caches)
        self.hub.gathering = spec.gathering
        self.tries.capacity, self.tries.room = spec.capacity, spec.idempotency_bytes

    # --- from frontends ----------------------------------------------------------------------------------------------

    def introduce(self, peer: bytes, who: Introduction, now: float) -> FrontendWelcome | Refusal:
        """A frontend says who it is. The same process by a new connection is a new session: what it submitted by the
        former one is dropped, for it will submit again what it still waits for."""
        refusal = refuse_frontend(who, self.topology, self.deployment)
        if refusal is not None:
            return refusal
        for former in self.formers(peer, who):
            self.gone(former)
        frontend = self.frontends.get(peer)
        if frontend is None:
            self._sessions += 1
            session = (self.epoch << SESSION_SHIFT) + self._sessions
            known = replace(who, stages=[], routes={}, shapes={})  # its table has served its purpose, and may be large
            frontend = self.frontends[peer] = Frontend(peer, session, known, now, self._free_slot())
            self.ledger.asked[peer] = frontend.requests
        frontend.heard = now
        routes = [(route.path, list(route.stages)) for route in self.topology.routes]
        return FrontendWelcome(
            protocol=agreed(who),
            epoch=self.epoch,
            session=frontend.session,
            stages=list(self.topology.stages),
            routes=routes,
            reasons=True,
        )

    def _free_slot(self) -> int:
        taken = {frontend.slot for frontend in self.frontends.values()}
        return next(slot for slot in numbers(1) if slot not in taken)

    def formers(self, peer: bytes, who: Introduction) -> list[bytes]:
        """Other connections by which the same process is known."""
        known = self.frontends.items()
        return [other for other, frontend in known if frontend.who.instance == who.instance and other != peer]

    def knows(self, peer: bytes) -> bool:
        """Whether this peer has introduced itself; what others say is not to be passed on to this machine."""
        return peer in self.frontends

    def submit(self, peer: bytes, submit: Submit, payloads: Sequence[Payload], now: float) -> None:
        """Admit or answer each. KeyError for a peer that is not known."""
        frontend = self.frontends[peer]
        frontend.heard = now
        known = frontend.requests
        ledger, tries, spec = self.ledger, self.tries, self.spec
        admitted: dict[int, list[Item]] = {}
        ways: dict[int, Way] = {}  # by route, for the whole parcel
        unread: list[Ref] = []  # shared memory of what is not admitted
        keys, qos, memos = submit.keys, submit.qos, submit.memos
        has_poison, door = bool(self.quarantine), self.door
        capacity = spec.capacity + len(ledger.gatherings) + len(ledger.memo)  # these take nobody's place
        is_crowded = (ledger.inside + len(payloads)) * 2 >= spec.capacity or ledger.nbytes * 2 >= spec.capacity_bytes
        is_pressed = door.is_pressed
        # Each is judged where they may differ; else those who might be late.
        is_judged = is_crowded or door.has_classes or bool(qos) or (is_pressed and now < door.shares.apart_until)
        coming = len(payloads)
        columns = zip(
            submit.seqs,
            submit.routes,
            submit.budgets_us,
            submit.metas,
            payloads,
            strict=True,
        )
        for seq, route, budget_us, meta, payload in columns:
            if seq in known:
                unread.extend(refs_of(payload))
                continue  # sent again by a frontend that was not sure: it is being computed
            way = ways.get(route) or ways.setdefault(route, self._way(route, admitted, coming, now))
            rejection, first, items, goal_at, surely_at, is_open, first_stage, is_cached = way
            size = len(payload) if type(payload) is bytes else payload_size(payload)
            deadline = now + budget_us / MICROS
            if keys and seq in keys and (other := tries.find(keys[seq], now)) is not None:
                rejection = tries.settle(other, peer, seq, keys[seq], deadline, now)
                if rejection is not None:
                    self._reject(peer, seq, -1, rejection, 0.0, now)
                unread.extend(refs_of(payload))
                continue
            memo = memos.get(seq, b"") if memos and is_cached else b""
            if memo and budget_us > 0 and rejection is not DRAINING:
                found = ledger.memo.answer(Place(route, first_stage, memo), now)
                if found is not None:  # it needs neither room nor time
                    self.stats.admitted += 1
                    if self.door.goals.due(route, qos.get(seq, NO_QOS).slo_us / MICROS, now, deadline) < deadline:
                        self.stats.goals[route, True] += 1
                    ledger.answers.column(peer).add(seq, OK, found.payload, mime=found.mime, headers=found.headers)
                    unread.extend(refs_of(payload))
                    continue
            due = rank = deadline if deadline < goal_at else goal_at
            judged: Judged | None = None
            if rejection is None:
                if budget_us <= 0 or len(ledger) >= capacity or ledger.nbytes + size > spec.capacity_bytes:
                    rejection = self._rejection(budget_us, size)
                if has_poison and rejection is None and self._is_poison(route, size, payload, now):
                    rejection = POISON
                if rejection is None and (
                    is_judged or due < surely_at or (is_pressed and not (ledger.last_uid + 1) % EVERY)
                ):
                    judged = self._judge(route, size, qos.get(seq, NO_QOS), deadline, now, is_crowded=is_crowded)
                    due, rank, rejection = judged.due, judged.rank, judged.rejection
            if rejection is not None:
                late_s = judged.late_s if judged is not None else 0.0
                own = qos.get(seq, NO_QOS).client if rejection is SHARE or rejection is PRIORITY else None
                self._reject(peer, seq, route, rejection, late_s, now, had_s=due - now, client=own, meta=meta)
                unread.extend(refs_of(payload))
                continue
            uid = ledger.last_uid = ledger.last_uid + 1
            if keys and seq in keys:
                request = Request(uid, KEYED, uid, route, deadline, due, rank, meta, size)
                tries.keys.begin(keys[seq], request, (peer, seq))
            else:
                request = Request(uid, peer, seq, route, deadline, due, rank, meta, size)
            if is_open:
                request.claims = {}
            ledger.requests[uid] = known[seq] = request
            ledger.nbytes += size
            heappush(self._deadlines, (deadline, uid))
            if memo:
                self.stats.admitted += 1
                self.hub.enter(request, first_stage, payload, b"", memo, now)
            else:
                items.append(Item(request, payload, size, now))
                first.handed += 1
            if judged is not None:
                self._note(judged, uid, now)
        for stage, items in admitted.items():
            if items:
                self.stats.admitted += len(items)
                ledger.actions.append(Admit(stage, items))
        self.hub.admit()
        if unread:
            ledger.actions.append(Release(unread))

    def _judge(self, route: int, size: int, qos: Qos, deadline: float, now: float, *, is_crowded: bool) -> Judged:
        """Whether a request is admitted that its deadline and the bounds of the door do not keep out."""
        door, spec = self.door, self.spec
        due = door.goals.due(route, qos.slo_us / MICROS, now, deadline)
        priority = Priority.NORMAL
        if door.has_classes or qos.priority:
            priority = door.shares.priority(qos.client, door.priorities[route], qos.priority)
        standing = unpressed(priority)
        rank = now + standing.haste * (due - now)
        done_at = door.done_at(route, rank, now) if door.is_pressed else 0.0
        if not done_at and not is_crowded:
            return Judged(due, rank)
        if not qos.client and priority == Priority.NORMAL and now >= door.shares.apart_until:
            late_s = max(done_at - due, 0.0)  # all who ask are one client of one class
            return Judged(due, rank, late_s, PREDICTED if late_s else None, None, done_at)
        standing = door.shares.ask(qos.client, priority, now)
        rank = now + standing.haste * (due - now)
        if done_at and door.has_classes:
            done_at = self._overtaken(route, rank, now)
        rejection: Rejection | None = None
        part = standing.part
        if done_at > due:
            rejection = PREDICTED
        elif part < 1.0 and (
            done_at > now + part * (due - now)
            or self.ledger.inside >= part * spec.capacity
            or self.ledger.nbytes + size > part * spec.capacity_bytes
        ):
            rejection = SHARE if standing.over else PRIORITY
        return Judged(due, rank, max(done_at - due, 0.0), rejection, (qos.client, priority), done_at)

    def _note(self, judged: Judged, uid: int, now: float) -> None:
        """It has been admitted."""
        if judged.done_at:
            self.foretold.note(uid, judged.done_at - now, now)
        if judged.claim is not None:
            self.door.shares.admit(*judged.claim, now, judged.rank - now)

    def _overtaken(self, route: int, rank: float, now: float) -> float:
        """When a request of this rank would be done, with those of the highest class who come meanwhile before it."""
        door = self.door
        rate, wait_s = door.shares.overtaking(rank, now)
        computing_s = door.computing_s(route)
        done_at = 0.0
        for _ in range(GUESSES):  # the longer it waits, the more of them; from above
            done_at = door.done_at(route, rank, now, overtaking=rate * wait_s)
            wait_s = min(wait_s, max(0.0, done_at - now - computing_s))
        return done_at

    def _way(self, route: int, admitted: dict[int, list[Item]], coming: int, now: float) -> Way:
        """For a parcel of ``coming`` requests."""
        door = self.door
        rejection = door.blocked(route, now)
        if rejection is not None and not 0 <= route < len(self.topology.routes):
            return Way(rejection, self.stages[0], [], inf, 0.0, False, 0, False)
        number = self.topology.routes[route].stages[0]
        is_cached = self.topology.is_cached(route, number) and self.ledger.memo.has(number)
        if rejection is not None:
            return Way(rejection, self.stages[number], [], inf, 0.0, False, number, is_cached)
        goal_at = door.goals.due(route, 0.0, now, inf) if door.goals.is_set else inf
        surely_at = door.surely_done_at(route, coming, now) if door.is_pressed else 0.0
        items = admitted.setdefault(number, [])
        is_open = self._is_open[route]
        return Way(None, self.stages[number], items, goal_at, surely_at, is_open, number, is_cached)

    def _is_poison(self, route: int, size: int, payload: Payload, now: float) -> bool:
        return self.quarantine.holds(route, size, lambda: joined(self._read(payload)), now)

    def _rejection(self, budget_us: int, size: int) -> Rejection | None:
        """Why one request is not admitted; None when it is."""
        if budget_us <= 0:
            return NO_TIME
        if self.ledger.inside >= self.spec.capacity:
            return at_capacity(self.ledger.inside)
        if self.ledger.nbytes + size > self.spec.capacity_bytes and self.ledger:
            return BODIES_FILL
        return None

    def _reject(
        self,
        peer: bytes,
        seq: int,
        route: int,
        rejection: Rejection,
        late_s: float,
        now: float,
        *,
        had_s: float = 0.0,
        client: bytes | None = None,
        meta: bytes = b"",
    ) -> None:
        """``late_s``: by how much it would have been late, with the ``had_s`` that it had. ``client``: who is refused
        for its own sake."""
        reason, status, text, speaker = rejection
        self.stats.rejected[reason] = self.stats.rejected.get(reason, 0) + 1
        retry_s = self.door.retry_s(status, route, late_s, self.ledger.left, now, client)
        headers = wording.DO_NOT_RETRY if status is Status.UNPROCESSABLE else None
        needs_s = had_s + late_s if late_s > 0.0 else 0.0
        self.trace.add(
            now,
            reason,
            route=route,
            waiting=self.ledger.inside,
            needs_s=needs_s,
            had_s=had_s,
            retry_s=retry_s,
            meta=meta,
        )
        refused = _refused(reason, needs_s, had_s)
        self.ledger.answers.say(peer, seq, status, text, speaker, retry_s=retry_s, headers=headers, refused=refused)

    def refuse_like(self, poison: Poison, now: float) -> bool:
        """A request has killed workers: refuse such ones for a while. False: they are refused already, or there is no
        such route."""
        is_route = poison.route < len(self.topology.routes)
        return is_route and self.quarantine.add(poison.route, poison.size, poison.mark, now)

    def cancel(self, peer: bytes, seqs: Sequence[int]) -> None:
        """Clients have gone: close their requests without an answer."""
        frontend = self.frontends.get(peer)
        if frontend is None:
            return
        once = dict.fromkeys(seqs)  # a peer may name one twice
        known = frontend.requests
        left = [(seq, request) for seq in once if (request := known.get(seq)) is not None]
        self.ledger.drop(
            [request for seq, request in left if request.frontend == peer or self.tries.is_left(peer, seq, request)]
        )

    def beat(self, peer: bytes, beat: FrontendBeat, now: float) -> None:
        """A frontend lives. KeyError for a peer that is not known."""
        frontend = self.frontends[peer]
        frontend.heard = now
        if beat.families:
            frontend.said = Said(beat.families)
            if len(beat.families) <= TOLD_MOST:
                frontend.told.mark(now, frontend.said)
        frontend.resident_bytes, frontend.cpu_us = beat.resident_bytes, beat.cpu_us
        frontend.node, frontend.url, frontend.version = beat.node, beat.url, beat.version
        frontend.descriptors, frontend.descriptors_most = beat.descriptors, beat.descriptors_most
        frontend.began_s = beat.began_s
        frontend.window.mark(now, (beat.cpu_us / MICROS,))

    def gone(self, peer: bytes) -> Frontend | None:
        """A frontend process has ended: nobody can be answered there any more."""
        frontend = self.frontends.pop(peer, None)
        self.ledger.asked.pop(peer, None)
        if frontend is not None:
            left = frontend.requests.items()
            self.ledger.drop(
                [request for seq, request in left if request.frontend == peer or self.tries.is_left(peer, seq, request)]
            )
            self.ledger.answers.drop(peer)
            self.tries.again.pop(peer, None)
        return frontend

    def measure(self, now: float) -> None:
        """See how far all has come. To be called about once a second."""
        self.window.mark(now, self.counts())

    def counts(self) -> Counts:
        """Requests so far: let in, answered, refused here, failed."""
        stats = self.stats
        answered = self.ledger.left - stats.cancelled
        return stats.admitted, answered, sum(stats.rejected.values()), self.failures.counts.total()

    def silent(self, now: float) -> list[bytes]:
        """Frontends that were not heard for FRONTEND_SILENCE_S. To be called about once a second: nobody could be heard
        while this process was stopped itself."""
        if self._looks.is_late(now):
            for frontend in self.frontends.values():
                frontend.heard = now
        return [peer for peer, frontend in self.frontends.items() if now - frontend.heard > FRONTEND_SILENCE_S]

    def heard_of(self, news: News) -> None:
        """A stage says how it stands. Who has ended may have been of a former edition, and have computed until now:
        what is kept may be its."""
        if news.gone != self._gone.get(news.stage, 0):
            self._gone[news.stage] = news.gone
            self.ledger.memo.forget(news.stage)
        self.door.heard_of(news)

    # --- from workers and stages -------------------------------------------------------------------------------------

    def results(self, results: Results, payloads: Sequence[Payload], now: float) -> None:
        """Final results, failures and skips of one batch of a stage there is. Those of items that the worker holds are
        settled, and answered if they are still wanted; all others are duplicates, late, or made up."""
        ledger, headers = self.ledger, results.headers
        hops, is_early = ledger.standings[results.stage]
        held = ledger.crews[results.stage].held(results.worker, results.batch)
        if not held:
            self.stats.duplicates += len(results.uids)
            return
        statuses = results.statuses
        if (good := statuses.count(OK)) < len(statuses):
            self._note_failures(results, payloads, held, hops, now)
        peer, column = b"", None
        known: dict[int, Request] = {}
        for uid, status, trail, payload, index in zip(
            results.uids, results.statuses, results.trails, payloads, range(len(payloads)), strict=True
        ):
            if not status:
                continue  # skipped
            item = held.get(uid)
            # A result counts only from the stage where the request is; a replayed copy may lag a hop behind. It may be
            # the answer wherever that is: any stage can end its requests early.
            if item is None or (request := item.request).closed or hops.get(request.route, -1) != request.hop:
                self.stats.duplicates += 1
                continue
            if request.stream_hop == request.hop and request.streamer != results.worker:
                ledger.tear(request, now)
                continue
            if column is None or request.frontend != peer:
                peer = request.frontend
                column = ledger.answers.column(peer)
                known = ledger.asked.get(peer, {})
            # As Ledger.close does.
            request.closed = True
            del ledger.requests[uid]
            ledger.nbytes -= request.size
            known.pop(request.seq, None)
            if request.due < request.deadline:
                ledger.count_goal(request, now)
            if headers and index in headers:
                column.headers[len(column.seqs)] = modest(headers[index])
            column.seqs.append(request.seq)
            column.statuses.append(status)
            column.mimes.append(results.mime)
            column.trails.append(trail)
            column.payloads.append(payload)
        if self.foretold.waiting:
            self.foretold.came(results.uids, ledger.requests, now)
        settle = Settle(results.stage, results.worker, results.batch, results.uids, now, results.compute_us)
        if is_early and good:
            settle = replace(settle, ended=good)
        if results.costs:
            settle = replace(settle, costs=results.costs)
        if good < len(statuses):
            failed = sum([status >= FAILED for status in statuses])
            settle = replace(settle, good=good > 0, failed=failed, skipped=SKIPPED in statuses)
        ledger.actions.append(settle)

    def _note_failures(
        self,
        results: Results,
        payloads: Sequence[Payload],
        held: Mapping[int, Item],
        hops: Mapping[int, int],
        now: float,
    ) -> None:
        """Those that are about to be answered."""
        columns = zip(results.uids, results.statuses, payloads, strict=True)
        for index, (uid, status, payload) in enumerate(columns):
            item = held.get(uid) if status >= FAILURE else None
            if item is None or (request := item.request).closed or hops.get(request.route, -1) != request.hop:
                continue
            if request.frontend in NOBODY:
                continue  # it is told of whose part it is
            text = said(payload, results.headers.get(index, ()))
            self.failures.add(now, results.stage, request.route, status, text, request.meta)

    # --- events, and what stages give up -----------------------------------------------------------------------------

    def events(
        self, events: StreamEvents, payloads: Sequence[Payload], now: float
    ) -> dict[bytes, tuple[Events, list[Payload]]]:
        """Stream events by frontend, to be sent at once and in order.

        Only who holds an item, or did a moment ago, can send events of it: what comes of a worker whose death is known
        is dropped. The interleaving that matters is left where stages have threads of their own: a worker sends an
        event and dies, the event is passed on, and its stage, which has just looked whether there was one, replays the
        request. The second worker's events, or its result, then find another worker's name on the request: the stream
        is torn and ends as a failure.
        """
        out: dict[bytes, tuple[list[int], list[Payload]]] = {}
        crew = self.ledger.crews[events.stage]
        for uid, payload in zip(events.uids, payloads, strict=True):
            request = self.ledger.requests.get(uid)
            if request is None or not crew.streams(events.worker, events.batch, uid):
                continue
            if self._is_unwanted(request, events):
                self.ledger.actions.append(Grant(events.stage, events.worker, uid, payload_size(payload) + EVENT_COST))
                continue
            if not self._is_streamed_by(request, events, now):
                continue
            peer, seq = request.frontend, request.seq
            if peer == KEYED:
                reader = self.tries.reader(request)
                if reader is None:
                    continue
                peer, seq = reader
            seqs, bodies = out.setdefault(peer, ([], []))
            seqs.append(seq)
            bodies.append(payload)
        return {
            peer: (Events(seqs, flow=events.flow, mime=events.mime), bodies) for peer, (seqs, bodies) in out.items()
        }

    def _is_unwanted(self, request: Request, events: StreamEvents) -> bool:
        """Whether a stage before the last reports progress in an answer that is known to be no stream of events. While
        it is not known, because the last stage has not been heard of or is changing, they are passed on. What comes
        from the last stage is the answer, whatever was heard of it."""
        ends = self._ends[request.route]
        return request.frontend in NOBODY or (
            events.stage not in ends and all(self.stages[last].state.flow in (Flow.WHOLE, Flow.CHUNKS) for last in ends)
        )

    def _is_streamed_by(self, request: Request, events: StreamEvents, now: float) -> bool:
        """Whether events of this worker belong to the request; if they may, it is the one from now on."""
        try:
            hop = self.topology.hop(request.route, events.stage)
        except KeyError:  # a worker names a stage that is not on the route
            return False
        if hop < request.stream_hop or hop > request.hop:
            return False  # of a copy that lags behind
        if hop == request.stream_hop and request.streamer != events.worker:
            if hop == request.hop:
                self.ledger.tear(request, now)
            return False
        request.stream_hop, request.streamer = hop, events.worker
        return True

    def consumed(self, peer: bytes, nbytes: Mapping[int, int]) -> None:
        """Clients have taken events: whoever sends them may go on."""
        frontend = self.frontends.get(peer)
        if frontend is None:
            return
        for seq, count in nbytes.items():
            request = frontend.requests.get(seq)
            if request is not None and request.stream_hop >= 0:
                stage = self.topology.routes[request.route].stages[request.stream_hop]
                self.ledger.actions.append(Grant(stage, request.streamer, request.uid, count))

    def fail(self, fail: Fail, now: float) -> None:
        """A stage gives requests up; one of which another copy has gone further is left alone."""
        status, speaker = fail.status, Speaker.FORECAST if fail.hopeless else Speaker.STAGE
        for uid in fail.uids:
            request = self.ledger.requests.get(uid)
            if request is not None and self.ledger.stage_of(request) == fail.stage:
                if fail.why in MISSED:
                    self.foretold.missed(uid)
                self.ledger.count_goal(request, now, is_result=False)
                self.ledger.close(request)
                is_ours = request.frontend in NOBODY  # it is told of whose part it is
                if status != Status.OVERLOADED and not is_ours:  # else it is refused
                    self.failures.add(now, fail.stage, request.route, status, fail.text, request.meta)
                peer, seq = request.frontend, request.seq
                retry_s = self.door.retry_s(status, request.route, 0.0, self.ledger.left, now)
                refused: Refused | None = None
                if fail.why:
                    had_s = max(0.0, request.due - now)
                    refused = _refused(fail.why, fail.needs_s, had_s)
                    if not is_ours:
                        self.trace.add(
                            now,
                            fail.why,
                            stage=fail.stage,
                            route=request.route,
                            waiting=fail.waiting,
                            needs_s=fail.needs_s,
                            had_s=had_s,
                            retry_s=retry_s,
                            meta=request.meta,
                        )
                self.ledger.answers.say(
                    peer, seq, status, fail.text, speaker, retry_s=retry_s, headers=fail.headers, refused=refused
                )

    def expire(self, now: float) -> float:
        """Answer what is late; returns when to look again at the latest, which while requests are served may be a
        deadline of one that is answered already (inf: when something is admitted). To be called once per pass: it also
        keeps the heap below twice the ledger, DEADLINES_SLACK, and what is admitted between two calls."""
        deadlines = self._deadlines
        if not self.ledger:
            deadlines.clear()
        elif len(deadlines) > 2 * len(self.ledger) + DEADLINES_SLACK:
            deadlines[:] = [entry for entry in deadlines if entry[1] in self.ledger.requests]
            heapify(deadlines)
        late: dict[int, list[int]] = {}
        while deadlines and deadlines[0][0] <= now:
            _, uid = heappop(deadlines)
            request = self.ledger.requests.get(uid)
            if request is not None:
                self.foretold.missed(uid)
                self.ledger.count_goal(request, now, is_result=False)
                self.ledger.close(request)
                self.stats.expired += 1
                where = self.ledger.stage_of(request)
                self.failures.add(now, where, request.route, Status.TIMEOUT, wording.TIMEOUT, request.meta)
                self.trace.add(now, EXPIRED, stage=where, route=request.route, meta=request.meta)
                self.ledger.answers.say(request.frontend, request.seq, Status.TIMEOUT, wording.TIMEOUT, refused=OVER)
                for stage in self.ledger.stages_of(request):
                    late.setdefault(stage, []).append(uid)
        for stage, uids in late.items():
            self.ledger.actions.append(Drop(stage, uids))
        self.tries.expire(now)
        due_at = self.tries.keys.due_at
        return min(deadlines[0][0], due_at) if deadlines else due_at

    # --- answers -----------------------------------------------------------------------------------------------------

    def take_answers(self, now: float) -> list[tuple[bytes, Answers, list[Payload]]]:
        """All answers since the last call, one parcel per frontend; several where one would have too large a header.
        What became of parts is heard here, of which further actions may come."""
        self.hub.hear(now)
        self.tries.hear(now)
        return self.ledger.answers.take() if self.ledger.answers.columns else []

    def take_again(self) -> list[tuple[bytes, Again]]:
        """Since the last call, by frontend: what it is to submit again, for the answer to another try did not come."""
        again, self.tries.again = self.tries.again, {}
        return [
            (peer, Again(seqs[start : start + HEAD_ITEMS]))
            for peer, seqs in again.items()
            for start in range(0, len(seqs), HEAD_ITEMS)
        ]

    @property
    def headroom(self) -> int:
        return max(0, self.spec.capacity - self.ledger.inside)


def _refused(reason: str, needs_s: float, had_s: float) -> Refused:
    """What a client is told of its refusal. ``needs_s`` 0: it was not for want of time."""
    return Refused(reason, ceil(needs_s * 1000), int(had_s * 1000)) if needs_s else Refused(reason)
