"""How a request wants to be served, as its head says, in the words of the broker (:class:`engine.core.messages.Qos`).
Pure.

    x-slo, x-slo-ms                a goal of its own, in seconds and milliseconds, at most its timeout
    x-priority                     high, normal or low: it is of no higher class than this
    authorization, x-api-key       who asks: clients share what can be served (:mod:`engine.core.fairness`)

Of a token only a digest leaves this process.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import Final

from engine.core.fairness import Priority
from engine.core.messages import CLIENT_SIZE, Qos
from engine.core.wire import MICROS
from frontend import deadline, errors
from frontend.errors import Refusal
from frontend.head import Head

TOKEN_MAX: Final = 1024  # bytes; a longer one is looked at anew each time

_PRIORITIES: Final = {priority.name.lower().encode(): int(priority) for priority in Priority}
_BEARER: Final = b"bearer "


def of(head: Head, timeout_s: float) -> Qos | None:
    """What a head says; None: nothing. Raises Refusal: 400."""
    token = head.token
    if not (token or head.slo or head.slo_ms or head.priority):
        return None
    slo_us = 0
    if head.slo or head.slo_ms:
        slo_s = deadline.allowed(head.slo, head.slo_ms, timeout_s)
        if slo_s is None:
            raise Refusal(errors.BAD_SLO)
        slo_us = max(1, int(slo_s * MICROS))
    priority = _PRIORITIES.get(head.priority.lower()) if head.priority else 0
    if priority is None:
        raise Refusal(errors.BAD_PRIORITY)
    client = b"" if not token else client_of(token) if len(token) <= TOKEN_MAX else client_of.__wrapped__(token)
    return Qos(slo_us, priority, client)


@lru_cache(maxsize=1024)
def client_of(token: bytes) -> bytes:
    """CLIENT_SIZE bytes for whoever sends this as its ``authorization`` or ``x-api-key``: the begin of the SHA-256 of
    the token, without the word ``Bearer``."""
    if token[: len(_BEARER)].lower() == _BEARER:
        token = token[len(_BEARER) :].strip()
    return sha256(token).digest()[:CLIENT_SIZE]
