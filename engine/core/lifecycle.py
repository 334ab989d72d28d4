"""The life of a deployment and of each of its processes. Pure, and all of it here: the tables first, then the machine.

Events go in through one funnel, :meth:`Machine.handle`, with ``now``; a list of actions comes out, for the supervisor
to carry out in order. :attr:`Machine.wake_at` says when to call again (with :class:`Tick`) if nothing happens.

Order of start. The broker first: it alone binds, and whoever starts before it only waits. Then everything else at once;
the frontend does not wait for models to load, because ``/readyz`` tells the truth and answers early.

Order of stop, and why:
1. the frontends, for up to ``grace``: they stop accepting and finish what they have, for which they need everybody
else; 2. the workers and daemons, briefly: by now nobody waits for their results; 3. the broker last, so that the
workers' goodbyes reach somebody and are not waited for in vain. What remains at the end of a step is killed with its
process group. A deployment that fails while it starts serves nobody, so its steps 1 and 2 are one. And whoever was
never ready serves nobody either: it is stopped at once, whatever step it belongs to, and not waited for. (One that is
started again is: what was admitted may be waiting for it.) Where only a part of a deployment runs here, others send and
compute too, and the order is another (:func:`stop_order`).
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from engine.core.backoff import DEFAULT, Backoff, GiveUp, History, became_ready, died, has_lasted, hastened
from engine.core.liveness import frontend_stop_s
from engine.core.processes import (
    Action,
    Begin,
    Child,
    Died,
    Event,
    Failed,
    Hung,
    Kill,
    Kind,
    Level,
    Loading,
    Ready,
    Replace,
    Replaced,
    Resize,
    Say,
    Serving,
    Spawn,
    StopAsked,
    Stopping,
    Terminate,
    Tick,
    Waiting,
    Warming,
    Worn,
)
from engine.core.replacing import Replacing, Task
from engine.core.rolling import Do, Standing, Step

WORKERS_STOP_S: Final = 5.0  # most for workers once the frontends have gone: one batch, and the user's teardown
BROKER_STOP_S: Final = 1.0  # it has nothing left to do but close its sockets
UNREADY_STOP_S: Final = 0.8  # for a process that was never ready: it has nothing to finish, and may be deep in C code
REPORTED_FAILURE_S: Final = 5.0  # from a child's own "failed" to its exit; past it, it is killed
MARGIN_S: Final = 0.5  # frontends and workers bound themselves by the grace; they get to keep that promise first
STARTS_LEAST: Final = 16  # processes that may start at once, on the smallest machine
ABANDON_S: Final = 2.0  # after SIGKILL; a process that the kernel cannot end (stuck in a driver) is not waited for


class ChildState(Enum):
    WAITING = "waiting"  # for its turn in the order of start
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing off"
    STOPPING = "stopping"
    GONE = "gone"


class Turn(Enum):
    """What moves a child from state to state."""

    SPAWN = "spawn"
    READY = "ready"
    RETRY = "retry"  # it died and is wanted again
    END = "end"  # it died and is not
    STOP = "stop"


class Phase(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Cause(Enum):
    """What moves the deployment from phase to phase."""

    ALL_READY = "all ready"
    ASKED = "asked"
    FAILED = "failed"
    DRAINED = "drained"
    AT_ONCE = "at once"
    ALL_GONE = "all gone"


CHILD_TABLE: Final = {
    (ChildState.WAITING, Turn.SPAWN): ChildState.STARTING,
    (ChildState.WAITING, Turn.STOP): ChildState.GONE,
    (ChildState.WAITING, Turn.END): ChildState.GONE,
    (ChildState.STARTING, Turn.READY): ChildState.READY,
    (ChildState.STARTING, Turn.RETRY): ChildState.BACKING_OFF,
    (ChildState.STARTING, Turn.END): ChildState.GONE,
    (ChildState.STARTING, Turn.STOP): ChildState.STOPPING,
    (ChildState.READY, Turn.READY): ChildState.READY,  # a child may repeat itself
    (ChildState.READY, Turn.RETRY): ChildState.BACKING_OFF,
    (ChildState.READY, Turn.END): ChildState.GONE,
    (ChildState.READY, Turn.STOP): ChildState.STOPPING,
    (ChildState.BACKING_OFF, Turn.SPAWN): ChildState.STARTING,
    (ChildState.BACKING_OFF, Turn.STOP): ChildState.GONE,
    (ChildState.STOPPING, Turn.READY): ChildState.STOPPING,  # too late
    (ChildState.STOPPING, Turn.STOP): ChildState.STOPPING,
    (ChildState.STOPPING, Turn.END): ChildState.GONE,
    (ChildState.GONE, Turn.STOP): ChildState.GONE,
}

PHASE_TABLE: Final = {
    (Phase.STARTING, Cause.ALL_READY): Phase.SERVING,
    (Phase.STARTING, Cause.ASKED): Phase.DRAINING,
    (Phase.STARTING, Cause.FAILED): Phase.STOPPING,
    (Phase.SERVING, Cause.ASKED): Phase.DRAINING,
    (Phase.SERVING, Cause.FAILED): Phase.DRAINING,
    (Phase.DRAINING, Cause.DRAINED): Phase.STOPPING,
    (Phase.DRAINING, Cause.AT_ONCE): Phase.STOPPING,
    (Phase.STOPPING, Cause.AT_ONCE): Phase.STOPPING,
    (Phase.STOPPING, Cause.ALL_GONE): Phase.STOPPED,
}

START_ORDER: Final = (
    frozenset({Kind.BROKER}),
    frozenset({Kind.DAEMON, Kind.WORKER, Kind.FRONTEND}),
)

STANDINGS: Final = {
    ChildState.WAITING: Standing.COMING,
    ChildState.STARTING: Standing.COMING,
    ChildState.READY: Standing.READY,
    ChildState.BACKING_OFF: Standing.COMING,
    ChildState.STOPPING: Standing.GOING,
    ChildState.GONE: Standing.ABSENT,
}

# Without these nobody is served at all, so there is an end to restarting them (see engine.core.backoff).
ESSENTIAL: Final = frozenset({Kind.BROKER, Kind.FRONTEND})

# Exit codes of a process that somebody ended: an operator, whoever watches for hangs.
FROM_OUTSIDE: Final = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})

# One that is stopping while others serve has been replaced, or there shall be fewer.
UNWELL: Final = frozenset({ChildState.WAITING, ChildState.STARTING, ChildState.BACKING_OFF})

RUNNING: Final = frozenset({ChildState.STARTING, ChildState.READY})
ALIVE: Final = frozenset({ChildState.STARTING, ChildState.READY, ChildState.STOPPING})


class Outcome(Enum):
    """How a deployment ended; the supervisor gives each its exit code."""

    STOPPED = "stopped"
    FAILED = "failed"
    NOT_STARTED = "not started"


@dataclass(frozen=True)
class StopStep:
    """One step of the order of stop: TERM to all of ``kinds``; after ``bound_s``, KILL to those that are left."""

    kinds: frozenset[Kind]
    bound_s: float


def stop_order(
    kinds: Iterable[Kind], grace_s: float, *, delay_s: float = 0.0, failed_start: bool = False
) -> tuple[StopStep, ...]:
    """The steps in which ``kinds`` of a deployment's processes stop. ``delay_s``: for so long a frontend turns requests
    away before its grace begins."""
    kinds = frozenset(kinds)
    short = min(grace_s, WORKERS_STOP_S)
    front, back = frozenset({Kind.FRONTEND}), frozenset({Kind.WORKER, Kind.DAEMON})
    broker = StopStep(frozenset({Kind.BROKER}), BROKER_STOP_S)
    if failed_start:
        return StopStep(front | back, short), broker
    frontends = StopStep(front, frontend_stop_s(delay_s, grace_s) + MARGIN_S)
    steps = [frontends, StopStep(back, short), broker]
    if Kind.BROKER not in kinds:
        # Requests go on arriving through somebody else's broker, so the workers need the grace.
        steps = [frontends, StopStep(back, grace_s + MARGIN_S)]
    elif not kinds >= {Kind.FRONTEND, Kind.WORKER}:
        # A broker whose frontends, or workers, are others': it turns new requests away and finishes, for as long as
        # the grace allows, what it has of those frontends, for which it needs the workers.
        steps = [frontends, StopStep(broker.kinds, grace_s + MARGIN_S + BROKER_STOP_S), StopStep(back, short)]
    return tuple(step for step in steps if step.kinds & kinds)


# --- the machine -----------------------------------------------------------------------------------------------------


@dataclass
class _Record:
    state: ChildState = ChildState.WAITING
    history: History = field(default_factory=History)
    since: float = 0.0  # when it was last spawned
    took_s: float = 0.0  # to be ready then, or to fail
    died_at: float = 0.0
    deadline: float | None = None  # of its start, of its next start, or of its stop before it was ready
    killed_at: float | None = None
    reason: str = ""  # why it failed, if it said so
    trace: str = ""
    is_extra: bool = False  # it comes beside who serves already, and has not been ready or failed yet


class Machine:
    """Holds the state; never blocks, looks at a clock, or touches a process. One thread may use it."""

    def __init__(
        self,
        children: Sequence[Child],
        *,
        grace_s: float,
        delay_s: float = 0.0,
        policy: Backoff = DEFAULT,
        starts_most: int = STARTS_LEAST,
    ) -> None:
        """``starts_most``: how many start at once. Hundreds that load together would all take longer than they may."""
        self.phase = Phase.STARTING
        self.outcome = Outcome.STOPPED
        self.reason = ""  # of a failure, one line
        self.failed_code: int | None = None  # exit code of the process of ours whose failure ended the start
        self._told: dict[str, str] = {}  # the last traceback shown of each stage: its workers mostly fail alike
        self._records = {child: _Record() for child in children}
        self._grace_s = grace_s
        self._delay_s = delay_s
        self._policy = policy
        self._starts_most = starts_most
        self._began = 0.0
        self._steps: tuple[StopStep, ...] = ()
        self._step_ends = 0.0
        self._actions: list[Action] = []
        self._replacing = Replacing()
        self._asked: set[str] = set()  # stages that requests have waited for

    @property
    def workers(self) -> list[Child]:
        """Those that are there, or shall come back."""
        return [child for child, record in self._records.items() if _stays(child, record)]

    @property
    def children(self) -> Collection[Child]:
        """All that are remembered: who runs, who waits for a start, who is told to stop."""
        return self._records.keys()

    @property
    def unwell(self) -> str:
        """What is not as it shall be, in words; empty: everybody who runs here is ready. But for those that are just
        loading, for more demand or in the place of one that serves until then: nothing is missing without them."""
        if self.phase is not Phase.SERVING:
            return f"it is {self.phase.value}"
        records = self._records.items()
        out = [child.name for child, record in records if record.state in UNWELL and not record.is_extra]
        return f"not ready: {', '.join(out)}" if out else ""

    def state(self, child: Child) -> ChildState:
        return self._records[child].state

    def handle(self, event: Event, now: float) -> list[Action]:
        """All events go through here."""
        self._actions = []
        if getattr(event, "child", None) not in (None, *self._records):
            return []  # the last word of one that was left behind, and is remembered no more
        match event:
            case Begin():
                self._began = now
                self._spawn_next(now)
            case Loading(child):
                self._say(f"{child.name} loading", child=child)
            case Warming(child, done, of):
                self._say(f"{child.name} warming up {done}/{of}", child=child)
            case Ready(child):
                self._handle_ready(child, now)
            case Failed(child, reason, trace):
                record = self._records[child]
                record.reason, record.trace = " ".join(reason.split()), trace
                if record.state is ChildState.STARTING:
                    record.deadline = min(record.deadline or now, now + REPORTED_FAILURE_S)
            case Died(child):
                self._handle_died(event, now)
            case Hung(child, how):
                self._handle_hung(child, how, now)
            case Waiting(left_s):
                self._handle_waiting(left_s, now)
            case StopAsked(number):
                self._handle_stop(number, now)
            case Replace():
                self._handle_replace(event)
            case Resize():
                self._handle_resize(event, now)
            case Worn(child, reason):
                if child in self._records:
                    self._replacing.wear(child, reason)
            case Tick():
                pass
        self._handle_time(now)
        self._roll(now)
        if self.phase is Phase.SERVING and any(one.state is ChildState.WAITING for one in self._records.values()):
            self._spawn_next(now)  # of those that a Resize has added
        return self._actions

    @property
    def wake_at(self) -> float | None:
        """When the next deadline passes; None: there is none."""
        times = [
            record.killed_at + ABANDON_S if record.killed_at is not None else record.deadline
            for record in self._records.values()
        ]
        if self._steps:
            times.append(self._step_ends)
        return min((at for at in times if at is not None), default=None)

    # --- events of children

    def _handle_ready(self, child: Child, now: float) -> None:
        record = self._records[child]
        if record.state not in ALIVE:  # the last word of a process that was left behind
            return
        if record.state is ChildState.STARTING:
            record.history = became_ready(record.history, now)
            record.deadline = None
            record.reason = ""
            record.is_extra = False
            record.took_s = now - record.since
            self._say(f"{child.name} ready in {record.took_s:.1f} s", child=child)
        self._turn(child, Turn.READY)
        if self.phase is not Phase.STARTING:
            return
        self._spawn_next(now)
        if all(other.state is ChildState.READY for other in self._records.values()):
            self._move(Cause.ALL_READY)
            self._actions.append(Serving(now - self._began))

    def _handle_died(self, event: Died, now: float) -> None:
        child, record = event.child, self._records[event.child]
        how, trace = event.reason or record.reason or describe_exit(event.code), record.trace
        failed_too = bool(record.reason) and self.outcome is Outcome.NOT_STARTED and how not in self.reason
        record.deadline = record.killed_at = None
        record.reason = record.trace = ""
        record.is_extra = False
        if self._replacing.is_on_trial(child) and record.state is not ChildState.STOPPING:
            started = record.state is ChildState.READY
            self._turn(child, Turn.END)
            self._abandon(f"{child.name} {'died' if started else 'could not start'}: {how}", child, now, trace)
        elif failed_too:  # a mistake of its own, beside the one that ended the start
            self._turn(child, Turn.END)
            self._say(f"{child.name} could not start either: {how}", Level.ERROR, child, trace)
        elif record.state is ChildState.STOPPING:
            self._turn(child, Turn.END)
            self._say(f"{child.name} stopped ({describe_exit(event.code)})", Level.DEBUG, child)
        elif self.phase is Phase.STOPPING:  # it was still waiting to be asked
            self._turn(child, Turn.END)
            self._say(f"{child.name} died ({how}) while stopping", Level.WARNING, child)
        elif child.kind is Kind.DAEMON:
            self._turn(child, Turn.END)
            self._fail(child, f"{child.name} ended ({how})", None, now)
        else:
            self._retry(event, how, now, trace)

    def _handle_hung(self, child: Child, how: str, now: float) -> None:
        """One that was never ready is left to the time limit of its start: it would be given up."""
        record = self._records[child]
        if record.killed_at is None and record.history.ever_ready and record.state in RUNNING:
            record.reason = record.reason or how
            self._say(f"{child.name} {how}; killing it", Level.ERROR, child)
            self._kill(child, now)

    def _retry(self, event: Died, how: str, now: float, trace: str) -> None:
        child, code, record = event.child, event.code, self._records[event.child]
        if record.state is ChildState.STARTING:
            record.took_s = now - record.since
        record.died_at = now
        from_outside = code in FROM_OUTSIDE and not event.reason  # for want of memory: its own, as likely as not
        siblings = [self._records[other].history for other in self._records if other.role == child.role]
        record.history, decision = died(
            record.history,
            now,
            cause="" if from_outside else how,
            essential=child.kind in ESSENTIAL,
            # Where somebody asks it may be the requests that kill, and these must not end a deployment.
            proven=child.stage in self._asked or any(has_lasted(history, now, self._policy) for history in siblings),
            policy=self._policy,
        )
        if isinstance(decision, GiveUp):
            self._turn(child, Turn.END)
            # Of a worker's code nothing is concluded: it may be whatever user code ended the process with.
            code = code if child.kind in ESSENTIAL else None
            self._fail(child, f"{child.name} {decision.reason}: {how}", code, now, trace, started=decision.started)
            return
        self._turn(child, Turn.RETRY)
        record.deadline = decision.at
        what, level = ("failed to start again", Level.ERROR) if decision.failing else ("died", Level.WARNING)
        when = f"in {decision.at - now:.1f} s" if decision.at > now else "at once"
        self._say(f"{child.name} {what} ({how}); starting it {when}", level, child, trace)

    def _handle_waiting(self, left_s: Mapping[str, float], now: float) -> None:
        self._asked |= left_s.keys()
        for child, record in self._records.items():
            if record.state is not ChildState.BACKING_OFF or child.stage not in left_s or record.deadline is None:
                continue
            early = hastened(
                record.deadline,
                now,
                died_at=record.died_at,
                took_s=record.took_s,
                left_s=left_s[child.stage],
                policy=self._policy,
            )
            if early < record.deadline:
                record.deadline = early
                self._say(f"{child.name} is started in {early - now:.1f} s: requests wait for it", Level.DEBUG, child)

    # --- events of the deployment

    def _handle_stop(self, number: int, now: float) -> None:
        name = signal.Signals(number).name
        if self.phase in (Phase.STARTING, Phase.SERVING):
            self._say(f"{name}: draining, then stopping, for up to {self._delay_s + self._grace_s:g} s")
            self._move(Cause.ASKED)
            self._stop(stop_order(self._kinds(), self._grace_s, delay_s=self._delay_s), now)
        elif number == signal.SIGINT and self.phase is not Phase.STOPPED:
            self._say("interrupted again: stopping at once", Level.WARNING)
            if self.outcome is Outcome.STOPPED:
                self.outcome, self.reason = Outcome.FAILED, "interrupted while draining"
            self._move(Cause.AT_ONCE)
            self._stop((StopStep(frozenset(Kind), 0.0),), now)

    def _fail(
        self, child: Child, reason: str, code: int | None, now: float, trace: str = "", *, started: bool = True
    ) -> None:
        """``started`` false: what failed had never been of use, however far the others have come."""
        if self.phase not in (Phase.STARTING, Phase.SERVING):
            self._say(reason, Level.WARNING)  # on the way out already; the first cause stands
            return
        starting = self.phase is Phase.STARTING
        self.outcome = Outcome.NOT_STARTED if starting or not started else Outcome.FAILED
        self.reason, self.failed_code = reason, code
        self._say(reason, Level.ERROR, child, trace)
        self._move(Cause.FAILED)
        self._stop(stop_order(self._kinds(), self._grace_s, delay_s=self._delay_s, failed_start=starting), now)

    def _handle_time(self, now: float) -> None:
        for child, record in list(self._records.items()):
            if record.killed_at is not None:
                if now >= record.killed_at + ABANDON_S:
                    self._say(f"{child.name} outlives SIGKILL; leaving it behind", Level.ERROR, child)
                    self._handle_died(Died(child, None, "it cannot be killed"), now)
            elif record.deadline is not None and now >= record.deadline:
                if record.state is ChildState.BACKING_OFF:
                    self._spawn(child, now)
                elif record.state is ChildState.STARTING:
                    record.deadline = None
                    record.reason = record.reason or f"was not ready within {child.start_s:g} s"
                    self._kill(child, now)
                elif record.state is ChildState.STOPPING:
                    record.deadline = None
                    self._kill(child, now)
        self._advance(now)

    # --- replacing workers

    def _handle_replace(self, asked: Replace) -> None:
        if self.phase is not Phase.SERVING:
            self._actions.append(Replaced(f"not now: it is {self.phase.value}"))
        else:
            self._actions += self._replacing.ask(asked)

    def takes(self, *, fewer: bool) -> bool:
        """Whether a :class:`Resize` that takes workers away, or adds some alone, can be carried out now."""
        return self.phase is Phase.SERVING and self._replacing.takes(fewer=fewer)

    def _handle_resize(self, asked: Resize, now: float) -> None:
        if self.phase is not Phase.SERVING:
            return  # it was asked for before what has ended that was heard
        self._say(asked.what)
        wanted = {(child.stage, child.slot) for child in asked.workers}
        there = {(child.stage, child.slot) for child in self.workers}
        for child in self.workers:
            if (child.stage, child.slot) not in wanted:
                self._retire(child, now)
        for child in asked.workers:
            if (child.stage, child.slot) not in there:
                # It is of a version that has proved itself: one that fails is tried again like any other.
                self._records[child] = _Record(history=History(ever_ready=True), is_extra=True)

    def _roll(self, now: float) -> None:
        if self.phase is not Phase.SERVING:
            self._actions += self._replacing.stop()
            return
        while tasks := self._replacing.next(self.workers, self._standing):
            self._carry_out(tasks, now)
        for child in [child for child, record in self._records.items() if record.state is ChildState.GONE]:
            del self._records[child]  # it was retired

    def _carry_out(self, tasks: Iterable[Task], now: float) -> None:
        for task in tasks:
            if not isinstance(task, Step):
                self._actions.append(task)
            elif task.do is Do.START:
                # Once its version has proved itself, one that fails all the same is tried again like any other.
                history = History(ever_ready=self._replacing.is_proven)
                self._records[task.worker] = _Record(history=history, is_extra=True)
                self._spawn(task.worker, now)
            else:
                self._retire(task.worker, now)

    def _retire(self, child: Child, now: float) -> None:
        record = self._records[child]
        alive = record.state in RUNNING
        self._turn(child, Turn.STOP)
        record.deadline = now + self._grace_s + MARGIN_S if alive else None
        if alive:
            self._actions.append(Terminate(child))

    def _abandon(self, reason: str, child: Child, now: float, trace: str) -> None:
        """A new worker could not start before there was a commit: what there was goes on."""
        self._say(f"{reason}; the former workers go on", Level.ERROR, child, trace)
        self._carry_out(self._replacing.give_up(reason, self._standing), now)

    def _standing(self, child: Child) -> Standing:
        record = self._records.get(child)
        return Standing.ABSENT if record is None else STANDINGS[record.state]

    # --- stopping

    def _stop(self, steps: tuple[StopStep, ...], now: float) -> None:
        self._steps = steps
        self._actions.append(Stopping(sum(step.bound_s + ABANDON_S for step in steps)))
        for child, record in self._records.items():
            if record.state is ChildState.STARTING and not record.history.ever_ready:
                self._turn(child, Turn.STOP)
                record.deadline = now + UNREADY_STOP_S
                self._actions.append(Terminate(child))
        self._enter_step(now)

    def _enter_step(self, now: float) -> None:
        step = self._steps[0]
        self._step_ends = now + step.bound_s
        for child in self._of(step):
            record = self._records[child]
            if record.state is ChildState.STOPPING:
                continue  # it was never ready, and has been told
            alive = record.state in RUNNING
            record.deadline = None
            self._turn(child, Turn.STOP)
            if alive:
                self._actions.append(Terminate(child))

    def _advance(self, now: float) -> None:
        """Enter the next step of the order of stop as soon as everybody of this one has gone."""
        while self._steps:
            left = [c for c in self._of(self._steps[0]) if self._records[c].state is not ChildState.GONE]
            if left:
                if now >= self._step_ends:
                    for child in left:
                        self._kill(child, now)
                    self._step_ends = now + ABANDON_S
                return
            self._steps = self._steps[1:]
            if self.phase is Phase.DRAINING:
                self._move(Cause.DRAINED)
            if self._steps:
                self._enter_step(now)
            else:
                self._move(Cause.ALL_GONE)

    def _kill(self, child: Child, now: float) -> None:
        record = self._records[child]
        if record.killed_at is None:
            record.killed_at = now
            at_once = bool(self._steps) and self._steps[0].bound_s <= 0
            if record.state is ChildState.STOPPING and not at_once:
                self._say(f"{child.name} has not stopped in time; killing it", Level.WARNING, child)
            self._actions.append(Kill(child))

    # --- helpers

    def _spawn_next(self, now: float) -> None:
        """Spawn the waiting children whose turn it is: all of the kinds that start before them are ready. Workers come
        last of theirs, for of them there may be many."""
        room = self._starts_most - sum(record.state is ChildState.STARTING for record in self._records.values())
        for wave in START_ORDER:
            members = [child for child in self._records if child.kind in wave]
            waiting = [child for child in members if self._records[child].state is ChildState.WAITING]
            for child in sorted(waiting, key=_is_worker)[: max(0, room)]:
                self._spawn(child, now)
                room -= 1
            if not all(self._records[child].state is ChildState.READY for child in members):
                return

    def _spawn(self, child: Child, now: float) -> None:
        record = self._records[child]
        record.since = now
        record.deadline = now + child.start_s
        self._turn(child, Turn.SPAWN)
        self._actions.append(Spawn(child))

    def _turn(self, child: Child, turn: Turn) -> None:
        record = self._records[child]
        record.state = CHILD_TABLE[record.state, turn]

    def _move(self, cause: Cause) -> None:
        self.phase = PHASE_TABLE[self.phase, cause]

    def _say(self, text: str, level: Level = Level.INFO, child: Child | None = None, trace: str = "") -> None:
        if trace:
            stage = child.stage if child is not None else ""
            trace, self._told[stage] = ("" if self._told.get(stage) == trace else trace), trace
        self._actions.append(Say(text, level, child, trace))

    def _kinds(self) -> set[Kind]:
        return {child.kind for child in self._records}

    def _of(self, step: StopStep) -> list[Child]:
        return [child for child in self._records if child.kind in step.kinds]


def _is_worker(child: Child) -> bool:
    return child.kind is Kind.WORKER


def _stays(child: Child, record: _Record) -> bool:
    return child.kind is Kind.WORKER and record.state not in (ChildState.STOPPING, ChildState.GONE)


def describe_exit(code: int | None) -> str:
    """An exit code as subprocess gives it, in words."""
    if code is None:
        return "could not be run"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
