"""What systemd is told of a deployment that it runs: ready, alive, stopping (sd_notify(3), in its own words).

With ``Type=notify`` a unit counts as started when the deployment serves, and not when its process is there; and a
supervisor that hangs is replaced (``WatchdogSec``). Where nobody asks for it nothing is said.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

_SOCKET: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = ("WATCHDOG_USEC", "WATCHDOG_PID")


class Systemd:
    """Says it by a datagram each; never waits, never raises."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Takes out of ``environ`` what is meant for this process alone."""
        address = environ.pop(_SOCKET, "")
        asked, whose = (environ.pop(name, "") for name in _WATCHDOG)
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._is_stopping = False
        self._is_watched = bool(asked) and whose in ("", str(os.getpid()))

    def ready(self) -> None:
        self._say("READY=1")

    def stopping(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self._say("STOPPING=1")

    def alive(self) -> None:
        """To be said more often than every half of ``WatchdogSec``."""
        if self._is_watched:
            self._say("WATCHDOG=1")

    def _say(self, word: str) -> None:
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(word.encode(), self._address)
