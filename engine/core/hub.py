"""The hub: requests that come back midway, to go on in parts, or by way of a stage's cache. Pure.

Most results go from worker to stage without coming here. Those do that concern more than one request: a request that is
taken apart, or put together of its parts (:mod:`engine.core.parts`), and one for a stage that has a cache
(:mod:`engine.core.memo`). A part, and a computation that several may wait for, is a request of nobody in the ledger
(:mod:`engine.core.ledger`), and what becomes of it is an answer for PARTS or SHARED, which is heard here
(:meth:`Hub.hear`) instead of being sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Final

from engine.core import wording
from engine.core.actions import Admit, Hasten, Release, Settle
from engine.core.answers import Column
from engine.core.arena import Ref
from engine.core.batching import TOLERANCE_S
from engine.core.ends import EXPIRED, FULL, HOPELESS, STUCK
from engine.core.items import Item, Request
from engine.core.ledger import FAILED, FAILURE, NOBODY, Ledger, modest, said
from engine.core.memo import SHARED, Asker, Found, Place
from engine.core.messages import Parts, Refused, Role, Speaker, Status
from engine.core.parts import PARTS, Gathering
from engine.core.routing import FINAL, JOIN
from engine.core.wire import STEP_BYTES, Payload, payload_size, refs_of

OK: Final = int(Status.OK)
DONE: Final = int(Role.DONE)
FRAME: Final = int(Role.FRAME)
PART: Final = int(Role.PART)

MISSED: Final = (HOPELESS, EXPIRED)  # why requests are refused that were to be in time
UNDECIDED: Final = frozenset({"", STUCK})  # why a part fails, where it is the part's own fault, as far as known


class Hub:
    """See the module. ``gathering``: bytes that may wait to be gathered, by stage, before no more requests begin to go
    on in parts. ``read`` gives a payload without references to shared memory."""

    def __init__(self, ledger: Ledger, gathering: Mapping[int, int], read: Callable[[Payload], Payload]) -> None:
        self.gathering = gathering
        self._ledger = ledger
        self._read = read
        self._topology, self._door = ledger.topology, ledger.door
        self._gatherings, self._memo = ledger.gatherings, ledger.memo
        self._coming: defaultdict[int, list[Item]] = defaultdict(list)  # to stages, until :meth:`admit`
        self._hastened: defaultdict[int, dict[int, float]] = defaultdict(dict)  # likewise: ranks by uid

    # --- requests in parts -------------------------------------------------------------------------------------------

    def parts(self, message: Parts, payloads: Sequence[Payload], now: float) -> None:
        """Requests that go on in parts, and parts that are done, of one batch of a stage there is. What is not held by
        the worker or not wanted is dropped, as results are; what makes no sense fails its request."""
        held = self._ledger.crews[message.stage].held(message.worker, message.batch)
        uids, roles = message.uids, message.roles
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
                is_taken = self._send_on(item, message, at, payloads[at], now)
            elif item is not None and role == FRAME:
                is_taken = self._take_apart(item, message, payloads[at:end], at, now)
            elif item is not None and role == DONE and end == at + 1:
                is_taken = self._take_part(item, message, payloads[at], at, now)
            elif item is not None:
                self._give_up(item.request, message, now)
            if item is not None and is_taken:
                sender, after_s = self._still(item.request.route, message.stage, message.targets[at])
                continue
            self._ledger.stats.duplicates += 1
            for payload in payloads[at:end]:
                unread.extend(refs_of(payload))
        self.admit()
        if unread:
            self._ledger.actions.append(Release(unread))
        if held:
            costs = {place: message.costs[at] for place, at in enumerate(entries) if at in message.costs}
            settled = [uids[at] for at in entries]
            self._ledger.actions.append(
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
        topology, rest_s = self._topology, self._door.goals.rest_s[route]
        if target != JOIN:
            return target, rest_s[target]
        split = topology.split(route, stage)
        if split is not None:
            return split.gather, max([rest_s[head] for head in split.heads]) + rest_s[split.gather]
        return JOIN, rest_s[topology.gather(route, stage)]

    def _take_apart(
        self,
        item: Item,
        message: Parts,
        payloads: Sequence[Payload],
        at: int,
        now: float,
    ) -> bool:
        """A request goes on in parts: ``payloads`` are its frame and these, from position ``at`` of the message on.
        Whether anything of them is kept."""
        whole, trail = item.request, message.trails[at]
        route, hop = whole.route, whole.hop
        split = self._topology.split(route, message.stage)
        frame, *parts = payloads
        if split is None or len(parts) > split.most or (split.names and len(parts) != len(split.names)):
            return self._give_up(whole, message, now)
        if not self._ledger.is_at(whole, message.stage, message.worker, now):
            return False
        heads = split.heads if split.names else split.heads * len(parts)
        first = self._topology.hop(route, split.heads[0])
        if whole.claims is None or whole.claims.setdefault(hop, first) != first:  # it was sent past them, elsewhere
            return False
        # A stage may have one gathering whatever its size, as it may have one item.
        nbytes, most = self._gatherings.nbytes.get(split.gather, 0), self.gathering.get(split.gather, inf)
        if nbytes and nbytes + sum(map(payload_size, payloads)) > most:
            self._refuse_parts(whole, split.gather, nbytes, now)
            return False
        whole.hop = first
        made = [self._ledger.made(PARTS, whole, head) for head in heads]
        self._ledger.stats.split += 1
        self._ledger.stats.parts += len(made)
        self._door.spread(route, message.stage, len(made))
        gathering = self._gatherings.begin(whole, split, frame, trail, made, message.keys[at])
        if gathering is not None:
            self._gather(gathering, now)
        for place, (part, head, payload) in enumerate(zip(made, heads, parts, strict=True), at + 1):
            if not part.closed:  # as all are, if an earlier one has failed by what is known
                self.enter(part, head, payload, trail, message.keys[place], now)
        return True

    def _give_up(self, request: Request, message: Parts, now: float) -> bool:
        """What a worker says of a request that it holds makes no sense: it is answered so, where nobody else has taken
        it further. False: nothing of that is kept."""
        if self._ledger.is_at(request, message.stage, message.worker, now):
            self._ledger.give_up(request, wording.ASTRAY, now)
        return False

    def _refuse_parts(self, whole: Request, gather: int, nbytes: int, now: float) -> None:
        """The stage that would gather them holds all it may."""
        text = wording.full_in_bytes(self._topology.stages[gather], nbytes)
        retry_s = self._door.retry_s(Status.OVERLOADED, whole.route, 0.0, self._ledger.left, now)
        self._ledger.trace.add(now, FULL, stage=gather, route=whole.route, retry_s=retry_s, meta=whole.meta)
        self._ledger.count_goal(whole, now, is_result=False)
        self._ledger.close(whole)
        self._ledger.answers.say(
            whole.frontend,
            whole.seq,
            Status.OVERLOADED,
            text,
            Speaker.STAGE,
            retry_s=retry_s,
            refused=Refused(FULL),
        )

    def _take_part(self, item: Item, message: Parts, payload: Payload, at: int, now: float) -> bool:
        """A part is done. Whether what came of it is kept."""
        part = item.request
        if part.frontend != PARTS:
            return self._give_up(part, message, now)
        if not self._ledger.is_at(part, message.stage, message.worker, now):
            return False
        return self._fill(part, payload, message.trails[at], message.keys[at], now)

    def _fill(self, part: Request, payload: Payload, trail: bytes, key: bytes, now: float) -> bool:
        """This came of a part; ``key``: what is said of it for the cache of the stage that gathers. Whether it is kept:
        where what waits with others' fills the room of that stage, its whole is refused."""
        gathering = self._gatherings.whose(part.uid)
        if gathering is None:
            return False
        gather = gathering.split.gather
        nbytes = self._gatherings.nbytes.get(gather, 0)
        if nbytes > gathering.nbytes and nbytes + payload_size(payload) > self.gathering.get(gather, inf):
            self._refuse_parts(gathering.whole, gather, nbytes, now)
            return False
        part.closed = True
        del self._ledger.requests[part.uid]
        whole = self._gatherings.done(part.uid, payload, trail, key)
        if whole is not None:
            self._gather(whole, now)
        return True

    def _gather(self, gathering: Gathering, now: float) -> None:
        """All of a request is there: it goes on as one."""
        whole, gather = gathering.whole, gathering.split.gather
        whole.hop = self._topology.hop(whole.route, gather)
        payload = gathering.payload()
        trail = gathering.trail_to(whole.hop)
        key = b""
        if self._topology.is_cached(whole.route, gather):
            key = gathering.memo_key(self._topology.cached[gather])
        self.enter(whole, gather, payload, trail, key, now)

    def admit(self) -> None:
        """Let in at their stages what has come to them from here."""
        coming, self._coming = self._coming, defaultdict(list)
        for stage, items in coming.items():
            self._door.stages[stage].handed += len(items)
            self._ledger.actions.append(Admit(stage, items))
        if self._hastened:
            self._ledger.actions.extend(Hasten(stage, ranks) for stage, ranks in self._hastened.items())
            self._hastened = defaultdict(dict)

    def hear(self, now: float) -> None:
        """What became of requests of nobody. Further answers and actions may come of it."""
        columns = self._ledger.answers.columns
        while PARTS in columns or SHARED in columns:
            if PARTS in columns:
                self._hear_parts(columns.pop(PARTS), now)
            if SHARED in columns:
                self._hear_shared(columns.pop(SHARED), now)
            self.admit()

    def _hear_parts(self, column: Column, now: float) -> None:
        """Parts that came to an end otherwise than by being done."""
        for index, uid in enumerate(column.seqs):
            gathering = self._gatherings.whose(uid)
            if gathering is None:
                continue  # the whole has ended
            if gathering.split.holes and _is_own(column, index):
                self._ledger.stats.holes += 1
                if (whole_one := self._gatherings.failed(uid)) is not None:
                    self._gather(whole_one, now)
                continue
            self._answer_as(gathering.whole, self._ledger.stage_of(gathering.under_way[uid]), column, index, now)

    def _answer_as(self, request: Request, stage: int, column: Column, index: int, now: float) -> None:
        """The answer to something of a request is its own: ``stage`` says that it has failed."""
        refused, status, payload = column.refusals.get(index), column.statuses[index], column.payloads[index]
        speaker = column.speakers.get(index, int(Speaker.WORKER))
        if status < FAILURE:  # no worker of ours says that it is the answer
            status, payload = FAILED, wording.ASTRAY.encode()
        if refused is not None and refused.reason in MISSED:
            self._ledger.foretold.missed(request.uid)
        if request.frontend not in NOBODY:
            if refused is not None:
                self._ledger.trace.add(now, refused.reason, stage=stage, route=request.route, meta=request.meta)
            if status != Status.OVERLOADED:
                text = said(payload, column.headers.get(index, ()))
                self._ledger.failures.add(now, stage, request.route, status, text, request.meta)
        self._ledger.count_goal(request, now, is_result=speaker == Speaker.WORKER)
        self._ledger.close(request)
        self._ledger.answers.column(request.frontend).add(
            request.seq,
            status,
            payload,
            mime=column.mimes[index],
            trail=column.trails[index],
            speaker=speaker,
            retry_ms=column.retries_ms.get(index, 0),
            headers=column.headers.get(index),
            refused=refused,
        )

    # --- by way of a cache -------------------------------------------------------------------------------------------

    def _is_by_cache(self, item: Item, target: int) -> bool:
        """Whether a result is a stage's that has a cache, or is for one."""
        return item.request.frontend == SHARED or target != JOIN

    def enter(
        self,
        request: Request,
        stage: int,
        payload: Payload,
        trail: bytes,
        key: bytes,
        now: float,
    ) -> None:
        """A request comes to a stage from here: it gets what is known there, waits for what is being computed, or is
        computed itself."""
        route = request.route
        request.hop = hop = self._topology.hop(route, stage)
        trail = trail.ljust(hop * STEP_BYTES, b"\0")
        if not key or not self._memo.has(stage):
            self._coming[stage].append(Item(request, payload, payload_size(payload), now, 1, trail, hop))
            return
        place = Place(route, stage, key)
        if (found := self._memo.get(place, now)) is not None:
            if refs := refs_of(payload):
                self._ledger.actions.append(Release([*refs]))
            self._go(request, found, trail, now)
        elif (flight := self._memo.join(place, Asker(request, payload, trail))) is not None:
            if request.rank < flight.rank - TOLERANCE_S:
                flight.rank = self._hastened[stage][flight.uid] = request.rank
        else:
            made = self._ledger.made(SHARED, request, stage)
            self._memo.begin(place, made.uid, Asker(request, None, trail))
            self._coming[stage].append(Item(made, payload, payload_size(payload), now, 1, trail, hop))

    def _go(self, request: Request, found: Found, trail: bytes, now: float) -> None:
        """A result is there for a request: on its way."""
        if found.target == FINAL:
            self._ledger.count_goal(request, now)
            self._ledger.close(request)
            column = self._ledger.answers.column(request.frontend)
            column.add(request.seq, OK, found.payload, mime=found.mime, trail=trail, headers=found.headers)
        elif found.target == JOIN:
            self._fill(request, found.payload, trail, found.key, now)
        else:
            if request.claims is not None:
                request.claims[request.hop] = self._topology.hop(request.route, found.target)
            self.enter(request, found.target, found.payload, trail, found.key, now)

    def _send_on(self, item: Item, message: Parts, at: int, payload: Payload, now: float) -> bool:
        """A result of a stage that has a cache, or for one. Whether anything of it is kept."""
        request, target = item.request, message.targets[at]
        route, stage = request.route, message.stage
        if target == FINAL:
            is_way = self._topology.is_cached(route, stage)
        elif target == JOIN:
            is_way = self._topology.region(route, stage) is not None
        else:
            is_way = target in self._topology.later(route, stage)
        if not is_way:
            return self._give_up(request, message, now)
        if not self._ledger.is_at(request, stage, message.worker, now):
            return False
        # Answers have no references, and of several who have one each would release it.
        if (request.frontend == SHARED or target == FINAL) and (refs := refs_of(payload)):
            payload = self._read(payload)
            self._ledger.actions.append(Release([*refs]))
        found = Found(target, payload, message.mime, modest(message.headers.get(at, {})), message.keys[at])
        if request.frontend != SHARED:
            hop = len(self._topology.routes[route].stages) if target == FINAL else self._topology.hop(route, target)
            if request.claims is None or request.claims.setdefault(request.hop, hop) != hop:
                return False
            self._go(request, found, message.trails[at], now)
            return True
        request.closed = True
        del self._ledger.requests[request.uid]
        flight, unread = self._memo.end(request.uid)
        self._memo.keep(flight, found, now)
        step = message.trails[at][request.hop * STEP_BYTES :]
        for waiter in flight.waiters.values():
            self._go(waiter.request, found, waiter.trail + step, now)
        if unread:
            self._ledger.actions.append(Release(unread))
        return True

    def _hear_shared(self, column: Column, now: float) -> None:
        """Computations that several may wait for have failed. What a worker says of one it says to all. For want of
        time or room only the first one's has failed: the next one may have more of it."""
        for index, uid in enumerate(column.seqs):
            if self._memo.flight(uid) is None:
                continue  # nobody waits any more
            flight, unread = self._memo.end(uid)
            is_own = _is_own(column, index)
            for waiter in flight.waiters.values():
                if is_own or waiter.payload is None:
                    self._answer_as(waiter.request, flight.place.stage, column, index, now)
                    continue
                for ref in refs_of(waiter.payload):
                    unread.remove(ref)
                place = flight.place
                self.enter(waiter.request, place.stage, waiter.payload, waiter.trail, place.key, now)
            if unread:
                self._ledger.actions.append(Release(unread))


def _is_own(column: Column, index: int) -> bool:
    """Whether an answer is about what was asked, as far as is known; else about time or room."""
    speaker, refused = column.speakers.get(index, int(Speaker.WORKER)), column.refusals.get(index)
    reason = refused.reason if refused is not None else ""
    return speaker == Speaker.WORKER or (speaker == Speaker.STAGE and reason in UNDECIDED)
