"""The frontend's side of the broker: submits requests, awaits answers. Lives in one asyncio event loop.

(Implementation to follow; the signatures are the contract.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from engine.core.messages import StageState


@dataclass(frozen=True)
class Answer:
    """What a request got. ``status`` 200 carries the body; any other the message the client may see (UTF-8)."""

    status: int
    body: bytes
    mime: str = "application/json"
    trail: bytes = b""  # engine.core.wire.unpack_trail
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """What the broker said last; ``connected`` false: it has not been heard for a while."""

    connected: bool
    draining: bool
    headroom: int
    stages: tuple[StageState, ...]


class Client:
    def submit(
        self, route: int, body: bytes, *, timeout_s: float, request_id: str, meta: bytes
    ) -> asyncio.Future[Answer]:
        """Hand a request to the broker; never blocks. Raises Unavailable when it is known to be refused."""
        raise NotImplementedError

    def cancel(self, answer: asyncio.Future[Answer]) -> None:
        """The client has gone: tell the broker, forget the answer."""

    def view(self) -> View:
        raise NotImplementedError

    async def ask(self, what: str, *, timeout_s: float = 2.0) -> bytes:
        """An admin question (``status``, ``metrics``). Raises Unavailable when no answer comes in time."""
        raise NotImplementedError
