"""What the application needs of its client to the broker: :class:`engine.client.Client`, or a fake in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from engine.client import Answer, OnEvent, View
from engine.core.messages import StageState


class BrokerClient(Protocol):
    """See :class:`engine.client.Client` for what each call promises. Used in one event loop."""

    def submit(
        self, route: int, body: bytes, *, timeout_s: float, request_id: str, meta: bytes
    ) -> asyncio.Future[Answer]: ...

    def call(
        self,
        route: int,
        body: bytes,
        done: Callable[[Answer | None], None],
        *,
        timeout_s: float,
        request_id: str,
        meta: bytes,
        on_event: OnEvent | None = None,
    ) -> int: ...

    def consumed(self, seq: int, nbytes: int) -> None: ...

    def withdraw(self, seq: int) -> None: ...

    def cancel(self, answer: asyncio.Future[Answer]) -> None: ...

    def view(self) -> View: ...

    @property
    def stages(self) -> list[StageState]: ...

    async def ask(self, what: str, *, timeout_s: float = 2.0) -> bytes: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...
