"""The door as a state machine: the ledger of what is admitted, answers, duplicates and deadlines.

Events come in as method calls with ``now``; what must happen comes out in :attr:`FrontMachine.actions` and, grouped by
frontend, from :meth:`FrontMachine.take_answers`. Rules held here:

* a frontend that has not introduced itself is not listened to: its numbers may mean other routes than ours;
* a request is admitted or answered at once (:mod:`engine.core.admission`);
* an admitted request is in the ledger until it is answered, exactly once; what comes for a request that is not in the
  ledger is a duplicate, and only frees the credit of whoever computed it;
* a request whose deadline passes is answered 408 wherever it is;
* the events of a request at one hop come from one worker: a client that has read half of one computation is not given
  half of another, but the failure that it was;
* when a frontend dies or its client leaves, the request is closed and its items are dropped wherever they are;
* a request with an Idempotency-Key (:mod:`engine.core.idempotency`) is computed for KEYED, a frontend that nobody is,
  and its answer then shared among the tries that wait for it. So it outlives them;
* a request that goes on in parts is taken apart and put together here (:mod:`engine.core.parts`): its parts are
  requests for PARTS, which is nobody either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
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
    KEY_IN_USE,
    KEY_REUSED,
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
from engine.core.answers import AnswerBook, Column
from engine.core.arena import Ref
from engine.core.crew import Crew
from engine.core.ends import EXPIRED, FULL, HOPELESS, STUCK
from engine.core.failures import Failures
from engine.core.fairness import Client, Priority, unpressed
from engine.core.foretold import EVERY, Foretold
from engine.core.idempotency import HEADER, Kept, Keys, Waiter, is_same
from engine.core.introduction import Introduction, Refusal, agreed, refuse_frontend
from engine.core.items import Item, Request
from engine.core.liveness import FRONTEND_SILENCE_S, Looks
from engine.core.memo import SHARED, Asker, CacheSpec, Found, Memo, Place
from engine.core.messages import (
    EVENT_COST,
    MEMO_KEY_SIZE,
    NO_QOS,
    OWN_HEADERS_MOST,
    Again,
    Answers,
    Events,
    Flow,
    FrontendBeat,
    FrontendWelcome,
    Parts,
    Poison,
    Qos,
    Refused,
    Results,
    Role,
    Speaker,
    Status,
    StreamEvents,
    Submit,
)
from engine.core.onward import is_inner
from engine.core.parts import PARTS, Gathering, Gatherings
from engine.core.quarantine import Quarantine
from engine.core.routing import FINAL, JOIN, Topology
from engine.core.stats import FrontStats
from engine.core.trace import Refusals
from engine.core.window import Counts, Marks, Window
from engine.core.wire import HEAD_ITEMS, MICROS, STEP_BYTES, Payload, joined, payload_size, refs_of

OK: Final = int(Status.OK)  # comparing with a member of an enumeration costs a call
SKIPPED: Final = int(Status.SKIPPED)
FAILED: Final = int(Status.FAILED)
DONE: Final = int(Role.DONE)
FRAME: Final = int(Role.FRAME)
PART: Final = int(Role.PART)

EPOCH_SHIFT: Final = 40  # bits of a uid below the epoch: a year at 30,000 requests/s
EPOCHS: Final = 1 << 22
SESSION_SHIFT: Final = 32

FAILURE: Final = 400  # and above: a redirection, say, is what a service wanted to answer
TOLD_MOST: Final = 256 << 10  # bytes of what a frontend has counted, of which former ones are kept: many routes' worth
MESSAGE_MOST: Final = 2048  # bytes of a failure's message that are looked at: more than is kept
OWN_BODY: Final = "(a body of the service's own)"  # of a failure: not shown, for it may be anything

GUESSES: Final = 3  # at how long one waits who is overtaken

# Answered requests stay in the heap of deadlines, to be taken out together when they are the larger part of it.
DEADLINES_SLACK: Final = 1024

OVER: Final = Refused(EXPIRED)
MISSED: Final = (HOPELESS, EXPIRED)  # why requests are refused that were to be in time
REPLAYED: Final = {HEADER: "true"}
UNDECIDED: Final = frozenset({"", STUCK})  # why a part fails, where it is the part's own fault, as far as known
NOBODY: Final = frozenset({PARTS, SHARED})  # who asks for what several wait for, or only a part of one
KEYED: Final = b""  # who asks for requests with a key, and is answered: tries come and go


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
        self.ledger: dict[int, Request] = {}
        self.frontends: dict[bytes, Frontend] = {}
        self.quarantine = Quarantine()
        self._read = read
        self._looks = Looks()
        self.door = Admission(topology, absent_at)
        self.door.change(spec.slos_s, spec.priorities, spec.clients)
        self.stages = self.door.stages
        self.crews: Sequence[Crew] = ()  # of all stages, set before the first result: who holds what
        self.stats = FrontStats()
        self.actions: list[FrontAction] = []
        self.nbytes = 0
        self.trace = Refusals()
        self.failures = Failures()
        self.window = Window()  # of :meth:`counts`
        self.foretold = Foretold()
        self.keys = Keys()
        self.gatherings = Gatherings()
        self.memo = Memo(spec.caches)
        self._gone: dict[int, int] = {}  # by stage: workers that have ended, as was heard last
        self.again: dict[bytes, list[int]] = {}  # by frontend: what it is to submit again
        self._uid = epoch << EPOCH_SHIFT
        self._sessions = 0
        self._deadlines: list[tuple[float, int]] = []
        self._answers = AnswerBook()
        # By stage: its hop on each route that passes it, and whether what ends there has left its route early.
        self._standings = [(topology.hops(stage), is_inner(topology, stage)) for stage in range(len(topology.stages))]
        numbers_of = range(len(topology.routes))
        self._is_open = [topology.is_open(route) for route in numbers_of]
        self._ends = [topology.ends(route) for route in numbers_of]
        # By route and hop: where something of a request may be that is there, or was a moment ago.
        self._places = [
            [(stage, *topology.later(number, stage)) for stage in route.stages]
            for number, route in enumerate(topology.routes)
        ]

    def change(self, spec: FrontSpec) -> None:
        """By these bounds, goals, classes and clients from now on."""
        self.spec = spec
        self.door.change(spec.slos_s, spec.priorities, spec.clients)
        self.memo.change(spec.caches)

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
        ledger, spec = self.ledger, self.spec
        admitted: dict[int, list[Item]] = {}
        ways: dict[int, Way] = {}  # by route, for the whole parcel
        unread: list[Ref] = []  # shared memory of what is not admitted
        keys, qos, memos = submit.keys, submit.qos, submit.memos
        looked_up: dict[int, list[Item]] = {}  # of those that go by way of a cache
        has_poison, door = bool(self.quarantine), self.door
        capacity = spec.capacity + len(self.gatherings) + len(self.memo)  # these take nobody's place
        is_crowded = (self.inside + len(payloads)) * 2 >= spec.capacity or self.nbytes * 2 >= spec.capacity_bytes
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
            if keys and seq in keys and self._is_settled(frontend, seq, keys[seq], deadline, now):
                unread.extend(refs_of(payload))
                continue
            memo = memos.get(seq, b"") if memos and is_cached else b""
            if memo and budget_us > 0 and rejection is not DRAINING:
                found = self.memo.answer(Place(route, first_stage, memo), now)
                if found is not None:  # it needs neither room nor time
                    self.stats.admitted += 1
                    self._answers.column(peer).add(seq, OK, found.payload, mime=found.mime, headers=found.headers)
                    unread.extend(refs_of(payload))
                    continue
            due = rank = deadline if deadline < goal_at else goal_at
            judged: Judged | None = None
            if rejection is None:
                if budget_us <= 0 or len(ledger) >= capacity or self.nbytes + size > spec.capacity_bytes:
                    rejection = self._rejection(budget_us, size)
                if has_poison and rejection is None and self._is_poison(route, size, payload, now):
                    rejection = POISON
                if rejection is None and (is_judged or due < surely_at or (is_pressed and not (self._uid + 1) % EVERY)):
                    judged = self._judge(route, size, qos.get(seq, NO_QOS), deadline, now, is_crowded=is_crowded)
                    due, rank, rejection = judged.due, judged.rank, judged.rejection
            if rejection is not None:
                late_s = judged.late_s if judged is not None else 0.0
                own = qos.get(seq, NO_QOS).client if rejection is SHARE or rejection is PRIORITY else None
                self._reject(peer, seq, route, rejection, late_s, now, had_s=due - now, client=own, meta=meta)
                unread.extend(refs_of(payload))
                continue
            uid = self._uid = self._uid + 1
            if keys and seq in keys:
                request = Request(uid, KEYED, uid, route, deadline, due, rank, meta, size)
                self.keys.begin(keys[seq], request, (peer, seq))
            else:
                request = Request(uid, peer, seq, route, deadline, due, rank, meta, size)
            if is_open:
                request.claims = {}
            ledger[uid] = known[seq] = request
            self.nbytes += size
            heappush(self._deadlines, (deadline, uid))
            if memo:
                self.stats.admitted += 1
                self._enter(request, first_stage, payload, b"", memo, looked_up, now)
            else:
                items.append(Item(request, payload, size, now))
                first.handed += 1
            if judged is not None:
                self._note(judged, uid, now)
        for stage, items in admitted.items():
            if items:
                self.stats.admitted += len(items)
                self.actions.append(Admit(stage, items))
        self._admit(looked_up)
        if unread:
            self.actions.append(Release(unread))

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
            or self.inside >= part * spec.capacity
            or self.nbytes + size > part * spec.capacity_bytes
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
        is_cached = self.topology.is_cached(route, number) and self.memo.has(number)
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
        if self.inside >= self.spec.capacity:
            return at_capacity(self.inside)
        if self.nbytes + size > self.spec.capacity_bytes and self.ledger:
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
        retry_s = self.door.retry_s(status, route, late_s, self._left, now, client)
        headers = wording.DO_NOT_RETRY if status is Status.UNPROCESSABLE else None
        needs_s = had_s + late_s if late_s > 0.0 else 0.0
        self.trace.add(
            now,
            reason,
            route=route,
            waiting=self.inside,
            needs_s=needs_s,
            had_s=had_s,
            retry_s=retry_s,
            meta=meta,
        )
        refused = _refused(reason, needs_s, had_s)
        self._answers.say(peer, seq, status, text, speaker, retry_s=retry_s, headers=headers, refused=refused)

    @property
    def _left(self) -> int:
        """Requests that have left so far."""
        return self.stats.admitted - self.inside

    @property
    def inside(self) -> int:
        """Requests that are admitted and not answered; those in parts count once."""
        return len(self.ledger) - len(self.gatherings) - len(self.memo)

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
        self._drop([request for seq, request in left if request.frontend == peer or self._is_left(peer, seq, request)])

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
        if frontend is not None:
            left = frontend.requests.items()
            self._drop(
                [request for seq, request in left if request.frontend == peer or self._is_left(peer, seq, request)]
            )
            self._answers.drop(peer)
            self.again.pop(peer, None)
        return frontend

    def measure(self, now: float) -> None:
        """See how far all has come. To be called about once a second."""
        self.window.mark(now, self.counts())

    def counts(self) -> Counts:
        """Requests so far: let in, answered, refused here, failed."""
        stats = self.stats
        answered = self._left - stats.cancelled
        return stats.admitted, answered, sum(stats.rejected.values()), self.failures.counts.total()

    def silent(self, now: float) -> list[bytes]:
        """Frontends that were not heard for FRONTEND_SILENCE_S. To be called about once a second: nobody could be heard
        while this process was stopped itself."""
        if self._looks.is_late(now):
            for frontend in self.frontends.values():
                frontend.heard = now
        return [peer for peer, frontend in self.frontends.items() if now - frontend.heard > FRONTEND_SILENCE_S]

    def _drop(self, requests: Sequence[Request]) -> None:
        where: defaultdict[int, list[int]] = defaultdict(list)
        for request in requests:
            self.stats.cancelled += 1
            self._close(request)
            for stage in self._stages_of(request):
                where[stage].append(request.uid)
        for stage, uids in where.items():
            self.actions.append(Drop(stage, uids))

    def _stages_of(self, request: Request) -> tuple[int, ...]:
        """Where something of a request that was just closed may be: where it is, and the stages to which it may go from
        there. On another thread one of these may be accepting a result: it found the request open and has not advanced
        its hop yet. Whatever it puts into its queue then, it reads this letter afterwards."""
        return self._places[request.route][request.hop]

    def _stage_of(self, request: Request) -> int:
        return self._places[request.route][request.hop][0]

    def heard_of(self, news: News) -> None:
        """A stage says how it stands. Who has ended may have been of a former edition, and have computed until now:
        what is kept may be its."""
        if news.gone != self._gone.get(news.stage, 0):
            self._gone[news.stage] = news.gone
            self.memo.forget(news.stage)
        self.door.heard_of(news)

    # --- from workers and stages -------------------------------------------------------------------------------------

    def results(self, results: Results, payloads: Sequence[Payload], now: float) -> None:
        """Final results, failures and skips of one batch of a stage there is. Those of items that the worker holds are
        settled, and answered if they are still wanted; all others are duplicates, late, or made up."""
        ledger, (hops, is_early), headers = self.ledger, self._standings[results.stage], results.headers
        held = self.crews[results.stage].held(results.worker, results.batch)
        counts = self.stats.goals if self.door.goals.is_set else None
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
                self._tear(request, now)
                continue
            if column is None or request.frontend != peer:
                peer = request.frontend
                column = self._answers.column(peer)
                frontend = self.frontends.get(peer)
                known = frontend.requests if frontend is not None else {}
            # As _close does.
            request.closed = True
            del ledger[uid]
            self.nbytes -= request.size
            known.pop(request.seq, None)
            if counts is not None and request.due < request.deadline and peer not in NOBODY:
                counts[request.route, now <= request.due] += 1
            if headers and index in headers:
                column.headers[len(column.seqs)] = _modest(headers[index])
            column.seqs.append(request.seq)
            column.statuses.append(status)
            column.mimes.append(results.mime)
            column.trails.append(trail)
            column.payloads.append(payload)
        if self.foretold.waiting:
            self.foretold.came(results.uids, ledger, now)
        settle = Settle(results.stage, results.worker, results.batch, results.uids, now, results.compute_us)
        if is_early and good:
            settle = replace(settle, ended=good)
        if results.costs:
            settle = replace(settle, costs=results.costs)
        if good < len(statuses):
            failed = sum([status >= FAILED for status in statuses])
            settle = replace(settle, good=good > 0, failed=failed, skipped=SKIPPED in statuses)
        self.actions.append(settle)

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
            own = any(name.lower() == "content-type" for name in results.headers.get(index, ()))
            text = OWN_BODY if own or type(payload) is not bytes else payload[:MESSAGE_MOST].decode("utf-8", "replace")
            self.failures.add(now, results.stage, request.route, status, text, request.meta)

    # --- requests in parts -------------------------------------------------------------------------------------------

    def parts(self, message: Parts, payloads: Sequence[Payload], now: float) -> None:
        """Requests that go on in parts, and parts that are done, of one batch of a stage there is. What is not held by
        the worker, not wanted or not understood is dropped, as results are."""
        held = self.crews[message.stage].held(message.worker, message.batch)
        uids, roles = message.uids, message.roles
        coming: dict[int, list[Item]] = {}
        unread: list[Ref] = []
        entries: list[int] = []  # those that are no parts
        after_s, sender = 0.0, JOIN
        end = 0
        while end < len(uids):
            at, end = end, end + 1
            while end < len(uids) and roles[end] == PART and uids[end] == uids[at]:
                end += 1
            entries.append(at)
            item, role, is_taken = held.get(uids[at]), roles[at], False
            if item is not None and role == DONE and end == at + 1 and self._is_by_cache(item, message.targets[at]):
                is_taken = self._send_on(item, message, at, payloads[at], coming, now)
            elif item is not None and role == FRAME:
                is_taken = self._take_apart(item, message, payloads[at:end], at, coming, now)
            elif item is not None and role == DONE and end == at + 1:
                is_taken = self._take_part(item, message, payloads[at], message.trails[at], coming, now)
            if item is not None and is_taken:
                sender, after_s = self._still(item.request.route, message.stage, message.targets[at])
                continue
            self.stats.duplicates += 1
            for payload in payloads[at:end]:
                unread.extend(refs_of(payload))
        self._admit(coming)
        if unread:
            self.actions.append(Release(unread))
        if held:
            costs = {place: message.costs[at] for place, at in enumerate(entries) if at in message.costs}
            settled = [uids[at] for at in entries]
            self.actions.append(
                Settle(
                    message.stage,
                    message.worker,
                    message.batch,
                    settled,
                    now,
                    message.compute_us,
                    sender,
                    after_s,
                    costs=costs,
                )
            )

    def _still(self, route: int, stage: int, target: int) -> tuple[int, float]:
        """Where, by the table, requests are next that this stage took apart, or whose part it did, or that it sent to
        ``target``; and what they need from there on, of what is left of their parts and behind them, at the least."""
        topology, rest_s = self.topology, self.door.goals.rest_s[route]
        if target != JOIN:
            return target, rest_s[target]
        split = topology.split(route, stage)
        if split is not None:
            return split.gather, max([rest_s[head] for head in split.heads]) + rest_s[split.gather]
        return JOIN, rest_s[topology.gather(route, stage)]

    def _is_at(self, request: Request, stage: int, worker: int, now: float) -> bool:
        """Whether a result of this worker counts for a request that it holds: it is there, and it is open."""
        if request.closed or self._standings[stage][0].get(request.route, -1) != request.hop:
            return False
        if request.stream_hop == request.hop and request.streamer != worker:
            self._tear(request, now)
            return False
        return True

    def _take_apart(
        self,
        item: Item,
        message: Parts,
        payloads: Sequence[Payload],
        at: int,
        coming: dict[int, list[Item]],
        now: float,
    ) -> bool:
        """A request goes on in parts: ``payloads`` are its frame and these, from position ``at`` of the message on.
        Whether anything of them is kept."""
        whole, trail = item.request, message.trails[at]
        route, hop = whole.route, whole.hop
        split = self.topology.split(route, message.stage)
        frame, *parts = payloads
        if split is None or len(parts) > split.most or (split.names and len(parts) != len(split.names)):
            return False
        if not self._is_at(whole, message.stage, message.worker, now):
            return False
        heads = split.heads if split.names else split.heads * len(parts)
        first = self.topology.hop(route, split.heads[0])
        if whole.claims is None or whole.claims.setdefault(hop, first) != first:  # it was sent past them, elsewhere
            return False
        # A stage may have one gathering whatever its size, as it may have one item.
        nbytes, most = self.gatherings.nbytes.get(split.gather, 0), self.spec.gathering.get(split.gather, inf)
        if nbytes and nbytes + sum(map(payload_size, payloads)) > most:
            self._refuse_parts(whole, split.gather, nbytes, now)
            return False
        whole.hop = first
        made = [self._made(PARTS, whole, head) for head in heads]
        self.stats.split += 1
        self.stats.parts += len(made)
        self.door.spread(route, message.stage, len(made))
        gathering = self.gatherings.begin(whole, split, frame, trail, made)
        if gathering is not None:
            self._gather(gathering, coming, now)
        for place, (part, head, payload) in enumerate(zip(made, heads, parts, strict=True), at + 1):
            if not part.closed:  # as all are, if an earlier one has failed by what is known
                self._enter(part, head, payload, trail, message.keys[place], coming, now)
        return True

    def _made(self, owner: bytes, of: Request, stage: int) -> Request:
        """A request of our own, at this stage, that has what another one has."""
        self._uid = uid = self._uid + 1
        made = Request(uid, owner, uid, of.route, of.deadline, of.due, of.rank, of.meta, 0)
        made.hop, made.claims = self.topology.hop(of.route, stage), {}
        self.ledger[uid] = made
        return made

    def _refuse_parts(self, whole: Request, gather: int, nbytes: int, now: float) -> None:
        """The stage that would gather them holds all it may."""
        text = wording.full_in_bytes(self.topology.stages[gather], nbytes)
        retry_s = self.door.retry_s(Status.OVERLOADED, whole.route, 0.0, self._left, now)
        self.trace.add(now, FULL, stage=gather, route=whole.route, retry_s=retry_s, meta=whole.meta)
        self._close(whole)
        self._answers.say(
            whole.frontend,
            whole.seq,
            Status.OVERLOADED,
            text,
            Speaker.STAGE,
            retry_s=retry_s,
            refused=Refused(FULL),
        )

    def _take_part(
        self, item: Item, message: Parts, payload: Payload, trail: bytes, coming: dict[int, list[Item]], now: float
    ) -> bool:
        """A part is done. Whether what came of it is kept."""
        part = item.request
        if part.frontend != PARTS or not self._is_at(part, message.stage, message.worker, now):
            return False
        return self._fill(part, payload, trail, coming, now)

    def _fill(self, part: Request, payload: Payload, trail: bytes, coming: dict[int, list[Item]], now: float) -> bool:
        """This came of a part. Whether it is kept: where what waits with others' fills the room of the stage that
        gathers, its whole is refused."""
        gathering = self.gatherings.whose(part.uid)
        if gathering is None:
            return False
        gather = gathering.split.gather
        nbytes = self.gatherings.nbytes.get(gather, 0)
        if nbytes > gathering.nbytes and nbytes + payload_size(payload) > self.spec.gathering.get(gather, inf):
            self._refuse_parts(gathering.whole, gather, nbytes, now)
            return False
        part.closed = True
        del self.ledger[part.uid]
        whole = self.gatherings.done(part.uid, payload, trail)
        if whole is not None:
            self._gather(whole, coming, now)
        return True

    def _gather(self, gathering: Gathering, coming: dict[int, list[Item]], now: float) -> None:
        """All of a request is there: it goes on as one."""
        whole, gather = gathering.whole, gathering.split.gather
        whole.hop = self.topology.hop(whole.route, gather)
        payload = gathering.payload()
        trail = gathering.trail_to(whole.hop)
        key = b""
        is_cached = self.topology.is_cached(whole.route, gather) and not self.topology.cached[gather]
        if is_cached and type(payload) is bytes:  # whose fields are not for the broker to read
            key = blake2b(payload, digest_size=MEMO_KEY_SIZE, person=b"gathered").digest()
        self._enter(whole, gather, payload, trail, key, coming, now)

    def _admit(self, coming: Mapping[int, list[Item]]) -> None:
        """Items for stages that get them from here."""
        for stage, items in coming.items():
            self.stages[stage].handed += len(items)
            self.actions.append(Admit(stage, items))

    def _call_off(self, whole: Request) -> None:
        """A request has ended whose parts are under way."""
        where: defaultdict[int, list[int]] = defaultdict(list)
        parts, refs = self.gatherings.end(whole)
        for part in parts:
            if part.uid in self.ledger:  # else its answer is about to be heard
                self._close(part)
                for stage in self._stages_of(part):
                    where[stage].append(part.uid)
        self.actions.extend(Drop(stage, uids) for stage, uids in where.items())
        if refs:
            self.actions.append(Release(refs))

    def _hear_parts(self, column: Column, now: float) -> None:
        """Parts that came to an end otherwise than by being done."""
        coming: dict[int, list[Item]] = {}
        for index, uid in enumerate(column.seqs):
            gathering = self.gatherings.whose(uid)
            if gathering is None:
                continue  # the whole has ended
            if gathering.split.holes and _is_own(column, index):
                self.stats.holes += 1
                if (whole_one := self.gatherings.failed(uid)) is not None:
                    self._gather(whole_one, coming, now)
                continue
            self._answer_as(gathering.whole, self._stage_of(gathering.under_way[uid]), column, index, now)
        self._admit(coming)

    def _answer_as(self, request: Request, stage: int, column: Column, index: int, now: float) -> None:
        """The answer to something of a request is its own: ``stage`` says that it has failed."""
        refused, status, payload = column.refusals.get(index), column.statuses[index], column.payloads[index]
        if status < FAILURE:  # no worker of ours says that it is the answer
            status, payload = FAILED, wording.ASTRAY.encode()
        if refused is not None and refused.reason in MISSED:
            self.foretold.missed(request.uid)
        if request.frontend not in NOBODY:
            if refused is not None:
                self.trace.add(now, refused.reason, stage=stage, route=request.route, meta=request.meta)
            if status != Status.OVERLOADED:
                is_text = type(payload) is bytes and "content-type" not in column.headers.get(index, ())
                text = payload[:MESSAGE_MOST].decode("utf-8", "replace") if is_text else OWN_BODY  # type: ignore[index,union-attr]
                self.failures.add(now, stage, request.route, status, text, request.meta)
        self._close(request)
        self._answers.column(request.frontend).add(
            request.seq,
            status,
            payload,
            mime=column.mimes[index],
            trail=column.trails[index],
            speaker=column.speakers.get(index, int(Speaker.WORKER)),
            retry_ms=column.retries_ms.get(index, 0),
            headers=column.headers.get(index),
            refused=refused,
        )

    # --- by way of a cache -------------------------------------------------------------------------------------------

    def _is_by_cache(self, item: Item, target: int) -> bool:
        """Whether a result is a stage's that has a cache, or is for one."""
        return item.request.frontend == SHARED or target != JOIN

    def _enter(
        self,
        request: Request,
        stage: int,
        payload: Payload,
        trail: bytes,
        key: bytes,
        coming: dict[int, list[Item]],
        now: float,
    ) -> None:
        """A request comes to a stage from here: it gets what is known there, waits for what is being computed, or is
        computed itself."""
        route = request.route
        request.hop = hop = self.topology.hop(route, stage)
        trail = trail.ljust(hop * STEP_BYTES, b"\0")
        if not key or not self.memo.has(stage):
            coming.setdefault(stage, []).append(Item(request, payload, payload_size(payload), now, 1, trail, hop))
            return
        place = Place(route, stage, key)
        if (found := self.memo.get(place, now)) is not None:
            if refs := refs_of(payload):
                self.actions.append(Release([*refs]))
            self._go(request, found, trail, coming, now)
        elif not self.memo.join(place, Asker(request, payload, trail)):
            made = self._made(SHARED, request, stage)
            self.memo.begin(place, made.uid, Asker(request, None, trail))
            coming.setdefault(stage, []).append(Item(made, payload, payload_size(payload), now, 1, trail, hop))

    def _go(self, request: Request, found: Found, trail: bytes, coming: dict[int, list[Item]], now: float) -> None:
        """A result is there for a request: on its way."""
        if found.target == FINAL:
            counts = self.stats.goals if self.door.goals.is_set else None
            if counts is not None and request.due < request.deadline:
                counts[request.route, now <= request.due] += 1
            self._close(request)
            column = self._answers.column(request.frontend)
            column.add(request.seq, OK, found.payload, mime=found.mime, trail=trail, headers=found.headers)
        elif found.target == JOIN:
            self._fill(request, found.payload, trail, coming, now)
        else:
            if request.claims is not None:
                request.claims[request.hop] = self.topology.hop(request.route, found.target)
            self._enter(request, found.target, found.payload, trail, found.key, coming, now)

    def _send_on(
        self, item: Item, message: Parts, at: int, payload: Payload, coming: dict[int, list[Item]], now: float
    ) -> bool:
        """A result of a stage that has a cache, or for one. Whether anything of it is kept."""
        request, target = item.request, message.targets[at]
        route, stage = request.route, message.stage
        if target == FINAL:
            is_way = self.topology.is_cached(route, stage)
        elif target == JOIN:
            is_way = self.topology.region(route, stage) is not None
        else:
            is_way = target in self.topology.later(route, stage)
        if not is_way or not self._is_at(request, stage, message.worker, now):
            return False
        # Answers have no references, and of several who have one each would release it.
        if (request.frontend == SHARED or target == FINAL) and (refs := refs_of(payload)):
            payload = self._read(payload)
            self.actions.append(Release([*refs]))
        found = Found(target, payload, message.mime, _modest(message.headers.get(at, {})), message.keys[at])
        if request.frontend != SHARED:
            hop = len(self.topology.routes[route].stages) if target == FINAL else self.topology.hop(route, target)
            if request.claims is None or request.claims.setdefault(request.hop, hop) != hop:
                return False
            self._go(request, found, message.trails[at], coming, now)
            return True
        request.closed = True
        del self.ledger[request.uid]
        flight, unread = self.memo.end(request.uid)
        self.memo.keep(flight, found, now)
        step = message.trails[at][request.hop * STEP_BYTES :]
        for waiter in flight.waiters.values():
            self._go(waiter.request, found, waiter.trail + step, coming, now)
        if unread:
            self.actions.append(Release(unread))
        return True

    def _leave(self, request: Request) -> None:
        """A request has ended that waited for what others may be waiting for."""
        uid, unread = self.memo.leave(request)
        made = self.ledger.get(uid) if uid is not None else None
        if made is not None:
            self._close(made)
            self.actions.extend(Drop(stage, [made.uid]) for stage in self._stages_of(made))
        if unread:
            self.actions.append(Release(unread))

    def _hear_shared(self, column: Column, now: float) -> None:
        """Computations that several may wait for have failed. What a worker says of one it says to all. For want of
        time or room only the first one's has failed: the next one may have more of it."""
        coming: dict[int, list[Item]] = {}
        for index, uid in enumerate(column.seqs):
            if self.memo.flight(uid) is None:
                continue  # nobody waits any more
            flight, unread = self.memo.end(uid)
            is_own = _is_own(column, index)
            for waiter in flight.waiters.values():
                if is_own or waiter.payload is None:
                    self._answer_as(waiter.request, flight.place.stage, column, index, now)
                    continue
                for ref in refs_of(waiter.payload):
                    unread.remove(ref)
                place = flight.place
                self._enter(waiter.request, place.stage, waiter.payload, waiter.trail, place.key, coming, now)
            if unread:
                self.actions.append(Release(unread))
        self._admit(coming)

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
        crew = self.crews[events.stage]
        for uid, payload in zip(events.uids, payloads, strict=True):
            request = self.ledger.get(uid)
            if request is None or not crew.streams(events.worker, events.batch, uid):
                continue
            if self._is_unwanted(request, events):
                self.actions.append(Grant(events.stage, events.worker, uid, payload_size(payload) + EVENT_COST))
                continue
            if not self._is_streamed_by(request, events, now):
                continue
            peer, seq = request.frontend, request.seq
            if peer == KEYED:
                reader = self._reader(request)
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
                self._tear(request, now)
            return False
        request.stream_hop, request.streamer = hop, events.worker
        return True

    def _tear(self, request: Request, now: float) -> None:
        self.failures.add(now, self._stage_of(request), request.route, FAILED, wording.TORN, request.meta)
        self._close(request)
        self._answers.say(request.frontend, request.seq, Status.FAILED, wording.TORN)
        self.actions.extend(Drop(stage, [request.uid]) for stage in self._stages_of(request))

    def consumed(self, peer: bytes, nbytes: Mapping[int, int]) -> None:
        """Clients have taken events: whoever sends them may go on."""
        frontend = self.frontends.get(peer)
        if frontend is None:
            return
        for seq, count in nbytes.items():
            request = frontend.requests.get(seq)
            if request is not None and request.stream_hop >= 0:
                stage = self.topology.routes[request.route].stages[request.stream_hop]
                self.actions.append(Grant(stage, request.streamer, request.uid, count))

    def fail(self, fail: Fail, now: float) -> None:
        """A stage gives requests up; one of which another copy has gone further is left alone."""
        status, speaker = fail.status, Speaker.FORECAST if fail.hopeless else Speaker.STAGE
        for uid in fail.uids:
            request = self.ledger.get(uid)
            if request is not None and self._stage_of(request) == fail.stage:
                if fail.why in MISSED:
                    self.foretold.missed(uid)
                self._close(request)
                is_ours = request.frontend in NOBODY  # it is told of whose part it is
                if status != Status.OVERLOADED and not is_ours:  # else it is refused
                    self.failures.add(now, fail.stage, request.route, status, fail.text, request.meta)
                peer, seq = request.frontend, request.seq
                retry_s = self.door.retry_s(status, request.route, 0.0, self._left, now)
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
                self._answers.say(
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
            deadlines[:] = [entry for entry in deadlines if entry[1] in self.ledger]
            heapify(deadlines)
        late: dict[int, list[int]] = {}
        while deadlines and deadlines[0][0] <= now:
            _, uid = heappop(deadlines)
            request = self.ledger.get(uid)
            if request is not None:
                self.foretold.missed(uid)
                self._close(request)
                self.stats.expired += 1
                where = self._stage_of(request)
                self.failures.add(now, where, request.route, Status.TIMEOUT, wording.TIMEOUT, request.meta)
                self.trace.add(now, EXPIRED, stage=where, route=request.route, meta=request.meta)
                self._answers.say(request.frontend, request.seq, Status.TIMEOUT, wording.TIMEOUT, refused=OVER)
                for stage in self._stages_of(request):
                    late.setdefault(stage, []).append(uid)
        for stage, uids in late.items():
            self.actions.append(Drop(stage, uids))
        keys = self.keys
        if now >= keys.due_at:
            for waiter in keys.expire(now):
                self._tell(waiter, NO_TIME)
        return min(deadlines[0][0], keys.due_at) if deadlines else keys.due_at

    # --- requests with a key -----------------------------------------------------------------------------------------

    def _is_settled(self, frontend: Frontend, seq: int, key: bytes, deadline: float, now: float) -> bool:
        """Whether a request is answered from memory, joins another try of its own, or is refused for what came with its
        key before; else it is to be judged like any other, and computed."""
        if KEYED in self._answers.columns:
            self._share_answers(now)
        found = self.keys.find(key, now)
        if found is None:
            return False
        peer = frontend.peer
        rejection: Rejection | None = None
        if not is_same(found, key):
            rejection = KEY_REUSED
        elif isinstance(found, Kept):
            self._replay(peer, seq, found)
        elif self._is_stream(found.request):
            rejection = KEY_IN_USE
        elif deadline <= now:
            rejection = NO_TIME
        elif (count := self.inside + self.keys.waiting) >= self.spec.capacity:
            rejection = at_capacity(count)
        else:
            self.stats.joined += 1
            self.keys.join(found, (peer, seq), deadline)
            frontend.requests[seq] = found.request
        if rejection is not None:
            self._reject(peer, seq, -1, rejection, 0.0, now)
        return True

    def _is_stream(self, request: Request) -> bool:
        """Whether the answer comes in pieces, which only one reader can be given."""
        return request.stream_hop >= 0 or any(
            self.stages[last].state.flow in (Flow.EVENTS, Flow.CHUNKS) for last in self._ends[request.route]
        )

    def _is_left(self, peer: bytes, seq: int, request: Request) -> bool:
        """One who waits for the answer to a key has gone. Whether nobody can have any more of it."""
        flight = self.keys.flight(request.uid)
        self.keys.leave(flight, (peer, seq))
        self._forget(peer, seq)
        if flight.waiters or request.closed or not self._is_stream(request):
            return False
        self.keys.end(request.uid)
        return True

    def _reader(self, request: Request) -> Waiter | None:
        """Who reads the events of a request with a key: the first who asked. Others had joined before it was known that
        it is a stream."""
        flight = self.keys.flight(request.uid)
        if not flight.waiters:
            self.keys.end(request.uid)
            self._drop([request])
            return None
        reader, *others = flight.waiters
        for waiter in others:
            self.keys.leave(flight, waiter)
            self._tell(waiter, KEY_IN_USE)
        return reader

    def _share_answers(self, now: float) -> None:
        """Give the answers to requests with a key to all who wait for them, and keep those that are to be kept."""
        column = self._answers.columns.pop(KEYED)
        for index, (uid, status, mime, trail, payload) in enumerate(
            zip(column.seqs, column.statuses, column.mimes, column.trails, column.payloads, strict=True)
        ):
            flight = self.keys.end(uid)
            speaker = column.speakers.get(index, int(Speaker.WORKER))
            headers = column.headers.get(index, {})
            body = bytes(joined(payload))
            if speaker == Speaker.WORKER and not self._is_stream(flight.request):
                self.keys.keep(flight, status, mime, headers, body, now, self.spec.idempotency_bytes)
            # Not where a stage or a worker says so: it hangs, and would do so again.
            was_late = speaker == Speaker.FORECAST or (status == Status.TIMEOUT and speaker == Speaker.DOOR)
            until = flight.request.due if speaker == Speaker.FORECAST else flight.request.deadline
            for (peer, seq), deadline in flight.waiters.items():
                self._forget(peer, seq)
                if was_late and deadline > until and (peer, seq) != flight.first:  # this one may have more time
                    self.again.setdefault(peer, []).append(seq)
                    continue
                is_other = (peer, seq) != flight.first and speaker == Speaker.WORKER
                self._answers.column(peer).add(
                    seq,
                    status,
                    body,
                    mime=mime,
                    trail=trail,
                    speaker=speaker,
                    retry_ms=column.retries_ms.get(index, 0),
                    refused=column.refusals.get(index),
                    headers={**headers, **REPLAYED} if is_other else headers,
                )

    def _replay(self, peer: bytes, seq: int, kept: Kept) -> None:
        """The answer that is kept."""
        self.stats.replayed += 1
        headers = {**kept.headers, **REPLAYED}
        self._answers.column(peer).add(seq, kept.status, kept.body, mime=kept.mime, headers=headers)

    def _tell(self, waiter: Waiter, rejection: Rejection) -> None:
        """One who waited gets an answer of its own."""
        reason, status, text, speaker = rejection
        self._forget(*waiter)
        self._answers.say(*waiter, status, text, speaker, refused=Refused(reason))

    def _forget(self, peer: bytes, seq: int) -> None:
        frontend = self.frontends.get(peer)
        if frontend is not None:
            frontend.requests.pop(seq, None)

    # --- answers -----------------------------------------------------------------------------------------------------

    def take_answers(self, now: float) -> list[tuple[bytes, Answers, list[Payload]]]:
        """All answers since the last call, one parcel per frontend; several where one would have too large a header.
        What became of parts is heard here, of which further actions may come."""
        columns = self._answers.columns
        while PARTS in columns or SHARED in columns:
            if PARTS in columns:
                self._hear_parts(columns.pop(PARTS), now)
            if SHARED in columns:
                self._hear_shared(columns.pop(SHARED), now)
        if KEYED in self._answers.columns:
            self._share_answers(now)
        return self._answers.take() if self._answers.columns else []

    def take_again(self) -> list[tuple[bytes, Again]]:
        """Since the last call, by frontend: what it is to submit again, for the answer to another try did not come."""
        again, self.again = self.again, {}
        return [
            (peer, Again(seqs[start : start + HEAD_ITEMS]))
            for peer, seqs in again.items()
            for start in range(0, len(seqs), HEAD_ITEMS)
        ]

    @property
    def headroom(self) -> int:
        return max(0, self.spec.capacity - self.inside)

    def _close(self, request: Request) -> None:
        request.closed = True
        if self.foretold.waiting:
            self.foretold.waiting.pop(request.uid, None)
        del self.ledger[request.uid]
        self.nbytes -= request.size
        frontend = self.frontends.get(request.frontend)
        if frontend is not None:
            frontend.requests.pop(request.seq, None)
        if request.uid in self.gatherings.wholes:
            self._call_off(request)
        elif self.memo.waits(request):
            self._leave(request)


def _refused(reason: str, needs_s: float, had_s: float) -> Refused:
    """What a client is told of its refusal. ``needs_s`` 0: it was not for want of time."""
    return Refused(reason, ceil(needs_s * 1000), int(had_s * 1000)) if needs_s else Refused(reason)


def _is_own(column: Column, index: int) -> bool:
    """Whether an answer is about what was asked, as far as is known; else about time or room."""
    speaker, refused = column.speakers.get(index, int(Speaker.WORKER)), column.refusals.get(index)
    reason = refused.reason if refused is not None else ""
    return speaker == Speaker.WORKER or (speaker == Speaker.STAGE and reason in UNDECIDED)


def _modest(headers: dict[str, str]) -> dict[str, str]:
    """The headers that a worker sends with an answer, if they are not more than it may send; else none."""
    size = sum([len(name) + len(value) for name, value in headers.items()])
    return headers if size <= OWN_HEADERS_MOST else {}
