"""Requests that were found to kill workers, and are refused for a while without being computed. Pure.

Clients try again what has failed, and each try of such a request would cost the stage as many workers as the first one
did. Whoever still has its body when the verdict comes - the frontend - takes its fingerprint; the broker keeps it and
looks at what comes. That costs other requests nothing but a look for their route and size: only a body that agrees in
both is hashed.

A change of the deployment may have cured it, and ends all of it; so does the end of the broker.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

KEEP_S: Final = 600.0  # long enough for whoever tries again by a schedule, short enough for a fault that has passed
KEEP_MOST: Final = 256  # requests; the oldest go first
FINGERPRINT_BYTES: Final = 16


def fingerprint(body: bytes | memoryview) -> bytes:
    """What stands for a request's body: BLAKE2b (RFC 7693) of FINGERPRINT_BYTES. A gigabyte takes about a second."""
    return blake2b(body, digest_size=FINGERPRINT_BYTES).digest()


class Quarantine:
    """See the module."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[int, int, bytes], float] = OrderedDict()
        self._sizes: dict[tuple[int, int], int] = {}  # (route, size of the body) -> how many of these

    def __len__(self) -> int:
        return len(self._until)

    def add(self, route: int, size: int, mark: bytes, now: float) -> bool:
        """Refuse such requests from now on. False: they were refused already, and are no longer than before."""
        self._expire(now)
        key = (route, size, mark)
        if key in self._until:
            return False
        self._until[key] = now + KEEP_S
        self._sizes[key[:2]] = self._sizes.get(key[:2], 0) + 1
        if len(self._until) > KEEP_MOST:
            self._remove(next(iter(self._until)))
        return True

    def holds(self, route: int, size: int, read: Callable[[], bytes | memoryview], now: float) -> bool:
        """Whether a request is to be refused. ``read`` gives its body, and is called only if it may be."""
        if (route, size) not in self._sizes:
            return False
        self._expire(now)
        return (route, size) in self._sizes and (route, size, fingerprint(read())) in self._until

    def clear(self) -> None:
        self._until.clear()
        self._sizes.clear()

    def _expire(self, now: float) -> None:
        while self._until:
            key, until = next(iter(self._until.items()))
            if until > now:
                return
            self._remove(key)

    def _remove(self, key: tuple[int, int, bytes]) -> None:
        del self._until[key]
        left = self._sizes[key[:2]] - 1
        if left:
            self._sizes[key[:2]] = left
        else:
            del self._sizes[key[:2]]
