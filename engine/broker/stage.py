"""The part of one stage: carries out what :class:`engine.core.stage.StageMachine` decides.

Owns the ROUTER at which workers introduce themselves, the PULL that the previous stages' workers push results to, and
one PUSH lane per worker. Knows no rule of batching, credit or replay.

Over tcp a lane that loses its connection is heard of at once. A worker on another host is given up by that: whether it
has died or its network, what is in the dead connection arrives nowhere. One on this host lives as long as its process
does, but is told to introduce itself anew.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from typing import Final

import msgspec

from engine import transport, unix
from engine.broker import report
from engine.broker.arenas import Arenas
from engine.broker.complaints import FAILED, UNEXPECTED
from engine.broker.letters import ChangeStage, Distrust, Drain, Look, Seen, ToFront, ToStage
from engine.broker.loop import Part
from engine.broker.poll import Losses, Poll, Source
from engine.broker.retired import Retired
from engine.broker.watch import Watch
from engine.clock import now as clock
from engine.config.endpoints import LANE_KEYS
from engine.core import wording
from engine.core.actions import (
    Admit,
    Dispatch,
    Drop,
    Fail,
    Foresee,
    Forget,
    Grant,
    Hasten,
    Kill,
    News,
    Note,
    Release,
    Settle,
    ToWorker,
)
from engine.core.introduction import NEAR_SINCE, UNREADABLE, FrozenWords, Introduction, Refusal, Stranger
from engine.core.liveness import CHECK_S, LANE_RETRY_S, LIMIT_S, REJOIN_S
from engine.core.messages import Bye, Leave, Message, Place, Pulse, Ready, Results, WorkerBeat
from engine.core.routing import Topology
from engine.core.stage import StageMachine, StageSpec
from engine.core.wire import AnyWords, Buffer, Payload, are_bytes, control_frame, encode, intake_frame, refs_of
from engine.errors import ProtocolError, StartError
from engine.mailbox import Mailbox
from engine.transport import Endpoints

log: Final = logging.getLogger("stageline.broker")


class Lane:
    """The PUSH end of one worker, and what waits for its connection."""

    __slots__ = ("kept", "memory", "peer", "pending", "pid", "port", "seen", "since", "sock")

    def __init__(self, sock: transport.Socket, peer: bytes, pid: int | None, memory: Place | None) -> None:
        self.sock = sock
        self.kept: Source | None = None  # it is polled, for it has not taken all that was sent
        self.memory = memory  # the arena that the worker fills
        self.peer = peer  # of the worker on the control socket
        self.pid = pid  # the process that is, where the kernel tells
        self.port = 0  # where it is bound, over tcp
        self.pending: deque[list[Buffer]] = deque()
        self.since = 0.0  # when the first of them was to leave
        self.seen = False  # it had a connection

    def send(self, frames: list[Buffer], now: float) -> None:
        if self.pending or not transport.send(self.sock, frames):
            if not self.pending:
                self.since = now
            self.pending.append(frames)

    def flush(self) -> bool:
        """Send what waits; True when nothing does any more."""
        while self.pending and transport.send(self.sock, self.pending[0]):
            self.pending.popleft()
        return transport.keeps_nothing(self.sock) and not self.pending


class StagePart(Part[ToStage]):
    def __init__(
        self,
        index: int,
        spec: StageSpec,
        topology: Topology,
        *,
        deployment: str,
        namespace: str,
        epoch: int,
        endpoints: Endpoints,
        lanes: int,
        context: transport.Context,
        arenas: Arenas,
    ) -> None:
        """``lanes``: how many ports there are for these, over tcp."""
        self.machine = StageMachine(
            index,
            spec,
            topology,
            epoch,
            deployment=deployment,
            absent_at=clock() + REJOIN_S,
            draw=lambda: secrets.randbelow(LANE_KEYS),
        )
        super().__init__(self.machine.stats.messages_dropped)
        self.index = index
        self.front: Mailbox[ToFront] | None = None  # set before start
        self._namespace = namespace
        self._endpoints = endpoints
        self._lane_ports = lanes
        # Parts begin at different places, for all of them use the same ports.
        self._last_lane = endpoints.first_lane + index * lanes // len(topology.stages)
        self._context = context
        self._arenas = arenas
        self._host = transport.host_token()
        self._lanes: dict[int, Lane] = {}
        self._stuck: set[int] = set()  # workers whose lane has something pending
        self._watch = Watch()
        self._losses: Losses | None = None  # of lanes, over tcp
        self._check_at = 0.0
        self._retired = Retired()  # users' metrics of workers that are gone
        self._largest = intake_frame(spec.max_queue_bytes)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def open(self, poll: Poll) -> None:
        self._poll = poll
        self._control = self._inlet(
            poll, transport.router(self._context, self._endpoints.control(self.index), largest=control_frame())
        )
        intakes = [way.intake(self.index) for way in transport.ways(self._endpoints)]
        self._intake = self._inlets(
            poll, (transport.pull(self._context, intake, largest=self._largest) for intake in intakes)
        )
        self._exits = self._source(poll, self._watch.fileno())
        if self._endpoints.is_tcp:
            losses = Losses(transport.Losses(self._context), self, poll, self.complaints)
            self._losses = self._listen(poll, losses)

    def work(self, now: float) -> float:
        machine = self.machine
        is_late = now >= self.wake  # else no time limit has passed
        if self.mailbox.letters:
            for letter in self.mailbox.take():
                self._handle_letter(letter, now)
        for message, payloads in self._intake.parcels():
            try:
                self._handle_intake(message, payloads, now)
            except Exception:
                self._distrust(message)
        if self._control.ready:
            for peer, message, _, origin in self._control.letters(self._cannot_read):
                try:
                    self._handle_control(peer, message, origin, now)
                except Exception:
                    self._give_up(peer, message, now)
        if self._losses is not None and self._losses.ready:
            self._hear_losses(self._losses, now)
        if self._exits.ready:
            self._exits.ready = False
            for key, death, how in self._watch.ended():
                machine.exited(key, now, death, how)
        if is_late:
            machine.tick(now)
            if now >= self._check_at:
                self._check_at = now + CHECK_S
                self._intake.listen_again()
                machine.check_silence(now)
                self._look_at_lanes(now)
                machine.measure(now)
                self._watch.look()
        wake = machine.pump(now)
        if machine.actions:
            self._carry_out(now)
        if self._stuck:
            self._flush(now)
            if any(self._lanes[key].pending for key in self._stuck):
                wake = min(wake, now + LANE_RETRY_S)
        return min(wake, self._check_at)

    def is_idle(self) -> bool:
        return self.machine.is_idle() and not self._stuck

    def _flush(self, now: float) -> None:
        """Send what waits for a connection. One from another host that has not come for as long as a connection may be
        dead does not come."""
        for key in [*self._stuck]:
            lane = self._lanes[key]
            if lane.flush():
                self._stuck.discard(key)
            self._watch_kept(lane)
        for key in [key for key in self._stuck if now - self._lanes[key].since > LIMIT_S]:
            worker = self.machine.workers.get(key)
            if worker is not None and worker.linked and not worker.local:
                self._lose(key, now)

    def _watch_kept(self, lane: Lane) -> None:
        """Have the part called as soon as more of what a lane keeps is taken."""
        keeps = transport.keeps_some(lane.sock)
        if keeps and lane.kept is None:
            lane.kept = self._source(self._poll, lane.sock.fileno())
        elif lane.kept is not None and not keeps:
            self._poll.remove(lane.kept)
            lane.kept = None

    def _hear_losses(self, losses: Losses, now: float) -> None:
        ports = {lane.port: key for key, lane in self._lanes.items()}
        for port in losses.ports():
            if port in ports:
                self._lose(ports[port], now)
        self._carry_out(now)

    def _look_at_lanes(self, now: float) -> None:
        """Who may connect to a port at all could keep its losses from being told. Of a unix socket nothing is told; it
        ends before its worker does where that has no memory for what came."""
        for key, lane in list(self._lanes.items()):
            worker = self.machine.workers.get(key)
            if isinstance(lane.sock, unix.Listening):
                if lane.sock.is_over():
                    self._lose(key, now)
                continue
            if worker is None or not worker.linked or worker.local:
                continue
            if transport.has_peer(lane.sock):
                lane.seen = True
            elif lane.seen:
                self._lose(key, now)

    def _lose(self, key: int, now: float) -> None:
        """The connection to a worker is lost, by the kernel's word. Some of what was under way may be as well, so it is
        to introduce itself anew; from another host it is given up until it has, dead or not."""
        worker = self.machine.workers.get(key)
        if worker is None:
            return
        self._reply(self._lanes[key].peer, Pulse(self.machine.epoch, False))
        facts = {"stage": self.machine.spec.name, "worker": worker.slot, "pid": worker.pid, "here": worker.local}
        log.info("the connection to a worker is lost", extra=facts)
        if not worker.local:
            self.machine.cut_off(key, now)

    def _give_up(self, peer: bytes, message: AnyWords, now: float) -> None:
        """Handling what this worker said has failed, halfway perhaps: it is given up as if it had died, which is a
        state like any other, and introduces itself anew."""
        self.complaints.note(
            FAILED, "a worker is given up: its message cannot be handled", trace=True, kind=type(message).__name__
        )
        for key in list(self.machine.workers):
            lane = self._lanes.get(key)
            if lane is None or lane.peer == peer:  # without a lane: its introduction was not finished
                self.machine.exited(key, now)
        self._reply(peer, Stranger())

    def _handle_intake(self, message: AnyWords, payloads: list[Payload], now: float) -> None:
        if isinstance(message, Results) and message.stage < len(self.stages):
            if self._arenas.take(message.stage, payloads):
                self.machine.accept(message, payloads, now)
        else:
            self._unexpected(message)

    def _unexpected(self, message: AnyWords) -> None:
        self.complaints.note(UNEXPECTED, "unexpected message dropped", kind=type(message).__name__)

    def close(self) -> None:
        for key in list(self._lanes):
            self._close_lane(key)
        super().close()
        self._watch.close()

    # --- events in ---------------------------------------------------------------------------------------------------

    def _handle_letter(self, letter: ToStage, now: float) -> None:
        machine = self.machine
        if type(letter) is Settle:
            machine.settled(letter, now)
        elif type(letter) is Admit:
            machine.enqueue(letter.items, now)
        elif type(letter) is Drop:
            machine.cancel(letter.uids, now)
        elif type(letter) is Grant:
            machine.grant(letter)
        elif type(letter) is Hasten:
            machine.hasten(letter)
        elif type(letter) is Look:
            self._show(letter, now)
        elif type(letter) is Drain:
            machine.draining = True
        elif type(letter) is ChangeStage:
            machine.change(letter.spec, now)
        elif type(letter) is Distrust:
            machine.exited(letter.worker, now)

    def _show(self, look: Look, now: float) -> None:
        try:
            part = report.stage_part(self.machine, look.ask, self._retired.families, now, self._namespace)
        except Exception:
            log.exception("a report failed", extra={"stage": self.machine.spec.name, "what": look.ask.what})
            part = None
        self._tell(Seen(look.token, self.index, part))

    def _handle_control(self, peer: bytes, message: AnyWords, origin: transport.Origin, now: float) -> None:
        if isinstance(message, Introduction):
            self._handle_introduction(peer, message, origin, now)
        elif isinstance(message, WorkerBeat | Ready | Leave | Bye) and not self._is(message.worker, peer, origin):
            self.complaints.note(UNEXPECTED, "a message in another worker's name dropped", kind=type(message).__name__)
            self._reply(peer, Pulse(self.machine.epoch, False))  # introduce yourself
        elif isinstance(message, WorkerBeat):
            self._reply(peer, self.machine.beat(message, now))
        elif isinstance(message, Ready):
            self.machine.ready(message, now)
            self._carry_out(now)  # the door hears of it before the worker does that it has been taken
        elif isinstance(message, Leave):
            self.machine.leave(message.worker, now)
        elif isinstance(message, Bye):
            self.machine.exited(message.worker, now)
        else:
            self._unexpected(message)

    def _is(self, key: int, peer: bytes, origin: transport.Origin) -> bool:
        """Whether this peer may speak for the worker: by the connection that it is known by, or by a new one of the
        same process, which is the one it is known by from now on. (Over tcp nobody can tell.)"""
        lane = self._lanes.get(key)
        if lane is None or lane.peer == peer:
            return True
        if transport.pid_of(origin) != lane.pid:
            return False
        lane.peer = peer
        return True

    def _handle_introduction(self, peer: bytes, who: Introduction, origin: transport.Origin, now: float) -> None:
        """The lane is for the process that says so, where the kernel tells which; and only one that is known so is ever
        killed, else a peer's word could aim at any process of this user's."""
        pid = transport.pid_of(origin)
        local = who.host == self._host and transport.is_here(origin)
        machine = self.machine
        for former in [key for key, lane in self._lanes.items() if lane.peer == peer]:
            worker = machine.workers.get(former)  # None: gone, and its lane is about to be
            if worker is not None and worker.instance != who.instance:
                machine.exited(former, now)  # a connection stands for one worker
        key = machine.introduce(who, local=local, now=now)
        if not isinstance(key, int):
            if isinstance(key, Refusal):
                self._log_refusal(who, key.reason)
            self._reply(peer, key)
            return
        # Its former self, if any, was forgotten just now: close that lane before its address is bound again.
        self._carry_out(now)
        if self._losses is not None:  # of lanes that are closed, whose ports may be given out again
            self._hear_losses(self._losses, now)
        try:
            sock, told = self._make_lane(key, pid)
        except StartError as error:  # out of descriptors, say: one worker the fewer, not all of the deployment
            self._log_refusal(who, wording.no_lane(error))
            machine.exited(key, now)
            self._reply(peer, Stranger())  # not now: it will try again
            return
        memory = self._arenas.create() if local else None
        lane = self._lanes[key] = Lane(sock, peer, pid, memory)
        if self._losses is not None:
            lane.port = transport.port_of(sock)
            transport.tell_losses(sock, name := f"{self.index}-{key}")
            self._losses.hear(name)
            machine.workers[key].linked = True
        if local and not self._watch.add(key, who.pid, may_kill=pid == who.pid):
            machine.workers[key].local = False  # heartbeats must do
        self._reply(peer, machine.welcome(key, told, same_host=local, memory=memory))

    def _make_lane(self, key: int, pid: int | None) -> tuple[transport.Socket, str]:
        """A lane, bound, and what the worker is told of it. StartError when there is none to be had."""
        endpoints = self._endpoints
        if not endpoints.is_tcp:
            way = transport.ways(endpoints)[0 if self.machine.workers[key].protocol >= NEAR_SINCE else -1]
            sock = transport.lane(self._context, way.lane(self.index, key), reader=pid)
            return sock, transport.bound(sock)
        offsets = endpoints.lane_offsets(self._lane_ports, self._last_lane)
        sock, self._last_lane = transport.lane_of(self._context, endpoints, offsets)
        return sock, str(self._last_lane)

    def _cannot_read(self, peer: bytes) -> None:
        if not any(lane.peer == peer for lane in self._lanes.values()):  # of another version, or nothing of ours at all
            self._reply(peer, UNREADABLE)

    def _log_refusal(self, who: Introduction, reason: str) -> None:
        log.error("worker refused", extra={"stage": who.stage, "worker": who.slot, "reason": reason})

    # --- actions out -------------------------------------------------------------------------------------------------

    def _carry_out(self, now: float) -> None:
        while actions := self.machine.take_actions():
            for action in actions:
                if type(action) is Dispatch:
                    self._dispatch(action, now)
                elif type(action) is Settle:
                    self._post(self.stages[action.stage], action, urgent=False)
                elif type(action) is ToWorker:
                    self._reply(self._lanes[action.worker].peer, action.message)
                elif type(action) is Fail or type(action) is News:
                    self._tell(action)
                elif type(action) is Foresee:
                    assert self.front is not None
                    self._post(self.front, action, urgent=False)
                elif type(action) is Kill:
                    self._kill(action, now)
                elif type(action) is Note:
                    log.log(logging.ERROR if action.is_error else logging.INFO, action.text, extra=action.facts)
                elif type(action) is Forget:
                    self._forget(action)
                elif type(action) is Release:
                    self._arenas.release(action.refs)

    def _dispatch(self, action: Dispatch, now: float) -> None:
        batch, payloads = action.batch, action.payloads
        if not are_bytes(payloads) and (refs := [ref for payload in payloads for ref in refs_of(payload)]):
            if self.machine.workers[action.worker].maps:
                batch = msgspec.structs.replace(batch, memory=self._arenas.places(refs))
            else:
                payloads = self._arenas.plain(payloads)
        lane = self._lanes[action.worker]
        try:
            frames = encode(batch, payloads)
        except ProtocolError as error:
            log.error("a batch cannot be sent", extra={"stage": self.machine.spec.name, "reason": str(error)})
            self.machine.unsent(action.worker, batch.batch, wording.TOO_MANY_PIECES, now)
            return
        lane.send(frames, now)
        if lane.pending or not transport.keeps_nothing(lane.sock):
            self._stuck.add(action.worker)
            self._watch_kept(lane)

    def _kill(self, action: Kill, now: float) -> None:
        worker = self.machine.workers.get(action.worker)
        if worker is None:
            return
        log.error(
            f"worker {action.why} is killed",
            extra={"stage": self.machine.spec.name, "worker": worker.slot, "pid": worker.pid},
        )
        if not self._watch.kill(action.worker):
            self.machine.exited(action.worker, now)  # on another host: its own watchdog ends it, here it is given up

    def _forget(self, action: Forget) -> None:
        self._watch.remove(action.worker)
        self._close_lane(action.worker)
        if action.families:
            self._retired.add(action.families, whose=f"{self.machine.spec.name}-{action.slot}")

    def _close_lane(self, key: int) -> None:
        lane = self._lanes.pop(key, None)
        self._stuck.discard(key)
        if lane is not None:
            if lane.kept is not None:
                self._poll.remove(lane.kept)
            transport.unbind(lane.sock)
            self._arenas.retire(lane.memory)

    def _reply(self, peer: bytes, message: Message | FrozenWords) -> None:
        self._control.send(encode(message), peer)  # False: it has gone, and its pidfd or silence tells

    def _tell(self, letter: ToFront) -> None:
        assert self.front is not None
        self._post(self.front, letter)
