"""What a frontend's request gets, and how it is told: values between the link and the HTTP paths. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from engine.core.messages import Flow, Qos, Refused, Speaker, StageState

if TYPE_CHECKING:
    from engine.core.link import View


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a request got. ``status`` 200 carries the body; any other the message the client may see (UTF-8), or, with a
    ``content-type`` among the headers, a body of the service's own.

    ``speaker`` says whose word it is: what a worker says with 429 or 503 is between it and this client. Nothing in it
    leads back to it, so the garbage collector need not look at it.
    """

    status: int
    body: bytes | memoryview
    mime: str = "application/json"
    trail: bytes = b""  # engine.core.wire.unpack_trail
    headers: dict[str, str] = {}  # of each Answer its own: msgspec copies an empty default
    speaker: int = int(Speaker.WORKER)
    retry_ms: int = 0  # of a refusal: when it had better be made again; 0: nobody knows
    refused: Refused | None = None  # and why


class StreamEvent(NamedTuple):
    """Something of an answer that is still being computed. ``mime`` is empty if it is not from the last stage."""

    data: bytes
    flow: Flow
    mime: str


class Waiter(Protocol):
    """Who waits for an answer. Called in the event loop; must not raise."""

    def answered(self, answer: Answer | None) -> None:
        """The answer, once; None when the client is closed first. Nothing is called any more then."""

    def event(self, event: StreamEvent) -> None:
        """Something of a streamed answer; its cost must be reported as consumed when its reader has taken it."""


class Call(msgspec.Struct, eq=False):
    """One request, from the HTTP path that read it to the wire.

    ``route`` is a number of this frontend's own file, ``deadline`` in this process's monotonic seconds. ``meta`` is for
    the workers (:mod:`engine.core.meta`), ``key`` for whoever sends it again (:mod:`engine.core.idempotency`), ``qos``
    what it says of how it wants to be served, if anything; ``memo``, by what the cache of its route's first stage knows
    it. The rest is the link's (:mod:`engine.core.link`).
    """

    route: int
    body: bytes | memoryview
    deadline: float
    meta: bytes
    waiter: Waiter
    key: bytes = b""  # of KEY_SIZE; empty: none
    qos: Qos | None = None
    memo: bytes = b""  # of MEMO_KEY_SIZE; empty: none
    seq: int = 0
    is_sent: bool = False  # and not known to have been left alone: it may be computed, or have been
    was_sent: bool = False  # once at least: what stood for its body in shared memory may be gone
    is_begun: bool = False  # events of its answer have come
    moves: int = 0  # how often one of several brokers has been silent, and another has it now
    passed_on: int = 0  # how often the door of one of several brokers has refused it, and another has it now


class BrokerClient(Protocol):
    """What the HTTP side needs of the broker: :class:`engine.client.Client`, or a fake in tests. See there."""

    def call(self, call: Call, instant: float) -> int: ...

    def withdraw(self, seq: int) -> None: ...

    def consumed(self, seq: int, nbytes: int) -> None: ...

    def view(self) -> View: ...

    def give_back(self) -> None: ...

    def stage(self, name: str) -> StageState | None: ...

    @property
    def is_joined(self) -> bool: ...

    async def ask(self, what: str, *, timeout_s: float = 2.0) -> bytes: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...
