"""One frontend's standing with one broker: what is owed to it, what it owes, and what its words mean. Pure.

Events come in as method calls with ``now``; what should leave comes out of :meth:`Link.owed`, and the shell says of
each when it did (:meth:`Link.left`). An instance per broker. Rules held here:

    SEEKING --introduction sent, welcome--> JOINED --"stranger"--> SEEKING
                                  any --refusal--> REFUSED, which seeks again: a broker can be replaced

* nothing but the introduction is sent before the welcome, for the numbers of routes are the broker's;
* a request is kept until its answer. A broker that does not know this frontend (it was restarted, or the connection was
  cut and made anew) knows none of its requests: after the welcome everything unanswered is submitted again - except

  - a *once-only* request (some stage of its route is not idempotent) that was sent and is not known to have been left
    alone: nobody can say whether it was computed. It ends as a failure that says so;
  - an answer of which events have come: half of one computation is not continued by another;

* requests that are submitted in turns of the loop that follow each other leave in one parcel, while each turn brings
  more; one turn is waited for where others are under way (:meth:`Link.gathers`);
* of a request that killed workers the broker is told the fingerprint, for the body is here;
* a refusal by the *door* holds for a moment for every request, one by a *stage* for those of its route; a *forecast*,
  and what a *worker* says, for nobody but its own client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from math import inf
from typing import Any, Final, Protocol, TypeAlias

from msgspec.structs import replace

from engine.core import wording
from engine.core.call import Answer, Call, StreamEvent
from engine.core.introduction import NEWEST, OLDEST, Introduction, Refusal, Stranger, route_numbers
from engine.core.liveness import INTRODUCE_FAST_S, INTRODUCE_SLOW_S, LIMIT_S, LOST_S, MOVE_S
from engine.core.messages import (
    ITEMS_MOST,
    Again,
    Answers,
    Cancel,
    Consumed,
    Events,
    Flow,
    FrontendPulse,
    FrontendWelcome,
    Place,
    Poison,
    Refused,
    Speaker,
    StageState,
    Status,
)
from engine.core.quarantine import fingerprint
from engine.core.reasons import without
from engine.core.routing import Topology
from engine.core.wire import HALF_HEADER, AnyWords, Payload, are_bytes, joined
from engine.errors import Unavailable

FULL_S: Final = 0.02  # how long a refusal for want of room stands for the next request, which need not be read then
RETRY_S: Final = 1.0  # when to come again, where the broker did not say
PARCEL_ITEMS: Final = 32  # requests that are enough for a parcel: the broker can begin while others are still read
PARCEL_TURNS: Final = 16  # of the event loop that a parcel is filled for at most, so that its first request is not late

SLOW_BYTES_S: Final = 4e6  # what a link between hosts carries at the least, for its silence to mean something
PATIENCE_MOST_S: Final = 60.0
FORGET_S: Final = 120.0  # after so long without a new connection the patience is what it was

UNKNOWN_FATE: Final = wording.UNKNOWN_FATE.encode()
TORN: Final = wording.BROKER_LOST_STREAMING.encode()


class LinkState(Enum):
    SEEKING = "seeking"
    JOINED = "joined"
    REFUSED = "refused"


@dataclass(frozen=True)
class View:
    """What the broker said last. ``connected`` false: it has not been heard for LOST_S, or will not have this frontend.

    ``headroom`` is 0 while the broker is known to refuse everybody, and else what it was at the last beat, at least 1:
    a count that is a second old is no reason to refuse anybody. ``retry_s``: when who is refused may come again.
    """

    connected: bool
    draining: bool
    headroom: int
    stages: tuple[StageState, ...]
    retry_s: float = RETRY_S


class Submission:
    """Calls that should leave in one parcel; ``routes`` are the broker's numbers."""

    __slots__ = ("calls", "routes")

    def __init__(self, calls: list[Call], routes: list[int]) -> None:
        self.calls = calls
        self.routes = routes


Owed: TypeAlias = Introduction | Submission | Cancel | Consumed | Poison


class Peers(Protocol):
    """The links to other brokers of the deployment, as one of them sees these."""

    def takes(self, seq: int, call: Call) -> bool:
        """Whether one of them takes a request that this broker's door has refused."""

    def poisoned(self, call: Call) -> None:
        """This request was found to kill workers."""


class Link:
    """See the module. Called by one thread."""

    def __init__(self, me: Introduction, topology: Topology, *, once_only: Sequence[bool] = (), now: float) -> None:
        """``topology`` is this frontend's own; ``once_only`` says of each of its routes whether it is not replayed."""
        self.state = LinkState.SEEKING
        self.refusal = ""  # in the broker's words
        self.troubles: list[Exception] = []  # what waiters raised, which they must not; to be taken and logged
        self.waiting: dict[int, Call] = {}  # without an answer, by number
        self.stages: dict[str, StageState] = {}  # as the broker told last; empty before its first word
        self.memory: Place | None = None  # where large bodies may be put
        self.peers: Peers | None = None  # of several brokers, those that are other cells'
        self.missing: tuple[str, ...] = ()  # routes of this frontend's that the broker has not, or leads otherwise
        self._me = me
        self._topology = topology
        self._once_only = tuple(once_only) or (False,) * len(topology.routes)
        self._numbers: list[int | None] = []  # of routes, at the broker
        self._outgoing: list[Call] = []
        self._cancelled: list[int] = []
        self._consumed: dict[int, int] = {}
        self._poisons: list[Call] = []  # requests that killed workers, of which the broker is to be told
        self._introduce_at = -inf
        self._seq = 0
        self._session = -1
        self._has_reasons = False  # the broker's trails say why batches left
        self._pulse: FrontendPulse | None = None
        self._ready = 0  # workers, if it could serve then
        self._heard = now
        self._asked_at = inf  # the first question since then
        self._patience_s = LIMIT_S  # with what is not answered
        self._reconnected_at = -inf
        self._full_until = 0.0
        self._retry_s = RETRY_S  # as was said to whoever was refused last
        self._route_full_until: dict[int, float] = {}
        self._clear_until = -inf  # until then nothing known stands in the way of any request
        self._gathered = 0  # requests that waited to be sent when they were looked at last
        self._turns = 0  # for which they have waited

    # --- requests ----------------------------------------------------------------------------------------------------

    def submit(self, call: Call, now: float) -> int:
        """Take a request; its number. Raises Unavailable when it is known to be refused."""
        if now >= self._clear_until:
            self._look(call, now)
        seq = call.seq = self._seq = self._seq + 1
        self.waiting[seq] = call
        self._outgoing.append(call)
        return seq

    def _look(self, call: Call, now: float) -> None:
        """Whether this request is known to be refused. Where nothing stands in anybody's way, the next ones need not
        ask until the broker is silent or has said something else than answers."""
        pulse = self._pulse
        if pulse is not None and pulse.draining:
            raise Unavailable(503, wording.DRAINING)
        silent_s = now - self._heard
        # What has been silent for longer than this request can wait will hardly be back in time.
        if (silent_s > LOST_S and silent_s > call.deadline - now) or self.state is LinkState.REFUSED:
            raise Unavailable(503, wording.UNREACHABLE)
        self._route_full_until = {route: until for route, until in self._route_full_until.items() if now < until}
        if now < self._full_until or call.route in self._route_full_until:
            raise Unavailable(429, wording.AT_CAPACITY, retry_after_s=self._retry_s)
        if self.missing and self._numbers[call.route] is None:
            raise Unavailable(503, wording.OTHER_ROUTE)
        if not self.missing and not self._route_full_until:
            self._clear_until = self._heard + LOST_S

    def withdraw(self, seq: int) -> bool:
        """Nobody waits for it any more; its waiter is told nothing. False when it has its answer already."""
        call = self.waiting.pop(seq, None)
        if call is None:
            return False
        if call.is_sent:
            self._cancelled.append(seq)
        else:
            call.body = call.meta = b""  # it stays in line until that is looked at, which may be a while
        return True

    def consumed(self, seq: int, nbytes: int) -> None:
        """The reader of a stream has taken so many bytes of its events: as many more may come."""
        if seq in self.waiting:
            self._consumed[seq] = self._consumed.get(seq, 0) + nbytes

    def close(self) -> None:
        """Give everything up."""
        waiting, self.waiting = self.waiting, {}
        self._outgoing.clear()
        for call in waiting.values():
            call.waiter.answered(None)

    # --- what should leave -------------------------------------------------------------------------------------------

    @property
    def has_word(self) -> bool:
        """There is something to tell the broker that nobody here asked for."""
        return bool(self._poisons)

    @property
    def is_parcel_full(self) -> bool:
        """There are enough requests for a parcel: they should leave at once."""
        return len(self._outgoing) >= PARCEL_ITEMS and self.state is LinkState.JOINED

    def gathers(self) -> bool:
        """Whether the requests at hand had better wait for the next turn of the loop, because this one brought more.

        Clients that were answered together come back one by one, above all where each request has a connection of its
        own; what shares a parcel shares its cost on its whole way, and its answers come together again. A loop with
        nothing else to do makes its turn in microseconds. A lone request never waits.
        """
        count = len(self._outgoing)
        if count > self._gathered and len(self.waiting) > 1 and self._turns < PARCEL_TURNS:
            self._gathered = count
            self._turns += 1
            return True
        return False

    def owed(self, now: float) -> Owed | None:
        """The next thing that should leave, if there is any; it is owed again unless :meth:`left` says that it has."""
        self._gathered = self._turns = 0
        if self.state is not LinkState.JOINED:
            return self._me if now >= self._introduce_at else None
        if self._outgoing and (submission := self._submission()) is not None:
            return submission
        if self._poisons:
            call = self._poisons[0]
            return Poison(self._numbers[call.route] or 0, len(call.body), fingerprint(call.body))
        if self._cancelled:
            return Cancel(self._cancelled[:ITEMS_MOST])
        if self._consumed:
            return Consumed(dict(islice(self._consumed.items(), ITEMS_MOST)))
        return None

    def left(self, owed: Owed, now: float) -> None:
        """This has been sent."""
        if type(owed) is Submission:
            for call in owed.calls:
                call.is_sent = call.was_sent = True
            del self._outgoing[: len(owed.calls)]
        elif type(owed) is Introduction:
            self._introduce_at = now + (INTRODUCE_SLOW_S if self.state is LinkState.REFUSED else INTRODUCE_FAST_S)
        elif type(owed) is Poison:
            del self._poisons[0]
        elif type(owed) is Cancel:
            del self._cancelled[: len(owed.seqs)]
        elif type(owed) is Consumed:
            for seq in owed.nbytes:
                del self._consumed[seq]

    def _submission(self) -> Submission | None:
        """All that waits to be sent; what was withdrawn or answered meanwhile is left out."""
        waiting, numbers = self.waiting, self._numbers
        self._outgoing = [call for call in self._outgoing if waiting.get(call.seq) is call]
        calls = self._outgoing[:PARCEL_ITEMS]  # many at once, as after a new welcome: several parcels
        size = sum([len(call.meta) for call in calls])
        while size > HALF_HEADER and len(calls) > 1:  # nearly never: a head may have a megabyte
            size -= len(calls.pop().meta)
        # A route that the broker has not was answered when it said so.
        return Submission(calls, [numbers[call.route] for call in calls]) if calls else None  # type: ignore[misc]

    # --- what comes --------------------------------------------------------------------------------------------------

    def handle(self, words: AnyWords, payloads: Sequence[Payload], now: float) -> bool:
        """Words of the broker's, whatever they are. False when a broker has no business to say such a thing."""
        self._heard = now
        self._asked_at = inf
        if type(words) is Answers:
            self._handle_answers(words, payloads)
            return True
        if type(words) is Events:
            self._handle_events(words, payloads)
            return True
        self._clear_until = -inf  # what was true before may be so no more
        if type(words) is FrontendPulse:
            self._pulse = words
            ready = [stage.ready for stage in words.stages]
            self._ready = sum(ready) if all(ready) and not words.draining else 0
            self.memory = words.memory
            self.stages = {stage.name: stage for stage in words.stages}
        elif type(words) is FrontendWelcome:
            return self._handle_welcome(words)
        elif type(words) is Stranger:
            self._handle_stranger(words)
        elif type(words) is Again:
            self._send_again(words.seqs)
        elif type(words) is Refusal:
            self.state, self.refusal = LinkState.REFUSED, words.reason
            self._introduce_at = now + INTRODUCE_SLOW_S
            for call in [call for call in self.waiting.values() if not call.is_sent]:
                self._answer(call, Status.UNAVAILABLE, wording.UNREACHABLE.encode())
        else:
            return False
        return True

    def _handle_answers(self, answers: Answers, payloads: Sequence[Payload]) -> None:
        waiting, peers = self.waiting, self.peers
        bodies: Sequence[Any] = payloads if are_bytes(payloads) else [*map(joined, payloads)]
        trails: Iterable[bytes] = answers.trails if self._has_reasons else map(without, answers.trails)
        given: Iterable[Answer] = map(Answer, answers.statuses, bodies, answers.mimes, trails)
        if answers.headers or answers.speakers or answers.retries_ms or answers.refusals:
            given = self._in_detail(answers, [*given])
        for seq, answer in zip(answers.seqs, given, strict=True):
            call = waiting.pop(seq, None)
            if call is None:
                continue  # withdrawn, or the second answer to a request that was submitted again
            if peers is not None and self._is_for_peers(call, answer) and peers.takes(seq, call):
                continue
            try:
                call.waiter.answered(answer)
            except Exception as error:  # as in _tell, without the call
                self.troubles.append(error)

    def _is_for_peers(self, call: Call, answer: Answer) -> bool:
        """Whether another broker may have room for what this one's door refuses: nothing of it was computed, or may be
        computed once more."""
        return (
            answer.speaker == Speaker.DOOR
            and answer.status in (Status.OVERLOADED, Status.UNAVAILABLE)
            and not (call.is_begun or call.key or self._once_only[call.route])
        )

    def _in_detail(self, answers: Answers, given: list[Answer]) -> list[Answer]:
        """With what few of them have."""
        headers, speakers, retries_ms, refusals = (
            answers.headers,
            answers.speakers,
            answers.retries_ms,
            answers.refusals,
        )
        for index, answer in enumerate(given):
            if not (index in headers or index in speakers or index in retries_ms or index in refusals):
                continue
            speaker, retry_ms = speakers.get(index, 0), retries_ms.get(index, 0)
            call = self.waiting.get(answers.seqs[index])
            if call is not None and speaker:
                if answer.status == Status.OVERLOADED:
                    self._note_full(call, speaker, retry_ms)
                elif answer.status == Status.UNPROCESSABLE and speaker == Speaker.STAGE:
                    self._poisons.append(call)
                    if self.peers is not None:
                        self.peers.poisoned(call)
            given[index] = replace(
                answer,
                headers=headers.get(index, {}),
                speaker=speaker,
                retry_ms=retry_ms,
                refused=refusals.get(index),
            )
        return given

    def _note_full(self, call: Call, speaker: int, retry_ms: int) -> None:
        until = self._heard + FULL_S
        if speaker == Speaker.FORECAST:
            return  # who has more time may come in
        self._clear_until = -inf
        self._retry_s = retry_ms / 1000 or RETRY_S
        if speaker == Speaker.DOOR:
            self._full_until = until
        else:
            self._route_full_until[call.route] = until

    def _handle_events(self, events: Events, payloads: Sequence[Payload]) -> None:
        for seq, payload in zip(events.seqs, payloads, strict=True):
            call = self.waiting.get(seq)
            if call is not None:
                call.is_begun = True
                try:
                    call.waiter.event(StreamEvent(bytes(joined(payload)), Flow(events.flow), events.mime))
                except Exception as error:  # as in _tell
                    self.troubles.append(error)

    def _handle_stranger(self, stranger: Stranger) -> None:
        """The broker has taken nothing of what is listed. What else was sent went to a broker, or by a connection, that
        is no more; what became of it is settled when there is a new session."""
        self._send_again(stranger.untaken)
        if self.state is LinkState.JOINED:
            self.state = LinkState.SEEKING
            self._introduce_at = -inf

    def _send_again(self, seqs: Sequence[int]) -> None:
        """The broker does nothing for these."""
        for seq in seqs:
            call = self.waiting.get(seq)
            if call is not None and call.is_sent:
                call.is_sent = False
                self._outgoing.append(call)

    def _handle_welcome(self, welcome: FrontendWelcome) -> bool:
        try:
            broker = Topology.of(welcome.stages, welcome.routes)
        except ValueError:
            return False
        if not OLDEST <= welcome.protocol <= NEWEST:
            return False
        self.state, self.refusal = LinkState.JOINED, ""
        self._has_reasons = welcome.reasons
        self._numbers = route_numbers(self._topology, broker)
        self.missing = tuple(
            route.path for route, number in zip(self._topology.routes, self._numbers, strict=True) if number is None
        )
        if welcome.session == self._session:
            return True  # the second answer to an introduction that was repeated
        self._session = welcome.session
        self._cancelled = []  # a new session knows none of their numbers
        self._consumed = {}
        self._poisons = [call for call in self._poisons if self._numbers[call.route] is not None]
        told: list[tuple[Call, Status, bytes]] = []  # afterwards: whoever is told may submit again
        for call in self.waiting.values():
            if self._numbers[call.route] is None:
                told.append((call, Status.UNAVAILABLE, wording.OTHER_ROUTE.encode()))
            elif call.is_begun:
                told.append((call, Status.FAILED, TORN))
            elif not call.is_sent:
                continue  # it waits to be sent
            elif self._once_only[call.route]:
                told.append((call, Status.FAILED, UNKNOWN_FATE))
            else:
                call.is_sent = False
                self._outgoing.append(call)
        for call, status, text in told:
            self._answer(call, status, text)
        return True

    def _answer(self, call: Call, status: Status, text: bytes) -> None:
        """An answer in our own words, unless whoever was told before it has withdrawn it."""
        if self.waiting.pop(call.seq, None) is not None:
            refused = Refused("unavailable") if status is Status.UNAVAILABLE else None
            self._tell(call, Answer(int(status), text, speaker=int(Speaker.DOOR), refused=refused))

    def _tell(self, call: Call, answer: Answer) -> None:
        try:
            call.waiter.answered(answer)
        except Exception as error:  # theirs; what others are owed must not be lost with it
            self.troubles.append(error)

    # --- the connection ----------------------------------------------------------------------------------------------

    def asked(self, now: float) -> None:
        """The broker has been asked for a word, by a beat, or could not be."""
        if now - self._reconnected_at > FORGET_S:
            self._patience_s = LIMIT_S
        self._asked_at = min(self._asked_at, now)

    @property
    def silent_at(self) -> float:
        """From when on a new connection had better be tried; inf: nothing is asked. Counted from the question and not
        from the last word: who could not ask, for want of CPU, may blame nobody. Bodies and answers go by the same
        connection, and a word waits behind them. For bodies there is time; of answers nobody here knows, so the
        patience doubles each time that it was too short."""
        if self._asked_at == inf:
            return inf
        return self._asked_at + self._patience_s + self._on_their_way() / SLOW_BYTES_S

    def _on_their_way(self) -> int:
        """Bytes of bodies that may not have arrived yet."""
        return sum([len(call.body) for call in self.waiting.values() if call.is_sent])

    def reconnected(self, now: float) -> None:
        """The shell has made a new connection, on which the broker knows nobody yet."""
        self._asked_at = inf
        self._patience_s = min(2 * self._patience_s, PATIENCE_MOST_S)
        self._reconnected_at = now
        if self.state is LinkState.JOINED:
            self.state = LinkState.SEEKING
        self._introduce_at = -inf

    # --- looking -----------------------------------------------------------------------------------------------------

    def view(self, now: float) -> View:
        pulse = self._pulse
        connected = pulse is not None and now - self._heard <= LOST_S and self.state is not LinkState.REFUSED
        if pulse is None:
            return View(connected, False, 1, ())
        headroom = 0 if now < self._full_until else max(1, pulse.headroom)
        return View(connected, pulse.draining, headroom, tuple(pulse.stages), self._retry_s)

    def ready(self, now: float) -> int:
        """How many workers are ready, if there is one at every stage and the broker is there and takes requests, as far
        as is known; else 0."""
        if self.state is not LinkState.JOINED or now - self._heard > MOVE_S or now < self._full_until:
            return 0
        return self._ready

    def is_silent(self, now: float) -> bool:
        """Whether the broker has said nothing for so long that another one should have what it has not answered."""
        silent_s = now - self._heard
        return silent_s > MOVE_S and silent_s > MOVE_S + self._on_their_way() / SLOW_BYTES_S

    def is_patient(self, call: Call, now: float) -> bool:
        """Whether this one stays for now, for it has been moved before: its answer may be long on the way."""
        return now - self._heard <= MOVE_S * (1 << call.moves)

    def movable(self, *, unsent: bool = False) -> list[tuple[int, Call]]:
        """What another broker can do as well, by its number here: no stream that has begun, nothing that may have been
        computed and must not be twice, and nothing with a key, whose other tries are known here alone. ``unsent``: and
        nothing that has left, which may be computed already."""
        return [
            (seq, call)
            for seq, call in self.waiting.items()
            if not (call.is_begun or call.key or (unsent and call.is_sent))
            and not (call.was_sent and self._once_only[call.route])
        ]

    def moved(self, gone: Sequence[tuple[int, bool]]) -> None:
        """These, by their numbers here and whether they had been sent, are another's now. Should the broker be heard
        again, it is told that nobody waits for them here. To be called before anything else is."""
        here = {id(call) for seq, _ in gone if (call := self.waiting.pop(seq, None)) is not None}
        self._outgoing = [call for call in self._outgoing if id(call) not in here]  # they have other numbers now
        self._cancelled += [seq for seq, was_sent in gone if was_sent]

    def note_poison(self, call: Call) -> None:
        """The broker is to be told that this one, which another had, kills workers."""
        self._poisons.append(call)

    @property
    def session(self) -> int:
        """Of the last welcome; -1 before the first."""
        return self._session


def once_only_routes(topology: Topology, idempotent: Mapping[str, bool]) -> tuple[bool, ...]:
    """For each route whether some stage of it (by name) must not compute anything twice."""
    return tuple(
        not all(idempotent[name] for name in topology.stage_names(number)) for number in range(len(topology.routes))
    )
