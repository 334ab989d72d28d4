"""How many values ``forward`` gets at once where memory does not take as many as configured: pure, with ``now``.

A call that runs out of memory is made again on halves (:mod:`stages.compute`). What fitted then is remembered, so that
the next batches are cut to it at once and not by failing again. Memory comes free again - a neighbour on the device
goes, inputs get shorter - so after a while a quarter more is tried, and the while doubles with every try that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from stages.sizes import at_most, padded

RETRY_S: Final = 30.0  # from what fitted to the next try
RETRY_MAX_S: Final = 3600.0


class Fit:
    """``most`` values are given at once, of the ``size`` that is configured; one of ``sizes`` where only these are
    allowed, padding included. Times in monotonic seconds."""

    def __init__(self, size: int, sizes: Sequence[int] = ()) -> None:
        self.most = self.size = size
        self._sizes = sizes
        self.times = 0  # calls that ran out of memory
        self._wait_s = RETRY_S
        self._raise_at = inf
        self._raised = False  # tried, and not yet known to fit

    @property
    def is_reduced(self) -> bool:
        return self._raise_at < inf

    def exhausted(self, tried: int, fitted: int, now: float) -> bool:
        """Memory did not take ``tried`` values at once, and took ``fitted`` afterwards (0: it was not tried, or not
        even one fitted). True when ``most`` has changed.

        A single value that does not fit says nothing of the others.
        """
        self.times += 1
        if tried <= 1:
            return False
        if self._raised:
            self._wait_s = min(2 * self._wait_s, RETRY_MAX_S)
        fits = max(1, fitted if 0 < fitted < tried else tried // 2)
        former, self.most = self.most, at_most(min(self.most, fits), self._sizes)
        self._raised = False
        self._raise_at = now + self._wait_s
        return self.most != former

    def worked(self, fitted: int, now: float) -> bool:
        """``fitted`` values at once succeeded, while ``is_reduced``. True when ``most`` has changed."""
        if fitted < self.most:
            return False
        if self.most == self.size:  # what is configured fits again
            self._wait_s, self._raise_at, self._raised = RETRY_S, inf, False
            return False
        if now < self._raise_at:
            return False
        self.most = padded(min(self.size, self.most + max(1, self.most // 4)), self._sizes)
        self._raised = True
        self._raise_at = now + self._wait_s
        return True
