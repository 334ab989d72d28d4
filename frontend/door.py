"""May a request come in? The bounds of one frontend process, as counts and comparisons: no I/O, no clock.

The broker has the last word for the whole deployment. This is what can be known without asking it, so that an
overloaded deployment refuses a large upload before reading it. One :class:`Door` belongs to one event loop.
"""

from __future__ import annotations

from engine.client import View
from frontend import errors


class Door:
    """Requests and bytes of this process, against their bounds.

    ``pending`` counts requests handed to the broker and not answered yet; ``held`` the bytes of bodies being read or
    kept until their answer. Both are entered and left in pairs by the route.
    """

    def __init__(self, *, capacity: int, capacity_bytes: int) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self.pending = 0
        self.held = 0
        self.draining = False

    def check(self, view: View) -> errors.Problem | None:
        """Why a new request is refused now; None: it may come in.

        While the broker is not connected its headroom means nothing; then the client decides on submitting.
        """
        if self.draining or (view.connected and view.draining):
            return errors.DRAINING
        if self.pending >= self._capacity or (view.connected and view.headroom <= 0):
            return errors.CAPACITY
        return None

    @property
    def open(self) -> bool:
        """Nothing known in this process keeps a request out."""
        return not self.draining and self.pending < self._capacity

    def hold(self, size: int) -> bool:
        """Count ``size`` more bytes; False (and nothing counted) when they are too many."""
        if self.held + size > self._capacity_bytes:
            return False
        self.held += size
        return True

    def release(self, size: int) -> None:
        self.held -= size
