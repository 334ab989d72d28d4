"""How memory of a GPU, which has no name and no path, gets from the process that made it to those that read it: as a
file descriptor (unix(7), SCM_RIGHTS), by way of the broker, which keeps it for as long as anybody may need it.

A process connects to the socket ``handles`` in the run directory, says one thing, and is answered: it hands one in
for an arena (:mod:`engine.core.arena`), or asks for that of an arena. Here are both ends of that; what is kept, and
for how long, :class:`engine.broker.arenas.Arenas` knows.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

from engine.memory import Gone

HAND_IN, ASK = b"+", b"?"
WORDS: Final = struct.Struct("<cQ")  # what is wanted, and of which arena
YES, NO = b"y", b"n"
PATIENCE_S: Final = 5.0  # with a broker that does not answer


def hand_in(path: str, arena: int, fd: int) -> None:
    """Have the broker keep a copy of the descriptor with an arena that this process fills. Raises Gone when the broker
    has ended or does not know the arena, OSError when descriptors cannot be passed here."""
    _close(_ask(path, HAND_IN, arena, [fd]))


class NotThere(Gone):
    """The broker says that it has no such arena, or nothing was handed in for it."""


def ask(path: str, arena: int) -> int:
    """A descriptor of what was handed in for an arena. Raises what :func:`hand_in` raises, NotThere where the broker
    has said so."""
    fds = _ask(path, ASK, arena, [])
    if not fds:
        raise NotThere(f"nothing was handed in for arena {arena:x}")
    return fds[0]


def _ask(path: str, what: bytes, arena: int, fds: list[int]) -> list[int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(PATIENCE_S)
        try:
            sock.connect(path)
            socket.send_fds(sock, [WORDS.pack(what, arena)], fds)
            answer, found, _, _ = socket.recv_fds(sock, 1, 1)
        except (FileNotFoundError, ConnectionError) as error:
            raise Gone("the broker has ended") from error
    if answer != YES:
        _close(found)
        if answer != NO:
            raise OSError(errno.EIO, "the broker has not answered")  # out of descriptors, say
        raise NotThere(f"the broker has no arena {arena:x} (any more)")
    for fd in found:
        os.set_inheritable(fd, False)
    return found


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
