"""What comes of one request's answer, and what of it is written when: whole, or as a stream, by what comes. Pure.

How a stage gives its answers is known for certain only from what its worker sends; what the broker said of the stage
some time ago (the *hint*) may be older than that worker. So nothing about an answer is decided by the hint but what is
right either way: when to show a waiting client that it was let in, and in which form to say that nothing came.

* The first event of the last stage makes the answer a stream, of its flow and type; an answer that comes before any is
  given whole.
* A stream of events (``text/event-stream``) ends in a last event named ``error`` when the request fails - also by its
  deadline, by the death of its worker, or of the broker. A failure before the first event ends it in the same way where
  the stage is known to stream events: its readers look for them, and the status was 200 for all who came before. But
  for a refusal by the broker, which comes at once and is a plain answer.
* A body in pieces can only be cut short: without its last chunk (HTTP/1.1) or by a reset of its stream (HTTP/2).
* Progress that an earlier stage reports has a place only in a stream of events. Until it is known whether there is one
  it is kept, which the sender's window bounds (:data:`engine.core.messages.STREAM_WINDOW`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from engine.core import sse
from engine.core.call import Answer, StreamEvent
from engine.core.messages import EVENT_COST, STREAM_WINDOW, Flow, Speaker

HEAD_S: Final = 0.1  # a client that waits for a slow first event is told so long after it came that it was let in
KEEPALIVE_S: Final = 15.0  # without an event; proxies give up after 30 to 60 s
WRITE_MAX: Final = 64 * 1024  # bytes handed to the connection at once: what it buffers before it says "wait"
GRANT: Final = STREAM_WINDOW // 4  # bytes; reported together


class Stream:
    """See the module. Events and the answer go in as they come; bytes to write come out of :meth:`take`."""

    __slots__ = ("_error", "_held", "_out", "answer", "flow", "is_cut", "mime")

    def __init__(self, error: Callable[[int, str], bytes] = sse.error) -> None:
        """``error``: the event that ends it when the request fails, from a status and words."""
        self._error = error
        self.flow = Flow.UNKNOWN  # while the answer may still be given whole
        self.mime = ""
        self.answer: Answer | None = None
        self.is_cut = False  # what was written is not whole and nothing can say so but an abrupt end
        self._out: deque[tuple[bytes, int]] = deque()  # to write, and how much of the window each is
        self._held: list[StreamEvent] = []  # progress, while it is not known whether it has a place

    def event(self, event: StreamEvent, hint: Flow) -> int:
        """Something of the answer. Returns the bytes of the window that are free again: nobody will read them."""
        freed = 0
        if self.flow is Flow.UNKNOWN:
            if event.mime:
                freed = self._begin(event.flow, event.mime)
            elif hint is Flow.EVENTS:
                freed = self._begin(Flow.EVENTS, sse.MIME)
            elif hint is Flow.UNKNOWN:
                self._held.append(event)
                return 0
        return freed + self._add(event)

    def answered(self, answer: Answer, hint: Flow) -> None:
        """The end of it. Where :attr:`flow` is still UNKNOWN afterwards, the answer is to be given whole."""
        self.answer = answer
        if self.flow is Flow.UNKNOWN and hint is Flow.EVENTS and answer.status != 200 and not _is_refusal(answer):
            self._begin(Flow.EVENTS, sse.MIME)
        if self.flow is Flow.EVENTS:
            if answer.status != 200:
                self._out.append((self._error(self.status, str(answer.body, "utf-8", "replace")), 0))
            elif answer.body:  # of a stage that answers at once by now: the stream was begun on an old hint
                self._out.append((sse.event(bytes(answer.body)), 0))
        elif self.flow is Flow.CHUNKS:
            self.is_cut = answer.status != 200

    def comment(self) -> None:
        """Something for a stream of events to write that is no event: begins it, and keeps it alive."""
        if self.flow is Flow.UNKNOWN:
            self._begin(Flow.EVENTS, sse.MIME)
        self._out.append((sse.COMMENT, 0))

    def take(self) -> tuple[bytes, int]:
        """The next bytes to write and how much of the window they are: small events in one piece, so that a burst is
        not a write each. Empty when there is nothing now."""
        out = self._out
        parts: list[bytes] = []
        size = cost = 0
        while out and (not parts or size + len(out[0][0]) <= WRITE_MAX):
            data, counted = out.popleft()
            parts.append(data)
            size += len(data)
            cost += counted
        return parts[0] if len(parts) == 1 else b"".join(parts), cost

    @property
    def is_over(self) -> bool:
        """All has been written."""
        return self.answer is not None and not self._out

    @property
    def status(self) -> int:
        """Of the answer as it ended; the client was told 200 long ago."""
        if self.answer is None or self.answer.status == 200:
            return 200
        return self.answer.status if 300 <= self.answer.status <= 599 else 500

    def _begin(self, flow: Flow, mime: str) -> int:
        self.flow, self.mime = flow, mime
        held, self._held = self._held, []
        return sum([self._add(event) for event in held])

    def _add(self, event: StreamEvent) -> int:
        cost = len(event.data) + EVENT_COST
        if self.flow is Flow.EVENTS:
            self._out.append((sse.event(event.data), cost))
        elif self.flow is Flow.CHUNKS and event.flow is Flow.CHUNKS:
            self._out.append((event.data, cost))
        else:
            return cost
        return 0


def _is_refusal(answer: Answer) -> bool:
    """By the broker, before any worker saw the request."""
    if answer.status in (409, 422):
        return answer.speaker == Speaker.DOOR
    return answer.status in (429, 503) and answer.speaker != Speaker.WORKER
