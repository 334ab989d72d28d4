"""A thread that fetches the next batch while the main thread is in ``forward``: a waiting device earns nothing.

Receiving and decoding is not user code, and can be done beside ``forward``, which leaves the interpreter to others
while a device or C code computes. The main thread *lends* its lane for the time of one ``forward`` and takes it back
after it, with the next batch if one has come. Lending and taking back go through queues, so whatever one thread did to
the socket has happened before the other touches it, and at no time do both use it: ZeroMQ allows to migrate sockets
like that.

Results are not encoded beside the next ``forward``: they may be views of a buffer that it fills anew. Nor are they sent
there: if it hung, in code that never lets this thread have its turn, work that is done would be lost with it, and the
broker would take the finished batch for the one that hangs.
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
        self._loans: SimpleQueue[bool] = SimpleQueue()  # True: a loan begins; False: end
        self._answers: SimpleQueue[tuple[Found | None, BaseException | None]] = SimpleQueue()
        self._recall = Wake()
        self._thread: threading.Thread | None = None
        self._lent = False
        self._done = False

    def lend(self) -> None:
        """Have something fetched until :meth:`take_back`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="aside", daemon=True)
            self._thread.start()
        self._lent, self._done = True, False
        self._loans.put(True)

    def take_back(self) -> Found | None:
        """End the loan; what was fetched. Raises what ``fetch`` raised."""
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
            self._loans.put(False)
            self._thread.join()
        self._recall.close()

    def _main(self) -> None:
        while self._loans.get():
            found, failure = None, None
            try:
                found = self._fetch(self._recall.fd)
            except BaseException as error:
                failure = error
            self._done = True
            self._answers.put((found, failure))
