"""May a request come in? Every rule about that, for every way by which requests come. Pure: no I/O, no clock.

What a head says of itself is judged once (:meth:`Gate.terms`, equal heads get equal terms); what changes from moment to
moment - draining, capacity - at the moment (:meth:`Gate.refusal`). The broker has the last word for the whole
deployment. This is what can be known without asking it, so that an overloaded deployment refuses a large upload before
reading it. One :class:`Gate` belongs to one event loop.

Whoever adds a condition on requests (a key, a quota, a class of service) adds it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

from engine.config.schema import EVERYBODY, LOCAL, PAGE, FrontendSection
from engine.core.link import View
from engine.core.messages import Qos
from engine.core.routing import Topology
from frontend import compression, deadline, errors, idempotency, onlookers, qos
from frontend.errors import Problem, Refusal
from frontend.head import Head
from frontend.memo import Memos
from frontend.partial import Partial
from frontend.unsent import Unsent

if TYPE_CHECKING:
    from frontend.apikeys import Keys

BEHIND_MAX: Final = 64 * 1024  # bytes that came behind a request that is served; above it the client is not read
BEHIND_ALL: Final = 32 << 20  # the same of all clients of a process; above it no more is kept
HEADS_ALL: Final = 32 << 20  # bytes of heads of a process, besides what serving `capacity` requests takes
# Whoever asks: probes have no key, and these tell no secrets.
OPEN: Final = frozenset({"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
REQUEST_COST: Final = 16 * 1024  # bytes that serving one takes that is not plain: its task, the frames of its calls


@dataclass(frozen=True, slots=True)
class Terms:
    """On which a request may come in. Seconds; ``coding`` of its body, "" for none; ``qos``: what it says of how it
    wants to be served."""

    timeout_s: float
    coding: str = ""
    qos: Qos | None = None


class Gate:
    """Rules and bounds of this process.

    ``pending`` counts requests handed to the broker and not answered yet; ``held`` the bytes of bodies that have come
    and are kept until their answer; ``behind`` those of requests that came behind one that is still served. All are
    entered and left in pairs by whoever serves the request. ``partial`` is what has begun to come and is no request
    yet, ``unsent`` are answers that nobody reads. ``heads`` are those of requests that are not plain, from the first to
    the last moment of each: over HTTP/2 a few bytes that refer to others make a large one. (Of plain ones little is
    kept: :data:`frontend.shared.HEAD_MAX`.)

    Bodies count as they arrive, never by what was announced, and while they do one client may fill a half of what there
    is: whoever sends slowly, or nothing, keeps nobody else out.
    """

    def __init__(self, frontend: FrontendSection, *, has_page: bool = True) -> None:
        """``has_page``: no route of the service is where its live page would be."""
        self._local_pages = ("/openapi", PAGE) if has_page else ("/openapi",)
        self.pending = 0
        self.held = 0
        self.behind = 0
        self.heads = 0
        self.draining = False
        self.keys: Keys | None = None  # who may ask; None: everybody
        self.memos = Memos(Topology((), ()))  # by what caches know requests
        self.closing = False  # every answer is the last of its connection; so they are while it drains
        self.max_request_size = frontend.max_request_size
        self._timeout_s = frontend.timeout
        self._usual = Terms(frontend.timeout)
        self._capacity = frontend.capacity
        # Of all processes together, but one body always fits.
        share = max(frontend.capacity_bytes // frontend.processes, frontend.max_request_size)
        self._capacity_bytes = min(frontend.capacity_bytes, share)
        self._client_bytes = max(self._capacity_bytes // 2, frontend.max_request_size)
        self._heads_most = HEADS_ALL + frontend.capacity * REQUEST_COST
        self._heads_by: dict[str, int] = {}  # client
        self._arriving: dict[str, int] = {}  # bytes of bodies that are not whole, by client
        self.unsent = Unsent(self._capacity_bytes)
        self.partial = Partial()
        self._compression = frontend.compression
        self._ui = frontend.ui

    def shows(self, head: Head, peer: object, *, is_old: bool) -> bool:
        """Whether the page about the deployment is for whoever asks so. ``peer``: the address of the connection, as
        ASGI has it; ``is_old``: over HTTP/1.0."""
        return self._ui == EVERYBODY or (self._ui == LOCAL and onlookers.is_local(head, peer, is_old=is_old))

    def is_page(self, path: str) -> bool:
        """Whether it is about the service, other than its health."""
        return path == "/metrics" or any(path == page or path.startswith(f"{page}/") for page in self._local_pages)

    def asks_key(self, head: Head, peer: object, *, is_old: bool) -> bool:
        """Whether who asks so has to have an API key: pages about the service are for this machine as well. ``peer``
        and ``is_old`` as of :meth:`shows`."""
        if self.keys is None or head.path in OPEN:
            return False
        return not (self.is_page(head.path) and onlookers.is_local(head, peer, is_old=is_old))

    def come_in(self, head: Head, instant: float) -> Callable[[], None]:
        """Count a request of its API key, until what this gives is called. Raises Refusal: 401 or 429."""
        keys = self.keys
        assert keys is not None
        key = keys.enter(head.token, instant)
        return lambda: keys.leave(key)

    def key_name(self, head: Head | None) -> str:
        """The name of the API key that a request came with; "" where there is none."""
        key = self.keys.find(head.token) if self.keys is not None and head is not None and head.token else None
        return key.name if key is not None else ""

    def terms(self, head: Head) -> Terms:
        """What the head of a request asks for, where it may be had. Raises Refusal: 400, 401, 413, 415 or 501."""
        if self.keys is not None and head.path not in OPEN and (problem := self.keys.refusal(head.token)) is not None:
            raise Refusal(problem)
        asks = head.timeout or head.timeout_ms or head.content_encoding or head.transfer_encoding
        asks = asks or head.token or head.slo or head.slo_ms or head.priority
        if not asks and head.idempotency_key is None and (head.length or 0) <= self.max_request_size:
            return self._usual
        timeout_s = deadline.allowed(head.timeout, head.timeout_ms, self._timeout_s)
        if timeout_s is None:
            raise Refusal(errors.BAD_TIMEOUT)
        if head.idempotency_key is not None and not idempotency.is_sane(head.idempotency_key):
            raise Refusal(errors.BAD_KEY)
        if (head.length or 0) > self.max_request_size:
            raise Refusal(errors.TOO_LARGE)
        coding = compression.coding_of(head.content_encoding)
        if coding is None or (coding and not self._compression):
            raise Refusal(errors.ENCODING_LISTED if self._compression else errors.ENCODING)
        # A parser frames "gzip, chunked" and leaves the gzip to the application.
        if head.transfer_encoding.lower() not in (b"", b"chunked"):
            raise Refusal(errors.CODING)
        return Terms(timeout_s, coding, qos.of(head, timeout_s))

    @property
    def is_closing(self) -> bool:
        return self.closing or self.draining

    def refusal(self, view: View) -> Problem | None:
        """Why a new request is refused now; None: it may come in.

        While the broker is not connected its headroom means nothing; then the client decides on submitting.
        """
        if self.draining or (view.connected and view.draining):
            return errors.DRAINING
        if self.pending >= self._capacity or (view.connected and view.headroom <= 0):
            return replace(errors.CAPACITY, retry_after_s=view.retry_s)
        if self.held > self._capacity_bytes:
            return errors.CAPACITY_BYTES
        return None

    def enter(self, size: int) -> bool:
        """Count a request whose body, of ``size`` bytes, is whole, before it is submitted. False, and nothing counted:
        :meth:`refusal` says what keeps it out; else nothing known in this process does."""
        if self.draining or self.pending >= self._capacity or self.held > self._capacity_bytes:
            return False
        self.pending += 1
        self.held += size
        return True

    def leave(self, size: int) -> None:
        """Such a request has its answer, or needs none."""
        self.pending -= 1
        self.held -= size

    def open(self, size: int, client: str) -> bool:
        """Count the head of a request that is not plain, until :meth:`close`. False: there are too many of them, or of
        this client's, which cannot have all there is. Then only what is answered at once may be."""
        self.heads += size
        mine = self._heads_by[client] = self._heads_by.get(client, 0) + size
        return self.heads <= self._heads_most and mine <= self._heads_most - HEADS_ALL // 2

    def close(self, size: int, client: str) -> None:
        self.heads -= size
        left = self._heads_by[client] = self._heads_by[client] - size
        if not left:
            del self._heads_by[client]

    def fits(self, size: int, client: str = "") -> bool:
        """Whether there is room for so many more bytes, of a body that this client is about to send."""
        if self.held + size > self._capacity_bytes:
            return False
        return not client or self._arriving.get(client, 0) + size <= self._client_bytes

    def hold(self, size: int, client: str = "") -> bool:
        """Count ``size`` more bytes that have come; False (and nothing counted) when they are too many. With a client
        they are part of a body that is not whole yet: :meth:`whole` follows, once, with all that was counted of it."""
        if not self.fits(size, client):
            return False
        self.held += size
        if client:
            self._arriving[client] = self._arriving.get(client, 0) + size
        return True

    def whole(self, size: int, client: str) -> None:
        """Such a body has come to its end, good or bad: its bytes are held all the same, and are its client's share no
        more."""
        left = self._arriving.get(client, 0) - size
        if left > 0:
            self._arriving[client] = left
        else:
            self._arriving.pop(client, None)

    def release(self, size: int) -> None:
        self.held -= size


def client_of(peer: object) -> str:
    """Who a peer's address is counted as; "" when it has none. An IPv6 client has a whole network of 64 bits."""
    if not isinstance(peer, list | tuple) or not peer or not isinstance(peer[0], str):
        return ""
    address = peer[0].partition("%")[0]
    if ":" not in address:
        return address
    try:
        number = int(IPv6Address(address))
    except ValueError:
        return address
    mapped = number >> 32 == 0xFFFF  # ::ffff:192.0.2.1
    return address if mapped else f"{number >> 64:x}/64"
