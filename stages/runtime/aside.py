"""A thread that fetches the next batches while the main thread is in ``forward``: a waiting device earns nothing.

Receiving and decoding is not user code, and can be done beside ``forward``, which leaves the interpreter to others
while a device or C code computes. The main thread *lends* its lane while batches follow each other, and has it back
when it finds that none has come. Lending, finds and giving back go through queues, so whatever one thread did to the
socket has happened before the other touches it, and at no time do both use it: ZeroMQ allows to migrate sockets like
that.

Results are not encoded beside the next ``forward``: they may be views of a buffer that it fills anew. Nor are they sent
there: if it hung, in code that never lets this thread have its turn, work that is done would be lost with it, and the
broker would take the finished batch for the one that hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from engine.mailbox import Bell

Found = TypeVar("Found")


class Aside(Generic[Found]):
    """Made and used by the main thread. ``fetch(fd)`` runs in the other one: it waits for something until ``fd`` is
    readable, and returns None then, or earlier to end the loan."""

    def __init__(self, fetch: Callable[[int], Found | None]) -> None:
        self._fetch = fetch
        self._loans: SimpleQueue[bool] = SimpleQueue()  # True: a loan begins; False: end
        self._finds: SimpleQueue[Found | _End] = SimpleQueue()
        self._recall = Bell()
        self._recalled = False
        self._thread: threading.Thread | None = None
        self.lent = False

    def lend(self) -> None:
        """Have things fetched until :meth:`take` finds nothing, or :meth:`take_back`."""
        if self.lent:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="aside", daemon=True)
            self._thread.start()
        self.lent = True
        self._loans.put(True)

    def take(self) -> list[Found]:
        """What was fetched, one at a time. Where nothing was, the loan is ended; what came meanwhile is returned, and
        what ``fetch`` raised is raised."""
        try:
            found = self._finds.get_nowait()
        except Empty:
            return self.take_back()
        return self._ended(found) if isinstance(found, _End) else [found]

    def take_back(self) -> list[Found]:
        """End the loan, if there is one; what was fetched and not taken."""
        finds: list[Found] = []
        if self.lent:
            self._recalled = True
            self._recall.ring()
        while self.lent:
            found = self._finds.get()
            finds += self._ended(found) if isinstance(found, _End) else [found]
        return finds

    def _ended(self, end: _End) -> list[Found]:
        self.lent = False
        if self._recalled:
            self._recalled = False
            self._recall.silence()
        if end.error is not None:
            raise end.error
        return []

    def stop(self) -> None:
        """End the thread, and a loan that was not taken back because ``forward`` never returned."""
        if self._thread is not None:
            if self.lent:
                self._recalled = True
                self._recall.ring()
            self._loans.put(False)
            self._thread.join()
        self._recall.close()

    def _main(self) -> None:
        while self._loans.get():
            error = None
            try:
                while (found := self._fetch(self._recall.fileno())) is not None:
                    self._finds.put(found)
                    if self._recalled:
                        break
            except BaseException as failure:
                error = failure
            self._finds.put(_End(error))


class _End:
    """The lane is given back."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
