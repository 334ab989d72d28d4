"""The part at the door: carries out what :class:`engine.core.front.FrontMachine` decides.

Owns the ROUTER of the frontends, the PULL on which all workers deliver final results, failures and stream events, and
the ROUTER for questions. Answers leave once per pass, one parcel per frontend, however many parcels they came in.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from engine import descriptors, transport, usage
from engine.broker import report
from engine.broker.arenas import Arenas
from engine.broker.complaints import FAILED, UNEXPECTED
from engine.broker.letters import ChangeFront, Drain, Look, Seen, ToFront
from engine.broker.loop import Part
from engine.broker.poll import Poll
from engine.broker.retired import Retired
from engine.broker.watch import Watch
from engine.clock import now as clock
from engine.core.actions import Fail, Foresee, News, Release, Settle
from engine.core.front import Frontend, FrontMachine, FrontSpec
from engine.core.introduction import UNREADABLE, FrozenWords, Introduction, Refusal, Stranger
from engine.core.liveness import CHECK_S, REJOIN_S, REPORT_S
from engine.core.messages import (
    Ask,
    Cancel,
    Consumed,
    FrontendBeat,
    FrontendPulse,
    Message,
    Parts,
    Place,
    Poison,
    Report,
    Results,
    StreamEvents,
    Submit,
)
from engine.core.quarantine import KEEP_S
from engine.core.routing import Topology
from engine.core.window import Window
from engine.core.wire import MICROS, SMALL_FRAME, AnyWords, Payload, encode
from engine.errors import ProtocolError
from engine.transport import Endpoints

log: Final = logging.getLogger("stageline.broker")

QUESTIONS_MOST: Final = 256  # that wait for a stage's part: many more than anybody asks in REPORT_S


@dataclass(slots=True)
class Question:
    """An Ask that waits for the stages' parts."""

    peer: bytes
    ask: Ask
    until: float
    parts: dict[int, report.Part | None] = field(default_factory=dict)


class FrontPart(Part[ToFront]):
    def __init__(
        self,
        spec: FrontSpec,
        topology: Topology,
        *,
        name: str,
        namespace: str,
        epoch: int,
        endpoints: Endpoints,
        context: transport.Context,
        arenas: Arenas,
        threads: str,
        largest: int,
        largest_result: int,
        parent: int = 0,
    ) -> None:
        """``largest``, ``largest_result``: the most bytes of a frame of a frontend, and of a worker."""
        self.machine = FrontMachine(
            spec,
            topology,
            epoch,
            deployment=name,
            absent_at=clock() + REJOIN_S,
            read=lambda payload: arenas.plain([payload])[0],
        )
        super().__init__(self.machine.stats.messages_dropped)
        self._name = name
        self._namespace = namespace
        self._threads = threads
        self._parent = parent
        self._largest = largest
        self._largest_result = largest_result
        self._began = clock()
        self._endpoints = endpoints
        self._context = context
        self._arenas = arenas
        self._memory: dict[bytes, Place | None] = {}  # frontend -> the arena that it fills
        self._host = transport.host_token()
        self._watch = Watch()
        self._watched: dict[int, bytes] = {}  # session -> frontend
        self._questions: dict[int, Question] = {}
        self._asked = 0
        self._unmet: dict[str, bool] = {}  # by path of a route: its goal was said to be out of reach
        self._check_at = 0.0
        self._retired = Retired()  # metrics of frontends that are gone
        self._used = Window()  # CPU time of this process

    # --- the loop ----------------------------------------------------------------------------------------------------

    def open(self, poll: Poll) -> None:
        context, ways = self._context, transport.ways(self._endpoints)
        self._front = self._inlets(poll, (transport.router(context, way.front, largest=self._largest) for way in ways))
        self._egress = self._inlets(
            poll, (transport.pull(context, way.egress, largest=self._largest_result) for way in ways)
        )
        self._admin = self._inlet(poll, transport.router(self._context, self._endpoints.admin, largest=SMALL_FRAME))
        self._exits = self._source(poll, self._watch.fileno())

    def work(self, now: float) -> float:
        machine = self.machine
        if self.mailbox.letters:
            for letter in self.mailbox.take():
                self._handle_letter(letter, now)
        for message, payloads in self._egress.parcels():
            try:
                self._handle_egress(message, payloads, now)
            except Exception:
                self._distrust(message)
        for peer, message, payloads, origin in self._front.letters(self._cannot_read):
            try:
                self._handle_front(peer, message, payloads, origin, now)
            except Exception:
                self._give_up(peer, message)
        if self._admin.ready:
            for peer, message, _, _ in self._admin.letters(self._cannot_read_question):
                try:
                    self._handle_admin(peer, message, now)
                except Exception:
                    self.complaints.note(FAILED, "a question cannot be handled", trace=True)
        if self._exits.ready:
            self._exits.ready = False
            for session, *_ in self._watch.ended():
                self._lose(self._watched.pop(session, b""))
        if now >= self._check_at:
            self._check(now)
        next_deadline = machine.expire(now)
        taken = machine.take_answers(now)
        if machine.actions:
            self._carry_out()
        for peer, answers, payloads in taken:
            self._send(peer, answers, payloads)
        if machine.tries.again:
            for peer, again in machine.take_again():
                self._send(peer, again)
        return min(next_deadline, self._check_at)

    def is_idle(self) -> bool:
        """What stages foresee is heard before the next request is judged: it need not wake anybody."""
        return True

    def _check(self, now: float) -> None:
        self._check_at = now + CHECK_S
        self._front.listen_again()
        self._egress.listen_again()
        self.machine.measure(now)
        self._used.mark(now, (usage.own().cpu_us / MICROS,))
        if descriptors.are_spent():
            self._note_spent()
        for peer in self.machine.silent(now):
            self._lose(peer)
        for token in [token for token, question in self._questions.items() if question.until < now]:
            del self._questions[token]

    def _note_spent(self) -> None:
        stats = self.machine.stats
        stats.descriptors_spent += 1
        if stats.descriptors_spent == 1:
            log.error(
                "the broker has no descriptor left: new workers and frontends cannot join; raise the hard limit "
                "(ulimit -Hn)",
                extra={"limit": descriptors.limit()},
            )

    def close(self) -> None:
        super().close()
        self._watch.close()

    # --- events in ---------------------------------------------------------------------------------------------------

    def _handle_letter(self, letter: ToFront, now: float) -> None:
        machine = self.machine
        if type(letter) is Fail:
            machine.fail(letter, now)
        elif type(letter) is News:
            machine.heard_of(letter)
            self._pulse_all()
        elif type(letter) is Foresee:
            if machine.door.foresee(letter):
                self._tell_of_goals()
        elif type(letter) is Seen:
            question = self._questions.get(letter.token)
            if question is not None:
                question.parts[letter.stage] = letter.part
                if len(question.parts) == len(self.stages):
                    del self._questions[letter.token]
                    self._answer_question(question)
        elif type(letter) is Drain:
            machine.door.draining = True
            self._pulse_all()
        elif type(letter) is ChangeFront:
            machine.change(letter.spec)
            self._tell_of_goals()
            machine.quarantine.clear()  # what killed workers of the former edition may not kill those of this one
            self._pulse_all()

    def _tell_of_goals(self) -> None:
        """Some goal has come within reach, or out of it."""
        machine = self.machine
        goals, paths = machine.door.goals, [route.path for route in machine.topology.routes]
        for path, slo_s, least_s, unmet in zip(paths, goals.slos_s, goals.least_s, goals.unmet, strict=True):
            if not slo_s or unmet is self._unmet.get(path, False):
                continue
            self._unmet[path] = unmet
            about = {"route": path, "slo_s": slo_s, "one_request_takes_s": round(least_s, 6)}
            if unmet:
                log.warning(
                    "a goal cannot be met: one request alone takes longer; the timeout counts instead", extra=about
                )
            else:
                log.info("a goal can be met", extra=about)

    def _give_up(self, peer: bytes, message: AnyWords) -> None:
        """Handling what this frontend said has failed, halfway perhaps. How far it came nobody can tell, so the
        session ends: what was admitted of it is dropped, and the frontend, if it is one, begins another and submits
        again what it waits for. That is a state like any other; a broker that ended would take everybody's along."""
        self.complaints.note(
            FAILED, "a frontend is given up: its message cannot be handled", trace=True, kind=type(message).__name__
        )
        self._lose(peer)
        self._tell(peer, Stranger())

    def _handle_egress(self, message: AnyWords, payloads: list[Payload], now: float) -> None:
        if isinstance(message, Results) and 0 <= message.stage < len(self.stages) and not message.refs:
            self.machine.results(message, payloads, now)
        elif isinstance(message, Parts) and message.stage < len(self.stages):
            if self._arenas.take(message.stage, payloads):
                self.machine.hub.parts(message, payloads, now)
        elif isinstance(message, StreamEvents) and 0 <= message.stage < len(self.stages):
            for peer, (events, bodies) in self.machine.events(message, payloads, now).items():
                self._send(peer, events, bodies)
        else:
            self._unexpected(message)

    def _unexpected(self, message: AnyWords) -> None:
        self.complaints.note(UNEXPECTED, "unexpected message dropped", kind=type(message).__name__)

    def _handle_front(
        self, peer: bytes, message: AnyWords, payloads: list[Payload], origin: transport.Origin, now: float
    ) -> None:
        machine = self.machine
        if isinstance(message, Submit):
            self._handle_submit(peer, message, payloads, now)
        elif isinstance(message, Introduction):
            self._handle_introduction(peer, message, origin, now)
        elif not isinstance(message, (Cancel, Consumed, Poison, FrontendBeat)):
            self._unexpected(message)
        elif not machine.knows(peer):
            self._tell(peer, Stranger())
        elif isinstance(message, Cancel):
            machine.cancel(peer, message.seqs)
        elif isinstance(message, Consumed):
            machine.consumed(peer, message.nbytes)
        elif isinstance(message, Poison):
            self._handle_poison(message, now)
        else:
            machine.beat(peer, message, now)
            self._send(peer, self._pulse(machine.frontends[peer]))

    def _handle_submit(self, peer: bytes, submit: Submit, payloads: list[Payload], now: float) -> None:
        if not self.machine.knows(peer):
            self._tell(peer, Stranger(untaken=submit.seqs))
            return
        try:
            self._arenas.arrive(payloads)
        except ProtocolError as error:
            # Of an arena that has ended, say: what it stands for must be sent as bytes.
            log.warning("requests not taken", extra={"requests": len(submit.seqs), "reason": str(error)})
            self._tell(peer, Stranger(untaken=submit.seqs))
            return
        self.machine.submit(peer, submit, payloads, now)

    def _handle_poison(self, poison: Poison, now: float) -> None:
        if self.machine.refuse_like(poison, now):
            path = self.machine.topology.routes[poison.route].path
            log.error(
                "a request that kills workers is refused from now on",
                extra={"route": path, "fingerprint": poison.mark.hex(), "for_s": int(KEEP_S)},
            )

    def _handle_introduction(self, peer: bytes, who: Introduction, origin: transport.Origin, now: float) -> None:
        for former in self.machine.formers(peer, who):
            self._lose(former)
        is_new = not self.machine.knows(peer)
        answer = self.machine.introduce(peer, who, now)
        if isinstance(answer, Refusal):
            log.error("frontend refused", extra={"frontend": who.name, "reason": answer.reason})
            self._tell(peer, answer)
            return
        if (
            is_new and who.host == self._host and transport.is_here(origin)
        ):  # said again by the same connection, its first word holds
            self._memory[peer] = self._arenas.create()
            session = self.machine.frontends[peer].session
            if self._watch.add(session, who.pid):
                self._watched[session] = peer
        self._send(peer, answer)
        if peer in self.machine.frontends:  # it has taken that
            self._send(peer, self._pulse(self.machine.frontends[peer]))

    def _cannot_read(self, peer: bytes) -> None:
        if not self.machine.knows(peer):  # of another version, or nothing of ours at all
            self._tell(peer, UNREADABLE)

    def _cannot_read_question(self, peer: bytes) -> None:
        self._admin.send(encode(UNREADABLE), peer)

    def _tell(self, peer: bytes, words: FrozenWords) -> None:
        """To somebody who is not known; if it has gone, nothing is lost."""
        self._front.send(encode(words), peer)

    def _handle_admin(self, peer: bytes, message: AnyWords, now: float) -> None:
        if not isinstance(message, Ask) or message.what not in report.QUESTIONS:
            self._unexpected(message)
            return
        if len(self._questions) >= QUESTIONS_MOST:
            self.complaints.note(UNEXPECTED, "a question is dropped: so many wait", waiting=len(self._questions))
            return
        self._asked += 1
        self._questions[self._asked] = Question(peer, message, now + REPORT_S)
        for stage in self.stages:
            self._post(stage, Look(self._asked, message))

    def _answer_question(self, question: Question) -> None:
        parts = [question.parts[stage] for stage in range(len(self.stages))]
        what, instant = question.ask.what, clock()
        self.machine.stats.untold += parts.count(None)
        try:
            deployed = report.Deployed(
                name=self._name,
                namespace=self._namespace,
                broker=self._status(instant),
                shared=self._arenas.usage(),
                retired=self._retired.families,
                processes=self._processes() if what == "metrics" else (),
            )
            body = report.answer(self.machine, question.ask, parts, deployed, instant)
        except Exception:
            log.exception("a report failed", extra={"what": what})
            self.machine.stats.untold += 1
            body = report.untold(what, self._name)
        self._admin.send(encode(Report(what), [body]), question.peer)

    def _processes(self) -> list[tuple[str, usage.Process]]:
        """This one, and its supervisor."""
        found = [("broker", usage.whole())]
        if self._parent and os.getppid() == self._parent:
            found.append(("supervisor", usage.of(self._parent)))
        return found

    def _status(self, now: float) -> report.BrokerStatus:
        used = usage.own()
        (cpu,) = self._used.rates(now, (used.cpu_us / MICROS,))
        return report.BrokerStatus(
            pid=os.getpid(),
            node=usage.node(),
            version=usage.version(),
            endpoint=self._endpoints.base if self._endpoints.is_tcp else "",
            log=usage.log_place(),
            threads=self._threads,
            uptime_s=round(now - self._began, 3),
            resident_bytes=used.resident_bytes,
            cpu=round(cpu, 3),
        )

    def _lose(self, peer: bytes) -> None:
        frontend = self.machine.gone(peer)
        self._arenas.retire(self._memory.pop(peer, None))
        if frontend is None:
            return
        log.info("frontend gone", extra={"frontend": frontend.who.name, "requests": len(frontend.requests)})
        if self._watched.pop(frontend.session, None) is not None:
            self._watch.remove(frontend.session)
        if frontend.families:
            self._retired.add(frontend.families, whose=frontend.who.name)

    # --- actions out -------------------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        actions = self.machine.take_actions()
        for action in actions:
            if isinstance(action, Release):
                self._arenas.release(action.refs)
            else:
                self._post(self.stages[action.stage], action, urgent=type(action) is not Settle)

    def _send(self, peer: bytes, message: Message, payloads: Sequence[Payload] = ()) -> None:
        if not self._front.send(encode(message, payloads), peer):
            self._lose(peer)  # its connection is gone, and whoever waited there with it

    def _pulse(self, frontend: Frontend) -> FrontendPulse:
        machine = self.machine
        stages = [view.state for view in machine.stages]
        memory = self._memory.get(frontend.peer)
        return FrontendPulse(machine.door.draining, machine.headroom, stages, memory)

    def _pulse_all(self) -> None:
        for frontend in list(self.machine.frontends.values()):
            self._send(frontend.peer, self._pulse(frontend))
