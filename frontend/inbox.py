"""What has come on one connection and is not served yet: the beginning of a request, or requests that have their turn
later.

It lies in an array that is eaten from its front and never copied, and is counted at the gate: as *behind* while its
turn has not come, as part of a body from then on. A client that sends too much in advance is not read for a while;
where all together do, those that send more lose it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from frontend.gate import BEHIND_ALL, BEHIND_MAX, client_of

if TYPE_CHECKING:
    from frontend.gate import Gate

NOTHING: Final = b""
COPY_MAX: Final = 64 * 1024  # bytes of a body that are worth their own array


class Inbox:
    """See the module. One for each connection; ``data`` is to be looked at only."""

    __slots__ = ("_behind", "_client", "_gate", "_is_paused", "_transport", "data", "held", "wanted")

    def __init__(self, gate: Gate, transport: Any) -> None:
        """``transport``: uvloop's have no common type with asyncio's."""
        self.data: bytes | bytearray = NOTHING  # that, or an array of its own
        self.wanted = 0  # bytes of it that the request takes with which it begins; 0: not known, or nothing is there
        self.held = 0  # of these the bytes of its body that have come
        self._gate = gate
        self._transport = transport
        self._client = ""  # who is counted for them, once that matters
        self._behind = 0  # bytes counted as such
        self._is_paused = False  # reading, because too much waits to be served

    def add(self, data: bytes) -> bool:
        """What came before its turn. False: it is too much of all clients together, and nothing is kept here."""
        self._extend(data)
        size = len(self.data)
        self._count_behind(size)
        if self._gate.behind > BEHIND_ALL:
            self.drop()
            return False
        if size > BEHIND_MAX and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        return True

    def begin(self, data: bytes | bytearray, start: int, end: int) -> bool:
        """It is the turn of ``data``: a head up to ``start``, and a body up to ``end`` of which the rest is wanted.
        Again, when ``end`` was not the end of it. False, and nothing has changed: there is no room for it."""
        gate = self._gate
        self._client = self._client or client_of(self._transport.get_extra_info("peername"))
        if not gate.fits(end - start - self.held, self._client):
            return False
        come = min(len(data), end) - start
        gate.hold(come - self.held, self._client)
        self.held = come
        self.wanted = end
        if data is not self.data:
            self.data = bytearray(data)
        self._count_behind(0)
        self._resume()
        return True

    def more(self, data: bytes) -> bool:
        """More of that body. False: there is no room for it."""
        size = min(len(data), self.wanted - len(self.data))  # what is behind it has its turn later
        self._extend(data)
        if not self._gate.hold(size, self._client):
            return False
        self.held += size
        return True

    def take(self, data: bytes | bytearray, start: int, end: int) -> bytes | memoryview:
        """The body of the first request of ``data``, which is what lies here, or what has just come where nothing
        does. What follows has its turn later; is it little, its client is read on."""
        self._release()
        if data is self.data:
            if end == len(data) and end - start >= COPY_MAX:
                self.leave()
                return memoryview(data)[start:]  # the array goes with it
            body = bytes(memoryview(data)[start:end])
            del self.data[:end]  # type: ignore[union-attr]  # an array, which costs nothing, however long it is
        else:
            body = bytes(memoryview(data)[start:end])
            self.data = bytearray(memoryview(data)[end:])
        if not self.data:
            self.data = NOTHING
        self._count_behind(len(self.data))
        if len(self.data) <= BEHIND_MAX:
            self._resume()
        return body

    def drop(self) -> None:
        """Nothing of it is served any more."""
        self._release()
        self.data = NOTHING
        self._count_behind(0)

    def leave(self) -> None:
        """The same, and its client is read on."""
        self.drop()
        self._resume()

    def _extend(self, data: bytes) -> None:
        if not self.data:
            self.data = bytearray()
        self.data += data

    def _count_behind(self, size: int) -> None:
        self._gate.behind += size - self._behind
        self._behind = size

    def _release(self) -> None:
        if self.wanted:
            self._gate.whole(self.held, self._client)
            self._gate.release(self.held)
            self.held = self.wanted = 0

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
