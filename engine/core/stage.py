"""One stage as a state machine: its queue, its workers and their credits, what is in flight, and every rule about them.

Events come in as method calls with ``now``; what must happen comes out in :attr:`StageMachine.actions`, which the
broker's part for the stage takes and carries out. Rules held here:

* a batch is bound to a worker at the last moment: to an idle one, or in advance to one that computes, if the batch
  could not grow any more (:mod:`engine.core.batching`, :mod:`engine.core.crew`);
* an item stays in flight until its result has arrived at the next stage or the front; when its worker dies first it
  goes back to the front of the queue with ``attempt + 1``. Its last attempt is made alone, on an idle worker, with
  nothing given in advance behind it: so an item that kills workers can take innocent ones along at most
  ``max_attempts - 1`` times, and never to the end;
* a stage that is not idempotent never replays: its items fail, saying so; nor is an item replayed of which the client
  has read events already;
* what an item has in shared memory is released when nobody can read it again: not while a worker that lives has been
  given it, whatever became of the request meanwhile;
* ``timeout`` seconds into a batch its items are answered; ``kill_after`` seconds later its worker is killed.

The states of a worker, and which event moves it where, are a table in :mod:`engine.core.worker_states`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Final

from engine.core import wording
from engine.core.actions import (
    Dispatch,
    Fail,
    Foresee,
    Forget,
    Grant,
    Kill,
    News,
    Release,
    Settle,
    StageAction,
    ToWorker,
)
from engine.core.arena import Ref
from engine.core.batching import AHEAD_S, BatchQueue, Policy, Reason, Taker, decide
from engine.core.crew import Crew, InFlight, Member
from engine.core.introduction import Introduction, Refusal, Stranger, agreed, refuse_worker
from engine.core.items import Item, Request
from engine.core.liveness import ABSENT_S, SETTLE_S, WORKER_SILENCE_S, Looks
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
    Revoke,
    StageState,
    Status,
    Welcome,
    WorkerBeat,
)
from engine.core.predict import Outlook, Times
from engine.core.routing import Topology
from engine.core.stats import StageStats, duration_buckets
from engine.core.wire import MICROS, Payload, payload_size, refs_of
from engine.core.worker_states import SERVING, TABLE, WorkerEvent, WorkerState

WHOLE: Final = int(Flow.WHOLE)  # comparing with a member of an enumeration costs a call

KEY_SHIFT: Final = 20  # bits of a worker's key below the epoch

CALM: Final = frozenset({WorkerState.STARTING, WorkerState.READY})

LONG_S: Final = 2 * AHEAD_S  # batches that take longer are planned one by one
LOOK_S: Final = 0.002  # how often the front is told what to expect, at most
CALM_S: Final = 0.020  # who waits for less is not worth a word
MEASURE_S: Final = 0.1
PRICE: Final = 0.2  # items that others may lose for one that could be replaced
DELAY_SMOOTHING: Final = 0.1

LEARN_S: Final = 0.005  # of batches that take less, one in such a time is learned from

SERVICE_SMOOTHING: Final = 0.2  # weight of the newest batch in the running mean of how long a batch takes


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


class StageMachine:
    """See the module. Not thread-safe: one thread calls it, and alone reads what it holds."""

    def __init__(
        self,
        index: int,
        spec: StageSpec,
        topology: Topology,
        ledger: Mapping[int, Request],
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
        self.ledger = ledger  # owned by the front; looked up here, never changed
        self.crews: Sequence[Crew] = ()  # of all stages, set before the first result: who holds what
        self.queue = BatchQueue(spec.policy)
        self.last_attempts: OrderedDict[int, Item] = OrderedDict()  # by uid
        # A batch in advance could be replayed while it is computed: not where that is forbidden.
        self.crew = Crew(in_advance=spec.idempotent)
        self.workers = self.crew.workers
        self.stats = StageStats(durations=duration_buckets(spec.timeout_s))
        self.actions: list[StageAction] = []
        self.draining = False
        self.about = b""  # what the newest worker said of the stage; it outlives the worker
        self.service_s = 0.0
        self.times = Times(spec.policy.max_batch_size)
        self.mime = "application/json"  # as its newest worker says, or said
        self.flow = int(Flow.UNKNOWN)  # likewise
        self._overdue: dict[int, float] = {}  # worker -> when it is killed
        self._dying: dict[int, float] = {}  # worker -> until when its last results are waited for
        self._draw = draw or count((epoch << KEY_SHIFT) + 1).__next__  # a former broker's key means nobody here
        self._batches = 0
        self._learn_at = 0.0
        self._is_long = False  # batches are planned one by one
        self.delay_s = 0.0  # from an item's arrival to its release, lately
        self._later = [0.0] * len(topology.routes)  # by route: what an item needs after this stage, in seconds
        self._later_s = 0.0  # the most of these
        self._told_after: dict[int, float] = {}  # the same by the stage that comes next
        self._rate = 0.0  # items per second
        self._measured_at = 0.0
        self._counted = 0
        self._look_at = 0.0
        self._taken = 0  # items that came from the front
        self._foresaw: Outlook | None = None
        self._looks = Looks()
        self._absent_at = absent_at  # from when on the stage has nobody; inf while it has
        self._told: tuple[object, ...] = ()
        self._was_full = False
        self._is_calm = True  # all workers are starting or ready

    def change(self, spec: StageSpec, now: float) -> None:
        """Serve by other numbers from now on; what is under way is not touched. The name stays."""
        self.spec = spec
        self.queue.policy = spec.policy
        self.crew.change(in_advance=spec.idempotent)
        if spec.policy.max_batch_size > self.times.most:
            self.times = Times(spec.policy.max_batch_size)
        self._tell(now)

    # --- items in ----------------------------------------------------------------------------------------------------

    def enqueue(self, items: Sequence[Item], now: float) -> None:
        """Newly admitted items (first stage of their route)."""
        self._taken += len(items)
        for item in items:
            self._push(item)

    def accept(self, results: Results, payloads: Sequence[Payload], now: float) -> None:
        """Results of the previous stage: those of items that its worker holds are settled, and taken if somebody waits
        for them; all others are duplicates, late, or made up."""
        held = self.crews[results.stage].held(results.worker, results.batch)
        for uid, status, trail, payload in zip(results.uids, results.statuses, results.trails, payloads, strict=True):
            request = self.ledger.get(uid)
            if (
                request is None
                or uid not in held
                or request.closed
                or status != Status.OK
                or not self._is_next(request, results.stage)
            ):
                self.stats.dropped += 1
                self._release(refs_of(payload))
                continue
            request.hop += 1
            self._push(Item(request, payload, payload_size(payload), now, 1, trail, request.hop))
        if held:
            after_s = self.delay_s + self.service_s + self._later_s
            self.actions.append(
                Settle(
                    results.stage,
                    results.worker,
                    results.batch,
                    results.uids,
                    now,
                    results.compute_us,
                    self.index,
                    after_s,
                )
            )

    def _is_next(self, request: Request, stage: int) -> bool:
        try:
            return (
                self.topology.next_stage(request.route, stage) == self.index
                and self.topology.hop(request.route, stage) == request.hop
            )
        except KeyError:  # a worker names a stage that is not on the route
            return False

    def _push(self, item: Item) -> None:
        stats, size = self.stats, item.size
        shared = 0 if type(item.payload) is bytes else _shared_bytes(item.payload)
        stats.shared_in += shared
        stats.bytes_in += size - shared
        if 0 < self.queue.nbytes > self.spec.max_queue_bytes - size:
            text = wording.full_in_bytes(self.spec.name, self.queue.nbytes)
            self._fail([item.request.uid], Status.OVERLOADED, text)
            self._release(item.let_go())
            return
        stats.arrived += 1
        self.queue.push(item)

    def cancel(self, uids: Sequence[int], now: float) -> None:
        """Nobody waits for these any more: out of the queue, and a word to the workers that compute them."""
        elsewhere = set()
        for uid in uids:
            item = self.queue.discard(uid) or self.last_attempts.pop(uid, None)
            if item is None:
                elsewhere.add(uid)
            else:
                self.stats.dropped += 1
                self._release(item.let_go())
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
                self._forget(old, now)
        key = self._draw()
        self.workers[key] = Member(key, who.slot, who.pid, who.instance, local, now, agreed(who))
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
        )

    def ready(self, ready: Ready, now: float) -> None:
        """The worker's warm-up is done. Said again, or after it wanted to leave, it changes nothing."""
        worker = self.workers.get(ready.worker)
        if worker is None:
            return
        worker.heard = now
        if not self._turn(worker, WorkerEvent.READY):
            return
        worker.maps = ready.maps and worker.local
        worker.warmup_ms = ready.warmup_ms
        self.mime = ready.mime
        self.flow = worker.flow = ready.flow
        self.about = ready.about or self.about
        worker.served = True
        self.stats.starts += 1
        self.crew.sort_in(worker, now, begins=False)
        self._tell(now)

    def beat(self, beat: WorkerBeat, now: float) -> Message:
        """The answer to a heartbeat: an unknown worker is asked to introduce itself again."""
        worker = self.workers.get(beat.worker)
        if worker is None:
            return Pulse(self.epoch, False)
        worker.heard = now
        if beat.families:
            worker.families = beat.families
        return Pulse(self.epoch, True)

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

    def exited(self, key: int, now: float) -> None:
        """The worker's process has ended, it said bye, or it is given up."""
        worker = self.workers.get(key)
        if worker is None:
            return
        owes = bool(worker.batches) and not self.spec.idempotent
        if not self._turn(worker, WorkerEvent.END_OWING if owes else WorkerEvent.END):
            return  # told twice: by its pidfd and by its goodbye, say
        self.crew.rest(worker)
        self._overdue.pop(key, None)
        if worker.state is WorkerState.DYING:
            self._dying[key] = now + SETTLE_S
            self._tell(now)
        else:
            self._forget(worker, now)

    def settled(self, settle: Settle, now: float) -> None:
        """These results have arrived at the next stage or the front: free them, and the worker's credit with the last
        one of a batch.

        On another thread it may be told a while later, or by a clock that was read a moment before the batch left.
        """
        worker = self.workers.get(settle.worker)
        batch = worker.batches.get(settle.batch) if worker is not None else None
        if worker is None or batch is None:
            return  # of a worker that was given up; its items were replayed
        held = batch.items
        if settle.after_s and abs(settle.after_s - self._told_after.get(settle.sender, 0.0)) > 0.05 * settle.after_s:
            self._hear_after(settle)
        if worker.flow != WHOLE:
            self.crew.settle(worker, batch, settle.uids)
        if settle.compute_us:
            self.stats.lane(worker.slot).forward_s += settle.compute_us / MICROS
            batch.compute_us += settle.compute_us
        if batch.shared:
            for uid in settle.uids:
                if (item := held.get(uid)) is not None:
                    self._release(item.let_go())
        if not held.keys() <= set(settle.uids):  # some went another way: to another stage, or failed
            for uid in settle.uids:
                held.pop(uid, None)
            if held:
                return
        was_first = next(iter(worker.batches)) == settle.batch
        del worker.batches[settle.batch]
        worker.done_batches += 1
        lane = self.stats.lane(worker.slot)
        lane.process.observe(max(0.0, settle.at - batch.sent_at))
        if was_first:
            took = max(0.0, settle.at - worker.since)
            if not batch.revoked and worker.state is not WorkerState.OVERDUE:
                lane.compute_s += took
                self.service_s += (took - self.service_s) * (SERVICE_SMOOTHING if self.service_s else 1.0)
                self.crew.learn(self.service_s)
            # Short batches are many, and one in a while tells all there is to know of them.
            if batch.compute_us and settle.at >= self._learn_at:
                self._learn(worker, batch, took, settle.at)
            self._overdue.pop(worker.key, None)
            if self._turn(worker, WorkerEvent.BACK):
                self._tell(now)
        worker.free_at = settle.at
        if worker.batches:
            worker.free_at += sum([other.expected_s for other in worker.batches.values()])
        self.crew.sort_in(worker, max(settle.at, worker.since), begins=was_first)
        if worker.state is WorkerState.LEAVING and not worker.batches:
            self._dismiss(worker)
            self._tell(now)  # its way of answering counts no longer
        elif worker.state is WorkerState.DYING and not worker.batches:
            self._turn(worker, WorkerEvent.SETTLED)
            self._forget(worker, now)

    def _hear_after(self, settle: Settle) -> None:
        """What items still need after this stage, if they go on to that one."""
        self._told_after[settle.sender] = settle.after_s
        for number, route in enumerate(self.topology.routes):
            if self.index in route.stages and self.topology.next_stage(number, self.index) == settle.sender:
                self._later[number] = settle.after_s
        self._later_s = max(self._later)

    def _learn(self, worker: Member, batch: InFlight, took_s: float, now: float) -> None:
        computed_s = batch.compute_us / MICROS
        self._learn_at = now + LEARN_S if self.service_s < LEARN_S else 0.0
        self.times.learn(batch.count, computed_s, worker, now, compare=len(self.workers) > 1)
        self.times.learn_overhead(took_s - computed_s)
        self._is_long = self.service_s > LONG_S and self.times.known

    def is_idle(self) -> bool:
        """Whether being told what was settled would change nothing but the books: nothing waits for a worker, and no
        worker waits to leave or to come back."""
        return not self.queue.items and not self.last_attempts and self._is_calm

    # --- time --------------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> float:
        """Do all that can be done now; returns when to call again at the latest (inf: only when something happens)."""
        wake = inf
        crew = self.crew
        is_long = self._is_long
        while True:
            worker = crew.soonest(now) if is_long else crew.next()
            if worker is None:
                break
            is_idle = not worker.batches
            if self.last_attempts:  # before all else, and alone: nothing is given in advance while one waits
                if not is_idle:
                    break
                _, item = self.last_attempts.popitem(last=False)
                if item.is_due(now):
                    self._dispatch(worker, [item], Reason.REPLAY, now)
                else:
                    self._drop([item], now)
                continue
            waiting = len(self.queue.items)
            if not waiting:
                break
            policy, times = self.spec.policy, self.times
            taker = Taker.IDLE if is_idle else Taker.BUSY
            # The earliest deadline costs a look at every item; it matters only if a partial batch may wait.
            partial = waiting < policy.max_batch_size
            decision = decide(
                policy,
                self.queue.backlog(deadlines=partial and is_idle and not policy.eager),
                taker,
                now=now,
                service_s=times.predict(waiting + 1, worker) if partial and not policy.eager else 0.0,
                free_at=worker.free_at if is_long else worker.since + self.service_s * len(worker.batches),
                not_before=worker.free_at - AHEAD_S if is_long else 0.0,
                draining=self.draining,
            )
            if decision.reason is None:
                wake = decision.wake_at
                break
            start = now
            if is_long:
                start = now if is_idle or worker.free_at < now else worker.free_at
                n = policy.max_batch_size if not partial else waiting
                done_at = start + times.predict(n, worker) * times.margin + self._later_s
            else:
                done_at = now + self.service_s + self._later_s if times.known else 0.0
            items, dead, is_tight = self.queue.take(now, done_at=done_at)
            if dead:
                self._drop(dead, now)
            if is_tight:
                most, look_at = self._choose(worker, start, now, is_idle=is_idle)
                if not most:
                    wake = look_at
                    break
                items, dead, _ = self.queue.take(now, most=most)
            if items:
                self._dispatch(worker, items, decision.reason, now)
        if self._is_full() != self._was_full:
            self._tell(now)
        if now >= self._look_at and self.times.known:
            self._foresee(now)
        return min(wake, self._next_limit())

    def _choose(self, worker: Member, start: float, now: float, *, is_idle: bool) -> tuple[int, float]:
        """Somebody is due before a whole batch would be done: who is left out, and how many of the others go.

        The batch is made smaller for the first of them only if that costs the others less than one of them: to shrink
        batches whenever somebody is late is to be late with everybody. Returns how many of the first items ``worker``
        is given, or 0 and when to look again.
        """
        queue, times = self.queue, self.times
        queue.sort(now)
        need = self._need(now)
        # Where even whole batches do not suffice, somebody else is served in the place of whoever is left out.
        price = 1.0 if need < self.spec.policy.max_batch_size else PRICE
        dead: list[Item] = []
        hopeless: list[Item] = []
        most, look_at = 0, inf
        while (item := queue.first()) is not None:
            request = item.request
            if not item.is_due(now):
                dead.append(item)
                queue.discard(request.uid)
                continue
            others = len(queue) - 1
            whole = min(others + 1, queue.most)
            due = request.deadline - self._later[request.route]
            fits = times.fit(whole, due - start, worker)
            if fits >= whole:
                most = whole
                break
            want = min(others, need)
            if want > fits:
                lost = want / times.predict(want, worker) * times.predict(max(fits, 1), worker) - fits
                if lost > price:
                    hopeless.append(item)
                    queue.discard(request.uid)
                    continue
            if fits:
                most = fits
                break
            other = self._who_else(worker, due, now)
            if other is not None:
                look_at = max(other.free_at, now + AHEAD_S)
                break
            if not others:  # it costs nobody anything, and shows how long it does take
                most = int(is_idle)
                break
            hopeless.append(item)
            queue.discard(request.uid)
        if dead:
            self._drop(dead, now)
        if hopeless:
            self._refuse(hopeless)
        return most, look_at

    def _who_else(self, worker: Member, due: float, now: float) -> Member | None:
        """Another worker that could have one item done by ``due``."""
        times = self.times
        for other in self.workers.values():
            if other is worker or other.state is not WorkerState.READY or other.is_overdue(now):
                continue
            free_at = max(other.free_at, now) if other.batches else now
            if len(other.batches) < 2 and free_at + times.predict(1, other) * times.margin <= due:
                return other
        return None

    def _need(self, now: float) -> int:
        """The smallest batch with which the stage keeps up with what comes."""
        self._measure(now)
        frees, slowness = self.crew.outlook()
        times, most = self.times, self.spec.policy.max_batch_size
        rate = self._rate * 1.05
        n = 1
        while n < most and n * len(frees) < rate * (times.shape[n] * slowness + times.overhead_s):
            n += max(1, n // 4)
        return min(n, most)

    def _measure(self, now: float) -> None:
        """How many items come in a second."""
        past = now - self._measured_at
        if past >= MEASURE_S:
            rate = (self.stats.arrived - self._counted) / past
            weight = min(past / (past + max(MEASURE_S, 4 * self.service_s)) * 1.5, 1.0)
            self._rate += (rate - self._rate) * weight
            self._measured_at, self._counted = now, self.stats.arrived

    def _foresee(self, now: float) -> None:
        """Tell the front what to expect, if anybody who comes may have to wait."""
        self._look_at = now + LOOK_S
        queue, times = self.queue, self.times
        frees, slowness = self.crew.outlook()
        queued = len(queue) + len(self.last_attempts)
        rounds = queued / queue.most / max(1, len(frees)) + 1.0
        if not frees or rounds * times.predict_mean(queue.most, slowness) < CALM_S:
            if self._foresaw is not None:
                self._foresaw = None
                self.actions.append(Foresee(self.index, None))
            return
        self._measure(now)
        in_flight = sum([worker.in_flight for worker in self.workers.values()])
        outlook = Outlook(
            queued,
            in_flight,
            self._taken,
            frees,
            queue.most,
            self._rate,
            times.shape,
            times.overhead_s,
            times.margin,
            slowness,
            queue.sample() if queue.is_mixed else [],
        )
        if outlook != self._foresaw:
            self._foresaw = outlook
            self.actions.append(Foresee(self.index, outlook))

    def tick(self, now: float) -> None:
        """Time limits: of batches, of stuck workers, of silent ones. Cheap when nothing is due."""
        for worker in self.crew.late(now, self.spec.timeout_s):
            self._time_out(worker, now)
        for key in [key for key, kill_at in self._overdue.items() if kill_at <= now]:
            del self._overdue[key]
            self.actions.append(Kill(key))
        for key in [key for key, until in self._dying.items() if until <= now]:
            worker = self.workers[key]
            self._turn(worker, WorkerEvent.SETTLED)
            self._forget(worker, now)

    def check_silence(self, now: float) -> None:
        """Give up workers that were not heard for WORKER_SILENCE_S. To be called about once a second.

        A local worker that computes may be silent as long as its timeout allows, for C code can hold the interpreter;
        its process is watched. A remote one is given up: whatever it still does, its results are duplicates. Nobody
        could be heard while this process was stopped itself. A local one that is idle and silent hangs: it is killed.
        """
        if self._looks.is_late(now):
            for worker in self.workers.values():
                worker.heard = now
        for key, worker in list(self.workers.items()):
            if now - worker.heard > WORKER_SILENCE_S and not (
                worker.local and (worker.batches or worker.state is WorkerState.STARTING)
            ):
                if worker.local:
                    self.actions.append(Kill(key))
                self.exited(key, now)

    def _next_limit(self) -> float:
        limit = self.crew.next_late(self.spec.timeout_s)
        if self._overdue:
            limit = min(limit, min(self._overdue.values()))
        if self._dying:
            limit = min(limit, min(self._dying.values()))
        return limit

    def _time_out(self, worker: Member, now: float) -> None:
        first = next(iter(worker.batches.values()))
        uids = list(first.items)
        self._fail(uids, Status.TIMEOUT, wording.TIMEOUT)
        self._turn(worker, WorkerEvent.LATE)
        if worker.state is not WorkerState.DYING:  # there is nobody to kill
            self._overdue[worker.key] = now + self.spec.kill_after_s
        self.crew.rest(worker)
        revoked = [batch for batch in worker.batches.values() if batch is not first and not batch.revoked]
        again: list[Item] = []
        for batch in revoked:
            # The batch given in advance has not begun: others may have it. It stays on this worker's books until the
            # worker has said that it skipped it (or computed it all the same: whoever gets it drops duplicates).
            batch.revoked = True
            again += [item for item in batch.items.values() if item.is_due(now)]
        for item in again:
            item.holds += 1
        self.queue.push_front(again)
        if revoked:
            self.actions.append(ToWorker(worker.key, Revoke([batch.number for batch in revoked])))
        self._tell(now)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _dispatch(self, worker: Member, items: list[Item], reason: Reason, now: float) -> None:
        self._batches = number = self._batches + 1
        batch = Batch(
            batch=number,
            sent_ns=int(now * 1e9),
            reason=reason._value_,
            uids=[],
            routes=[],
            budgets_us=[],
            attempts=[],
            metas=[],
            queues_us=[],
            trails=[],
        )
        payloads: list[Payload] = []
        flight = InFlight(number, {}, now, reason is Reason.REPLAY)
        nbytes = shared = 0
        # One loop: a comprehension per column is a call per column, which a small batch pays for nothing.
        for item in items:
            request, payload = item.request, item.payload
            batch.uids.append(request.uid)
            batch.routes.append(request.route)
            batch.budgets_us.append(int((request.deadline - now) * MICROS))
            batch.attempts.append(item.attempt)
            batch.metas.append(request.meta)
            batch.queues_us.append(int((now - item.arrived) * MICROS))
            batch.trails.append(item.trail)
            payloads.append(payload)
            flight.items[request.uid] = item
            nbytes += item.size
            if type(payload) is not bytes:
                flight.shared = True
                shared += _shared_bytes(payload)
        stats = self.stats
        stats.releases[batch.reason] = stats.releases.get(batch.reason, 0) + 1
        if worker.maps:
            stats.shared_out += shared
            nbytes -= shared
        stats.bytes_out += nbytes
        lane = stats.lane(worker.slot)
        lane.batch_size.observe(len(items))
        waited_s = now - items[0].arrived
        lane.batch_wait.observe(waited_s)
        self.delay_s += (waited_s - self.delay_s) * DELAY_SMOOTHING
        count = flight.count = len(items)
        flight.expected_s = expected_s = self.times.predict(count, worker) if self._is_long else self.service_s
        worker.free_at = (worker.free_at if worker.batches else now) + expected_s
        worker.batches[number] = flight
        worker.done_items += len(items)
        self.actions.append(Dispatch(worker.key, batch, payloads))
        self.crew.sort_in(worker, now, begins=len(worker.batches) == 1)

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
        return True

    def _forget(self, worker: Member, now: float) -> None:
        key = worker.key
        self.crew.remove(key)
        self._is_calm = all(one.state in CALM for one in self.workers.values())
        self._overdue.pop(key, None)
        self._dying.pop(key, None)
        if worker.served and not worker.dismissed:
            self.stats.deaths += 1
        again: list[Item] = []
        for batch in worker.batches.values():
            if not batch.revoked:
                again.extend(batch.items.values())
            else:
                for item in batch.items.values():
                    self._release(item.let_go())
        self._replay(again, now)
        self.actions.append(Forget(key, worker.slot, worker.families))
        self._tell(now)

    def _replay(self, items: list[Item], now: float) -> None:
        again: list[Item] = []
        for item in items:
            if not item.is_due(now):
                self._drop([item], now)
            elif item.request.stream_hop == item.hop:
                self._give_up(item, wording.died_streaming(self.spec.name))
            elif not self.spec.idempotent:
                self._give_up(item, wording.died_once_only(self.spec.name))
            elif item.attempt >= self.spec.max_attempts:
                self._give_up(item, wording.died_again(self.spec.name, item.attempt))
            else:
                item.attempt += 1
                self.stats.replayed += 1
                if item.attempt == self.spec.max_attempts:
                    self.last_attempts[item.request.uid] = item
                else:
                    again.append(item)
        self.queue.push_front(again)

    def _give_up(self, item: Item, text: str) -> None:
        self._fail([item.request.uid], Status.FAILED, text)
        self._release(item.let_go())

    def _drop(self, items: list[Item], now: float) -> None:
        """Items that are not worth computing: closed ones were answered, late ones are now."""
        self.stats.dropped += len(items)
        late = [item.request.uid for item in items if not item.request.closed and item.hop == item.request.hop]
        if late:
            self._fail(late, Status.TIMEOUT, wording.TIMEOUT)
        for item in items:
            self._release(item.let_go())

    def _refuse(self, items: list[Item]) -> None:
        """Items that would not be done in time, however soon they began, or only if several others were not."""
        self.stats.hopeless += len(items)
        self.stats.dropped += len(items)
        uids = [item.request.uid for item in items]
        self.stats.failed += len(uids)
        self.actions.append(Fail(self.index, uids, int(Status.OVERLOADED), wording.HOPELESS, hopeless=True))
        for item in items:
            self._release(item.let_go())

    def _release(self, refs: Sequence[Ref]) -> None:
        if refs:
            self.actions.append(Release(list(refs)))

    def _fail(self, uids: list[int], status: Status, text: str) -> None:
        self.stats.failed += len(uids)
        if uids:
            self.actions.append(Fail(self.index, uids, int(status), text))

    def _tell(self, now: float) -> None:
        """Say what others decide by - readiness and pressure - when it has changed."""
        state = self.state()
        full = self._was_full = self._is_full()
        if state.ready:
            self._absent_at = inf
        elif self._absent_at == inf:  # until now there was somebody
            self._absent_at = now + ABSENT_S
        told = (state.ready, state.starting, state.mime, state.flow, full, self._absent_at)
        if told == self._told:
            return
        self._told = told
        self.actions.append(News(self.index, state, self._absent_at, full))

    def _is_full(self) -> bool:
        return self.queue.nbytes >= self.spec.max_queue_bytes

    def state(self) -> StageState:
        """How the stage stands now. An overdue worker counts as ready: it may come back at any moment. Its flow is that
        of the workers it has, or had; while they differ, because new ones give their answers otherwise than those whom
        they follow, nobody can know it."""
        ready = starting = in_flight = 0
        flow = self.flow
        for worker in self.workers.values():
            in_flight += worker.in_flight
            if worker.batches or worker.state in SERVING:
                flow = flow if worker.flow == flow else int(Flow.UNKNOWN)
            if worker.state in SERVING:
                ready += 1
            elif worker.state is WorkerState.STARTING:
                starting += 1
        queued = len(self.queue) + len(self.last_attempts)
        return StageState(self.spec.name, self.spec.num, ready, starting, queued, in_flight, self.mime, flow)


def _shared_bytes(payload: Payload) -> int:
    """Bytes of a payload that lie in shared memory."""
    return sum([ref.length for ref in refs_of(payload)])
