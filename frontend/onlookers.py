"""Who sees the page about the deployment, and how often the broker is asked for them. Pure but for waiting.

The page tells what happens inside - hosts, processes, what clients were told when they failed -, and the HTTP port is
open to everybody by default. So by default it is for clients on this very machine, as far as that can be known: the
connection comes from a loopback address, no proxy says that it passes somebody else's request on, and the browser
believes to speak with this machine (a name of somebody else's that leads here would let his pages read ours). Nor does
a browser speak HTTP/1.0: what does is a proxy that was told nothing but where to pass requests on, ``proxy_pass`` of
most nginx, which names this machine as the host and adds no header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address
from typing import Final

from engine.clock import now
from engine.errors import Unavailable
from frontend import errors
from frontend.errors import Refusal
from frontend.head import Head

EVERY_S: Final = 0.95  # between two questions to the broker: a page asks once a second
ANSWERS_MOST: Final = 100  # of this process, a second: so many look

# By which proxies say for whom they speak.
_PASSED_ON: Final = frozenset(
    {
        b"cf-connecting-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-real-ip",
    }
)
_FORWARDED: Final = b"x-forwarded-"  # for, host, proto, server, port and so on


def is_local(head: Head, peer: object, *, is_old: bool) -> bool:
    """Whether a request comes from this machine. ``peer``: the address of its connection, as ASGI has it; ``is_old``:
    over HTTP/1.0."""
    if is_old or not isinstance(peer, list | tuple) or not peer or not _is_loopback(str(peer[0]).partition("%")[0]):
        return False
    hosts = [value for name, value in head.fields if name == b"host"]
    if any(not _is_own(host.decode("latin-1")) for host in hosts):
        return False
    return not any(name in _PASSED_ON or name.startswith(_FORWARDED) for name, _ in head.fields)


def _is_own(host: str) -> bool:
    """Whether a Host header names this machine, by what nobody else can make lead here."""
    name, _, port = host.rpartition(":")
    if not name or (port and not port.isdecimal()):  # no port; or the colon is one of an IPv6 address
        name = host
    name = name.strip("[]").lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


def _is_loopback(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


class Looks:
    """What the broker says of the deployment: asked for at most once in EVERY_S, however many want to know, and never
    while nobody does. One event loop."""

    def __init__(self, ask: Callable[[], Awaitable[bytes]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[bytes] | None = None
        self._asked_at = -EVERY_S
        self._answer: bytes | None = None  # None: there was none
        self._second = 0
        self._given = 0

    async def newest(self) -> bytes:
        """The broker's JSON, at most EVERY_S old. Raises Refusal where too many ask, Unavailable without an answer."""
        instant = now()
        if int(instant) != self._second:
            self._second, self._given = int(instant), 0
        self._given += 1
        if self._given > ANSWERS_MOST:
            raise Refusal(errors.ONLOOKERS)
        if self._asking is None and instant - self._asked_at >= EVERY_S:
            self._asked_at = instant
            self._asking = asyncio.get_running_loop().create_task(self._look())
        if self._asking is not None:
            # Whoever leaves while he waits does not take the answer from the others.
            return await asyncio.shield(self._asking)
        if self._answer is None:
            raise Unavailable(503, "no answer")
        return self._answer

    async def _look(self) -> bytes:
        self._answer = None
        try:
            self._answer = await self._ask()
        finally:
            self._asking = None
        return self._answer
