"""What the two threads of a worker process share: two mailboxes with a wake-up pipe each, and two sets of numbers.

The main thread computes and owns lane and outlets; the control thread talks to the broker. Neither touches a socket
of the other: it leaves an event in the other's mailbox. Only the sets are read across, for they must be known
*during* forward.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeAlias, TypeVar

from engine.core.messages import Flow, Welcome
from engine.memory import Store

REMEMBERED: Final = 65_536  # numbers kept of those that nobody asked about: far more than a worker holds at once


class Phase(Enum):
    LOADING = "loading"  # user code is imported, constructed, warmed up
    SERVING = "serving"
    ENDING = "ending"  # teardown


@dataclass(frozen=True)
class Joined:
    """The broker knows this worker: this is its lane. Sent again, with another key, after each new hello.

    ``store`` is the arena of the welcome, mapped; the main thread's from now on.
    """

    welcome: Welcome
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
    """Warm-up is done; ``mime`` is what this stage answers with, ``about`` how it describes itself."""

    mime: str
    took_ms: int
    flow: int = int(Flow.WHOLE)
    about: bytes = b""


@dataclass(frozen=True)
class Finish:
    """Say goodbye and end."""


ToControl: TypeAlias = Warm | Finish

Event = TypeVar("Event")


class Wake:
    """A pipe: :meth:`set` from any thread makes ``fd`` readable for the one that polls it."""

    def __init__(self) -> None:
        self.fd, self._writing = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._writing, False)

    def set(self) -> None:
        try:
            os.write(self._writing, b"\0")
        except BlockingIOError:
            pass  # full of wake-ups that nobody has read yet: one more would say nothing new

    def clear(self) -> None:
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass  # a wake-up that another pass has read

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._writing)


class Mailbox(Generic[Event]):
    """Events for one thread, in order. :meth:`put` from any thread; the rest by its owner."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self.wake = Wake()

    def __bool__(self) -> bool:
        return bool(self._events)

    def put(self, event: Event) -> None:
        self._events.append(event)
        self.wake.set()

    def take(self) -> Event | None:
        """The oldest event, or None. The wake-up pipe is emptied when polled, before events are taken."""
        return self._events.popleft() if self._events else None


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


class Shared:
    """Made by the main thread before the control thread starts, closed by it after that has ended."""

    def __init__(self) -> None:
        self.to_main: Mailbox[ToMain] = Mailbox()
        self.to_control: Mailbox[ToControl] = Mailbox()
        self.cancelled = Numbers()  # uids nobody waits for
        self.revoked = Numbers()  # batches given to somebody else
        self.phase = Phase.LOADING  # written by the main thread

    def close(self) -> None:
        self.to_main.wake.close()
        self.to_control.wake.close()
