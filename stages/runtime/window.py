"""How much of its streams a worker may send ahead of their clients: STREAM_WINDOW bytes each, from end to end.

Nothing between ``forward`` and the client's connection - sockets, broker, frontend - bounds a stream by itself, and a
client may stop reading at any time. So the frontend reports what its clients have taken (Consumed, then Granted), and
the worker holds each stream to STREAM_WINDOW bytes on their way.

The main thread counts what it sends, the control thread what is granted: each writes numbers of its own, so there is
no lock that a signal could interrupt.
"""

from __future__ import annotations

import select
from collections.abc import Iterable, Mapping

from engine.core.messages import STREAM_WINDOW
from engine.mailbox import Bell


class Windows:
    """Made and closed by the main thread."""

    def __init__(self) -> None:
        self._sent: dict[int, int] = {}  # uid -> bytes; written by the main thread
        self._granted: dict[int, int] = {}  # written by the control thread, swept by the main thread
        self._bell = Bell()
        self._poll = select.poll()
        self._poll.register(self._bell.fileno(), select.POLLIN)

    # --- the main thread ---

    def has_room(self, uid: int) -> bool:
        """Whether something may be sent. The last thing sent may go beyond the window, whatever its size."""
        return self._sent.get(uid, 0) - self._granted.get(uid, 0) < STREAM_WINDOW

    def has_begun(self, uid: int) -> bool:
        return uid in self._sent

    def sent(self, uid: int, nbytes: int) -> None:
        self._sent[uid] = self._sent.get(uid, 0) + nbytes

    def wait(self, timeout_s: float) -> None:
        """Until something was granted or cancelled, or the time is over."""
        if self._poll.poll(max(0.0, timeout_s) * 1000):
            self._bell.silence()

    def forget(self, uids: Iterable[int]) -> None:
        """Their batch is done."""
        if not self._sent and not self._granted:
            return
        for uid in uids:
            self._sent.pop(uid, None)
        for uid in [uid for uid in list(self._granted) if uid not in self._sent]:  # grants may come late
            self._granted.pop(uid, None)

    # --- the control thread ---

    def granted(self, nbytes: Mapping[int, int]) -> None:
        """Clients have taken so much; more than was sent is another stage's, whose progress they read before."""
        for uid, count in nbytes.items():
            if uid in self._sent:
                self._granted[uid] = min(self._granted.get(uid, 0) + count, self._sent.get(uid, 0))
        self._bell.ring()

    def changed(self) -> None:
        """Something else that :meth:`wait` waits for has happened: a client has left."""
        self._bell.ring()

    def close(self) -> None:
        self._bell.close()
