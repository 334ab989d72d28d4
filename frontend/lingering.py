"""The end of a connection on which something may still come: closed by halves.

Closing a socket that has unread bytes, or to which more are sent, resets the connection, and the reset can overtake the
last answer. So the writing half is closed, what comes is dropped, and the socket closed when the client does, or when
patience ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from frontend.pace import LINGER_S
from frontend.unsent import Unsent


class Lingering(asyncio.Protocol):
    """What a transport's protocol is from its last answer on. ``is_over`` is called when the connection has ended."""

    def __init__(self, transport: Any, unsent: Unsent, is_over: Callable[[Lingering], None]) -> None:
        self._transport = transport
        self._unsent = unsent
        self._is_over = is_over
        transport.set_protocol(self)
        unsent.watch(transport)
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self.end)
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
        else:
            self.end()  # TLS: it says so, and drops what comes until its client has said so as well

    def end(self) -> None:
        """Close without waiting for the client any longer."""
        self._unsent.close(self._transport)

    def pause_writing(self) -> None:
        self._unsent.watch(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._unsent.forget(self._transport)
        self._is_over(self)
