"""What becomes of items whose worker is late, dies or fails, and of a worker that fails what others do not. Pure.

An item has one *holder* that is to see to its answer: the queue, a part that is tried apart, or a batch.

* Its worker dies: it goes back to the front of the queue with ``attempt + 1``, and has time until its deadline then,
  whatever its goal, for who was begun with is not refused. Its last attempt is made alone, on an idle worker, with
  nothing given in advance behind it: so an item that kills workers can take innocent ones along at most
  ``max_attempts - 1`` times, and never to the end. Under which a worker died then is told not to come again.
* The connection to its worker is lost: the same, but for the attempt, which is not counted. What was so often with
  workers that were cut off goes on alone, in case it is what ends them; whether it was is only known when another
  process takes the place of one of them (:meth:`Fate.follows`), and then it counts.
* Its batch takes several times as long as others (:mod:`engine.core.hedging`): what waits behind it goes to others at
  once, and so may its items. The batch stays on the worker's books as *revoked*, which holds nothing but memory.
* Its batch reaches the time limit: its items are tried again in parts, as long as they have attempts left, so that the
  one that hangs is found; one that reaches the limit alone is answered.
* Everything that a stage is given fails or dies: the stage is not fed (:mod:`engine.core.breaker`). One worker fails
  everything while its neighbours do not: it is replaced (:mod:`engine.core.failing`).
* It must not be computed twice, or its client has read events of it already: it is not tried again, and told so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Final

from engine.core import wording
from engine.core.actions import Kill, Note, StageAction, ToWorker
from engine.core.batching import BatchQueue
from engine.core.breaker import CLOSED, Breaker, BreakerState
from engine.core.crew import Crew
from engine.core.deaths import Death
from engine.core.ends import BROKEN, STUCK, Ends
from engine.core.failing import Verdict, judge
from engine.core.foresight import Foresight
from engine.core.hedging import BRIEF_S, PATIENCE_LEAST_S, Apart, Budget, Pace, may_hedge, part_size
from engine.core.items import Item
from engine.core.member import Member
from engine.core.messages import Revoke, Status
from engine.core.released import Released
from engine.core.stats import StageStats
from engine.core.trace import DIED, GIVEN
from engine.core.worker_states import WorkerState

if TYPE_CHECKING:
    from engine.core.stage import StageSpec

# Want of memory may be any item's doing, or all of theirs together: none is blamed, and the stage may be at fault.
BREAKING: Final = frozenset({Death.OWN, Death.MEMORY})

# Workers that were cut off and have not come back, and of which it is remembered what they had.
CUT_MOST: Final = 1024

# Deaths that have another known cause, and yet end an item that was alone with its worker each time: nobody is that
# unlucky.
SPARED: Final = 2


class Fate:
    """See the module. A method that returns a truth says whether the stage's readiness may have changed by it.

    Not thread-safe; queue, crew, stats and actions are the stage's own.
    """

    def __init__(
        self,
        spec: StageSpec,
        queue: BatchQueue,
        crew: Crew,
        foresight: Foresight,
        stats: StageStats,
        actions: list[StageAction],
        ends: Ends,
    ) -> None:
        self.spec = spec
        self.apart = Apart()  # what is tried again in parts of its own, last attempts among them
        self.breaker = Breaker()
        self.pace = Pace()
        self.queue = queue
        self._crew = crew
        self._foresight = foresight
        self._stats = stats
        self._actions = actions
        self._ends = ends
        self._budget = Budget(spec.policy.max_batch_size)
        self._slow: dict[int, float] = {}  # suspect worker -> when it is looked at again
        self._held: dict[int, float] = {}  # worker that is quick at failing -> until when it is given nothing
        # By host and slot of workers that were cut off: whose instance it was, and what it had.
        self._cut: OrderedDict[tuple[str, int, str], tuple[int, list[Item]]] = OrderedDict()
        self.limits = (self._slow, self._held)  # by worker: when there is something to look at again
        self._good = 0  # batches of which something was computed rightly
        self._bad = 0  # batches of which nothing was

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Look for what is late. Cheap when nothing is."""
        for worker in self._crew.slow(now, self.pace.patience_s):
            self._stats.slow += 1
            self._crew.hold_back(self.spec.num, self.spec.spare)  # a spare takes its place meanwhile
            self._take_back(worker)
            self._hedge(worker, now)
        for key in [key for key, look_at in self._slow.items() if look_at <= now]:
            self._hedge(self._crew.workers[key], now)
        for key in [key for key, until in self._held.items() if until <= now]:
            del self._held[key]
            self._crew.sort_in(self._crew.workers[key], now, begins=False)
        for _, items in self._cut.values():  # what is done is not kept for that
            if items:
                items[:] = [item for item in items if item.is_due(now)]

    # --- what takes too long -----------------------------------------------------------------------------------------

    def _take_back(self, worker: Member) -> None:
        """What was given in advance has not begun: others may have it. It stays on this worker's books until the worker
        has said that it skipped it (or computed it all the same: whoever gets it drops duplicates)."""
        behind = [batch for batch in list(worker.batches.values())[1:] if not batch.revoked]
        if behind:
            self.queue.push_front([item for batch in behind for item in self._revoke(batch)])
            self._actions.append(ToWorker(worker.key, Revoke([batch.number for batch in behind])))

    def _revoke(self, batch: Released) -> list[Item]:
        """A worker answers for a batch no longer; returns the items that need another holder."""
        batch.revoked = True
        batch.fate = GIVEN
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
        stuck = sum([one.slow for one in self._crew.workers.values()])
        able = self._crew.able
        # Of a bundle one batch takes so long; the others are short.
        count = -(-len(first.items) // first.calls)
        if not (self.is_sound and may_hedge(stuck=stuck, able=able) and self._budget.spend(count)):
            self._slow[worker.key] = now + self.pace.patience_s
            return
        again = self._revoke(first)
        if again:
            self._stats.hedged += len(again)
            self._try_apart(again, self.pace.patience_s, now)

    def timed_out(self, worker: Member, now: float) -> None:
        """The batch that a worker computes has reached the time limit."""
        first = next(iter(worker.batches.values()))
        self._slow.pop(worker.key, None)
        self._take_back(worker)
        if not first.revoked:
            if self.breaker.state is BreakerState.TRIAL:
                self.breaker.unclear(now)
            self._reach_limit(first, self._revoke(first), now, alone=first.count == 1 or first.is_last)

    def come_back(self, batch: Released, uids: Sequence[int], now: float) -> None:
        """A worker gives items back unanswered: it has reached the time limit by its own clock, and got out of
        ``forward``. What it skipped for any other reason nobody waits for."""
        again = [item for uid in uids if (item := batch.items.get(uid)) is not None and item.is_due(now)]
        for item in again:
            item.holds += 1
        if again:
            self._reach_limit(batch, again, now, alone=batch.count == batch.calls)

    def _reach_limit(self, batch: Released, items: list[Item], now: float, *, alone: bool) -> None:
        """These have been computed for as long as may be. Who was ``alone`` is the one that takes too long; of several,
        nobody knows which it is, so they are tried again in parts."""
        most = self.spec.max_attempts
        again: list[Item] = []
        for item in items:
            is_last = not self.spec.idempotent or item.request.stream_hop == item.hop or item.attempt >= most
            if is_last or alone:
                found = is_last and alone and item.attempt > 1
                headers = wording.DO_NOT_RETRY if found else None
                self._ends.fail([item], Status.TIMEOUT, wording.TIMEOUT, headers, why=STUCK)
            elif not item.is_due(now):
                self._ends.drop([item])
            else:
                again.append(item)
        if again:
            self._stats.narrowed += len(again)
            self._try_apart(again, self.spec.timeout_s, now)

    def _try_apart(self, items: list[Item], round_s: float, now: float) -> None:
        """Try items again that were together in something that takes too long, in parts of which each try takes up to
        ``round_s``."""
        attempt = 0
        left = inf
        for item in items:
            item.attempt += 1
            item.request.is_begun = True
            attempt = max(attempt, item.attempt)
            left = min(left, item.request.deadline - now)
        tries = max(1, min(self.spec.max_attempts - attempt + 1, int(left / round_s)))
        size = min(part_size(len(items), tries), self.spec.policy.max_batch_size)
        for begin in range(0, len(items), size):
            self.apart.push(items[begin : begin + size])

    def next_part(self, now: float) -> list[Item]:
        """The items of :attr:`apart` that are to be tried next, as a batch of their own; none, if nobody waits for
        them. KeyError when nothing is there."""
        part = self.apart.pop()
        due = [item for item in part if item.is_due(now)]
        self._ends.drop([item for item in part if item not in due])
        return due

    def goes_on(self, worker: Member) -> None:
        """Of what was suspect some is done."""
        self._slow.pop(worker.key, None)
        self._crew.hold_back(self.spec.num, self.spec.spare)

    # --- what comes back ---------------------------------------------------------------------------------------------

    def settled(self, worker: Member, batch: Released, took_s: float | None, now: float) -> bool:
        """All of a batch is accounted for. ``took_s``: since the worker began with it; None: it was not its turn."""
        if took_s is not None:
            if batch.is_good and (took_s > BRIEF_S or self.pace.patience_s > PATIENCE_LEAST_S):
                self.pace.learn(took_s / max(1.0, worker.slowness))
            if worker.slow:
                self._slow.pop(worker.key, None)
        self._budget.done += batch.count
        if batch.is_good:
            self._good += 1
            worker.failing = 0
            worker.proven = True
            return self.breaker.succeeded() and self._note(True, now)
        if batch.failed >= batch.count:
            return self._fails(worker, batch, now)
        self.breaker.unclear(now)  # all of it was skipped, or its clients' fault
        return False

    def _fails(self, worker: Member, batch: Released, now: float) -> bool:
        """Nothing of a batch was computed rightly."""
        self._bad += 1
        workers = self._crew.workers
        proven = any(one.proven for one in workers.values())
        changed = self._note(self.breaker.failed(batch.count, now, is_proven=proven), now)
        if not worker.failing:
            worker.good_before, worker.bad_before = self._good, self._bad - 1
        worker.failing += 1
        verdict = judge(
            worker.failing,
            others_good=self._good - worker.good_before,
            others_failed=self._bad - worker.bad_before - worker.failing,
        )
        if verdict is Verdict.SOUND or worker.condemned or len(workers) < 2:
            return changed
        if verdict is Verdict.BROKEN:
            worker.condemned = True
            self._stats.replaced += 1
            facts = {"stage": self.spec.name, "worker": worker.slot, "pid": worker.pid, "batches": worker.failing}
            self._actions.append(Note("a worker fails everything while its neighbours do not: it is replaced", facts))
            self._actions.append(Kill(worker.key, "failing everything"))
        elif worker.state is WorkerState.READY:
            until = worker.since + self._foresight.service_s  # being quick at failing, it would get more than its share
            if until > now:
                self._held[worker.key] = until
        return changed

    def holds(self, worker: Member) -> bool:
        """Whether nothing is to be given to a worker for now."""
        return worker.key in self._held

    # --- deaths ------------------------------------------------------------------------------------------------------

    def forget(self, worker: Member, newest: int, death: Death, how: str, now: float) -> None:
        """A worker is no more; others see to what it had. ``newest``: the key of the worker that came last."""
        self._slow.pop(worker.key, None)
        self._held.pop(worker.key, None)
        again: list[Item] = []
        for batch in worker.batches.values():
            batch.fate = DIED
            if not batch.revoked:
                again.extend(batch.items.values())
            else:
                self._ends.let_go(batch.items.values())
            batch.items = {}  # the trace keeps the batch
        if again and death in BREAKING and not worker.condemned:
            self._break(worker.key, newest, again, how, now)
        elif again:
            self.breaker.unclear(now)
        if again and death is Death.CUT and not worker.local:
            self._cut[worker.host, worker.slot, worker.instance] = worker.key, again
            if len(self._cut) > CUT_MOST:
                self._cut.popitem(last=False)
        self._replay(again, death, now)

    def follows(self, worker: Member, now: float) -> None:
        """A worker has joined. If it was cut off itself, that is forgotten. Else, if one in its place was, and has not
        come back, that had died; what it had, as far as it is not done by now, is a worker's death nearer to its end.
        Where several are in one place nobody knows which of them has come."""
        place = worker.host, worker.slot
        if self._cut.pop((*place, worker.instance), None) is not None:
            return
        gone = [key for key in self._cut if key[:2] == place]
        lives = any(one is not worker and (one.host, one.slot) == place for one in self._crew.workers.values())
        if len(gone) != 1 or lives:
            return
        key, items = self._cut.pop(gone[0])
        self._stats.deaths[Death.OWN] += 1
        under = [item for item in items if item.is_due(now)]
        for item in under:
            item.attempt += 1
        if under:
            self._break(key, worker.key, under, "", now)

    def lost(self, worker: Member, batch: Released, now: float, *, was_first: bool) -> None:
        """A batch has not come to its worker, or its results have not come from there. It is nobody's fault."""
        if was_first:
            self._slow.pop(worker.key, None)
        batch.fate = DIED
        items, batch.items = [*batch.items.values()], {}
        self.breaker.unclear(now)
        if batch.revoked:
            self._ends.let_go(items)
        else:
            self._replay(items, Death.CUT, now)

    def _break(self, key: int, newest: int, items: list[Item], how: str, now: float) -> None:
        uids = [item.request.uid for item in items]
        self._note(self.breaker.died(key, newest, uids, now, how), now)

    def _replay(self, items: list[Item], death: Death, now: float) -> None:
        again: list[Item] = []
        most, stage = self.spec.max_attempts, self.spec.name
        for item in items:
            if not item.is_due(now):
                self._ends.drop([item])
            elif item.request.stream_hop == item.hop:
                self._ends.fail([item], Status.FAILED, wording.died_streaming(stage))
            elif not self.spec.idempotent:
                self._ends.fail([item], Status.FAILED, wording.died_once_only(stage))
            elif item.attempt >= most + (0 if death is Death.OWN else SPARED):
                self._find_guilty(item)
            else:
                if death is Death.CUT:
                    item.cuts += 1
                else:
                    item.attempt += 1
                item.request.is_begun = True
                self._stats.replayed += 1
                if item.attempt + item.cuts >= most:
                    self.apart.push([item])
                else:
                    again.append(item)
        self.queue.push_front(again)

    def _find_guilty(self, item: Item) -> None:
        """Workers died under an item as often as may be, the last of them under nothing else."""
        text = wording.died_again(self.spec.name, item.attempt)
        if self.spec.max_attempts == 1:  # it may have been any of its batch
            self._ends.fail([item], Status.FAILED, text)
        else:
            self._stats.poisoned += 1
            self._ends.fail([item], Status.UNPROCESSABLE, text, wording.DO_NOT_RETRY)

    # --- the breaker -------------------------------------------------------------------------------------------------

    @property
    def is_sound(self) -> bool:
        """The stage is fed."""
        return self.breaker.state is CLOSED

    @property
    def closed_until(self) -> float:
        """Before then nothing is to come for the stage; 0: it is fed, or tried."""
        return self.breaker.retry_at if self.breaker.state is BreakerState.OPEN else 0.0

    def clear(self, now: float) -> None:
        """While nothing is given to the stage, nothing waits for it."""
        if self.breaker.refuses(now):
            waiting = [*self.apart.clear(), *self.queue.clear()]
            here = [item for item in waiting if item.hop == item.request.hop]
            self._ends.fail(here, Status.UNAVAILABLE, wording.broken(self.spec.name), why=BROKEN)
            self._ends.let_go([item for item in waiting if item.hop != item.request.hop])

    def _note(self, changed: bool, now: float) -> bool:
        """The breaker has opened or closed, if ``changed``: the log tells of it."""
        if changed:
            breaker = self.breaker
            facts: dict[str, object] = {"stage": self.spec.name, "reason": breaker.reason}
            if self.is_sound:
                self._actions.append(
                    Note("the stage is fed again: a batch was computed rightly", facts, is_error=False)
                )
            else:
                facts["retry_in_s"] = round(breaker.retry_at - now, 1)
                self._actions.append(Note("the stage is not fed: whatever it is given fails", facts))
        return changed
