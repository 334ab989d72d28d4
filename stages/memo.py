"""By what the cache of the next stage knows a value (:mod:`engine.core.memo`), in the worker that computed it. Pure.

Where that stage has no ``key``, the bytes count that are sent to it, and where these are not all in one piece, for they
are large, what pickling makes of the value. Where it names fields, what pickling makes of those. Equal bytes are equal
values; that equal values may be of unequal bytes costs a computation.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from engine.core.messages import MEMO_KEY_SIZE
from engine.core.routing import Split
from engine.core.wire import Payload


def key_of(value: Any, payload: Payload, fields: Sequence[str]) -> bytes:
    """MEMO_KEY_SIZE bytes; none where it cannot be told, and the value is computed."""
    digest = blake2b(digest_size=MEMO_KEY_SIZE, person=b"fields" if fields else b"value")
    try:
        if fields:
            digest.update(pickle.dumps([_field(value, field) for field in fields], protocol=5))
        else:
            digest.update(payload if type(payload) is bytes else pickle.dumps(value, protocol=5))
    except Exception:  # what a user's class raises when it is looked at, or pickled
        return b""
    return digest.digest()


def frame_key(split: Split, frame: Any, payload: Payload, fields: Sequence[str]) -> bytes:
    """What is said of the frame of a result that goes on in parts, for the cache of the stage that gathers: of all of
    it, or those of its fields that are not the parts'."""
    rest = [field for field in fields if field != split.field]
    if frame is None or (fields and not rest):
        return key_of(None, b"", ())
    return key_of(frame, payload, rest)


def _field(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, Mapping) else getattr(value, name)
