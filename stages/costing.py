"""What a value costs, in whatever its class counts: tokens, pixels, seconds of audio. Asked where a stage has a
``max_batch_cost`` and its class defines ``cost``; the broker learns from it what to expect of an item by its size.

It is advice: an exception, or what is no number, fails nothing. The log tells of the first, and that item's cost stays
what the broker takes it for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final

from engine.log import get_logger
from stages.base import Worker

COST_MOST: Final = 1e15  # beyond that numbers are no longer told apart


class Coster:
    """Of one worker object."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._has_failed = False

    def asked(self, value: Any) -> float:
        """What the value costs. Raises whatever the user's code raises, and ValueError for what is no cost."""
        cost = float(self._worker.cost(value))
        if not isfinite(cost) or not 0.0 <= cost <= COST_MOST:
            raise ValueError(f"cost returned {cost}; it must be a number from 0 to {COST_MOST:g}")
        return cost

    def of(self, value: Any, passing: tuple[type[BaseException], ...] = ()) -> float | None:
        """The same; None where that fails, which the log tells the first time. ``passing``: what goes on to the caller
        all the same."""
        try:
            return self.asked(value)
        except passing:
            raise
        except BaseException:
            if not self._has_failed:
                self._has_failed = True
                get_logger().exception(
                    "%s.cost failed; such items are batched by their size (it is logged once)",
                    type(self._worker).__qualname__,
                )
            return None

    def examples(self, values: Sequence[Any]) -> list[float]:
        """What each of them costs; nothing unless it is known of all."""
        found = [self.of(value) for value in values]
        return [cost for cost in found if cost is not None] if None not in found else []


def coster_of(worker: Worker) -> Coster | None:
    """Whoever knows what its values cost; None where nobody asks, or its class does not say."""
    own = "cost" in vars(worker) or getattr(type(worker), "cost", None) is not Worker.cost
    return Coster(worker) if worker.max_batch_cost and own else None


def by_cost(times_s: Mapping[int, float], costs: Sequence[float]) -> dict[int, float]:
    """How long batches took by what they cost, out of the same by their number of values, which were these over and
    over: all count as much as the longest, for they are padded."""
    found: dict[int, float] = {}
    for n, seconds in times_s.items() if costs else ():
        cost = round(max(costs[:n]) * n)
        if cost > 0:
            found[cost] = seconds
    return found
