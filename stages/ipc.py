"""How a value travels from one stage to the next: pickle 5, large buffers out of band.

Pickle is understood only on private sockets (the run directory, or later an authenticated link). A buffer of 64 KiB or
more - an array, a tensor, ``bytes`` (:mod:`stages.buffers` says which) - does not pass through the pickle: it is copied
once into shared memory, or where there is none is a frame of its own. What arrives is a read-only view.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from engine.core.arena import SHARED_MIN, Ref
from engine.core.wire import Buffer, Part, Payload
from stages import buffers

OUT_OF_BAND_MIN: Final = SHARED_MIN

Put: TypeAlias = Callable[[Buffer], Ref | None]  # a copy in shared memory; None: too small, or no room


def pack(value: Any, put: Put | None = None) -> Payload:
    """The value as one part, or as a tuple of its pickle and its large buffers. Raises what pickling raises."""
    parts: list[Part] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()  # contiguous: the only kind numpy hands out
        if raw.nbytes < OUT_OF_BAND_MIN:
            return True
        parts.append(_sendable(raw, put))
        return False

    head = buffers.dumps(value, keep_in_band)
    first: Part = head if put is None else put(head) or head
    return (first, *parts) if parts else first


def _sendable(raw: memoryview, put: Put | None) -> Part:
    if put is None:
        # The socket's thread reads the buffer after forward has been called again. A writable one may be a buffer that
        # the user fills anew each time, so it is copied; a read-only one is safe to lend.
        return raw if raw.readonly else bytes(raw)
    # Where memory is shared a read-only buffer may itself be a view of it, which is no longer valid then.
    return put(raw) or bytes(raw)


def unpack(payload: Payload) -> Any:
    """Inverse of :func:`pack`, once references are resolved. Raises what unpickling raises; ValueError for a payload
    without parts."""
    if type(payload) is not tuple:
        return pickle.loads(payload)  # type: ignore[arg-type]  # not a tuple here
    if not payload:
        raise ValueError("a payload without parts")
    head, *parts = payload
    return pickle.loads(head, buffers=[memoryview(part).toreadonly() for part in parts])  # type: ignore[arg-type]


def plain(payload: Payload) -> bytes:
    """The payload as the one ``bytes`` that a ``deserialize_ipc`` of the user's own expects."""
    if type(payload) is tuple:
        return pickle.dumps(unpack(payload), protocol=5)
    return bytes(payload)  # type: ignore[arg-type]  # not a tuple here; no copy when it is bytes already
