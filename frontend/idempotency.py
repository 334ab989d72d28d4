"""What an ``Idempotency-Key`` says of a request, in the words of the broker (:mod:`engine.core.idempotency`). Pure.

The header is that of the IETF's draft httpapi-idempotency-key-header, which clients' libraries (OpenAI's, Stripe's)
have long been sending as a bare text. It is taken as it comes, quoted or not: who retries does not change its mind.

A key means something for its client only, so whose it is counts: the path, and whatever in the head says who the client
is. What is asked is the query, the type of the body and the body. Other headers are not compared, for clients count
their tries in some of them, and draw new ids.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final

from engine.core import oip
from engine.core.messages import KEY_SIZE
from frontend.head import Head

_SANE: Final = re.compile(rb"^[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?\Z")
_MEANING: Final = frozenset({b"content-type", oip.LENGTH.encode()})  # of the body
_CREDENTIALS: Final = frozenset({b"api-key", b"authorization", b"cookie", b"x-api-key"})


def is_sane(value: bytes) -> bool:
    """Whether this can be a key: 1 to 255 characters that can be seen."""
    return _SANE.match(value) is not None


INLINE_MAX: Final = 256 * 1024  # bytes of a body whose digest others can wait for


def key_of(head: Head, body: bytes | memoryview) -> bytes:
    """KEY_SIZE bytes for a request with a key: whose it is, and what is asked. Takes about a millisecond per MB."""
    whose = [head.path.encode("utf-8", "surrogateescape"), head.idempotency_key or b""]
    for name, value in head.fields:
        if name in _CREDENTIALS:
            whose += name, value
    return _digest(whose) + asked(head.query, head.fields, body)


def asked(query: bytes, fields: Iterable[tuple[bytes, bytes]], body: bytes | memoryview) -> bytes:
    """Half of that: a digest of what is asked, whoever does."""
    parts = [query]
    for name, value in fields:
        if name in _MEANING:
            parts += name, value
    return _digest(parts, body)


async def beside(size: int, digest: Callable[..., bytes], *args: object) -> bytes:
    """A digest of a body of so many bytes: of a large one beside the event loop."""
    return digest(*args) if size <= INLINE_MAX else await asyncio.to_thread(digest, *args)


def _digest(parts: list[bytes], body: bytes | memoryview = b"") -> bytes:
    digest = blake2b(digest_size=KEY_SIZE // 2)
    for part in parts:
        digest.update(b"%d:" % len(part))  # so that none can be taken for the end of another
        digest.update(part)
    digest.update(body)
    return digest.digest()
