"""How a value travels from one stage to the next: pickle 5, large buffers out of band. Pure.

Pickle is understood only on private sockets (the run directory, or later an authenticated link). An array of 64 KiB or
more does not pass through the pickle: it is a part of its own, which nobody copies on the way, and what arrives is a
read-only view of the received memory.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

from engine.core.wire import Payload

OUT_OF_BAND_MIN: Final = 64 * 1024  # bytes; below it a frame of its own costs more than the copy into the pickle


def pack(value: Any) -> Payload:
    """The value as one ``bytes``, or as a tuple of its pickle and its large buffers. Raises what pickling raises."""
    parts: list[bytes | memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()  # contiguous: the only kind numpy hands out
        if raw.nbytes < OUT_OF_BAND_MIN:
            return True
        # The socket's thread reads the buffer after forward has been called again. A writable one may be a buffer that
        # the user fills anew each time, so it is copied; a read-only one is safe to lend.
        parts.append(raw if raw.readonly else bytes(raw))
        return False

    head = pickle.dumps(value, protocol=5, buffer_callback=keep_in_band)
    return (head, *parts) if parts else head


def unpack(payload: Payload) -> Any:
    """Inverse of :func:`pack`. Raises what unpickling raises; ValueError for a payload without parts."""
    if type(payload) is not tuple:
        return pickle.loads(payload)  # type: ignore[arg-type]  # not a tuple here
    if not payload:
        raise ValueError("a payload without parts")
    head, *parts = payload
    return pickle.loads(head, buffers=[memoryview(part).toreadonly() for part in parts])


def plain(payload: Payload) -> bytes:
    """The payload as the one ``bytes`` that a ``deserialize_ipc`` of the user's own expects."""
    if type(payload) is tuple:
        return pickle.dumps(unpack(payload), protocol=5)
    return bytes(payload)  # type: ignore[arg-type]  # not a tuple here; no copy when it is bytes already
