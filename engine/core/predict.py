"""How long a batch of n items takes, as learned from those that were computed. Pure; one of each per stage. Where items
cost unlike much, n is what they cost (:mod:`engine.core.costs`).

Known of every batch are its size and the worker's own measure of its time. From these:

* a *line* a + b n, by least squares over batches that fade by a fiftieth with each new one. Equal sizes tell nothing of
  the slope, so it stays as it was while sizes do not differ;
* a *table* of means by size (each size to 16, then eight to an octave), for time does not grow in a line everywhere.
  Where a size was seen the table outweighs the line soon;
* *optimism* beyond the largest size that was seen: the slope's lower bound. A model that expects the worst of large
  batches never tries one, and so never learns better;
* a factor for each worker (``slowness``; 1 is typical), for not all devices are alike;
* the *error* of its own predictions, relative, of which whoever decides keeps a part as a margin;
* the *overhead*: what passes between a batch's release and the arrival of its results beside computing.

Before the first batch it knows what workers have timed while they warmed up (:meth:`Times.seed`), so the first requests
after a start are predicted as well. But examples are not what people send, and a start is a busy time. So these *seeds*
give way to the first batch of their size, and where the first batches of all take much more or much less, the seeds are
taken for the curve's form alone, and scaled. What they say of a worker's speed is not believed: who is thought slow is
given little, and would take long to show otherwise.

One batch in which something hung is no measure of what batches take: times beyond four times the expected count as
that. A batch of n is expected to take no less than one of n - 1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import ceil, inf, sqrt
from typing import Final, Protocol

import msgspec

FADE: Final = 0.98  # of what is known, with each batch
SPEED_SMOOTHING: Final = 0.15
SPEED_FIRST: Final = 0.4  # of a worker's first batch, for one that is slow makes others wait until that is known
ERROR_SMOOTHING: Final = 0.05
OVERHEAD_SMOOTHING: Final = 0.1
LINE_WEIGHT: Final = 4.0  # of the line against the first batch of a size; it falls as these become more
TABLE_WEIGHT: Final = 20.0  # batches over which a mean of the table goes
MARGIN: Final = 1.0  # of the error, kept by whoever plans; a stage that keeps two refuses itself to death
LEAST_ERROR: Final = 0.03
OUTLIER: Final = 4.0
FIRST: Final = 3  # batches before what is expected is a measure of what comes
SEED_WEIGHT: Final = 8.0  # of what the warm-ups of a worker say of a size, in batches; once one came:
SEED_KEPT: Final = 2.0
SEED_OFF: Final = 2.0  # times as much or as little, and seeds are scaled
SLOWEST: Final = 16.0
BUILD_S: Final = 0.1  # how often a size's time is worked out anew at most, once FRESH batches were seen
FRESH: Final = 32


class Paced(Protocol):
    """A worker, as far as this is concerned."""

    slowness: float
    compared: int  # batches by which that is known


def bucket(n: int) -> int:
    """Sizes that share a mean: to 16 each its own, then eight to an octave."""
    if n <= 16:
        return n
    octave = n.bit_length() - 5  # of 16 to 31: 0
    return 16 + 8 * octave + ((n - (16 << octave)) >> (octave + 1))


class Times:
    """See the module. Seconds; ``most`` is the largest batch there can be. Not thread-safe, but :attr:`shape` is made
    anew and never changed, so that it can be handed on."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.known = False  # something was learned; else every prediction is 0
        self.overhead_s = 0.0
        self.margin = 1.0 + MARGIN * LEAST_ERROR  # what to multiply a prediction with to be rather late than early
        self.shape: list[float] = [0.0] * (most + 1)  # by size: seconds of computing at a worker of slowness 1
        self._anchors = sorted({*range(1, min(most, 16) + 1), *_tops(most), most})
        self._count = self._seen = 0
        self._s0 = self._sn = self._snn = self._st = self._snt = 0.0
        self._a = self._b = self._low = 0.0
        self._residue = 0.0
        self._error = 0.0  # mean square of the relative error
        self._table: dict[int, tuple[float, float]] = {}  # bucket -> (mean, weight)
        self._seeds: set[int] = set()  # buckets of which only the warm-up has told
        self._built_at = 0.0

    # --- asking ------------------------------------------------------------------------------------------------------

    def predict(self, n: int, worker: Paced) -> float:
        """Seconds from when ``worker`` can begin with a batch of ``n`` until its results are there; 0 while unknown."""
        return self.shape[n] * worker.slowness + self.overhead_s

    @property
    def fixed_s(self) -> float:
        """What a batch takes however small it is; 0 while unknown."""
        return min(self._a, self.shape[1])

    @property
    def seen_sizes(self) -> list[int]:
        """Powers of two, those after them and the largest, of the sizes up to the largest that was seen: what is said
        of larger ones is hope."""
        powers = [1 << exponent for exponent in range(self._seen.bit_length())]
        return sorted({n for power in powers for n in (power, power + 1) if n <= self._seen} | {self._seen} - {0})

    @property
    def error(self) -> float:
        """By how much predictions are off: the root of the mean square, as a share."""
        return sqrt(self._error)

    def predict_mean(self, n: int, slowness: float) -> float:
        """The same of a worker that is so slow."""
        return self.shape[n] * slowness + self.overhead_s

    def fit(self, n: int, room_s: float, worker: Paced) -> int:
        """The largest batch up to ``n`` that ``worker`` would have done in ``room_s``, with the margin; 0: none."""
        room = (room_s / self.margin - self.overhead_s) / worker.slowness
        return bisect_right(self.shape, room, 1, n + 1) - 1

    # --- learning ----------------------------------------------------------------------------------------------------

    def seed(self, times: Mapping[int, float]) -> None:
        """How long batches took in a worker's warm-up, by size: seconds. Once batches were learned from these know
        better, and it is passed over; so are sizes that cannot be."""
        told = [(n, t) for n, t in times.items() if 0 < n <= self.most and t > 0.0]
        if self._count or not told:
            return
        for n, t in told:
            self._fit_line(n, t)
            mean, weight = self._table.get(bucket(n), (0.0, 0.0))
            weight = min(weight + SEED_WEIGHT, TABLE_WEIGHT)
            self._table[bucket(n)] = (mean + (t - mean) * SEED_WEIGHT / weight, weight)
            self._seeds.add(bucket(n))
        self._build()

    def learn(self, n: int, took_s: float, worker: Paced, now: float, *, compare: bool = True) -> None:
        """``worker`` computed a batch of ``n`` in ``took_s`` (above 0). ``compare``: it is one of several, whose speeds
        may differ."""
        n = min(n, self.most)
        slowness = worker.slowness
        if self._seeds:
            self._give_way(n, took_s / slowness)
        if self._count >= FIRST:
            expected = self.shape[n] * slowness
            ratio = took_s / expected
            if compare:
                worker.compared += 1
                weight = max(SPEED_SMOOTHING, SPEED_FIRST / worker.compared**0.5)
                worker.slowness = slowness * (1.0 + weight * (min(max(ratio, 1 / 3), 3.0) - 1.0))
                worker.slowness = min(max(worker.slowness, 1 / SLOWEST), SLOWEST)
            deviation = min(abs(ratio - 1.0), 1.0)
            self._error += ERROR_SMOOTHING * (deviation * deviation - self._error)
            took_s = min(took_s, OUTLIER * expected)
        self._count += 1
        self._fit_line(n, took_s / slowness)
        mean, weight = self._table.get(bucket(n), (0.0, 0.0))
        if weight > 2.0 and mean > 2.0 * took_s / slowness:
            self._forget()
            weight = 0.0
        weight = min(weight * 0.95 + 1.0, TABLE_WEIGHT)
        self._table[bucket(n)] = (mean + (took_s / slowness - mean) / weight, weight)
        if self._count < FRESH or now - self._built_at >= BUILD_S:
            self._built_at = now
            self._build()

    def learn_overhead(self, seconds: float) -> None:
        """What a batch took from its release, or from the results of the one before, beyond computing."""
        self.overhead_s += (max(seconds, 0.0) - self.overhead_s) * (OVERHEAD_SMOOTHING if self.overhead_s else 1.0)

    def _give_way(self, n: int, t: float) -> None:
        """Of what the warm-up has told, while there still is something that it alone has told."""
        ratio = t / self.shape[n]
        if self._count < FIRST and not 1.0 / SEED_OFF <= ratio <= SEED_OFF:
            self._st *= ratio
            self._snt *= ratio
            self._b *= ratio
            self._residue *= ratio * ratio
            self._table = {size: (mean * ratio, weight) for size, (mean, weight) in self._table.items()}
        if bucket(n) in self._seeds:
            self._seeds.discard(bucket(n))
            mean, _ = self._table[bucket(n)]
            self._table[bucket(n)] = (mean, SEED_KEPT)

    def _forget(self) -> None:
        """Batches take much less than they did: what was known is half as certain. Who believes in slow workers gives
        them little to do, and would take long to find out."""
        for name in ("_s0", "_sn", "_snn", "_st", "_snt"):
            setattr(self, name, getattr(self, name) / 2)
        self._table = {size: (mean, weight / 2) for size, (mean, weight) in self._table.items()}

    def _fit_line(self, n: int, t: float) -> None:
        self._s0 = s0 = self._s0 * FADE + 1.0
        self._sn = self._sn * FADE + n
        self._snn = self._snn * FADE + n * n
        self._st = self._st * FADE + t
        self._snt = self._snt * FADE + n * t
        mean_n, mean_t = self._sn / s0, self._st / s0
        spread = self._snn / s0 - mean_n * mean_n
        together = self._snt / s0 - mean_n * mean_t
        b = self._b if s0 > 1.0 else 0.5 * mean_t / mean_n  # half of it fixed, until sizes differ
        if spread > 0.5:
            ridge = 0.05 * mean_n * mean_n / min(s0, 20.0)
            b = (together + ridge * b) / (spread + ridge)
        self._b = b = min(max(b, 0.0), mean_t / mean_n)
        self._a = mean_t - b * mean_n
        off = t - self._a - b * n
        self._residue = self._residue * FADE + off * off
        self._seen = max(self._seen, n)
        doubt = self._residue / max(s0 - 2.0, 1.0) / (s0 * spread + 1e-9)
        self._low = max(0.0, b - 2.0 * sqrt(doubt)) if s0 > 2.5 and spread > 0.5 else 0.0

    def _build(self) -> None:
        """Work out the times of all sizes: at the anchors by table and line, between them in a straight line."""
        seen, table = self._seen, self._table
        times: list[float] = []
        ceiling = inf  # what a larger size took: a smaller one takes no more
        for n in reversed(self._anchors):
            time = self._a + self._b * min(n, seen) + self._low * max(n - seen, 0)
            if (found := table.get(bucket(n))) is not None:
                mean, weight = found
                line_weight = LINE_WEIGHT / weight
                time = ceiling = min((mean * weight + time * line_weight) / (weight + line_weight), ceiling)
            times.append(min(time, ceiling))
        shape = [0.0]
        before = top = 0.0
        for n, time in zip(self._anchors, reversed(times), strict=True):
            top = max(top, time, 1e-9)
            gap = n - len(shape) + 1
            shape.extend([before + (top - before) * step / gap for step in range(1, gap)])
            shape.append(top)
            before = top
        self.shape = shape
        self.margin = 1.0 + MARGIN * max(sqrt(self._error), LEAST_ERROR)
        self.known = True


def _tops(most: int) -> list[int]:
    """The largest size of each bucket beyond 16."""
    return [n for n in range(17, most) if bucket(n + 1) != bucket(n)]


class Outlook(msgspec.Struct, frozen=True):
    """How a stage sees its next seconds: what whoever stands at the door needs to say when one item more would be done.

    It is compact and may be a little old. What it says of workers holds as time passes; who else has been let in since
    then the door knows.
    """

    queued: int
    in_flight: int
    taken: int  # items that the door has handed to the stage so far and that are counted above, or gone
    frees: list[float]  # when each worker that can be given work will be free, in order; the past: it is
    most: int  # what a batch has, of items as they are now
    rate: float  # what comes in a second
    shape: list[float]  # see Times, like the next two
    overhead_s: float
    margin: float
    slowness: float  # of the workers together
    ranks: list[float] = []  # where these are out of order: those of some waiting items, evenly chosen, in order
    each: float = 1.0  # what an item counts in ``most``, ``rate`` and ``shape``: units of what it costs, or 1

    def finish(self, ahead: int, now: float) -> float:
        """When an item with ``ahead`` others before it would be done, if it is there now."""
        each = self.each
        full, rest = divmod(ahead if each == 1.0 else int(ahead * each), self.most)
        rounds, place = divmod(full, len(self.frees))
        free = self.frees[place]
        if free < now:
            free = now
        whole = self._takes(self.most)
        free += rounds * whole
        n = min(self.most, rest + self._one + int(self.rate * (free - now)))  # more come while it waits
        # Errors of batches that follow each other make up for each other in part.
        return free + self._takes(n) + (self.margin - 1.0) * whole * sqrt(rounds + 1.0)

    def at_most(self, ahead: int, now: float) -> float:
        """When an item would be done at the latest with so many others before it, or fewer, who are there now."""
        each = self.each
        full = int(ahead * each) // self.most
        rounds = full // len(self.frees)
        whole = self._takes(self.most)
        free = self.frees[-1]
        return (free if free > now else now) + (rounds + 1) * whole + (self.margin - 1.0) * whole * sqrt(rounds + 1.0)

    @property
    def alone_s(self) -> float:
        """How long one item takes."""
        return self._takes(self._one)

    @property
    def _one(self) -> int:
        return 1 if self.each == 1.0 else max(1, ceil(self.each))

    @property
    def whole_s(self) -> float:
        """How long a whole batch takes."""
        return self._takes(self.most)

    def is_free(self, now: float) -> bool:
        """Somebody has nothing to do."""
        return self.frees[0] <= now

    def before(self, rank: float) -> float:
        """The share of what waits that comes before ``rank``."""
        return bisect_right(self.ranks, rank) / len(self.ranks) if self.ranks else 1.0

    def _takes(self, n: int) -> float:
        return self.shape[n] * self.slowness + self.overhead_s
