"""How much of what waits a worker takes that has nothing to do, and when. Pure.

To give an idle worker all there is at once looks as if it helped everybody and hurt nobody. Where a part of a batch's
time is fixed it does not: all workers soon compute small batches whose ends clump, and whoever comes next finds nobody.
Three rules make up for that, each from how long batches take (:class:`engine.core.predict.Times`):

* *spacing*: batches that are not full leave a stage evenly, a share of the fixed time apart. Spaced so, half of the
  workers serve with the same wait for the next one to leave. It needs a second worker, and several to come in that
  time: where there are fewer nothing is gained, so a request that is alone, or that finds everybody idle, never waits;
* *share*: of what waits a worker takes as many as make the sum of all latencies least, given who is free next. What a
  batch takes of a device's time has a price, which those pay who come meanwhile;
* *filling*: where there is no time within a goal for two batches one after the other, who comes while all workers
  compute small ones is lost. So a batch that is not full waits, while others compute, for as long as it can grow by one
  more and still be in time. It costs latency within the goal, and only there.
"""

from __future__ import annotations

from typing import Final

from engine.core.predict import LEAST_ERROR, Paced, Times

SPACING: Final = 3.0  # 2 spares less device time, 4 some more, and costs a seventh of the latency here and there
PRICE: Final = 4.0  # between 1 and 4 it makes little difference; 0 costs 6 % of both
STEPS: Final = 8  # of large backlogs not every share is tried
ALIKE: Final = 1.0 + 1e-6  # of shares that cost the same the largest is taken: more may come
TIGHT: Final = 1.7  # full batches: a goal with less time than for these is tight; 2.0 makes some wait for nothing
PAYS: Final = 0.1  # of a full batch's time is fixed, where it pays to fill one
SLOWER: Final = 0.8  # a worker is left alone for one that takes less than this of its time


def spacing_s(fixed_s: float, workers: int) -> float:
    """How far apart the partial batches of a stage leave: seconds. 0 with one worker, and at most three quarters of
    ``fixed_s`` with more."""
    return SPACING * (1.0 - 1.0 / workers) * fixed_s / workers


def filled_until(times: Times, worker: Paced, due: float, budget_s: float, waiting: int, most: int) -> float:
    """Until when ``waiting`` items, less than ``most``, may wait for others before the idle ``worker`` takes them. The
    first of them is to be done by ``due``, and has had ``budget_s`` for that. 0: the goal leaves time enough, or a
    batch costs hardly less than its items one by one."""
    whole_s = times.predict(most, worker)
    if budget_s >= TIGHT * whole_s or times.fixed_s < PAYS * whole_s:
        return 0.0
    room = times.margin + max(times.error, LEAST_ERROR)  # a batch that left at the last moment would often be late
    return due - times.predict(waiting + 1, worker) * room


def share(
    times: Times,
    worker: Paced,
    other: Paced,
    wait_s: float,
    waiting: int,
    most: int,
    price: float,
    *,
    may_pass: bool = False,
) -> int:
    """How many of ``waiting`` items the idle ``worker`` takes, ``most`` to a batch, where ``other`` can take the rest
    in ``wait_s``. ``price``: how many requests a worker's computing delays. ``may_pass``: 0 is an answer too, for the
    other may have them all done before this one would."""
    waiting = min(waiting, 2 * most)
    top = min(waiting, most)
    least = max(0 if may_pass else 1, waiting - most)
    shape, predict = times.shape, times.predict
    best, cheapest = top, -1.0
    step = max(1.0, top / STEPS)
    tried = -1
    for number in range(min(top, STEPS) + 1):
        count = max(least, int(number * step))
        if count == tried:
            continue
        tried = count
        cost = 0.0
        if count:
            cost = count * predict(count, worker) + price * shape[count]
        if rest := waiting - count:
            cost += rest * (wait_s + predict(rest, other)) + price * shape[rest]
        if cheapest < 0.0 or cost <= cheapest * ALIKE:
            best, cheapest = count, cost
    return best
