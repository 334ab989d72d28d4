"""What is computed before a worker is ready: its examples, then batches of the sizes that it may meet.

The first call on a size that was not seen before may take far longer than every later one: kernels are chosen or
compiled for it, memory is fetched from the device. Who warms up with one size alone leaves that to the first requests
of all the others. But no size is worth a start that takes much longer, so (:class:`WarmUp`, which is pure):

* the most likely go first: 1, the powers of two, the largest; then those between, and these only where first calls on
  most of the former have taken notably longer than the second (else there is nothing to be gained);
* all within a *budget* (:func:`budget_s`), counted from when the examples are done, and little of it where first calls
  take no longer. A size that would probably exceed it is left out, and so is one whose values would take much memory
  by themselves;
* what memory does not take, and more than that, is not tried. It is no failure as long as something fits;
* where a stage is restricted to some sizes, these are tried, and all of them: whoever names them compiles for them,
  and no request must wait for that.

Each is computed twice, where the first time leaves half of the budget: the second time is how long a batch takes.
Batches are made of the values of the first example, over and over, each a copy.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from engine.core.wire import payload_size
from stages import ipc
from stages.base import Worker
from stages.build import encoded_size, forward_example, fresh
from stages.compute import give_room
from stages.sizes import copied, padded
from stages.verdict import Verdict, verdict

BUDGET_MIN_S: Final = 2.0
BUDGET_MAX_S: Final = 10.0
NOTABLE: Final = 1.5  # the first call, in multiples of the second
NOTABLE_S: Final = 0.002  # and longer than it by this: less is noise, or nobody's concern
VALUES_MOST: Final = 1 << 30  # bytes of the values of a batch: no request brings as much
PROGRESS_S: Final = 1.0  # between two words about sizes


def budget_s(asked_s: float | None, load_s: float, *, pays: bool) -> float:
    """Seconds for sizes: ``asked_s``; else as long again as all took until then (``load_s``), within bounds, as long as
    it ``pays``, and the least of that where it does not."""
    if asked_s is not None:
        return asked_s
    return min(max(load_s, BUDGET_MIN_S), BUDGET_MAX_S) if pays else BUDGET_MIN_S


@dataclass(slots=True)
class Tried:
    """How long the first and the second call of ``forward`` on a size took, in seconds; None: there was none."""

    first_s: float
    second_s: float | None = None

    @property
    def usual_s(self) -> float:
        return self.first_s if self.second_s is None else self.second_s

    @property
    def beyond_s(self) -> float:
        """What the first call took longer, as far as known."""
        return self.first_s - self.usual_s

    @property
    def is_notable(self) -> bool:
        return self.beyond_s > max((NOTABLE - 1.0) * self.usual_s, NOTABLE_S)


class WarmUp:
    """Which call is next, and what came of those that were made. See the module; ``most`` is the largest batch,
    ``sizes`` those that are allowed (ascending; none: all)."""

    def __init__(self, most: int, sizes: Sequence[int] = ()) -> None:
        self.doing = "computing its example"  # what fails, when something does
        self.tried: dict[int, Tried] = {}  # by size
        self.exhausted = 0  # the smallest size that memory did not take; 0: it took all
        self.failure: Exception | None = None  # what forward raised then
        self.left_out: list[int] = []  # for which there was no time, or too little room
        self.most_values: float = inf  # more take too much room
        self.value_s = 0.0  # what it takes to make a batch, for each of its values
        self._most = most
        self._sizes = tuple(sizes)
        self._waiting: deque[int] | None = None  # sizes to look at, those likely or those between; None: not begun
        self._is_between = False
        self._last = 0  # the size that was given out last
        self._begun = 0  # that of the very first call, in which much begins that is no size's

    @property
    def likely(self) -> list[int]:
        """The sizes that go before those between."""
        if self._sizes:
            return list(self._sizes)
        powers = [1 << exponent for exponent in range(self._most.bit_length())]
        return list(dict.fromkeys([*powers, self._most]))

    @property
    def first_s(self) -> float | None:
        """How long the very first call took."""
        return self.tried[self._begun].first_s if self._begun else None

    @property
    def smallest(self) -> int:
        return self._sizes[0] if self._sizes else 1

    @property
    def waiting(self) -> int:
        """How many sizes there are still to look at."""
        return len(self._waiting or ())

    @property
    def fitted(self) -> int:
        """The largest size that was computed, and that memory takes; 0: none."""
        return max((size for size in self.tried if not 0 < self.exhausted <= size), default=0)

    def next(self, left_s: float) -> int | None:
        """The size to call ``forward`` on, with ``left_s`` of the budget left; None: it is done."""
        if self._waiting is None:
            self._waiting = deque(dict.fromkeys([*self.tried, *self.likely]))
        if self._wants_again(self._last, left_s):
            size, self._last = self._last, 0
            return size
        while True:
            while self._waiting:
                self._last = size = self._waiting.popleft()
                if 0 < self.exhausted <= size:
                    continue
                if size in self.tried:
                    if self._wants_again(size, left_s):
                        self._last = 0
                        return size
                elif self._sizes or self._is_affordable(size, left_s):
                    return size
                else:
                    self.left_out.append(size)
            if self._is_between or self._sizes or not self._notable or not self.pays:
                return None
            self._is_between = True
            self._waiting.extend(size for size in range(1, self._most) if size not in self.likely)

    def shown(self, size: int, seconds: float) -> None:
        """An example of so many values was computed. Another one of the same size, but not of the same shape perhaps,
        says nothing more of the size."""
        if size and size not in self.tried:
            self.took(size, seconds)

    def took(self, size: int, seconds: float) -> None:
        """A call that :meth:`next` asked for has succeeded."""
        self._begun = self._begun or size
        if size in self.tried:
            self.tried[size].second_s = seconds
        else:
            self.tried[size] = Tried(seconds)

    def ran_out(self, size: int, failure: Exception) -> None:
        """Memory did not take so many values."""
        self.exhausted = min(self.exhausted or size, size)
        self.failure = failure

    def expected_s(self, size: int) -> float:
        """What the first call on a size will take at most, with the making of the batch: so much as its neighbours, and
        what first calls take beyond that."""
        known = sorted(self.tried)
        at = bisect_left(known, size)
        usual = [self.tried[n].usual_s * size / n for n in known[:at][-1:]]
        usual += [self.tried[n].usual_s for n in known[at:][:1]]
        beyond = [tried.beyond_s for n, tried in self.tried.items() if n != self._begun]
        return min(usual, default=0.0) + max(beyond, default=0.0) + self.value_s * size

    def _is_affordable(self, size: int, left_s: float) -> bool:
        return left_s > 0.0 and size <= self.most_values and self.expected_s(size) <= left_s

    def _wants_again(self, size: int, left_s: float) -> bool:
        tried = self.tried.get(size)
        if tried is None or tried.second_s is not None or 0 < self.exhausted <= size:
            return False
        return bool(self._sizes) or tried.first_s <= left_s / 2

    @property
    def pays(self) -> bool:
        """First calls take notably longer on most sizes, or nobody knows yet."""
        return 2 * sum(self._notable) > len(self._notable) or not self._notable

    @property
    def _notable(self) -> list[bool]:
        return [one.is_notable for n, one in self.tried.items() if n != self._begun and one.second_s is not None]

    def told(self) -> dict[str, str]:
        """What was done, for the log: sizes as ``1-4, 8, 16``."""
        found = {"sizes": ranges(self.tried)} if self.tried and self._most > 1 else {}
        return {**found, "left_out": ranges(self.left_out)} if self.left_out else found

    @property
    def times_s(self) -> dict[int, float]:
        """How long batches take, by their number of values before they are padded: of the likely sizes whose usual time
        is known. Where several are padded to the same, the smallest of them is among these."""
        found: dict[int, float] = {}
        smallest = 1
        for size in sorted(self.likely):
            tried = self.tried.get(size)
            if tried is not None and tried.second_s is not None:
                if self._sizes:
                    found[smallest] = tried.second_s
                found[size] = tried.second_s
            smallest = size + 1
        return found


def ranges(sizes: Iterable[int]) -> str:
    """``1-4, 8, 16``."""
    parts: list[list[int]] = []
    for size in sorted(sizes):
        if parts and size == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], size]
        else:
            parts.append([size])
    return ", ".join("-".join(map(str, part)) for part in parts)


def warm_up(
    worker: Worker,
    plan: WarmUp,
    found: Sequence[Any],
    *,
    asked_s: float | None = 0.0,
    began: float | None = None,
    progress: Callable[[int, int], object] = lambda done, of: None,
    lasts: Collection[bool] = (),
) -> list[Any]:
    """Compute the examples ``found`` (:func:`stages.build.examples`), in order, then sizes made of the first. Returns
    the results of the last example, or where memory did not take it of the last batch. Any exception is a failed start;
    ``plan.doing`` says at what.

    ``asked_s``: see :func:`budget_s`; 0 for the examples alone. ``began``: when loading did, by ``perf_counter``; else
    now. ``lasts``: which kinds of receiver its results have; that they can be encoded for those is a part of it.
    """
    now = time.perf_counter
    began = now() if began is None else began
    results: list[Any] = []
    for done, example in enumerate(found):
        progress(done, len(found))
        size = padded(len(example), worker._sizes) if worker.max_batch_size > 1 else 1
        if (computed := _call(worker, plan, size, fresh(worker, example))) is not None:
            results, took_s = computed
            plan.shown(size, took_s)
            encoded_size(worker, results, lasts, own=False)
    if found:
        progress(len(found), len(found))
    values = values_of(worker, found) if asked_s != 0.0 else []
    if values:
        plan.most_values = VALUES_MOST / nbytes_of(values[0])
    told_at = begun = now()

    def left_s() -> float:
        return begun + budget_s(asked_s, begun - began, pays=plan.pays) - now()

    while values and (n := plan.next(left_s())) is not None:
        if now() - told_at >= PROGRESS_S:
            told_at = now()
            progress(len(found) + len(plan.tried), len(found) + len(plan.tried) + plan.waiting)
        if worker.max_batch_size > 1:
            plan.doing = f"computing a batch of {n} made of its example (see warm_up)"
        if (computed := _call(worker, plan, n, _made(worker, plan, values, n))) is not None:
            results, took_s = results or computed[0], computed[1]
            plan.took(n, took_s)
    if plan.failure is not None and not plan.fitted:
        raise plan.failure
    return results


def _made(worker: Worker, plan: WarmUp, values: Sequence[Any], n: int) -> Any:
    """What ``forward`` gets for a batch of ``n``."""
    began = time.perf_counter()
    batch = [copied(values[place % len(values)]) for place in range(n)]
    plan.value_s = (time.perf_counter() - began) / n
    return batch if worker.max_batch_size > 1 else batch[0]


def _call(worker: Worker, plan: WarmUp, size: int, example: Any) -> tuple[list[Any], float] | None:
    """The results of ``forward``, and the seconds it took; None: memory does not take so many values."""
    began = time.perf_counter()
    try:
        return forward_example(worker, example), time.perf_counter() - began
    except Exception as error:
        if size <= plan.smallest or verdict(error) is not Verdict.MEMORY:
            raise
        give_room(error)
        plan.ran_out(size, error)
        return None


def nbytes_of(value: Any) -> int:
    """Bytes of a value, roughly; 1 where nobody knows."""
    try:
        return payload_size(ipc.pack(value)) or 1
    except Exception:  # of the user's class, whatever it says of that
        return 1


def values_of(worker: Worker, found: Sequence[Any]) -> list[Any]:
    """What batches are made of: the values of the first example; none where it cannot be taken apart."""
    if not found or worker.max_batch_size == 1:
        return list(found[:1])
    example = found[0]
    # Rows of an array too. What else has a length may be anything: a table of columns, say.
    return list(example) if isinstance(example, Sequence) or hasattr(example, "dtype") else []
