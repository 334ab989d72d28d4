"""By what the cache of a route's first stage knows a request (:mod:`engine.core.memo`). Pure.

Where the stage has no ``key``, all that is asked counts: the query, the type of the body and the body, as for a key of
the client's (:mod:`frontend.idempotency`), but not who asks. Where it names fields, those of the body, if it is a JSON
object that has them, and the query. What cannot be told is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from engine.core.messages import MEMO_KEY_SIZE
from engine.core.routing import Topology
from frontend.idempotency import asked

_read: Final = msgspec.json.Decoder().decode
_write: Final = msgspec.json.Encoder(order="deterministic").encode


class Memos:
    """Of the routes of a file."""

    def __init__(self, topology: Topology) -> None:
        self._fields: list[Sequence[str] | None] = [
            topology.cached[route.stages[0]] if topology.is_cached(number, route.stages[0]) else None
            for number, route in enumerate(topology.routes)
        ]
        self.any = any(fields is not None for fields in self._fields)

    def has(self, route: int) -> bool:
        return self.any and self._fields[route] is not None

    def of(self, route: int, query: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes | memoryview) -> bytes:
        """MEMO_KEY_SIZE bytes; none where it cannot be told, or the stage has no cache. Takes about a millisecond per
        MB."""
        fields = self._fields[route]
        if fields is None:
            return b""
        if not fields:
            return asked(query, headers, body)
        digest = blake2b(digest_size=MEMO_KEY_SIZE, person=b"fields")
        digest.update(b"%d:" % len(query) + query)
        try:
            value = _read(body)
            digest.update(_write([value[field] for field in fields]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
            return b""
        return digest.digest()
