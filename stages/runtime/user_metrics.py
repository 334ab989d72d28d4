"""The user's own ``prometheus_client`` metrics, as the bytes a heartbeat carries."""

from __future__ import annotations

import sys

from engine.log import get_logger


class UserMetrics:
    """Called by the control thread, at most once per heartbeat."""

    def __init__(self) -> None:
        self._last = b""
        self._complained = False

    def __call__(self) -> bytes:
        """The packed metrics; empty when user code has none. A collector that fails leaves the last good ones."""
        client = sys.modules.get("prometheus_client")
        # Still empty while the control thread looks at it in the middle of the main thread's import.
        registry = getattr(client, "REGISTRY", None)
        if registry is None:
            return self._last
        from engine import metrics  # here, for a worker that counts nothing does without it

        try:
            families = metrics.collect(registry)
            self._last = metrics.pack(families) if families else b""
        except Exception:  # a collector of the user's own
            if not self._complained:
                self._complained = True
                get_logger().exception("the worker's own metrics cannot be collected; the last ones stand")
        return self._last
