"""Workers whose answer leaves while ``forward`` runs: as server-sent events, or as a body in pieces.

Both hand bytes to a *sink* that the runtime sets; without one - offline, in warm-up, in a dry run - they go nowhere, or
where :meth:`SSEWorker.collect` says. What the sink does about slow clients and clients that have left is its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from engine.core import sse
from engine.core.messages import STREAM_WINDOW, Flow
from engine.errors import StartError
from stages.base import Worker

PIECE_MAX: Final = STREAM_WINDOW // 4  # bytes

# (position in the batch, bytes) -> whether anybody still listens
Sink: TypeAlias = Callable[[int, bytes], bool]


class SSEWorker(Worker):
    """A worker that sends events while it computes.

    As the last stage of a route it makes the route's answers ``text/event-stream``: its results are dropped, its errors
    become an event named ``error``. Before the last stage it may report progress, and its results go on as any other's.

    ``whole_mime_type`` is for routes whose clients choose, by a word in the request, whether they want a stream: with
    it a request for which no event was sent is answered whole, in that type, by its result (or its error, with its
    status); so the first event should come soon. None: every answer is a stream.

    When batching, an exception *raised* by ``forward`` ends every stream of the batch that has sent an event, since
    such a request cannot be computed again; put the exception into the results instead, and it ends its own alone.
    """

    resp_mime_type: str = sse.MIME
    whole_mime_type: str | None = None

    _sink: Sink | None = None

    def send_stream_event(self, text: str, index: int = 0) -> None:
        """Send one event to the client of value ``index`` of the batch, now. Lines are taken care of.

        To be called by the thread that runs ``forward`` (RuntimeError otherwise): events of a request keep their order,
        and come before its end. For a client that has left nothing is sent (see ``context(index).cancelled``). Raises
        IndexError beyond the batch.
        """
        if self._sink is not None:
            self._sink(index, text.encode())

    @contextmanager
    def collect(self) -> Iterator[list[tuple[int, str]]]:
        """Offline: the events sent inside the ``with`` block, as (index, text)."""
        events: list[tuple[int, str]] = []

        def keep(index: int, data: bytes) -> bool:
            events.append((index, data.decode()))
            return True

        former, self._sink = self._sink, keep
        try:
            yield events
        finally:
            self._sink = former


class StreamWorker(Worker):
    """A worker that yields its answer in pieces, each sent at once; the last stage of its routes.

    ``forward`` is a generator of ``bytes`` for one request: ``max_batch_size`` must be 1. An error before the first
    piece is answered as any other; after it the connection is cut, for a body has no other way to say that it is not
    whole. A client that reads slowly slows the generator down; when it has left, the generator is closed.
    """

    resp_mime_type: str = "application/octet-stream"

    _sink: Sink | None = None

    def _pump(self, data: Any) -> None:
        """Run ``forward`` to its end, its pieces to the sink. Raises what it raises, TypeError for what is no piece."""
        pieces = self.forward(data)
        if isinstance(pieces, str | bytes | bytearray | memoryview) or not isinstance(pieces, Iterable):
            raise TypeError(f"forward of a StreamWorker must yield bytes; it returned a {type(pieces).__name__}")
        try:
            for piece in pieces:
                if not isinstance(piece, bytes | bytearray | memoryview):
                    raise TypeError(f"forward of a StreamWorker must yield bytes, not {type(piece).__name__}")
                if self._sink is not None and not self._send(bytes(piece)):  # the user may write into it again
                    break
        finally:
            if (close := getattr(pieces, "close", None)) is not None:
                close()

    def _send(self, piece: bytes) -> bool:
        """Whether anybody still listens. An empty piece would be the end mark of a chunked body; a large one goes in
        parts, for the window of a stream counts whole ones."""
        sink = self._sink
        assert sink is not None
        return all(sink(0, piece[start : start + PIECE_MAX]) for start in range(0, len(piece), PIECE_MAX))


def flow_of(worker: Worker) -> Flow:
    """How this worker gives its answers; UNKNOWN: each as its request asks for it."""
    if isinstance(worker, StreamWorker):
        return Flow.CHUNKS
    if isinstance(worker, SSEWorker):
        return Flow.EVENTS if worker.whole_mime_type is None else Flow.UNKNOWN
    return Flow.WHOLE


def stream_flow_of(worker: Worker) -> Flow:
    """How it gives those that are streams."""
    return Flow.EVENTS if isinstance(worker, SSEWorker) else flow_of(worker)


def whole_mime_of(worker: Worker) -> str:
    """The type of what it gives whole."""
    return (isinstance(worker, SSEWorker) and worker.whole_mime_type) or worker.resp_mime_type


def entry(worker: Worker) -> Callable[[Any], Any]:
    """What to call with decoded values: ``forward``, or for a StreamWorker what runs it to its end."""
    return worker._pump if isinstance(worker, StreamWorker) else worker.forward


def check_place(worker: Worker, *, is_last: bool) -> None:
    """Refuse a StreamWorker where it cannot work: StartError."""
    if not isinstance(worker, StreamWorker):
        return
    if worker.max_batch_size > 1:
        raise StartError(
            f"stage {worker.stage} is a StreamWorker, which answers one request at a time: set its max_batch_size to 1"
        )
    if not is_last:
        raise StartError(f"stage {worker.stage} is a StreamWorker: it must be the last stage of its routes")
