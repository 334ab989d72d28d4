"""What a worker's heartbeat tells in numbers: the user's own ``prometheus_client`` metrics, how memory
serves, and what was computed for nobody."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from engine.log import get_logger, lost_lines

if TYPE_CHECKING:
    from engine.metrics import Family
    from stages.runtime.loop import Loop


class UserMetrics:
    """Called by the control thread, at most once per heartbeat."""

    def __init__(self, stage: str, namespace: str) -> None:
        self.loop: Loop | None = None  # set by the main thread once there is one
        self._stage = stage
        self._namespace = namespace
        self._theirs: list[Family] = []  # the last that could be had
        self._complained = False

    def __call__(self) -> bytes:
        """The packed metrics; empty when there is nothing to tell. A collector that fails leaves the last good ones."""
        client = sys.modules.get("prometheus_client")
        # Still empty while the control thread looks at it in the middle of the main thread's import.
        registry = getattr(client, "REGISTRY", None)
        loop = self.loop
        ours = bool(lost_lines()) or (loop is not None and (loop.fit.times > 0 or loop.padding > 0))
        if registry is None and not self._theirs and not ours:
            return b""
        from engine import metrics  # here, for a worker that counts nothing does without it

        if registry is not None:
            try:
                self._theirs = metrics.collect(registry)
            except BaseException:  # a collector of the user's own, which must not end the thread that is heard for it
                if not self._complained:
                    self._complained = True
                    get_logger().exception("the worker's own metrics cannot be collected; the last ones stand")
        families = [*self._theirs, *self._own()]
        return metrics.pack(families) if families else b""

    def _own(self) -> list[Family]:
        """None as long as memory and the disk have always sufficed, and nothing was padded."""
        from engine.metrics import counter, gauge, lost_lines_family

        families = [lost_lines_family(self._namespace, "worker")] if lost_lines() else []
        if self.loop is None:
            return families
        fit, padding = self.loop.fit, self.loop.padding
        if padding:
            families.append(
                counter(
                    f"{self._namespace}_padding_items",
                    "Values that batches were padded with to one of batch_sizes, and whose results were dropped.",
                    [({"stage": self._stage}, padding)],
                )
            )
        if not fit.times:
            return families
        return [
            *families,
            counter(
                f"{self._namespace}_out_of_memory",
                "Calls of forward that ran out of memory, and were made again on fewer values.",
                [({"stage": self._stage}, fit.times)],
            ),
            gauge(
                f"{self._namespace}_batch_fits",
                "Values that forward is given at once, in a worker that has run out of memory.",
                fit.most,
            ),
        ]
