"""Asks the supervisor for a fresh worker in this one's place when it has served long enough (``recycle_after``)."""

from __future__ import annotations

from typing import Final

from engine.clock import now
from engine.core.wear import Limits, worn
from engine.process import Notifier
from stages.device import resident_bytes
from stages.runtime.shared import Phase, Shared

AGAIN_S: Final = 60.0  # what was asked for may have failed


class Wear:
    """Called by the control thread with every heartbeat."""

    def __init__(self, limits: Limits, shared: Shared, notify: Notifier) -> None:
        self._limits = limits
        self._shared = shared
        self._notify = notify
        self._since: float | None = None
        self._ask_at = 0.0

    def __call__(self) -> None:
        if self._limits.are_none or self._shared.phase is not Phase.SERVING:
            return
        instant = now()
        if self._since is None:
            self._since = instant
        reason = worn(self._limits, age_s=instant - self._since, batches=self._shared.batches, nbytes=resident_bytes())
        if reason and instant >= self._ask_at:
            self._ask_at = instant + AGAIN_S
            self._notify.send("worn", reason=reason)
