"""The ledger: what is admitted and not answered, and what is told of it and asked for when it ends. Pure.

A request is in it until it is answered, exactly once; what comes for one that is not is a duplicate. Some are requests
of nobody (NOBODY): a part of another (:mod:`engine.core.parts`), a computation that several may wait for
(:mod:`engine.core.memo`). Whoever ends one (:meth:`Ledger.close`) ends what was there for its sake alone.

The door (:mod:`engine.core.front`) and the hub (:mod:`engine.core.hub`) write here; it is of one thread, as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from engine.core import wording
from engine.core.actions import Drop, FrontAction, Release
from engine.core.admission import Admission
from engine.core.answers import AnswerBook
from engine.core.crew import Crew
from engine.core.failures import Failures
from engine.core.foretold import Foretold
from engine.core.items import Request
from engine.core.memo import SHARED, CacheSpec, Memo
from engine.core.messages import OWN_HEADERS_MOST, Speaker, Status
from engine.core.onward import is_inner
from engine.core.parts import PARTS, Gatherings
from engine.core.routing import Topology
from engine.core.stats import FrontStats
from engine.core.trace import Refusals
from engine.core.wire import Payload

FAILED: Final = int(Status.FAILED)  # comparing with a member of an enumeration costs a call
FAILURE: Final = 400  # and above: a redirection, say, is what a service wanted to answer
MESSAGE_MOST: Final = 2048  # bytes of a failure's message that are looked at: more than is kept
OWN_BODY: Final = "(a body of the service's own)"  # of a failure: not shown, for it may be anything
NOBODY: Final = frozenset({PARTS, SHARED})  # who asks for what several wait for, or only a part of one


class Ledger:
    """See the module. ``last_uid``: requests are numbered from the next one on. ``crews``: of all stages, set before
    the first result: who holds what."""

    def __init__(self, topology: Topology, door: Admission, caches: Mapping[int, CacheSpec], last_uid: int) -> None:
        self.topology = topology
        self.door = door
        self.requests: dict[int, Request] = {}
        self.nbytes = 0  # of request bodies
        self.asked: dict[bytes, dict[int, Request]] = {}  # by frontend that is there, by its own numbers
        self.gatherings = Gatherings()
        self.memo = Memo(caches)
        self.crews: Sequence[Crew] = ()
        self.answers = AnswerBook()
        self.actions: list[FrontAction] = []
        self.stats = FrontStats()
        self.failures = Failures()
        self.trace = Refusals()
        self.foretold = Foretold()
        self.last_uid = last_uid
        # By stage: its hop on each route that passes it, and whether what ends there has left its route early.
        self.standings = [(topology.hops(stage), is_inner(topology, stage)) for stage in range(len(topology.stages))]
        # By route and hop: where something of a request may be that is there, or was a moment ago.
        self._places = [
            [(stage, *topology.later(number, stage)) for stage in route.stages]
            for number, route in enumerate(topology.routes)
        ]

    def __len__(self) -> int:
        """Of all that is in it, also of what nobody asked for."""
        return len(self.requests)

    @property
    def inside(self) -> int:
        """Requests that are admitted and not answered; those in parts count once."""
        return len(self.requests) - len(self.gatherings) - len(self.memo)

    @property
    def left(self) -> int:
        """Requests that have left so far."""
        return self.stats.admitted - self.inside

    # --- where a request is ------------------------------------------------------------------------------------------

    def stage_of(self, request: Request) -> int:
        return self._places[request.route][request.hop][0]

    def stages_of(self, request: Request) -> tuple[int, ...]:
        """Where something of a request that was just closed may be: where it is, and the stages to which it may go from
        there. On another thread one of these may be accepting a result: it found the request open and has not advanced
        its hop yet. Whatever it puts into its queue then, it reads this letter afterwards."""
        return self._places[request.route][request.hop]

    def is_at(self, request: Request, stage: int, worker: int, now: float) -> bool:
        """Whether a result of this worker counts for a request that it holds: it is there, and it is open."""
        if request.closed or self.standings[stage][0].get(request.route, -1) != request.hop:
            return False
        if request.stream_hop == request.hop and request.streamer != worker:
            self.tear(request, now)
            return False
        return True

    # --- how requests begin and end ----------------------------------------------------------------------------------

    def made(self, owner: bytes, of: Request, stage: int) -> Request:
        """A request of nobody, at this stage, that has what another one has."""
        self.last_uid = uid = self.last_uid + 1
        made = Request(uid, owner, uid, of.route, of.deadline, of.due, of.rank, of.meta, 0)
        made.hop, made.claims = self.topology.hop(of.route, stage), {}
        self.requests[uid] = made
        return made

    def close(self, request: Request) -> None:
        """It is over. :meth:`engine.core.front.FrontMachine.results` does the same for those that it answers."""
        request.closed = True
        if self.foretold.waiting:
            self.foretold.waiting.pop(request.uid, None)
        del self.requests[request.uid]
        self.nbytes -= request.size
        known = self.asked.get(request.frontend)
        if known is not None:
            known.pop(request.seq, None)
        if request.uid in self.gatherings.wholes:
            self._call_off(request)
        elif self.memo.waits(request):
            self._leave(request)

    def drop(self, requests: Sequence[Request]) -> None:
        """Nobody waits for these any more."""
        self.stats.cancelled += len(requests)
        self._withdraw(requests)

    def tear(self, request: Request, now: float) -> None:
        """A second worker sends what a client has read a half of."""
        self.give_up(request, wording.TORN, now, Speaker.DOOR)

    def give_up(self, request: Request, text: str, now: float, speaker: Speaker = Speaker.STAGE) -> None:
        """It fails for what came of it here."""
        if request.frontend not in NOBODY:  # else it is told of whose part it is
            self.failures.add(now, self.stage_of(request), request.route, FAILED, text, request.meta)
        self.count_goal(request, now, is_result=False)
        self._withdraw([request])
        self.answers.say(request.frontend, request.seq, Status.FAILED, text, speaker)

    def count_goal(self, request: Request, now: float, *, is_result: bool = True) -> None:
        """It is answered: with what a worker says, within its goal? What is refused or late is not."""
        if request.due < request.deadline and request.frontend not in NOBODY:
            self.stats.goals[request.route, is_result and now <= request.due] += 1

    def _withdraw(self, requests: Sequence[Request]) -> None:
        where: defaultdict[int, list[int]] = defaultdict(list)
        for request in requests:
            self.close(request)
            for stage in self.stages_of(request):
                where[stage].append(request.uid)
        self.actions.extend(Drop(stage, uids) for stage, uids in where.items())

    def _call_off(self, whole: Request) -> None:
        """A request has ended whose parts are under way."""
        parts, refs = self.gatherings.end(whole)
        self._withdraw([part for part in parts if part.uid in self.requests])  # else its answer is about to be heard
        if refs:
            self.actions.append(Release(refs))

    def _leave(self, request: Request) -> None:
        """A request has ended that waited for what others may be waiting for."""
        uid, refs = self.memo.leave(request)
        made = self.requests.get(uid) if uid is not None else None
        if made is not None:
            self._withdraw([made])
        if refs:
            self.actions.append(Release(refs))


def said(payload: Payload, headers: Iterable[str]) -> str:
    """What a failure is told as where failures are shown. ``headers``: names of those that its answer has."""
    is_own = any(name.lower() == "content-type" for name in headers)
    return OWN_BODY if is_own or type(payload) is not bytes else payload[:MESSAGE_MOST].decode("utf-8", "replace")


def modest(headers: dict[str, str]) -> dict[str, str]:
    """The headers that a worker sends with an answer, if they are not more than it may send; else none."""
    size = sum([len(name) + len(value) for name, value in headers.items()])
    return headers if size <= OWN_HEADERS_MOST else {}
