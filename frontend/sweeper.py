"""Looks over the connections of the short way (:mod:`frontend.lean`), whose time limits have no timers of their own."""

from __future__ import annotations

import asyncio
from math import ceil
from typing import TYPE_CHECKING, Final

from engine.clock import now

if TYPE_CHECKING:
    from frontend.lean import LeanConnection
    from frontend.shared import Shared

SWEEP_S: Final = 0.25  # how late a time limit may be noticed
SWEEP_MOST: Final = 200  # connections looked at in one go: about 0.1 ms


class Sweeper:
    """Looks over the connections of a process a few times a second, in place of two timers per request.

    A round visits all of them in SWEEP_S, so few at a time that no request notices, however many there are.
    """

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        self._shared = shared
        self._loop = loop
        self._left: list[LeanConnection] = []  # of this round
        self._pause_s = SWEEP_S
        self._handle = loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        known = self._shared.connections
        if not self._left:
            self._shared.tick()
            self._left = list(known)
            self._pause_s = SWEEP_S / max(1, ceil(len(known) / SWEEP_MOST))
        self._handle = self._loop.call_later(self._pause_s, self._sweep)
        instant = now()
        portion = self._left[-SWEEP_MOST:]
        del self._left[-SWEEP_MOST:]
        for connection in portion:
            if connection in known:  # still
                connection.sweep(instant)

    def stop(self) -> None:
        self._handle.cancel()
