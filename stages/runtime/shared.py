"""What the two threads of a worker process share: a mailbox each, and two sets of numbers.

The main thread computes and owns lane and outlets; the control thread talks to the broker. Neither touches a socket
of the other: it leaves an event in the other's mailbox. Only the sets are read across, for they must be known
*during* forward.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

from engine.config.endpoints import Endpoints
from engine.core.messages import Flow, Welcome
from engine.mailbox import Bell, Mailbox
from engine.memory import Store

REMEMBERED: Final = 65_536  # numbers kept of those that nobody asked about: far more than a worker holds at once


class Phase(Enum):
    LOADING = "loading"  # user code is imported, constructed, warmed up
    SERVING = "serving"
    ENDING = "ending"  # teardown


@dataclass(frozen=True)
class Joined:
    """The broker knows this worker: this is its lane. Sent again, with another key, after each new hello.

    ``endpoints`` are the broker's, by the address at which it was reached. ``store`` is the arena of the welcome,
    mapped; the main thread's from now on.
    """

    welcome: Welcome
    endpoints: Endpoints | None = None
    store: Store | None = None


@dataclass(frozen=True)
class Dismissed:
    """Nothing is in flight here as far as the broker knows, or there is no broker to ask."""


@dataclass(frozen=True)
class Turned:
    """The broker will not have this worker, ever."""

    reason: str


@dataclass(frozen=True)
class Stop:
    """Somebody asked this process to stop: not later than ``at`` (monotonic seconds)."""

    at: float


ToMain: TypeAlias = Joined | Dismissed | Turned | Stop


@dataclass(frozen=True)
class Warm:
    """Warm-up is done; ``mime`` is what this stage answers with, ``about`` how it describes itself, ``times_us`` how
    long batches took by their size, and take since; where its class ``tells_cost`` of values by what they cost, and
    ``costs`` that of values of its examples by their bytes. ``most`` values at once, on which ``device`` of the
    host ``node``. ``may_rest``: whoever started it keeps spares."""

    mime: str
    took_ms: int
    flow: int = int(Flow.WHOLE)
    about: bytes = b""
    times_us: Mapping[int, int] = field(default_factory=dict)
    tells_cost: bool = False
    costs: Mapping[int, float] = field(default_factory=dict)
    most: int = 0
    device: str = ""
    node: str = ""
    may_rest: bool = True


@dataclass(frozen=True)
class Finish:
    """Say goodbye and end."""


@dataclass(frozen=True)
class Opened:
    """A socket for results to another host: of its losses can be heard by this name (:class:`engine.transport.Losses`).

    The control thread listens, for the main thread may be deep in ``forward`` when it happens.
    """

    name: str


ToControl: TypeAlias = Warm | Finish | Opened


class Numbers:
    """A set of recent numbers: one thread adds, another asks and discards. Forgets the oldest beyond REMEMBERED."""

    def __init__(self) -> None:
        self.known: dict[int, None] = {}  # to be looked at: a look too early by a moment is as good as before
        self._lock = threading.Lock()

    def __contains__(self, number: object) -> bool:
        return number in self.known

    def __len__(self) -> int:
        return len(self.known)

    def add(self, numbers: Iterable[int]) -> None:
        with self._lock:
            self.known.update(dict.fromkeys(numbers))
            for number in list(self.known)[: max(0, len(self.known) - REMEMBERED)]:
                del self.known[number]

    def discard(self, numbers: Iterable[int]) -> None:
        if not self.known:  # nearly always
            return
        with self._lock:
            for number in numbers:
                self.known.pop(number, None)


class Held:
    """The batches that this worker has: received, and their results not handed over yet. Another thread than those that
    write it looks at it, at any moment: a batch is in the books before it is the newest."""

    def __init__(self) -> None:
        self.worker = -1  # the key by which they came
        self.newest = 0
        self.numbers: dict[int, None] = {}

    def begin(self, worker: int) -> None:
        """Those to come are another key's."""
        self.worker = -1
        self.newest = 0
        self.numbers = {}
        self.worker = worker

    def add(self, number: int) -> None:
        self.numbers[number] = None
        self.newest = number

    def of(self, worker: int) -> tuple[int, list[int]]:
        """The newest, and all, as far as they came by this key."""
        newest, numbers = self.newest, [*self.numbers.copy()]
        return (newest, numbers) if self.worker == worker else (0, [])


class Shared:
    """Made by the main thread before the control thread starts, closed by it after that has ended."""

    def __init__(self) -> None:
        self.main_bell, self.control_bell = Bell(), Bell()
        self.to_main: Mailbox[ToMain] = Mailbox(self.main_bell)
        self.to_control: Mailbox[ToControl] = Mailbox(self.control_bell)
        self.cancelled = Numbers()  # uids nobody waits for
        self.revoked = Numbers()  # batches given to somebody else
        self.held = Held()
        self.phase = Phase.LOADING  # written by the main thread
        self.batches = 0  # computed; likewise

    def close(self) -> None:
        self.main_bell.close()
        self.control_bell.close()
