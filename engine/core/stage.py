"""One stage as a state machine: its queue, its workers and their credits, what is in flight, and every rule about them.

Events come in as method calls with ``now``; what must happen comes out in :attr:`StageMachine.actions`, which the
broker's part for the stage takes and carries out. Rules held here:

* a batch is bound to a worker at the last moment: to an idle one, or in advance to one that computes, if the batch
  could not grow any more (:mod:`engine.core.batching`, :mod:`engine.core.crew`);
* an item has one *holder* that is to see to its answer: the queue, a part that is tried apart, or a batch. It stays
  there until its result has arrived at the next stage or the front; when its worker dies first it goes back to the
  front of the queue with ``attempt + 1``. Its last attempt is made alone, on an idle worker, with nothing given in
  advance behind it: so an item that kills workers can take innocent ones along at most ``max_attempts - 1`` times, and
  never to the end. Under which a worker died then is told not to come again;
* a batch that takes several times as long as others is suspect (:mod:`engine.core.hedging`): what waits behind it goes
  to others at once, and so may its items. It stays on the worker's books as *revoked*, which holds nothing but memory;
* ``timeout`` seconds into a batch its items are tried again in parts, as long as they have attempts left, so that the
  one that hangs is found; one that reaches the limit alone is answered. ``kill_after`` seconds later the worker is
  killed;
* a stage of which everything dies or fails is not fed (:mod:`engine.core.breaker`); a worker that fails everything
  while its neighbours do not is replaced (:mod:`engine.core.failing`);
* a stage that is not idempotent never replays: its items fail, saying so; nor is an item replayed of which the client
  has read events already;
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
from engine.core.actions import (
    Dispatch,
    Fail,
    Foresee,
    Forget,
    Grant,
    Kill,
    News,
    Note,
    Release,
    Settle,
    StageAction,
    ToWorker,
)
from engine.core.arena import Ref
from engine.core.batching import AHEAD_S, BatchQueue, Policy, Reason, Taker, decide
from engine.core.breaker import Breaker, BreakerState
from engine.core.crew import Crew, InFlight, Member
from engine.core.deaths import Death
from engine.core.failing import Verdict, judge
from engine.core.hedging import Apart, Budget, Pace, may_hedge, part_size
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

# Deaths that have another known cause, and yet end an item that was alone with its worker each time: nobody is that
# unlucky.
SPARED: Final = 2

DO_NOT_RETRY: Final = {"x-should-retry": "false"}  # as OpenAI's and other clients read it

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
        self.apart = Apart()  # what is tried again in parts of its own, last attempts among them
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
        self.breaker = Breaker()
        self.pace = Pace()
        self._budget = Budget(spec.policy.max_batch_size)
        self._slow: dict[int, float] = {}  # suspect worker -> when it is looked at again
        self._held: dict[int, float] = {}  # worker that is quick at failing -> until when it is given nothing
        self._good = 0  # batches of which something was computed rightly
        self._bad = 0  # batches of which nothing was
        self._overdue: dict[int, float] = {}  # worker -> when it is killed
        self._dying: dict[int, float] = {}  # worker -> until when its last results are waited for
        self._draw = draw or count((epoch << KEY_SHIFT) + 1).__next__  # a former broker's key means nobody here
        self._newest = 0  # key of the worker that came last
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
            item = self.queue.discard(uid) or self.apart.discard(uid)
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
        key = self._newest = self._draw()
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
        if worker.state is WorkerState.DYING:
            self._dying[key] = now + SETTLE_S
            self._tell(now)
        else:
            self._forget(worker, now, death, how)

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
        if settle.good:
            batch.good = True
        else:
            batch.failed += settle.failed
        if settle.skipped and not batch.revoked and worker.state is not WorkerState.DYING:
            self._come_back(worker, batch, settle.uids, now)
        if batch.shared:
            for uid in settle.uids:
                if (item := held.get(uid)) is not None:
                    self._release(item.let_go())
        if batch.revoked or batch.apart:
            self._call_off(worker, batch, settle.uids, now)
        if not held.keys() <= set(settle.uids):  # some went another way: to another stage, or failed
            for uid in settle.uids:
                held.pop(uid, None)
            if held:
                return
        failed = batch.failed >= batch.count
        was_first = next(iter(worker.batches)) == settle.batch
        del worker.batches[settle.batch]
        worker.done_batches += 1
        lane = self.stats.lane(worker.slot)
        lane.process.observe(max(0.0, settle.at - batch.sent_at))
        if was_first:
            took = max(0.0, settle.at - worker.since)
            if not batch.revoked and worker.state is not WorkerState.OVERDUE:
                lane.compute_s += took
            if not batch.revoked and worker.state is not WorkerState.OVERDUE and not failed:
                self.service_s += (took - self.service_s) * (SERVICE_SMOOTHING if self.service_s else 1.0)
                self.crew.learn(self.service_s)
            # Short batches are many, and one in a while tells all there is to know of them.
            if batch.compute_us and batch.good and settle.at >= self._learn_at:
                self._learn(worker, batch, took, settle.at)
            if batch.good:
                self.pace.learn(took)
            if worker.slow:
                self._slow.pop(worker.key, None)
            self._overdue.pop(worker.key, None)
            if self._turn(worker, WorkerEvent.BACK):
                self._tell(now)
        worker.free_at = settle.at
        if worker.batches:
            worker.free_at += sum([other.expected_s for other in worker.batches.values()])
        self._budget.earn(batch.count)
        if batch.good:
            self._good += 1
            worker.failing = 0
            worker.proven = True
            if self.breaker.succeeded():
                self._note_breaker(now)
        elif failed:
            self._note_bad(worker, batch, now)
        else:  # all of it was skipped, or its clients' fault
            self.breaker.unclear(now)
        self.crew.sort_in(worker, max(settle.at, worker.since), begins=was_first)
        if worker.key in self._held:
            self.crew.rest(worker)
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
        is_sound = self.breaker.state is BreakerState.CLOSED
        return not self.queue.items and not self.apart and self._is_calm and is_sound

    # --- time --------------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> float:
        """Do all that can be done now; returns when to call again at the latest (inf: only when something happens)."""
        wake = inf
        crew = self.crew
        is_long = self._is_long
        if self.breaker.state is not BreakerState.CLOSED:
            self._clear(now)
        while True:
            worker = crew.soonest(now) if is_long else crew.next()
            if worker is None:
                break
            is_idle = not worker.batches
            if self.breaker.state is not BreakerState.CLOSED and not (is_idle and self.breaker.feeds(now)):
                break
            if self.apart:  # before all else, and alone: nothing is given in advance while one waits
                if not is_idle:
                    break
                waited = self.apart.pop()
                part = [item for item in waited if item.is_due(now)]
                self._drop([item for item in waited if item not in part], now)
                if part:
                    self._dispatch(worker, part, Reason.REPLAY, now)
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
        queued = len(queue) + len(self.apart)
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
        for worker in self.crew.slow(now, self.pace.patience_s):
            self._suspect(worker, now)
        for key in [key for key, look_at in self._slow.items() if look_at <= now]:
            self._hedge(self.workers[key], now)
        for key in [key for key, until in self._held.items() if until <= now]:
            del self._held[key]
            worker = self.workers[key]
            self.crew.sort_in(worker, now, begins=False)
        for worker in self.crew.late(now, self.spec.timeout_s):
            self._time_out(worker, now)
        for key in [key for key, kill_at in self._overdue.items() if kill_at <= now]:
            del self._overdue[key]
            self.actions.append(Kill(key, "stuck in forward"))
        for key in [key for key, until in self._dying.items() if until <= now]:
            worker = self.workers[key]
            self._turn(worker, WorkerEvent.SETTLED)
            self._forget(worker, now, Death.OWN)

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
                    self.actions.append(Kill(key, "silent while idle"))
                self.exited(key, now)

    def _next_limit(self) -> float:
        limit = self.crew.next_late(self.spec.timeout_s, self.pace.patience_s)
        for due in (self._overdue, self._dying, self._slow, self._held):
            if due:
                limit = min(limit, min(due.values()))
        return limit

    # --- what takes too long -----------------------------------------------------------------------------------------

    def _suspect(self, worker: Member, now: float) -> None:
        """The batch that a worker computes has taken several times what batches of this stage take."""
        self.stats.slow += 1
        self._take_back(worker)
        self._hedge(worker, now)

    def _take_back(self, worker: Member) -> None:
        """What was given in advance has not begun: others may have it. It stays on this worker's books until the worker
        has said that it skipped it (or computed it all the same: whoever gets it drops duplicates)."""
        behind = [batch for batch in list(worker.batches.values())[1:] if not batch.revoked]
        if behind:
            self.queue.push_front([item for batch in behind for item in self._revoke(batch)])
            self.actions.append(ToWorker(worker.key, Revoke([batch.number for batch in behind])))

    def _revoke(self, batch: InFlight) -> list[Item]:
        """A worker answers for a batch no longer; returns the items that need another holder."""
        batch.revoked = True
        items = [item for item in batch.items.values() if not item.request.closed and item.hop == item.request.hop]
        for item in items:
            item.holds += 1
        return items

    def _hedge(self, worker: Member, now: float) -> None:
        """Have a suspect batch computed elsewhere as well, if that is allowed; as soon as it can be afforded."""
        self._slow.pop(worker.key, None)
        first = next(iter(worker.batches.values()))
        if first.revoked or not self.spec.idempotent:
            return
        for item in first.items.values():  # one that streams shows that it goes on; the last attempt is the last
            if item.request.stream_hop == item.hop or item.attempt >= self.spec.max_attempts:
                return
        able = sum([one.state is WorkerState.READY and not one.slow for one in self.workers.values()])
        stuck = sum([one.slow for one in self.workers.values()])
        is_closed = self.breaker.state is BreakerState.CLOSED
        if not (is_closed and may_hedge(stuck=stuck, able=able) and self._budget.spend(len(first.items))):
            self._slow[worker.key] = now + self.pace.patience_s
            return
        again = self._revoke(first)
        if again:
            self.stats.hedged += len(again)
            self._try_apart(again, self.pace.patience_s, now)

    def _time_out(self, worker: Member, now: float) -> None:
        first = next(iter(worker.batches.values()))
        self._turn(worker, WorkerEvent.LATE)
        if worker.state is not WorkerState.DYING:  # there is nobody to kill
            self._overdue[worker.key] = now + self.spec.kill_after_s
        self.crew.rest(worker)
        self._slow.pop(worker.key, None)
        self._take_back(worker)
        if not first.revoked:
            if self.breaker.state is BreakerState.TRIAL:
                self.breaker.unclear(now)
            self._reach_limit(first, self._revoke(first), now)
        self._tell(now)

    def _come_back(self, worker: Member, batch: InFlight, uids: Sequence[int], now: float) -> None:
        """A worker gives items back unanswered: it has reached the time limit by its own clock, and got out of
        ``forward``. What it skipped for any other reason nobody waits for."""
        again = [item for uid in uids if (item := batch.items.get(uid)) is not None and item.is_due(now)]
        for item in again:
            item.holds += 1
        if again:
            self._reach_limit(batch, again, now)

    def _reach_limit(self, batch: InFlight, items: list[Item], now: float) -> None:
        """These have been computed for as long as may be. Who was alone is the one that takes too long; of several,
        nobody knows which it is, so they are tried again in parts."""
        again: list[Item] = []
        for item in items:
            if (
                not self.spec.idempotent
                or item.request.stream_hop == item.hop
                or item.attempt >= self.spec.max_attempts
            ):
                found = batch.count == 1 and item.attempt > 1
                self._fail([item.request.uid], Status.TIMEOUT, wording.TIMEOUT, DO_NOT_RETRY if found else None)
                self._release(item.let_go())
            elif batch.count == 1:
                self._fail([item.request.uid], Status.TIMEOUT, wording.TIMEOUT)
                self._release(item.let_go())
            elif not item.is_due(now):
                self._drop([item], now)
            else:
                again.append(item)
        if again:
            self.stats.narrowed += len(again)
            self._try_apart(again, self.spec.timeout_s, now)

    def _try_apart(self, items: list[Item], round_s: float, now: float) -> None:
        """Try items again that were together in something that takes too long, in parts of which each try takes up to
        ``round_s``."""
        attempt = 0
        left = inf
        for item in items:
            item.attempt += 1
            attempt = max(attempt, item.attempt)
            left = min(left, item.request.deadline - now)
        tries = max(1, min(self.spec.max_attempts - attempt + 1, int(left / round_s)))
        size = part_size(len(items), tries)
        for begin in range(0, len(items), size):
            self.apart.push(items[begin : begin + size])

    def _call_off(self, worker: Member, batch: InFlight, uids: Sequence[int], now: float) -> None:
        """Items that may be in other places too were settled here: those that are done are done everywhere."""
        done = [
            uid
            for uid in uids
            if (item := batch.items.pop(uid, None)) is not None
            and (item.request.closed or item.hop != item.request.hop)
        ]
        if done:
            self.cancel(done, now)

    # --- what fails --------------------------------------------------------------------------------------------------

    def _note_bad(self, worker: Member, batch: InFlight, now: float) -> None:
        """Nothing of a batch was computed rightly."""
        self._bad += 1
        proven = any(one.proven for one in self.workers.values())
        if self.breaker.failed(batch.count, now, is_proven=proven):
            self._note_breaker(now)
        if not worker.failing:
            worker.good_before, worker.bad_before = self._good, self._bad - 1
        worker.failing += 1
        verdict = judge(
            worker.failing,
            others_good=self._good - worker.good_before,
            others_failed=self._bad - worker.bad_before - worker.failing,
        )
        if verdict is Verdict.SOUND or worker.condemned or len(self.workers) < 2:
            return
        if verdict is Verdict.BROKEN:
            worker.condemned = True
            self.stats.replaced += 1
            facts = {"stage": self.spec.name, "worker": worker.slot, "pid": worker.pid, "batches": worker.failing}
            self.actions.append(Note("a worker fails everything while its neighbours do not: it is replaced", facts))
            self.actions.append(Kill(worker.key, "failing everything"))
        elif worker.since + self.service_s > now and worker.state is WorkerState.READY:
            # Being quick at failing, it would be given more than its share.
            self._held[worker.key] = worker.since + self.service_s

    def _note_breaker(self, now: float) -> None:
        breaker = self.breaker
        facts: dict[str, object] = {"stage": self.spec.name, "reason": breaker.reason}
        if breaker.state is BreakerState.CLOSED:
            self.actions.append(Note("the stage is fed again: a batch was computed rightly", facts, is_error=False))
        else:
            facts["retry_in_s"] = round(breaker.retry_at - now, 1)
            self.actions.append(Note("the stage is not fed: whatever it is given fails", facts))
        self._tell(now)

    def _clear(self, now: float) -> None:
        """While nothing is given to the stage, nothing waits for it."""
        if self.breaker.refuses(now):
            waiting = [*self.apart.clear(), *self.queue.clear()]
            self._fail(
                [item.request.uid for item in waiting if item.hop == item.request.hop],
                Status.UNAVAILABLE,
                wording.broken(self.spec.name),
            )
            for item in waiting:
                self._release(item.let_go())

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
        flight = InFlight(number, {}, now, apart=reason is Reason.REPLAY)
        if self.breaker.state is not BreakerState.CLOSED:
            self.breaker.feed()
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

    def _forget(self, worker: Member, now: float, death: Death = Death.FORGOTTEN, how: str = "") -> None:
        key = worker.key
        self.crew.remove(key)
        self._is_calm = all(one.state in CALM for one in self.workers.values())
        for limits in (self._overdue, self._dying, self._slow, self._held):
            limits.pop(key, None)
        if worker.served and not worker.dismissed:
            self.stats.deaths += 1
        again: list[Item] = []
        for batch in worker.batches.values():
            if not batch.revoked:
                again.extend(batch.items.values())
            else:
                for item in batch.items.values():
                    self._release(item.let_go())
        if again and death is Death.OWN and not worker.condemned:
            uids = [item.request.uid for item in again]
            if self.breaker.died(key, self._newest, uids, now, how):
                self._note_breaker(now)
        elif again:
            self.breaker.unclear(now)
        self._replay(again, now, death)
        self.actions.append(Forget(key, worker.slot, worker.families))
        self._tell(now)

    def _replay(self, items: list[Item], now: float, death: Death) -> None:
        again: list[Item] = []
        most = self.spec.max_attempts
        for item in items:
            if not item.is_due(now):
                self._drop([item], now)
            elif item.request.stream_hop == item.hop:
                self._give_up(item, wording.died_streaming(self.spec.name))
            elif not self.spec.idempotent:
                self._give_up(item, wording.died_once_only(self.spec.name))
            elif item.attempt >= most + (0 if death is Death.OWN else SPARED):
                self._find_guilty(item)
            else:
                item.attempt += 1
                self.stats.replayed += 1
                if item.attempt >= most:
                    self.apart.push([item])
                else:
                    again.append(item)
        self.queue.push_front(again)

    def _find_guilty(self, item: Item) -> None:
        """Workers died under an item as often as may be, the last of them under nothing else."""
        text = wording.died_again(self.spec.name, item.attempt)
        if self.spec.max_attempts == 1:  # it may have been any of its batch
            self._give_up(item, text)
            return
        self.stats.poisoned += 1
        self._fail([item.request.uid], Status.UNPROCESSABLE, text, DO_NOT_RETRY)
        self._release(item.let_go())

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

    def _fail(self, uids: list[int], status: Status, text: str, headers: dict[str, str] | None = None) -> None:
        self.stats.failed += len(uids)
        if uids:
            self.actions.append(Fail(self.index, uids, int(status), text, headers=headers or {}))

    def _tell(self, now: float) -> None:
        """Say what others decide by - readiness and pressure - when it has changed."""
        state = self.state()
        full = self._was_full = self._is_full()
        if state.ready:
            self._absent_at = inf
        elif self._absent_at == inf:  # until now there was somebody
            self._absent_at = now + ABSENT_S
        closed_until = self.breaker.retry_at if self.breaker.state is BreakerState.OPEN else 0.0
        told = (state.ready, state.starting, state.mime, state.flow, full, self._absent_at, closed_until)
        if told == self._told:
            return
        self._told = told
        self.actions.append(News(self.index, state, self._absent_at, full, closed_until))

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
        queued = len(self.queue) + len(self.apart)
        return StageState(self.spec.name, self.spec.num, ready, starting, queued, in_flight, self.mime, flow)


def _shared_bytes(payload: Payload) -> int:
    """Bytes of a payload that lie in shared memory."""
    return sum([ref.length for ref in refs_of(payload)])
