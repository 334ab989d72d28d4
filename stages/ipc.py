"""How a value travels from one stage to the next: small arrays as such (:mod:`stages.columns`), all else by pickle 5,
large buffers out of band.

Pickle is understood only on private sockets (the run directory, or later an authenticated link). A buffer of 64 KiB or
more - an array, a tensor, ``bytes`` (:mod:`stages.buffers` says which) - does not pass through the pickle: it is copied
once into shared memory, or where there is none is a frame of its own. What arrives is the receiver's own, to be
written to and kept, however it came.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Final, TypeAlias

from engine.core.arena import SHARED_MIN, Ref
from engine.core.wire import Buffer, Part, Payload, are_bytes
from stages import buffers, columns
from stages.near import PutTensor, StandIn
from stages.shm import FOREIGN, Lease

OUT_OF_BAND_MIN: Final = SHARED_MIN

Put: TypeAlias = Callable[[Buffer], Ref | None]  # a copy in shared memory; None: too small, or no room


def pack(value: Any, put: Put | None = None, near: PutTensor | None = None) -> Payload:
    """The value as one part, or as a tuple of its pickle and its large buffers. Raises what pickling raises.

    ``near``: where tensors on a GPU go; None: by way of the CPU.
    """
    if (arrays := columns.pack(value)) is not None:
        return arrays
    head, large = buffers.dumps(value, apart_min=OUT_OF_BAND_MIN, near=near)
    first: Part = head if put is None else put(head) or head
    return (first, *[_sendable(raw, put) for raw in large]) if large else first


def pack_all(values: Sequence[Any], put: Put | None = None) -> list[Payload] | None:
    """What :func:`pack` makes of several values, with little done for each; None where one of them is not plain."""
    if not buffers.are_plain(values):
        return None
    packed = [*map(pickle.dumps, values, repeat(buffers.PROTOCOL))]
    if put is None or max(map(len, packed)) < OUT_OF_BAND_MIN:
        return packed  # type: ignore[return-value]  # bytes are a payload
    return [put(data) or data for data in packed]


def _sendable(raw: memoryview, put: Put | None) -> Part:
    """A copy, for the socket's thread reads the buffer after ``forward`` has been called again, and the user may fill
    it anew each time. That a view cannot be written to says nothing of the memory behind it; ``bytes`` do not change.
    """
    if type(raw.obj) is StandIn:
        return raw.obj.ref
    return (put(raw) if put is not None else None) or (raw if type(raw.obj) is bytes else bytes(raw))


def unpack(payload: Payload, lease: Lease = FOREIGN, *, last: bool = False) -> Any:
    """Inverse of :func:`pack`; what it returns looks at no memory but its own. Raises what unpickling raises;
    ValueError for a payload without parts. ``last``: see :class:`stages.shm.Lease`."""
    if type(payload) is not tuple:
        view = lease.view(payload)  # type: ignore[arg-type]  # not a tuple here
        return columns.unpack(view) if columns.is_packed(view) else pickle.loads(view)
    if not payload:
        raise ValueError("a payload without parts")
    pickled, parts = lease.view(payload[0]), payload[1:]
    borrowed = buffers.borrowable(pickled, len(parts))
    return pickle.loads(
        pickled,
        buffers=[
            lease.view(part) if borrow else lease.own(part, last=last)
            for part, borrow in zip(parts, borrowed, strict=True)
        ],
    )


def unpack_all(payloads: Sequence[Payload]) -> list[Any] | None:
    """The values of several payloads, with little done for each; None where they have to be asked for one by one.
    Raises what unpickling one of them raises, and where they are of different kinds."""
    if not are_bytes(payloads):
        return None
    if columns.is_packed(payloads[0]):
        return columns.unpack_all(payloads)
    return [*map(pickle.loads, payloads)]  # type: ignore[arg-type]  # bytes


def plain(payload: Payload, lease: Lease = FOREIGN, *, last: bool = False) -> bytes:
    """The payload as the one ``bytes`` that a ``deserialize_ipc`` of the user's own expects."""
    if type(payload) is tuple or columns.is_packed(payload):
        return buffers.whole(unpack(payload, lease, last=last))
    return lease.own_bytes(payload, last=last)
