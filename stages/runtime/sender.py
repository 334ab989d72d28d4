"""A thread that sends on what the broker has not taken at once, while the main one is in ``forward``.

Results must not wait there for the next ones to be computed: a request may be late by then, and a worker that dies of
the next batch would take finished ones along. Over tcp ZeroMQ's own thread does this; unix sockets have none, and need
one only where a parcel is larger than what the system holds of a connection, and the broker is slow to read it.
"""

from __future__ import annotations

import select
import threading
from typing import Final, Protocol

LOOK_MS: Final = 50  # a socket may be closed while it is waited for


class Keeper(Protocol):
    """A socket that keeps what is to be sent. ``fileno`` tells when more can be, and raises ValueError once it is
    closed; ``go_on`` may be called by any thread, and says whether nothing is left."""

    def fileno(self) -> int: ...

    def go_on(self) -> bool: ...


class Sender:
    """Used by the main thread."""

    def __init__(self) -> None:
        self._keepers: set[Keeper] = set()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def see_to(self, keeper: Keeper) -> None:
        """Until nothing is left, or it is closed."""
        self._keepers.add(keeper)
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="sender", daemon=True)
            self._thread.start()
        self._wake.set()

    def stop(self) -> None:
        """End the thread; what is left is not sent by it."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _main(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()  # whoever adds one from now on sets it again
            while not self._stopping and self._keepers:
                poll = select.poll()
                for keeper in [*self._keepers]:
                    try:
                        poll.register(keeper.fileno(), select.POLLIN)
                    except ValueError:
                        self._keepers.discard(keeper)
                poll.poll(LOOK_MS)
                for keeper in [*self._keepers]:
                    self._keepers.discard(keeper)  # first: one that is added while it goes on stays
                    if not keeper.go_on():
                        self._keepers.add(keeper)
            if self._stopping:
                return
