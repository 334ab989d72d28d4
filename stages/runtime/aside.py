"""A thread that does what surrounds batches while the main thread is in ``forward``: a waiting device earns nothing.

Between two batches of a busy worker the results of one are sent, and the next one is received and decoded. Of that,
what is not user code can be done beside ``forward``, which leaves the interpreter to others while a device or C code
computes. The main thread *lends* its lane and outlets for the time of one ``forward`` and takes them back after it,
with the next batch if one has come. Lending and taking back go through queues, so whatever one thread did to a socket
has happened before the other touches it, and at no time do both use one: ZeroMQ allows to migrate sockets like that.

Results are encoded before the next ``forward``, never beside it: they may be views of a buffer that it fills anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from stages.runtime.shared import Wake

Found = TypeVar("Found")


class Aside(Generic[Found]):
    """Made and used by the main thread. ``fetch(fd)`` runs in the other one: it waits for something until ``fd`` is
    readable, and returns None then."""

    def __init__(self, fetch: Callable[[int], Found | None]) -> None:
        self._fetch = fetch
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Found | None, BaseException | None]] = SimpleQueue()
        self._recall = Wake()
        self._thread: threading.Thread | None = None
        self._lent = False
        self._begun = False  # the job is done; fetching since then
        self._done = False

    @property
    def is_fetching(self) -> bool:
        """The job of this loan is done, and nothing has been found yet."""
        return self._begun and not self._done

    def lend(self, job: Callable[[], object]) -> None:
        """Have ``job`` done, then something fetched, until :meth:`take_back`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="aside", daemon=True)
            self._thread.start()
        self._lent, self._begun, self._done = True, False, False
        self._jobs.put(job)

    def take_back(self) -> Found | None:
        """End the loan; what was fetched. Raises what ``job`` or ``fetch`` raised."""
        recalled = not self._done
        if recalled:
            self._recall.set()
        found, error = self._answers.get()
        if recalled:
            self._recall.clear()
        self._lent = False
        if error is not None:
            raise error
        return found

    def stop(self) -> None:
        """End the thread, and a loan that was not taken back because ``forward`` never returned."""
        if self._thread is not None:
            if self._lent:
                self._recall.set()
            self._jobs.put(None)
            self._thread.join()
        self._recall.close()

    def _main(self) -> None:
        while (job := self._jobs.get()) is not None:
            found, failure = None, None
            try:
                job()
                self._begun = True
                found = self._fetch(self._recall.fd)
            except BaseException as error:
                failure = error
            self._done = True
            self._answers.put((found, failure))
