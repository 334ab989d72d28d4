"""What a stage foresees: how long its batches will take, who of those that wait can still be served in time, and what
whoever comes has to expect. Pure; one of each per stage.

It learns from batches that are done, before these from warm-ups (:mod:`engine.core.predict`), counts what comes, and
is told by later stages what they need. Where items cost unlike much, all numbers of items are units of that
(:mod:`engine.core.costs`). Two things come of that: the *window rule* (:meth:`Foresight.choose`) where somebody is due
before a whole batch would be done, and the *outlook* that the door refuses by (:meth:`Foresight.outlook`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final, NamedTuple

from engine.core.actions import Settle
from engine.core.batching import AHEAD_S, BatchQueue
from engine.core.costs import counted
from engine.core.crew import UNEVEN, Crew
from engine.core.items import Item
from engine.core.member import Member, bundle_for
from engine.core.onward import Onward
from engine.core.predict import Outlook, Times
from engine.core.released import Released
from engine.core.returns import Returns
from engine.core.routing import Topology
from engine.core.spacing import PRICE, SLOWER, filled_until, share, spacing_s
from engine.core.stats import StageStats
from engine.core.wire import MICROS

FAR: Final = 4.0  # times as slow as another, where batches are long: a worker that has its turn when those do not
LOADED: Final = 0.6  # from this load on batches fill for tight goals
MOSTLY: Final = 0.5  # of a whole batch's time: from there on at any load
LONG_S: Final = 2 * AHEAD_S  # batches that take longer are planned one by one
LOOK_S: Final = 0.002  # how often the front is told what to expect, at most
CALM_S: Final = 0.020  # who waits for less is not worth a word
MEASURE_S: Final = 0.1
LOSS: Final = 0.2  # items that others may lose for one that could be replaced
TOLD_ANEW: Final = 0.05  # change of how long a batch takes with which others are told
ALONE_S: Final = 0.0005  # change of how long one item takes alone with which the front is told, at least

NOISE_S: Final = 0.0005  # of batches that take less it is chance which worker seems to be the slower one
LEARN_S: Final = 0.005  # of batches that take less, one in such a time is learned from
OTHERS_S: Final = 3 * LEARN_S  # for so long after that others have their turn
SLACK: Final = 1.5  # of what it takes to hand a batch over: at times it takes longer than it mostly does
SERVICE_SMOOTHING: Final = 0.2  # weight of the newest batch in the running mean of how long a batch takes


class Choice(NamedTuple):
    """``most`` of what waits goes, or 0, and then it is looked again at ``look_at``. ``dead`` are not
    worth computing, ``hopeless`` would be late: both have left the queue."""

    most: int
    look_at: float
    dead: list[Item]
    hopeless: list[Item]
    worker: Member  # who takes it


class Share(NamedTuple):
    """``most`` of what waits is an idle worker's, or 0, and then it is looked again at ``look_at``."""

    most: int
    look_at: float


class Turn(NamedTuple):
    """The next ``most`` behind the ``first`` of those that wait are a slow worker's; 0: none, and then it is looked
    again at ``look_at``."""

    first: int
    most: int
    look_at: float


class Foresight:
    """See the module. Seconds. Not thread-safe."""

    def __init__(self, stage: int, topology: Topology, queue: BatchQueue, crew: Crew, stats: StageStats) -> None:
        self.queue = queue
        self._cost = queue.policy.max_batch_cost
        self._crew = crew
        self._stats = stats
        self.times = Times(queue.policy.sizes)
        self.returns = Returns()
        self.service_s = 0.0  # how long a batch takes, lately
        self._is_guess = False  # as a warm-up has it
        self.delay_s = 0.0  # from an item's arrival to its release, lately
        self.handover_s = 0.0  # what a batch for an idle worker takes beside being computed, lately
        self.is_long = False  # batches are planned one by one
        self.is_uneven = False  # some workers take much longer than others
        self._compare_at = 0.0
        self.look_at = 0.0  # when the front is to be told again
        self.released_at = -inf  # when the last batch left
        self.taken = 0  # items that came from the front
        self.onward = Onward(stage, topology)
        self._later = self.onward.later_s  # by route: what an item needs after this stage
        self.later_s = 0.0  # the most of these
        self._told_goes: Mapping[int, float] = {}  # as the front knows it
        self._rate = 0.0  # items per second
        self._measured_at = 0.0
        self._counted = 0
        self._learn_at = 0.0
        self._learnt_of: Member | None = None
        self._learnt_s = 0.0  # ``service_s`` as the crew was told last
        self._foresaw: Outlook | None = None
        self.alone_s = 0.0  # how long one item takes that is alone, as the front was told last

    @property
    def after_s(self) -> float:
        """What an item needs from its arrival here on, later stages included."""
        return self.delay_s + self.service_s + self.later_s

    def item_s(self, given_s: float) -> float:
        """How long a worker computes for one item of such batches as suit a stage with much to do: whole ones, or as
        large as can be done in half of ``given_s``, for who comes waits for the batch before. 0 while nobody knows."""
        queue, times = self.queue, self.times
        if not times.known:
            return 0.0
        slowness = self._crew.slowness
        n = min(queue.most, times.seen_sizes[-1])  # of larger ones there is only hope
        n = max(1, bisect_right(times.shape, given_s / 2 / slowness, 1, n + 1) - 1)
        return times.shape[n] * slowness * queue.each / n

    # --- learning ----------------------------------------------------------------------------------------------------

    def change(self, queue: BatchQueue) -> None:
        """Its stage batches otherwise from now on, out of this queue."""
        self.queue, policy = queue, queue.policy
        if policy.sizes > self.times.most or policy.max_batch_cost != self._cost:
            self._cost = policy.max_batch_cost
            self.times = Times(policy.sizes)
            self.is_long = self.is_uneven = False  # until something is known of them

    def hear_after(self, settle: Settle) -> None:
        """What items still need after this stage, if they go on to that one, or to none."""
        if self.onward.note(settle.sender, settle.ended or len(settle.uids), settle.after_s):
            self.later_s = max(self._later)

    def seed(self, times_us: Mapping[int, int]) -> None:
        """How long batches took in a worker's warm-up."""
        self.times.seed({n: us / MICROS for n, us in times_us.items()})
        if self.times.known and (self._is_guess or not self.service_s):
            self._is_guess = True
            self.service_s = (self.times.shape[1] + self.times.shape[-1]) / 2  # batches will be small or large
            self._crew.learn(self.service_s)
            self.is_long = self.service_s > LONG_S

    def took(self, took_s: float) -> None:
        """A batch took so long, at a worker that had it first; one of several that it had as one, in the mean."""
        if self._is_guess:
            self._is_guess, self.service_s = False, 0.0
        self.service_s += (took_s - self.service_s) * (SERVICE_SMOOTHING if self.service_s else 1.0)
        if abs(self.service_s - self._learnt_s) > TOLD_ANEW * self._learnt_s:
            self._learnt_s = self.service_s
            self._crew.learn(self.service_s)

    def learn(self, worker: Member, batch: Released, took_s: float, now: float) -> None:
        """A batch of which something was computed rightly is done. Short ones are many, and one in a while tells all
        there is to know of them; but of several workers not always the one whose batches end when it is time again."""
        if now < self._learn_at or (worker is self._learnt_of and now < self._learn_at + OTHERS_S):
            return
        computed_s = batch.compute_us / MICROS / batch.calls
        took_s /= batch.calls
        is_short, compare = self.service_s < LEARN_S, len(self._crew.workers) > 1
        self._learn_at = now + LEARN_S if is_short else 0.0
        self._learnt_of = worker if is_short and compare else None
        self.times.learn(batch.units, computed_s, worker, now, compare=compare)
        self.times.learn_overhead(took_s - computed_s)
        if not batch.ahead and not worker.away_s:
            handover_s = min(took_s - computed_s, computed_s)  # more is a hitch
            self.handover_s += (handover_s - self.handover_s) * SERVICE_SMOOTHING
        self.is_long = self.service_s > LONG_S and self.times.known
        if now >= self._compare_at:
            self._compare_at = now + MEASURE_S
            self.is_uneven = self.times.known and self.times.shape[-1] > NOISE_S and self._crew.is_uneven
            if not (self.is_long or self.is_uneven):
                self._crew.stop_lining_up()

    @property
    def is_brief(self) -> bool:
        """Batches take so little that several can be handed over as one."""
        return 0.0 < self.service_s <= AHEAD_S / 2 and not self._is_guess

    def bundle(self, worker: Member, n: int) -> int:
        """How many batches of ``n`` may be handed to ``worker`` as one. Together they have to be short: one of them is
        then computed behind others, and their results wait for its own, unnoticed."""
        if not self.is_brief or self.is_long or self.is_uneven or not self.times.known:
            return 1
        return bundle_for(self.times.shape[n] * worker.slowness, self.service_s)

    def expect(self, n: int, worker: Member) -> float:
        """How long a batch of ``n`` will keep ``worker``."""
        is_known = self.is_long or self.is_uneven
        return self.times.predict(min(n, self.times.most), worker) if is_known else self.service_s

    def left_s(self, worker: Member) -> float:
        """How long the batches that ``worker`` has will keep it."""
        if not (self.is_long or self.is_uneven):  # they are many, and alike
            return self.service_s * (len(worker.batches) + worker.bundled)
        return sum([batch.expected_s for batch in worker.batches.values()])

    def free_at(self, worker: Member) -> float:
        """When a worker will have done what it has."""
        return worker.free_at if self.is_long else worker.since + self.left_s(worker)

    def next_at(self, worker: Member) -> float:
        """When a busy worker is to be given more, at the earliest: so that it is there, and taken apart, when the
        worker is done with what it has. Of large values that takes longer than :data:`AHEAD_S`."""
        return worker.free_at - max(worker.ahead_s, SLACK * self.handover_s)

    def done_at(self, worker: Member, n: int, start: float) -> float:
        """When ``worker`` would have done a batch of ``n`` from ``start`` on, and later stages too; 0: nobody knows."""
        if self.is_long:
            return start + self.times.predict(n, worker) * self.times.margin + self.later_s
        return start + self.service_s + self.later_s if self.times.known else 0.0

    def needs_s(self, worker: Member, n: int) -> float:
        """How much time whoever is in a batch of ``n`` has to have when it leaves; 0: nobody knows."""
        return self.times.predict(n, worker) * self.times.margin + self.later_s if self.times.known else 0.0

    # --- sharing -----------------------------------------------------------------------------------------------------

    def spaced_until(self, worker: Member, waiting: int, now: float) -> float:
        """Until when the idle ``worker`` is not given ``waiting`` items, less than a batch; in the past: they leave
        now."""
        crew = self._crew
        if not crew.is_busy:
            return 0.0
        able = crew.able
        if able < 2:
            return 0.0
        self._measure(now)
        until = self._filled_until(worker)
        spacing = spacing_s(self.times.fixed_s, able)
        return max(until, self.released_at + spacing) if waiting < self._rate * spacing else until

    def done(self, worker: Member, batch: Released, now: float) -> None:
        """All of a batch is done."""
        if self.is_long and self._crew.lineup.alone(UNEVEN) is worker:
            self._measure(now)
            self.returns.done(batch.count, self.times.fixed_s * worker.slowness, self._rate, now)

    def returns_until(self, worker: Member, now: float, *, is_idle: bool) -> float:
        """Until when what waits, less than a batch, is not given to ``worker`` if that is alone, or all others are
        slower, for most of those who were answered come back; in the past: it is."""
        policy = self.queue.policy
        if not (policy.max_wait_s and self.returns.are_usual) or self._crew.lineup.alone(UNEVEN) is not worker:
            return 0.0
        return self.returns.until(policy.max_wait_s) if is_idle else inf

    @property
    def _load(self) -> float:
        """How much of what whole batches could do comes."""
        queue, times, crew = self.queue, self.times, self._crew
        whole_s = times.predict_mean(queue.most, crew.slowness)
        return self._rate * queue.each * whole_s / queue.most / max(1, crew.able)

    def _filled_until(self, worker: Member) -> float:
        """Until when a batch may fill that has to be done within a tight goal. It waits for as long as one more would
        still be in time: where there is no time for two batches one after the other, a small one takes the worker from
        those who come next. That is so where these are many; and where most of a batch's time is fixed at any load, for
        there it costs no latency."""
        head, times = self.queue.first(), self.times
        if head is None or head.request.due >= head.request.deadline:
            return 0.0
        if self._load < LOADED and times.fixed_s < MOSTLY * times.predict(self.queue.most, worker):
            return 0.0
        due = head.request.due - self._later[head.request.route]
        return filled_until(times, worker, due, due - head.arrived, self.queue.amount, self.queue.most)

    def share(self, worker: Member, waiting: int, now: float) -> Share:
        """How much of what waits the idle ``worker`` takes. None is left to somebody who would be late with it."""
        times, most = self.times, self.queue.most
        n = min(waiting, most)
        lineup = self._crew.lineup
        if n < 2 and lineup.least >= SLOWER * worker.slowness:  # nobody is so much quicker
            return Share(n, inf)
        other = lineup.sooner(worker, times.shape[n], now)
        if other is None:
            return Share(n, inf)
        may_pass = bool(other.batches) and other.slowness < SLOWER * worker.slowness
        if n < 2 and not may_pass:
            return Share(n, inf)
        self._measure(now)
        price = PRICE * self._rate * self.queue.each * times.shape[n] / self._crew.able
        wait_s = _left_s(other, now)
        count = share(times, worker, other, wait_s, waiting, most, price, may_pass=may_pass)
        if count < n and now + wait_s + self.needs_s(other, n) > self.queue.first_due:
            return Share(n, inf)
        return Share(count, other.overdue_at if not count else inf)

    def turn(self, worker: Member, amount: int, now: float) -> Turn | None:
        """Which of ``amount`` that wait are a slow ``worker``'s: those of whom it would be the first to be done with a
        batch, while others, who are much quicker, do those before them. So it costs nobody anything, in whatever order
        they came. None: nobody is much quicker, or nobody can know."""
        # Where batches are long those who are less apart share what waits as anybody does.
        slowness = worker.slowness / (FAR if self.is_long else UNEVEN)
        lineup = self._crew.lineup
        if lineup.least >= slowness:
            return None
        # Of its own class of speed nobody would be asked after it: what is left to others there, nobody takes.
        speed = worker.speed
        quick = [other for other in lineup.quicker(slowness) if other.speed < speed and not other.is_overdue(now)]
        if not quick:
            return None
        left_s, count, before = _left_s(worker, now), min(amount, self.queue.most), 0
        while count:
            before = self._done_by(quick, amount, left_s + self.times.predict(count, worker) * self.times.margin, now)
            if before + count <= amount:
                break
            count //= 2
        return Turn(before, count, inf if count else lineup.overdue_first(slowness, now))

    def _done_by(self, workers: Sequence[Member], amount: int, within_s: float, now: float) -> int:
        """How much of what waits these can have done by then, one batch after the other; of more than ``amount`` it is
        only said that it is more."""
        size = min(self.queue.most, amount)
        whole_s, within_s = self.times.shape[size], within_s - self.times.overhead_s
        done = 0
        for worker in workers:
            done += size * max(0, int((within_s - _left_s(worker, now)) / (whole_s * worker.slowness)))
            if done > amount:
                break
        return done

    # --- choosing ----------------------------------------------------------------------------------------------------

    def choose(self, worker: Member, start: float, now: float, *, is_idle: bool) -> Choice:
        """Somebody is due before a whole batch would be done: who is left out, and how many of the others go.

        The batch is made smaller for the first of them only if that costs the others less than one of them: to shrink
        batches whenever somebody is late is to be late with everybody.
        """
        queue, times = self.queue, self.times
        queue.sort(now)
        need = self._need(now)
        # Where even whole batches do not suffice, somebody else is served in the place of whoever is left out.
        price = (1.0 if need < queue.top else LOSS) * queue.each
        dead: list[Item] = []
        hopeless: list[Item] = []
        while (item := queue.first()) is not None:
            request = item.request
            if not item.is_due(now):
                dead.append(item)
                queue.discard(request.uid)
                continue
            one = counted(item.units) if queue.by_cost else 1
            others = max(queue.amount - one, 0)
            whole = queue.whole_of(worker.most)
            due = item.due - self._later[request.route]
            fits = times.fit(whole, due - start, worker)
            if fits >= whole:
                return Choice(whole, inf, dead, hopeless, worker)
            if fits < one:
                fits = 0
            want = min(others, need)
            if want > fits:
                lost = want / times.predict(want, worker) * times.predict(max(fits, 1), worker) - fits
                if lost > price:
                    hopeless.append(item)
                    queue.discard(request.uid)
                    continue
            if fits:
                return Choice(fits, inf, dead, hopeless, worker)
            other = self._who_else(worker, one, due, now)
            if other is not None and is_idle and not other.batches:
                worker, start = other, now + other.away_s  # of two that are idle the quicker one
                continue
            if other is not None:
                return Choice(0, max(other.free_at, now + AHEAD_S), dead, hopeless, worker)
            if not others:  # it costs nobody anything, and shows how long it does take
                return Choice(one if is_idle else 0, inf, dead, hopeless, worker)
            hopeless.append(item)
            queue.discard(request.uid)
        return Choice(0, inf, dead, hopeless, worker)

    def _who_else(self, worker: Member, one: int, due: float, now: float) -> Member | None:
        """Another worker that could have ``one`` item done by ``due``, by the very measure that :meth:`choose` goes by:
        by another one two workers would hand an item to each other for ever."""
        crew, times, queue = self._crew, self.times, self.queue
        if crew.able < 2:
            return None
        other = crew.lineup.sooner(worker, times.shape[one] * times.margin, now)
        if other is None or times.fit(queue.top, due - other.starts_at(now), other) < one:
            return None
        return other

    def _need(self, now: float) -> int:
        """The smallest batch with which the stage keeps up with what comes."""
        self._measure(now)
        able, slowness = self._crew.able, self._crew.slowness
        times, most = self.times, self.queue.top
        rate = self._rate * self.queue.each * 1.05
        n = 1
        while n < most and n * able < rate * (times.shape[n] * slowness + times.overhead_s):
            n += max(1, n // 4)
        return min(n, most)

    def _measure(self, now: float) -> None:
        """How many items come in a second."""
        past = now - self._measured_at
        if past >= MEASURE_S:
            arrived = self._stats.arrived
            rate = (arrived - self._counted) / past
            weight = min(past / (past + max(MEASURE_S, 4 * self.service_s)) * 1.5, 1.0)
            self._rate += (rate - self._rate) * weight
            self._measured_at, self._counted = now, arrived

    # --- telling -----------------------------------------------------------------------------------------------------

    def has_news(self, apart: int, now: float) -> bool:
        """Whether the front is to hear :attr:`foresaw`, which is made anew here. ``apart``: items that wait beside the
        queue."""
        self.look_at = now + LOOK_S
        before = self._foresaw
        slowness = self._crew.slowness
        self._foresaw = self._look(apart, slowness, now)
        alone_s = self.times.predict_mean(counted(self.queue.each), slowness)
        if abs(alone_s - self.alone_s) > max(TOLD_ANEW * self.alone_s, ALONE_S):
            self.alone_s = alone_s
            return True
        if self.onward.goes is not self._told_goes:
            self._told_goes = self.onward.goes
            return True
        return self._foresaw != before

    @property
    def foresaw(self) -> Outlook | None:
        """What the front was told last; None: nobody who comes has to wait."""
        return self._foresaw

    def _look(self, apart: int, slowness: float, now: float) -> Outlook | None:
        queue, times, crew = self.queue, self.times, self._crew
        queued = len(queue) + apart
        most, each = queue.most, queue.each
        rounds = queued * each / most / max(1, crew.able) + 1.0
        if not crew.able or rounds * times.predict_mean(most, slowness) < CALM_S:
            return None
        self._measure(now)
        return Outlook(
            queued,
            crew.in_flight,
            self.taken,
            crew.frees(),
            most,
            self._rate * each,
            times.shape,
            times.overhead_s,
            times.margin,
            slowness,
            queue.sample() if queue.is_mixed else [],
            each,
        )


def _left_s(worker: Member, now: float) -> float:
    """How long what it has will keep a worker."""
    return max(worker.free_at - now, 0.0) if worker.batches else 0.0
