"""The secret of a deployment: what its file says, what is derived from it, and how a link is made with it.

A key file has a line for each secret, of which there is one but for the days in which it is replaced; blank lines and
those that begin with ``#`` are for people:

    stageline-key-1:BASE64 OF 32 BYTES

Two key pairs are derived from a line, the broker's and that of all its peers, so nothing but the file is handed round.
The broker's public half is derived too and never sent, so it is a lock of its own: a stranger cannot so much as begin.

Rules of replacing a line under load:

- a link is made with one line, at both ends;
- the broker takes the first line, and lets in those who have it;
- a peer tries its lines in turn (:class:`Turns`), beginning with the one that was good last;
- all look at the file again while they run: the broker all the time, and a peer whenever it is turned away.

So once every file has both lines, in any order of hosts, the first of the broker's can be another one at any moment;
and the old one can go, in any order of hosts, once it is the first nowhere.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, NoReturn

PREFIX: Final = "stageline-key-1:"
SIZE: Final = 32  # bytes of a secret, and of either half of a pair of CURVE
LINES_MOST: Final = 8  # two are enough to replace one; each is one more try of a peer that knows none that is right

# Person strings of BLAKE2b (RFC 7693, 16 bytes at most): what is derived for one purpose says nothing of the other.
_BROKER: Final = b"stageline broker"
_PEER: Final = b"stageline peer"


class BadKeyFile(ValueError):
    """What a key file holds makes no sense. The message names lines by number and repeats nothing that is in them."""


class Secret:
    """A line of a key file. It shows itself nowhere: not in a log, a traceback or a dump."""

    __slots__ = ("_bytes",)

    def __init__(self, secret: bytes) -> None:
        """``secret``: SIZE random bytes."""
        if len(secret) != SIZE:
            raise ValueError(f"a secret has {SIZE} bytes")
        self._bytes = secret

    def broker(self) -> bytes:
        """The secret half of the broker's key pair."""
        return self._derived(_BROKER)

    def peer(self) -> bytes:
        """The secret half of the key pair of all who connect to it."""
        return self._derived(_PEER)

    def line(self) -> str:
        """As it stands in a key file: for its writer alone."""
        return PREFIX + base64.b64encode(self._bytes).decode()

    def _derived(self, purpose: bytes) -> bytes:
        return blake2b(PREFIX.encode(), key=self._bytes, person=purpose, digest_size=SIZE).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._bytes == self._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not passed on")


def parse(text: bytes) -> tuple[Secret, ...]:
    """The secrets of a key file, as they stand in it, each once. Raises BadKeyFile."""
    found: dict[Secret, None] = {}
    for number, raw in enumerate(text.decode("utf-8-sig", "replace").splitlines(), 1):
        line = raw.strip()
        if line and not line.startswith("#"):
            found[_secret(line, number)] = None
    if not found:
        raise BadKeyFile("there is no key in it")
    if len(found) > LINES_MOST:
        raise BadKeyFile(f"there are {len(found)} keys in it, and {LINES_MOST} at most are tried")
    return tuple(found)


def _secret(line: str, number: int) -> Secret:
    if not line.startswith(PREFIX):
        raise BadKeyFile(f"line {number} does not begin with {PREFIX}")
    try:
        return Secret(base64.b64decode(line[len(PREFIX) :], validate=True))
    except (binascii.Error, ValueError):
        pass
    # Outside of the handler: an exception that it came from would be shown with it, and may quote the line.
    raise BadKeyFile(f"line {number} is not {PREFIX} and {SIZE} bytes in base64: cut or changed on the way here")


# --- a peer that is turned away --------------------------------------------------------------------------------------

FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 1.0
TELL_S: Final = 60.0  # between two lines in the log of those who are turned away
TELL_AFTER: Final = 3  # a broker that ends in the midst of a handshake looks the same, once


class Turns:
    """Which of its lines a peer tries, and when: all of them at once, then all again after ever longer waits."""

    def __init__(self) -> None:
        self._tries = 0  # that were turned away since the last link
        self._told_at = -TELL_S

    def turned_away(self, lines: int) -> float:
        """Seconds to wait before the next line (of so many) is tried."""
        self._tries += 1
        rounds, rest = divmod(self._tries, max(1, lines))
        return 0.0 if rest else min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(rounds - 1, 10))

    def let_in(self) -> None:
        self._tries = 0

    def is_to_be_told(self, lines: int, now: float) -> bool:
        """Whether people should hear of it, now: no line is right, and they have not heard for a while."""
        if self._tries < max(lines, TELL_AFTER) or now - self._told_at < TELL_S:
            return False
        self._told_at = now
        return True


# --- strangers at the broker's ports ---------------------------------------------------------------------------------

# Why a connection was refused. Of few words: they are values of a label.
UNKNOWN_KEY: Final = "unknown_key"  # the broker's key is known, and the peer's own is none of ours
WRONG_KEY: Final = "wrong_key"  # the broker's key is not known
NO_KEY: Final = "no_key"  # ZeroMQ without encryption, or with another kind of it
UNFINISHED: Final = "unfinished"  # it was closed, or was silent, before it had said who it is
MALFORMED: Final = "malformed"  # not ZeroMQ at all, or broken

LOST: Final = "lost"  # not refused: a connection that was made has ended

REASONS: Final[Mapping[str, str]] = {
    UNKNOWN_KEY: "a peer whose own key is not of the key file",
    WRONG_KEY: "a peer that does not have the broker's key: another key file, or one with another first line",
    NO_KEY: "a peer without a key",
    UNFINISHED: "a connection that did not say who it is",
    MALFORMED: "what came is not ours",
}


class Handshakes:
    """Of one bound socket: tells connections that end without a word apart from those that end after work.

    What ZeroMQ tells of the beginning and the end of a connection names a descriptor; that a handshake has succeeded is
    told without one. So whose it was is known where there is no choice; else it is known that one of several succeeded,
    and their number comes out right. (Of a socket that connects no beginning is told, nor need be: what fails there is
    told.)
    """

    def __init__(self) -> None:
        self._begun: set[int] = set()  # descriptors whose handshake may not be over
        self._succeeded = 0  # of these, nobody knows which
        self._failed = False  # the connection that ends next is counted already

    def accepted(self, fd: int) -> None:
        self._begun.add(fd)

    def succeeded(self) -> None:
        self._succeeded += 1
        self._settle()

    def failed(self) -> None:
        """It was said why; its end is told next."""
        self._failed = True

    def ended(self, fd: int) -> str:
        """LOST, one that did its work; MALFORMED, one that was refused without a word; or "", of which it was told."""
        failed, self._failed = self._failed, False
        was_link = not failed and (fd not in self._begun or len(self._begun) <= self._succeeded)
        if fd in self._begun:
            self._begun.remove(fd)
            self._succeeded -= was_link
            self._settle()
        return "" if failed else LOST if was_link else MALFORMED

    def _settle(self) -> None:
        if self._succeeded >= len(self._begun):
            self._begun.clear()
            self._succeeded = 0
