"""The classes users derive from. They need no server: ``Encode().forward([...])`` is a plain call.

What the runtime sets on an object *before* ``__init__`` runs (``worker_id``, ``stage``, ``max_batch_size``,
``batch_sizes``, ``max_batch_cost``, ``device``) has a class-level default here, so that the same ``__init__`` works
offline.
"""

from __future__ import annotations

import pickle
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages import buffers, openipc, plainjson
from stages.context import Context, ItemIn
from stages.tensors import Tensor

if TYPE_CHECKING:
    from stages.oip import Tensors


class Worker:
    """One stage of a pipeline: derive from it and write ``forward``.

    An object is made, warmed up and called in one process by one thread. ``forward`` gets a single value when
    ``max_batch_size`` is 1, else a list, and returns as many results as it got values, in their order; an exception
    *instance* in a result's place fails that request alone, an exception raised fails those that cause it.
    """

    example: Any = None
    """Given to ``forward`` before the worker is ready: a value, or when batching a list of values. Batches of other
    sizes are made of these."""
    multi_examples: Sequence[Any] = ()
    """Several such, each given to ``forward``: shapes to compile, for instance."""
    resp_mime_type: str = "application/json"
    """Content type of the answer, when this is the last stage of a route."""
    req_mime_type: str = "application/json"
    """Content type of the request, when this is the first stage of a route; documentation."""
    input_tensors: Mapping[str, Tensor] = {}
    """What clients of the Open Inference Protocol have to send, where the annotation of ``forward`` does not say it."""
    output_tensors: Mapping[str, Tensor] = {}
    """The same of what they are sent."""

    worker_id: int = 1
    """1 to the stage's number of workers, kept when the worker is restarted."""
    stage: str = ""
    """Name of the stage."""
    max_batch_size: int = 1
    """How many values ``forward`` gets at most; with 1 it gets a value, else a list."""
    batch_sizes: Sequence[int] = ()
    """The only sizes of lists that ``forward`` gets, ascending; empty: any up to ``max_batch_size``."""
    max_batch_cost: int = 0
    """What a batch may cost, as :meth:`cost` counts it; 0: nobody asks."""
    device: str = "cpu"
    """Where to compute: ``cpu``, ``cuda:0``, ..."""

    # Others could reach what connects the stages, so nothing is unpickled; set before the warm-up.
    _is_open: bool = False
    # How requests and answers of the Open Inference Protocol are read and written, where a route speaks it; set before
    # the warm-up.
    _tensors: Tensors | None = None
    # What context(i) speaks about: set around every call into user code.
    _items: Sequence[ItemIn] = ()
    _gone: Container[int] = ()
    # As configured: a class may have a ``batch_sizes`` of its own.
    _sizes: Sequence[int] = ()

    def setup(self) -> None:
        """Called once after ``__init__``, before the warm-up. An exception is a failed start."""

    def teardown(self) -> None:
        """Called once when the worker stops, after its last batch."""

    def forward(self, data: Any) -> Any:
        """Compute.

        Must be overridden. Raise :class:`engine.errors.EngineError`'s subclasses to answer with a status.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(self, data)")

    def cost(self, value: Any) -> float:
        """What computing a value takes, as ``forward`` would get it alone, in whatever grows with that: tokens, pixels,
        seconds of audio. Asked for each item before ``forward``, where the stage has a ``max_batch_cost``; define it
        there unless the cost is the payload's bytes. An exception fails nothing, and is logged once."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a value costs")

    def deserialize(self, data: bytes) -> Any:
        """The body of a request as the value ``forward`` gets: JSON. An empty body is malformed JSON: DecodingError."""
        return plainjson.decode(data)

    def serialize(self, data: Any) -> bytes:
        """A result as the body of the answer: JSON. Raises EncodingError, which names the type that JSON lacks."""
        return plainjson.encode(data)

    def deserialize_tensors(self, tensors: dict[str, Any]) -> Any:
        """The inputs of a request of the Open Inference Protocol, numpy arrays by name, as the value ``forward`` gets.

        Needed only where the annotation of ``forward`` names no fields that are tensors; with ``input_tensors``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what tensors are to it")

    def serialize_tensors(self, data: Any) -> Mapping[str, Any]:
        """A result as the outputs of the Open Inference Protocol: arrays, lists, texts or numbers by name; likewise."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its results are as tensors")

    def serialize_ipc(self, data: Any) -> bytes:
        """A result as bytes for the next stage: pickle; MessagePack where others could reach the link (``bind``).

        The runtime does the same without this method, and without copying large buffers, unless it is overridden.
        """
        return openipc.pack(data) if self._is_open else buffers.whole(data)

    def deserialize_ipc(self, data: bytes) -> Any:
        """Inverse of the previous stage's :meth:`serialize_ipc`. Override both or neither."""
        return openipc.unpack(data) if self._is_open else pickle.loads(data)

    def context(self, i: int = 0) -> Context:
        """About the request behind value *i* of the list that ``forward`` got (or of the only value).

        Also in ``deserialize`` and ``serialize``, with *i* 0. Raises IndexError beyond the batch. Offline it is empty.
        """
        if not self._items:
            return Context()
        return Context(self._items[i], self._gone)


def reads_itself(worker: Worker) -> bool:
    """Whether ``deserialize`` is the class's own."""
    return "deserialize" in vars(worker) or not is_ours(getattr(type(worker).deserialize, "__module__", None))


def is_ours(module: str | None) -> bool:
    return module is not None and module.startswith("stages.")  # a method of C code has none
