"""What the frames of an HTTP/2 connection may cost, counted before anybody parses them. Pure.

A frame of nine bytes can cost as much work as a request and carry nothing: unknown types, PRIORITY, PING, SETTINGS and
its acknowledgement, WINDOW_UPDATE, empty or tiny DATA, CONTINUATION. All of them draw on *one* budget, whatever their
type and whether they are well-formed, because a bound for each type is a bound for none: there are 256.

* Requests and the bytes of bodies refill it, and so does what the client is sent (it owes window updates for that). So
  nobody who uses the connection for requests meets it.
* A read ends behind so many frames, wherever the bytes are cut: work per turn of the event loop is bounded, however
  small the frames are.

Only the nine bytes of each frame's head are looked at (RFC 9113, section 4.1); what is malformed is found by the
parser behind.
"""

from __future__ import annotations

from typing import Final

PREFACE: Final = 24  # bytes before the first frame

BURST: Final = 500.0  # frames without a request that may come at once; common clients begin with fewer than ten
RATE: Final = 100.0  # and a second. Each costs some 40 us, so a client may waste 0.4 % of a CPU
PER_REQUEST: Final = 4.0  # for each request: what clients say of its stream's window and priority
PER_FRAME_SENT: Final = 2.0  # for each frame of an answer: updates of two windows
FREE_SIZE: Final = 1024  # bytes of a body that pay for the frame they come in
BAD_REQUEST: Final = 20.0  # frames; a head that was understood and refused without an answer costs as much

TURN: Final = 32  # frames of a turn; they cost a millisecond
TURN_PER_REQUEST: Final = 4  # a request counts as so many

PADDING: Final = 4096  # bytes of a packed head beyond what it says: priorities, padding, sizes of tables

_HEAD: Final = 9
_DATA: Final = 0
_HEADERS: Final = 1
_OF_HEADS: Final = frozenset({_HEADERS, 5, 9})  # with PUSH_PROMISE, which no client may send, and CONTINUATION
_END_STREAM: Final = 1
_END_HEADERS: Final = 4


class Frames:
    """The frames of one connection's client, as they come."""

    __slots__ = ("_at", "_block", "_budget", "_head", "_head_max", "_size", "_skip", "begun", "is_spent")

    def __init__(self, instant: float, head_max: int) -> None:
        """``head_max``: bytes of a request's headers, unpacked; packed they are fewer."""
        self.is_spent = False  # too many came, or too large a head: the connection is to be ended
        self.begun = 0  # frames
        self._head_max = head_max + PADDING
        self._block = 0  # bytes of a head of which more frames are to come
        self._size = 0  # of the last frame
        self._budget = BURST
        self._at = instant
        self._skip = PREFACE  # bytes to the next frame
        self._head = b""  # of a frame, as far as it has come

    def take(self, data: memoryview, instant: float) -> int:
        """How many of these bytes make the next turn: at least one, unless there is none. Counts their frames."""
        self._budget = min(BURST, self._budget + (instant - self._at) * RATE)
        self._at = instant
        at, end, turn = 0, len(data), 0
        while turn < TURN:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
            if at == end:
                break
            head = self._head + bytes(data[at : at + _HEAD - len(self._head)])
            at += len(head) - len(self._head)
            if len(head) < _HEAD:
                self._head = head
                break
            self._head = b""
            self._skip = self._size = head[0] << 16 | head[1] << 8 | head[2]
            self.begun += 1
            turn += self._count(self._skip, head[3], head[4])
        if not self._skip or at == end:
            return at
        # The rest of the last frame is no frame of its own: it comes along.
        step = min(self._skip, end - at)
        self._skip -= step
        return at + step

    @property
    def unfinished(self) -> int:
        """Bytes that have come of what is not whole: a frame, or a head in several."""
        return self._block + (self._size - self._skip if self._skip else 0)

    def sent(self, frames: int) -> None:
        """So many frames of answers were sent."""
        self._budget = min(BURST, self._budget + frames * PER_FRAME_SENT)

    def refused(self) -> None:
        """A request was dropped without an answer."""
        self._pay(BAD_REQUEST)

    def _count(self, size: int, kind: int, flags: int) -> int:
        """Pay for a frame; how much of a turn it is."""
        if kind in _OF_HEADS:
            self._block += size
            self.is_spent = self.is_spent or self._block > self._head_max
            if flags & _END_HEADERS:
                self._block = 0
        if kind == _HEADERS:
            self._pay(-PER_REQUEST)
            return TURN_PER_REQUEST
        if kind == _DATA:
            if not flags & _END_STREAM:  # each stream has one end
                self._pay(1.0 - size / FREE_SIZE)
        else:
            self._pay(1.0)
        return 1

    def _pay(self, cost: float) -> None:
        self._budget = min(BURST, self._budget - cost)
        if self._budget < 0:
            self.is_spent = True
