"""The listening sockets, and the address under which clients find them.

They are bound here and handed to the server: a port that is in use is then an exit code instead of five retries, and
with port 0 the real one is known at once.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Sequence
from typing import Final

from engine.config.endpoints import bracket, is_wildcard, loopback_of
from engine.errors import StartError

BACKLOG: Final = 2048  # connections the kernel accepts for us, gunicorn's default; net.core.somaxconn caps it


class PortInUse(StartError):
    """Somebody listens there already."""


def listen(address: str, port: int) -> list[socket.socket]:
    """Bound, listening sockets for every address that ``address`` (a name, IPv4 or IPv6) means, all on one port.

    Port 0 takes a free one. Raises PortInUse, or StartError when the address cannot be listened on.
    """
    try:
        found = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f'cannot find the address "{address}": {error}; set another with --address') from error
    sockets: list[socket.socket] = []
    trouble: OSError | None = None
    for family, sockaddr in dict.fromkeys((entry[0], entry[4]) for entry in found):
        host = str(sockaddr[0])
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not hold the port
            if family == socket.AF_INET6 and is_wildcard(host):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # all addresses, whatever the system's rule
            sock.bind((host, port, *sockaddr[2:]))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                _close(sockets)
                raise PortInUse(
                    f"port {port} of {address or 'this host'} is in use; stop what listens there or set another port"
                ) from error
            trouble = error  # a name may also mean an address this host has not got: localhost without IPv6
            continue
        port = sock.getsockname()[1]
        sockets.append(sock)
    if not sockets:
        raise StartError(
            f"cannot listen on port {port} of {address or 'this host'}: {trouble}; set another --address or --port"
        ) from trouble
    return sockets


# "A segment with SYN and without ACK is dropped, others are let through", for the packet filter of Linux; offsets are
# from the TCP header. See linux/filter.h: instructions of (code, jump if true, jump if false, value).
_NO_SYN: Final = b"".join(
    struct.pack("HBBI", *step)
    for step in (
        (0x30, 0, 0, 13),  # A = the flags
        (0x54, 0, 0, 0x12),  # A &= SYN | ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # let it through
    )
)
_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h


def take_no_more(sock: socket.socket) -> None:
    """Let the kernel accept no further connection on a listening socket; those it has accepted can be taken.

    Closing it resets whoever stands in its queue, and as long as it is open others join them. Their first packets are
    dropped instead: they try again, and find the port closed, or somebody else there. Where the system has no such
    filter nothing changes.
    """
    program = ctypes.create_string_buffer(_NO_SYN)
    length = len(_NO_SYN) // 8
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", length, ctypes.addressof(program)))
    except OSError:
        pass  # a window of some microseconds stays open


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def where(address: str, sockets: Sequence[socket.socket]) -> str:
    """At what it listens, in words, where :func:`url` does not say that: all addresses of some kind, several, or
    another one than its name lets people think ("" for none of these). A host's own name is often a loopback address
    there, at which nobody else reaches it."""
    hosts = [str(sock.getsockname()[0]) for sock in sockets]
    for host in hosts:
        if is_wildcard(host):
            return f"all addresses, {bracket(host)}" if ":" in host else f"all IPv4 addresses, {host}"
    return "" if hosts == [address] else " and ".join(hosts)


def url(address: str, sock: socket.socket, *, secure: bool = False) -> str:
    """Where a client on this host reaches the service."""
    host, port = sock.getsockname()[:2]
    if is_wildcard(host):
        host = loopback_of(host)
    elif address and address != host:
        host = address
    return f"{'https' if secure else 'http'}://{bracket(host)}:{port}"
