"""One stage as a state machine: its queue, its workers and their credits, what is in flight, and every rule about them.

Events come in as method calls with ``now``; what must happen comes out of :meth:`StageMachine.take_actions`, which the
broker's part for the stage asks, to carry it out. Rules held here:

* a batch is bound to a worker at the last moment: to an idle one, or in advance to one that computes, if the batch
  could not grow any more (:mod:`engine.core.batching`, :mod:`engine.core.crew`);
* an item stays in flight until its result has arrived at the next stage or the front; what becomes of it when its
  worker is late, dies or fails is told in :mod:`engine.core.fate`, how it ends without a result in
  :mod:`engine.core.ends`, and who of those that wait can still be served in time in :mod:`engine.core.foresight`;
* ``timeout`` seconds into a batch its worker is late, and killed ``kill_after`` seconds later;
* what an item has in shared memory is released when nobody can read it again: not while a worker that lives has been
  given it, whatever became of the request meanwhile.

The states of a worker, and which event moves it where, are a table in :mod:`engine.core.worker_states`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Final

from engine.core import wording
from engine.core.actions import Dispatch, Foresee, Forget, Grant, Hasten, Kill, News, Settle, StageAction, ToWorker
from engine.core.batching import AHEAD_S, BUSY, IDLE, REPLAY, Policy, Reason, decide
from engine.core.costqueue import CostQueue, padded_units, queue_for, requeued
from engine.core.costs import UNITS_MOST
from engine.core.crew import Crew
from engine.core.deaths import Death
from engine.core.demand import Demand
from engine.core.ends import FULL, Ends
from engine.core.fate import Fate
from engine.core.foresight import Foresight
from engine.core.introduction import BUNDLES_SINCE, Introduction, Refusal, Stranger, agreed, refuse_worker
from engine.core.items import Item
from engine.core.lineup import ALL
from engine.core.liveness import ABSENT_S, LIMIT_S, SETTLE_S, WORKER_SILENCE_S, Looks
from engine.core.member import Member, far_s
from engine.core.messages import (
    Batch,
    CancelItems,
    Dismiss,
    Flow,
    Granted,
    Message,
    Place,
    Pulse,
    Ready,
    Results,
    StageState,
    Status,
    Welcome,
    WorkerBeat,
)
from engine.core.reasons import CODES, TIME
from engine.core.released import Released
from engine.core.routing import Topology
from engine.core.stats import StageStats, duration_buckets
from engine.core.trace import KEPT, LOOK_EVERY, Releases
from engine.core.window import Counts, Window
from engine.core.wire import MICROS, Payload, payload_sizes, refs_of
from engine.core.worker_states import DYING, LEAVING, OVERDUE, READY, SERVING, TABLE, WorkerEvent, WorkerState

WHOLE: Final = int(Flow.WHOLE)  # comparing with a member of an enumeration costs a call
OK: Final = int(Status.OK)

KEY_SHIFT: Final = 20  # bits of a worker's key below the epoch

CALM: Final = frozenset({WorkerState.STARTING, WorkerState.READY})

LATE_MOST: Final = 8  # batches of a worker that seemed to be lost, whose results count yet if they come
PATIENCE_MOST_S: Final = 60.0  # with a batch whose results may be on their way

DELAY_SMOOTHING: Final = 0.1  # weight of the newest batch in the running mean of how long items wait


@dataclass(frozen=True)
class StageSpec:
    """What the machine needs to know of a stage's configuration. Seconds and bytes."""

    name: str
    num: int
    policy: Policy
    timeout_s: float
    kill_after_s: float
    max_queue_bytes: int
    idempotent: bool = True
    max_attempts: int = 3
    spare: int = 0
    may_be_empty: bool = False  # it takes requests while it has no worker
    bounds: tuple[int, int] | None = None  # between which its workers are scaled; for whoever asks
    given_s: float = 0.0  # how much time its requests are given, by their goals


class StageMachine:
    """See the module. Not thread-safe: one thread calls it, and alone reads what it holds."""

    def __init__(
        self,
        index: int,
        spec: StageSpec,
        topology: Topology,
        epoch: int,
        *,
        deployment: str = "",
        absent_at: float = 0.0,
        draw: Callable[[], int] | None = None,
    ) -> None:
        """``draw``: the keys of workers, below LANE_KEYS. To know a worker's key is to be that worker, for whoever
        delivers results; so a broker draws them at random. Without it they are numbered."""
        self.index = index
        self.deployment = deployment
        self.spec = spec
        self.topology = topology
        self.epoch = epoch
        self.crews: Sequence[Crew] = ()  # of all stages, set before the first result: who holds what
        self._hops = topology.hops(index)  # of this one on each route
        # Of each stage: its hop on each route on which it may send something here.
        self._hops_before = [topology.hops(stage, index) for stage in range(len(topology.stages))]
        self.queue = queue_for(spec.policy)
        # A batch in advance could be replayed while it is computed: not where that is forbidden.
        self.crew = Crew(in_advance=spec.idempotent)
        self.workers = self.crew.workers
        self.stats = StageStats(durations=duration_buckets(spec.timeout_s))
        self.demand = Demand()
        self.demand_workers = 0.0  # how many would be needed; any thread may look
        self.trace = Releases()
        self.window = Window()  # of :meth:`counts`
        self.actions: list[StageAction] = []  # always this list
        self._ends = Ends(index, self.stats, self.actions)
        self.foresight = Foresight(index, topology, self.queue, self.crew, self.stats)
        self.fate = Fate(spec, self.queue, self.crew, self.foresight, self.stats, self.actions, self._ends)
        self.draining = False
        self.about = b""  # what the newest worker said of the stage; it outlives the worker
        self.mime = "application/json"  # as its newest worker says, or said
        self.flow = int(Flow.UNKNOWN)  # likewise
        self._overdue: dict[int, float] = {}  # worker -> when it is killed
        self._dying: dict[int, float] = {}  # worker -> until when its last results are waited for
        self._limits = (self._overdue, self._dying, *self.fate.limits)
        self._draw = draw or count((epoch << KEY_SHIFT) + 1).__next__  # a former broker's key means nobody here
        self._newest = 0  # key of the worker that came last
        self._batches = 0
        self._looks = Looks()
        self._absent_at = absent_at  # from when on the stage has nobody; inf while it has
        self._told: tuple[object, ...] = ()
        self._was_full = False
        self._is_calm = True  # all workers are starting or ready
        if spec.may_be_empty:  # the door would not hear of it before there is a worker
            self._tell(0.0)

    def take_actions(self) -> list[StageAction]:
        """What is to be carried out, in order; it is given out once."""
        actions = self.actions.copy()
        self.actions.clear()
        return actions

    def change(self, spec: StageSpec, now: float) -> None:
        """Serve by other numbers from now on; what is under way is not touched. The name stays."""
        self.spec = spec
        self.queue = self.fate.queue = requeued(self.queue, spec.policy)
        self.crew.change(in_advance=spec.idempotent)
        self.foresight.change(self.queue)
        self.fate.spec = spec
        self.crew.hold_back(spec.num, spec.spare)
        self._tell(now)

    # --- items in ----------------------------------------------------------------------------------------------------

    def enqueue(self, items: Sequence[Item], now: float) -> None:
        """Newly admitted items (first stage of their route)."""
        self.foresight.taken += len(items)
        if self.foresight.is_long:
            self.foresight.returns.come(len(items), now)
        self._push(items)

    def accept(self, results: Results, payloads: Sequence[Payload], now: float) -> None:
        """Results of the previous stage: those of items that its worker holds are settled, and taken if somebody waits
        for them; all others are duplicates, late, or made up."""
        held = self.crews[results.stage].held(results.worker, results.batch)
        before, hops = self._hops_before[results.stage], self._hops
        taken: list[Item] = []
        for uid, status, trail, payload, size in zip(
            results.uids, results.statuses, results.trails, payloads, payload_sizes(payloads), strict=True
        ):
            item = held.get(uid)
            if (
                item is None
                or (request := item.request).closed
                or status != OK
                or (former := before.get(request.route, -1)) != request.hop
            ):
                self.stats.dropped += 1
                self._ends.release(refs_of(payload))
                continue
            hop, claims = hops[request.route], request.claims
            if claims is not None and claims.setdefault(former, hop) != hop:  # another stage has, on its own thread
                self.stats.dropped += 1
                self._ends.release(refs_of(payload))
                continue
            request.hop = hop
            taken.append(Item(request, payload, size, now, 1, trail, hop))
        if self.foresight.is_long:
            self.foresight.returns.come(len(taken), now)
        self._push(taken)
        if held:
            self.actions.append(
                Settle(
                    results.stage,
                    results.worker,
                    results.batch,
                    results.uids,
                    now,
                    results.compute_us,
                    self.index,
                    self.foresight.after_s,
                    costs=results.costs,
                )
            )

    def _push(self, items: Sequence[Item]) -> None:
        nbytes = shared = 0
        for item in items:
            nbytes += item.size
            if type(item.payload) is not bytes:
                shared += _shared_bytes(item.payload)
        stats = self.stats
        stats.shared_in += shared
        stats.bytes_in += nbytes - shared
        if self.queue.nbytes + nbytes > self.spec.max_queue_bytes:
            items = self._fitting(items)
        stats.arrived += len(items)
        self.queue.push(*items)

    def _fitting(self, items: Sequence[Item]) -> list[Item]:
        """Those for which there is room: one has it where nothing waits, however large it is. Others are answered."""
        taken: list[Item] = []
        nbytes = self.queue.nbytes
        for item in items:
            if 0 < nbytes > self.spec.max_queue_bytes - item.size:
                text = wording.full_in_bytes(self.spec.name, nbytes)
                self._ends.fail([item], Status.OVERLOADED, text, why=FULL)
            else:
                nbytes += item.size
                taken.append(item)
        return taken

    def cancel(self, uids: Sequence[int], now: float) -> None:
        """Nobody waits for these any more: out of the queue, and a word to the workers that compute them."""
        elsewhere = set()
        for uid in uids:
            item = self.queue.discard(uid) or self.fate.apart.discard(uid)
            if item is None:
                elsewhere.add(uid)
            else:
                self.stats.dropped += 1
                self._ends.let_go([item])
        if not elsewhere:
            return
        for worker in self.workers.values():
            held = [uid for batch in worker.batches.values() for uid in batch.items if uid in elsewhere]
            if held:
                self.actions.append(ToWorker(worker.key, CancelItems(held)))

    def grant(self, grant: Grant) -> None:
        """The client of a stream has taken some of it: the worker that sends it may go on."""
        if grant.worker in self.workers:
            self.actions.append(ToWorker(grant.worker, Granted({grant.uid: grant.nbytes})))

    def hasten(self, hasten: Hasten) -> None:
        """These come before others from now on, where they wait."""
        for uid, rank in hasten.ranks.items():
            self.queue.hasten(uid, rank)

    # --- workers -----------------------------------------------------------------------------------------------------

    def introduce(self, who: Introduction, *, local: bool, now: float) -> int | Refusal | Stranger:
        """A process says who it is. Its key, or why it cannot join, or where it belongs. One that says so again - the
        same by its ``instance``, for pids and slots repeat from host to host - replaces its former self."""
        refusal = refuse_worker(who, self.topology, self.deployment, self.topology.stages[self.index])
        if refusal is not None:
            return refusal
        for old in list(self.workers.values()):
            if old.instance == who.instance:
                self._turn(old, WorkerEvent.AGAIN)
                self._forget(old, now, Death.CUT)
        key = self._newest = self._draw()
        self.workers[key] = Member(key, who.slot, who.pid, who.instance, local, now, who.host, protocol=agreed(who))
        self.fate.follows(self.workers[key], now)
        self._tell(now)
        return key

    def welcome(self, key: int, lane: str, *, same_host: bool, memory: Place | None) -> Welcome:
        """What an introduced worker is told: its key, its lane, and the numbers by which stages and routes travel."""
        routes = [(route.path, list(route.stages)) for route in self.topology.routes]
        return Welcome(
            protocol=self.workers[key].protocol,
            epoch=self.epoch,
            worker=key,
            lane=lane,
            same_host=same_host,
            memory=memory,
            stage=self.index,
            stages=list(self.topology.stages),
            routes=routes,
            after=self.topology.told_after(),
            splits=self.topology.told_splits(),
            cached=self.topology.told_cached(),
        )

    def ready(self, ready: Ready, now: float) -> None:
        """The worker's warm-up is done. Said again, or after it wanted to leave, it changes nothing."""
        worker = self.workers.get(ready.worker)
        if worker is None:
            return
        worker.heard = now
        worker.may_rest = ready.may_rest
        if not self._turn(worker, WorkerEvent.READY):
            return
        worker.maps = ready.maps and worker.local
        worker.warmup_ms = ready.warmup_ms
        self._hear_times(ready)
        self.mime = ready.mime
        self.flow = worker.flow = ready.flow
        self.about = ready.about or self.about
        worker.lane = self.stats.lane(worker.slot)
        worker.node, worker.host_stats = self.stats.host(ready.node)
        worker.device, worker.most = ready.device, ready.most
        worker.served = True
        worker.ready_at = now
        worker.window.mark(now, worker.counts(now))
        self.stats.starts += 1
        self.crew.sort_in(worker, now, begins=False)
        self._tell(now)

    def _hear_times(self, ready: Ready) -> None:
        """What it has timed while it warmed up."""
        times_us: Mapping[int, int] = ready.times_us
        if isinstance(self.queue, CostQueue):
            times_us = self.queue.hear_examples(ready)
        if times_us:
            self.foresight.seed(times_us)

    def beat(self, beat: WorkerBeat, now: float) -> Message:
        """The answer to a heartbeat: an unknown worker is asked to introduce itself again."""
        worker = self.workers.get(beat.worker)
        if worker is None:
            return Pulse(self.epoch, False)
        worker.heard = now
        worker.device_bytes = beat.device_bytes
        worker.resident_bytes, worker.cpu_us = beat.resident_bytes, beat.cpu_us
        worker.descriptors, worker.descriptors_most = beat.descriptors, beat.descriptors_most
        worker.began_s = beat.began_s
        if beat.round_trip_us and not worker.local:
            self.crew.hear_round_trip(worker, beat.round_trip_us / MICROS)
        if beat.newest:
            self._look_for_lost(worker, beat, now)
        if beat.families:
            worker.families = beat.families
        return Pulse(self.epoch, True, is_loading=worker.state is WorkerState.STARTING)

    def _look_for_lost(self, worker: Member, beat: WorkerBeat, now: float) -> None:
        """What was given to a worker before the newest that it has received, and what it does not hold by two of its
        beats, is lost, or its results are: it is given out again, each time with twice the patience. (In between they
        may be on their way, and count if they come after all. What it was given later may be so itself, and with a
        connection that is lost all of it is.)"""
        if not self.spec.idempotent:
            return  # results that are long on their way must not end as failures
        held = {*beat.held}
        missing = {
            number: worker.missing.get(number, now)
            for number in worker.batches
            if number <= beat.newest and number not in held
        }
        worker.missing = missing
        for number in [number for number, since in missing.items() if since <= now - worker.missing_for_s]:
            del missing[number]
            self._lose_batch(worker, number, now)

    def _lose_batch(self, worker: Member, number: int, now: float) -> None:
        was_first = next(iter(worker.batches)) == number
        self.crew.in_flight -= len(worker.batches[number].items)
        # First there, then away here: whoever delivers its results, on another thread perhaps, finds its items.
        worker.late[number] = dict(worker.batches[number].items)
        while len(worker.late) > LATE_MOST:
            worker.late.popitem(last=False)
        batch = worker.batches.pop(number)
        worker.bundled -= batch.calls - 1
        # Its results may be large, and the way narrow.
        worker.missing_for_s = min(2 * worker.missing_for_s, PATIENCE_MOST_S)
        self.stats.resent += 1
        self.fate.lost(worker, batch, now, was_first=was_first)
        if worker.state is OVERDUE and was_first:
            self._overdue.pop(worker.key, None)
            self._turn(worker, WorkerEvent.BACK)
        worker.free_at = now + self.foresight.left_s(worker)
        self.crew.sort_in(worker, now, begins=was_first)
        if worker.state is LEAVING:
            self._dismiss(worker)
        self._tell(now)

    def leave(self, key: int, now: float) -> None:
        """The worker wants to stop: nothing more is given to it."""
        worker = self.workers.get(key)
        if worker is None:
            return
        worker.heard = now
        if self._turn(worker, WorkerEvent.LEAVE):
            self.crew.rest(worker)
            self._dismiss(worker)
            self._tell(now)

    def exited(self, key: int, now: float, death: Death = Death.FORGOTTEN, how: str = "") -> None:
        """The worker's process has ended, it said bye, or it is given up. ``how``: in words, where it is known."""
        worker = self.workers.get(key)
        if worker is None:
            return
        owes = bool(worker.batches) and not self.spec.idempotent
        if not self._turn(worker, WorkerEvent.END_OWING if owes else WorkerEvent.END):
            return  # told twice: by its pidfd and by its goodbye, say
        self.crew.rest(worker)
        self._overdue.pop(key, None)
        if worker.state is DYING:
            self._dying[key] = now + SETTLE_S
            self._tell(now)
        else:
            self._forget(worker, now, death, how)

    def cut_off(self, key: int, now: float) -> None:
        """The connection to a worker on another host is lost. So are those to its neighbours that were not heard for
        longer than the limit, probably: a connection is noticed to be dead so long after it was used, and whoever got
        something late would wait so much longer. Not where a mistake would end requests."""
        worker = self.workers.get(key)
        if worker is None:
            return
        self.exited(key, now, Death.CUT)
        if self.spec.idempotent:
            for other in list(self.workers.values()):
                if other.host == worker.host and other.linked and not other.local and now - other.heard > LIMIT_S:
                    self.exited(other.key, now, Death.CUT)

    def unsent(self, worker: int, number: int, text: str, now: float) -> None:
        """A batch cannot be given to any worker: its items are answered."""
        batch = self.workers[worker].batches[number]
        items = [*batch.items.values()]
        self._ends.fail(items, Status.FAILED, text)
        batch.shared = False  # they have been let go
        uids = [item.request.uid for item in items]
        self.settled(Settle(self.index, worker, number, uids, now, 0, good=False, failed=len(uids)), now)

    def settled(self, settle: Settle, now: float) -> None:
        """These results have arrived at the next stage or the front: free them, and the worker's credit with the last
        one of a batch.

        On another thread it may be told a while later, or by a clock that was read a moment before the batch left.
        """
        worker = self.workers.get(settle.worker)
        batch = worker.batches.get(settle.batch) if worker is not None else None
        if worker is None or batch is None:  # given up, it or the batch; its items were replayed
            if worker is not None:
                worker.late.pop(settle.batch, None)
            return
        held, foresight = batch.items, self.foresight
        had = len(held)
        if settle.after_s or settle.ended:
            foresight.hear_after(settle)
        if worker.flow != WHOLE:
            self.crew.settle(worker, batch, settle.uids)
        uids, lane = settle.uids, worker.lane
        if settle.compute_us:
            lane.forward_s += settle.compute_us / MICROS
            batch.compute_us += settle.compute_us
        if settle.good:
            batch.is_good = True
        else:
            batch.failed += settle.failed
        if isinstance(self.queue, CostQueue):
            self.queue.hear(batch, settle)
        if settle.skipped and not batch.revoked and worker.state is not DYING:
            self.fate.come_back(batch, uids, now)
        if batch.shared:
            self._ends.let_go([item for uid in uids if (item := held.get(uid)) is not None])
        if batch.revoked or batch.apart:
            self._call_off(batch, uids, now)
        for uid in uids:
            held.pop(uid, None)
        self.crew.in_flight -= had - len(held)
        was_first = next(iter(worker.batches)) == settle.batch
        if held:  # some go another way: to another stage, or have failed; or they are others of a bundle
            if batch.calls > 1 and was_first and not batch.revoked:
                self._goes_on(worker, batch, settle.at)
            return
        del worker.batches[settle.batch]
        worker.done_batches += batch.calls
        worker.bundled -= batch.calls - 1
        if batch.cost:
            self.stats.priced_batches += 1
            self.stats.cost += batch.cost
            self.stats.padded_cost += batch.costliest * batch.count
        for _ in range(batch.calls):
            lane.process.observe(max(0.0, settle.at - batch.at))
        took_s = None
        if was_first:
            took_s = batch.before_s + max(0.0, settle.at - worker.since)
            if worker.away_s and batch.compute_us:  # of what is on its way nobody can tell to the millisecond
                took_s = far_s(batch.compute_us / MICROS, worker.away_s)
            if not batch.revoked and worker.state is not OVERDUE:
                lane.compute_s += took_s
                worker.host_stats.compute_s += took_s
                if batch.failed < batch.count:
                    foresight.took(took_s / batch.calls)
            if batch.compute_us and batch.is_good:
                foresight.learn(worker, batch, took_s, settle.at)
            if worker.state is not READY:
                self._overdue.pop(worker.key, None)
                if self._turn(worker, WorkerEvent.BACK):
                    self._tell(now)
        worker.free_at = settle.at + foresight.left_s(worker)
        foresight.done(worker, batch, now)
        batch.took_s = 0.0 if took_s is None else took_s
        if self.fate.settled(worker, batch, took_s, now):
            self._tell(now)
        was_slow = worker.slow
        self.crew.sort_in(worker, max(settle.at, worker.since), begins=was_first)
        if was_slow and self.spec.spare:
            self.crew.hold_back(self.spec.num, self.spec.spare)
        if self.fate.holds(worker):
            self.crew.rest(worker)
        if worker.state is READY:
            return
        if worker.state is LEAVING and not worker.batches:
            self._dismiss(worker)
            self._tell(now)  # its way of answering counts no longer
        elif worker.state is DYING and not worker.batches:
            self._turn(worker, WorkerEvent.SETTLED)
            self._forget(worker, now)

    def _goes_on(self, worker: Member, batch: Released, at: float) -> None:
        """Some of a bundle is done: the time limit is that of what is computed now."""
        batch.before_s += max(0.0, at - worker.since)
        was_slow = worker.slow
        self.crew.sort_in(worker, max(at, worker.since), begins=True)
        if was_slow:
            self.fate.goes_on(worker)

    def is_idle(self) -> bool:
        """Whether being told what was settled would change nothing but the books: nothing waits for a worker, and no
        worker waits to leave or to come back."""
        fate = self.fate
        return not self.queue.items and not fate.apart and self._is_calm and fate.is_sound

    # --- time --------------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> float:
        """Do all that can be done now; returns when to call again at the latest (inf: only when something happens)."""
        wake = inf
        crew, fate, foresight, policy = self.crew, self.fate, self.foresight, self.spec.policy
        is_long, is_sound, by_cost = foresight.is_long, fate.is_sound, self.queue.by_cost
        is_uneven = foresight.is_uneven
        below, ask_idle = ALL, True  # whose turn it is not: classes of speed from this one on; anybody who is idle
        if not is_sound:
            fate.clear(now)
        while True:
            if is_long:
                worker = crew.soonest(now, below, is_idle=ask_idle)
            else:
                worker = crew.quickest(below) if is_uneven else crew.next()
            if worker is None:
                break
            is_idle = not worker.batches
            if not is_sound and not (is_idle and fate.breaker.feeds(now)):
                break
            if fate.apart.parts:  # before all else, and alone: nothing is given in advance while one waits
                if not is_idle:
                    break
                if part := fate.next_part(now):
                    self._dispatch(worker, part, REPLAY, now)
                continue
            waiting = len(self.queue.items)
            if not waiting:
                break
            # From here on all goes by items, or by units of what they cost.
            amount, whole = waiting, policy.max_batch_size
            if by_cost:
                amount, whole = self.queue.amount, self.queue.most
                if 0 < worker.most <= waiting:  # its file says so
                    whole = min(whole, amount)
            elif 0 < worker.most < whole:
                whole = worker.most
            turn = foresight.turn(worker, amount, now) if is_uneven else None
            if turn is not None and not turn.most:
                below = worker.speed
                wake = min(wake, turn.look_at)
                continue
            # When the first is due costs a look at every item; it matters only if a partial batch may wait.
            partial = amount < whole
            is_shared = is_long and is_idle and policy.eager
            spaced_until = returns_until = 0.0
            if partial and is_long and policy.eager:
                spaced_until = foresight.spaced_until(worker, waiting, now) if is_idle else 0.0
                returns_until = foresight.returns_until(worker, now, is_idle=is_idle)
            may_wait = partial and is_idle and (spaced_until > now or returns_until > now or not policy.eager)
            decision = decide(
                policy,
                self.queue.backlog(dues=may_wait),
                IDLE if is_idle else BUSY,
                now=now,
                service_s=foresight.needs_s(worker, amount + 1) if may_wait else 0.0,
                free_at=0.0 if is_idle else foresight.free_at(worker) - worker.away_s,
                not_before=foresight.next_at(worker) if is_long else 0.0,
                spaced_until=spaced_until,
                returns_until=returns_until,
                draining=self.draining,
            )
            if decision.reason is None:
                wake = min(wake, decision.wake_at)
                break
            if turn is not None:
                most = turn.most if by_cost else min(turn.most, whole)
                done_at = now + foresight.needs_s(worker, most)
                items, dead = self.queue.take_behind(turn.first, now, most=most, count=worker.most, done_at=done_at)
                if dead:
                    self._ends.drop(dead)
                if items:
                    self._dispatch(worker, items, decision.reason, now)
                elif not dead:
                    below = worker.speed
                continue
            reason, most = decision.reason, min(amount, whole)
            limit = most
            if by_cost:
                most, limit = self.queue.whole_of(worker.most), UNITS_MOST
            if is_shared and (reason is Reason.IDLE or reason is Reason.FULL):
                count, look_at = foresight.share(worker, amount, now)
                if not count:
                    wake = min(wake, look_at)
                    if partial:
                        break
                    ask_idle = False  # whom it is left to takes a whole batch in advance
                    continue
                if count < min(amount, self.queue.most):
                    reason = Reason.IDLE
                most = min(count, most)
                limit = count if by_cost else most
            if reason is Reason.FULL and (
                worker.bundled or (waiting >= 2 * whole and foresight.is_brief and not by_cost)
            ):
                calls = self._bundle(worker, waiting, whole)
                if not calls:
                    break
                if calls > 1:
                    done_at = foresight.done_at(worker, whole, now + AHEAD_S)
                    items, dead, is_tight = self.queue.take(now, most=calls * whole, done_at=done_at)
                    if dead:
                        self._ends.drop(dead)
                    if items:
                        self._dispatch(worker, items, reason, now, size=whole)
                    if not is_tight:
                        continue
            start = now + worker.away_s
            if is_long and not is_idle and worker.free_at > start:
                start = worker.free_at
            done_at = foresight.done_at(worker, most, start)
            items, dead, is_tight = self.queue.take(now, most=most, count=worker.most, done_at=done_at)
            is_cut = False
            if dead:
                self._ends.drop(dead)
            if is_tight:
                choice = foresight.choose(worker, start, now, is_idle=is_idle)
                if choice.dead:
                    self._ends.drop(choice.dead)
                if choice.hopeless:
                    needs_s = start - now + foresight.needs_s(worker, most)
                    self._ends.refuse(choice.hopeless, needs_s, waiting)
                if not choice.most:
                    wake = min(wake, choice.look_at)
                    break
                worker, is_cut = choice.worker, choice.most < most
                items, dead, _ = self.queue.take(now, most=min(choice.most, limit), count=worker.most)
                if dead:
                    self._ends.drop(dead)
            if items:
                self._dispatch(worker, items, reason, now, is_cut=is_cut)
        if (self.queue.nbytes >= self.spec.max_queue_bytes) is not self._was_full:
            self._tell(now)
        if now >= foresight.look_at and foresight.times.known and foresight.has_news(len(fate.apart), now):
            self.actions.append(Foresee(self.index, foresight.foresaw, foresight.alone_s, foresight.onward.goes))
        wake = min(wake, crew.next_late(self.spec.timeout_s, fate.pace.patience_s, now))
        for due in self._limits:
            if due:
                wake = min(wake, min(due.values()))
        return wake

    def tick(self, now: float) -> None:
        """Time limits: of batches, of stuck workers, of silent ones. Cheap when nothing is due."""
        self.fate.tick(now)
        for worker in self.crew.late(now, self.spec.timeout_s):
            self._time_out(worker, now)
        for key in [key for key, kill_at in self._overdue.items() if kill_at <= now]:
            del self._overdue[key]
            self.actions.append(Kill(key, "stuck in forward"))
        for key in [key for key, until in self._dying.items() if until <= now]:
            worker = self.workers[key]
            self._turn(worker, WorkerEvent.SETTLED)
            self._forget(worker, now, Death.OWN)

    @property
    def waits_until(self) -> float:
        """Until when, at most, somebody waits here for a worker; in the past: nobody does. Any thread may ask."""
        return self.queue.latest if self.queue.items or self.fate.apart else -inf

    def measure(self, now: float) -> None:
        """See how much comes and waits, and how far all has come. To be called about once a second."""
        self.demand.look(now, self.stats.arrived, len(self.queue) + len(self.fate.apart))
        self.window.mark(now, self.counts())
        for worker in self.workers.values():
            worker.window.mark(now, worker.counts(now))
        given_s = self.spec.given_s or self.spec.timeout_s
        self.demand_workers = self.demand.workers(self.foresight.item_s(given_s), given_s)

    def counts(self) -> Counts:
        """What was counted so far: items that came, items and batches that left, items that ended by the broker's
        word."""
        stats = self.stats
        items = sum([lane.batch_size.total for lane in stats.lanes.values()])
        return stats.arrived, items, sum(stats.releases.values()), stats.failed

    def check_silence(self, now: float) -> None:
        """Give up workers that were not heard for WORKER_SILENCE_S. To be called about once a second.

        A worker that computes may be silent as long as its timeout allows, for C code can hold the interpreter; its
        process is watched, or the connection to it by the kernels of both hosts. Where neither is, it is given up:
        whatever it still does, its results are duplicates. Nobody could be heard while this process was stopped itself.
        A local one that is idle and silent hangs: it is killed.
        """
        if self._looks.is_late(now):
            for worker in self.workers.values():
                worker.heard = now
        for key, worker in list(self.workers.items()):
            if now - worker.heard > WORKER_SILENCE_S and not (
                (worker.local or worker.linked) and (worker.batches or worker.state is WorkerState.STARTING)
            ):
                if worker.local:
                    self.actions.append(Kill(key, "silent while idle"))
                self.exited(key, now)

    def _time_out(self, worker: Member, now: float) -> None:
        self._turn(worker, WorkerEvent.LATE)
        if worker.state is not DYING:  # there is nobody to kill
            self._overdue[worker.key] = now + self.spec.kill_after_s
        self.crew.rest(worker)
        self.fate.timed_out(worker, now)
        self._tell(now)

    def _call_off(self, batch: Released, uids: Sequence[int], now: float) -> None:
        """Items that may be in other places too were settled here: those that are done are done everywhere."""
        done = [
            uid
            for uid in uids
            if (item := batch.items.pop(uid, None)) is not None
            and (item.request.closed or item.hop != item.request.hop)
        ]
        if done:
            self.cancel(done, now)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _bundle(self, worker: Member, waiting: int, whole: int) -> int:
        """How many full batches of what waits a worker is handed as one; 0: none, for it has enough to do until some of
        that is done. No more than its even share, and none but short ones that say nothing before their results (no
        streams) and may be computed again with others that a death takes along."""
        is_able = (
            worker.protocol >= BUNDLES_SINCE
            and worker.most == whole
            and worker.flow == WHOLE
            and not worker.away_s
            and self.spec.idempotent
            and not self.queue.by_cost
            and self.fate.is_sound
        )
        most = self.foresight.bundle(worker, whole) if is_able else 1
        share = (waiting + self.crew.in_flight) // (whole * self.crew.able) - worker.has
        calls = max(1, min(most, waiting // whole, share))
        has_room = worker.has + calls <= max(self.crew.credit, 2 * most)
        return calls if has_room or (calls == 1 and not worker.bundled) else 0

    def _dispatch(
        self, worker: Member, items: list[Item], reason: Reason, now: float, *, is_cut: bool = False, size: int = 0
    ) -> None:
        """``size``: what a batch has, where they are several."""
        self._batches = number = self._batches + 1
        uids: list[int] = []
        routes: list[int] = []
        budgets_us: list[int] = []
        attempts: list[int] = []
        metas: list[bytes] = []
        queues_us: list[int] = []
        trails: list[bytes] = []
        payloads: list[Payload] = []
        held: dict[int, Item] = {}
        name: str = reason._value_
        code = CODES[name]
        if not self.fate.is_sound:
            self.fate.breaker.feed()
        nbytes = shared = 0
        is_shared = False
        # One loop: a comprehension per column is a call per column, which a small batch pays for nothing.
        for item in items:
            request, payload = item.request, item.payload
            uid = request.uid
            uids.append(uid)
            routes.append(request.route)
            budgets_us.append(int((request.deadline - now) * MICROS))
            attempts.append(item.attempt)
            metas.append(request.meta)
            queues_us.append(int((now - item.arrived) * MICROS) & TIME | code)
            trails.append(item.trail)
            payloads.append(payload)
            held[uid] = item
            nbytes += item.size
            if type(payload) is not bytes:
                is_shared = True
                shared += _shared_bytes(payload)
        message = Batch(number, int(now * 1e9), name, uids, routes, budgets_us, attempts, metas, queues_us, trails)
        count = len(uids)
        foresight = self.foresight
        calls = -(-count // size) if size else 1
        units = (count if calls == 1 else size) if not self.queue.by_cost else padded_units(items)
        expected_s = foresight.expect(units, worker) * calls
        waited_s = now - items[0].arrived
        ahead = len(worker.batches)
        batch = Released(
            number,
            held,
            now,
            name,
            count,
            count + len(self.queue.items),
            waited_s,
            worker.slot,
            ahead,
            expected_s,
            units,
            calls,
            is_cut,
            reason is REPLAY,
            is_shared,
            nbytes=nbytes,
        )
        trace = self.trace
        trace.rows[number % KEPT] = worker.batches[number] = batch
        if trace.has_ids:
            trace.hold(number, metas)
        elif not number % LOOK_EVERY:
            trace.look(number)
        stats = self.stats
        stats.releases[name] = stats.releases.get(name, 0) + calls
        if worker.maps:
            stats.shared_out += shared
            nbytes -= shared
        stats.bytes_out += nbytes
        lane = worker.lane
        if calls == 1:
            lane.batch_size.observe(count)
            lane.batch_wait.observe(waited_s)
        else:
            worker.bundled += calls - 1
            for first in range(0, count, size):
                lane.batch_size.observe(min(size, count - first))
                lane.batch_wait.observe(now - items[first].arrived)
        foresight.released_at = now
        foresight.delay_s += (waited_s - foresight.delay_s) * DELAY_SMOOTHING
        begins_at = now
        if worker.away_s:  # it is seen here to end so much later
            begins_at += worker.away_s
            worker.free_at = max(worker.free_at, begins_at)
        worker.free_at = (worker.free_at if ahead else begins_at) + expected_s
        worker.done_items += count
        self.crew.in_flight += count
        self.actions.append(Dispatch(worker.key, message, payloads))
        self.crew.sort_in(worker, begins_at, begins=not ahead)

    def _dismiss(self, worker: Member) -> None:
        if not worker.batches and not worker.dismissed:
            worker.dismissed = True
            self.actions.append(ToWorker(worker.key, Dismiss()))

    def _turn(self, worker: Member, event: WorkerEvent) -> bool:
        """All events of a worker's life go through here. Whether it changed anything."""
        before = worker.state
        worker.state = TABLE[before, event]
        if worker.state is before:
            return False
        self._is_calm = all(one.state in CALM for one in self.workers.values())
        if self.spec.spare:
            self.crew.hold_back(self.spec.num, self.spec.spare)
        return True

    def _forget(self, worker: Member, now: float, death: Death = Death.FORGOTTEN, how: str = "") -> None:
        key = worker.key
        self.crew.remove(key)
        self._is_calm = all(one.state in CALM for one in self.workers.values())
        self._overdue.pop(key, None)
        self._dying.pop(key, None)
        if death is Death.CUT:
            self.stats.cuts += 1
        elif worker.served:
            self.stats.gone += 1
            if not worker.dismissed:
                self.stats.deaths[death] += 1
                worker.lane.deaths += 1
        self.fate.forget(worker, self._newest, death, how, now)
        self.actions.append(Forget(key, worker.slot, worker.families))
        self._tell(now)

    def _tell(self, now: float) -> None:
        """Say what others decide by - readiness and pressure - when it has changed."""
        state = self.state()
        full = self._was_full = self.queue.nbytes >= self.spec.max_queue_bytes
        if state.ready or self.spec.may_be_empty:
            self._absent_at = inf
        elif self._absent_at == inf:  # until now there was somebody
            self._absent_at = now + ABSENT_S
        closed_until = self.fate.closed_until
        gone = self.stats.gone
        told = (
            *(state.ready, state.starting, state.mime, state.flow, full, self._absent_at, closed_until, state.least),
            gone,
        )
        if told == self._told:
            return
        self._told = told
        self.actions.append(News(self.index, state, self._absent_at, full, closed_until, gone))

    def state(self) -> StageState:
        """How the stage stands now. An overdue worker counts as ready: it may come back at any moment. Its flow is that
        of the workers it has, or had; while they differ, because new ones give their answers otherwise than those whom
        they follow, nobody can know it."""
        ready = starting = 0
        flow = self.flow
        for worker in self.workers.values():
            if worker.batches or worker.state in SERVING:
                flow = flow if worker.flow == flow else int(Flow.UNKNOWN)
            if worker.state in SERVING:
                ready += not worker.spare
            elif worker.state is WorkerState.STARTING:
                starting += 1
        queued, in_flight = len(self.queue) + len(self.fate.apart), self.crew.in_flight
        least = 0 if self.spec.may_be_empty else 1
        return StageState(self.spec.name, self.spec.num, ready, starting, queued, in_flight, self.mime, flow, least)


def _shared_bytes(payload: Payload) -> int:
    """Bytes of a payload that lie in shared memory."""
    return sum([ref.length for ref in refs_of(payload)])
