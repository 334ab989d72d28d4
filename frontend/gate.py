"""May a request come in? Every rule about that, for every way by which requests come. Pure: no I/O, no clock.

What a head says of itself is judged once (:meth:`Gate.terms`, equal heads get equal terms); what changes from moment to
moment - draining, capacity - at the moment (:meth:`Gate.refusal`). The broker has the last word for the whole
deployment. This is what can be known without asking it, so that an overloaded deployment refuses a large upload before
reading it. One :class:`Gate` belongs to one event loop.

Whoever adds a condition on requests (a key, a quota, a class of service) adds it here.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.config.schema import FrontendSection
from engine.core.link import View
from frontend import compression, deadline, errors
from frontend.errors import Problem, Refusal
from frontend.head import Head


@dataclass(frozen=True, slots=True)
class Terms:
    """On which a request may come in. Seconds; ``coding`` of its body, "" for none."""

    timeout_s: float
    coding: str = ""


class Gate:
    """Rules and bounds of this process.

    ``pending`` counts requests handed to the broker and not answered yet; ``held`` the bytes of bodies being read or
    kept until their answer. Both are entered and left in pairs by whoever serves the request.
    """

    def __init__(self, frontend: FrontendSection) -> None:
        self.pending = 0
        self.held = 0
        self.draining = False
        self.max_request_size = frontend.max_request_size
        self._timeout_s = frontend.timeout
        self._capacity = frontend.capacity
        self._capacity_bytes = frontend.capacity_bytes
        self._compression = frontend.compression

    def terms(self, head: Head) -> Terms:
        """What the head of a request asks for, where it may be had. Raises Refusal: 400, 413, 415 or 501."""
        timeout_s = deadline.allowed(head.timeout, head.timeout_ms, self._timeout_s)
        if timeout_s is None:
            raise Refusal(errors.BAD_TIMEOUT)
        if (head.length or 0) > self.max_request_size:
            raise Refusal(errors.TOO_LARGE)
        coding = compression.coding_of(head.content_encoding)
        if coding is None or (coding and not self._compression):
            raise Refusal(errors.ENCODING_LISTED if self._compression else errors.ENCODING)
        # A parser frames "gzip, chunked" and leaves the gzip to the application.
        if head.transfer_encoding.lower() not in (b"", b"chunked"):
            raise Refusal(errors.CODING)
        return Terms(timeout_s, coding)

    def refusal(self, view: View) -> Problem | None:
        """Why a new request is refused now; None: it may come in.

        While the broker is not connected its headroom means nothing; then the client decides on submitting.
        """
        if self.draining or (view.connected and view.draining):
            return errors.DRAINING
        if self.pending >= self._capacity or (view.connected and view.headroom <= 0):
            return errors.CAPACITY
        return None

    @property
    def is_open(self) -> bool:
        """Nothing known in this process keeps a request out: :meth:`refusal` need not be asked before submitting."""
        return not self.draining and self.pending < self._capacity

    def hold(self, size: int) -> bool:
        """Count ``size`` more bytes; False (and nothing counted) when they are too many."""
        if self.held + size > self._capacity_bytes:
            return False
        self.held += size
        return True

    def release(self, size: int) -> None:
        self.held -= size
