"""API keys: what their file says, who a token belongs to, and the limits of each. Pure.

A file has a line for each key; blank lines and those that begin with ``#`` are for people:

    NAME sha256:64 HEXADECIMAL DIGITS [rate=10] [burst=20] [concurrent=4]

It holds no token, only what a token hashes to. Plain SHA-256 is enough for that, without salt and without the slowness
that passwords need: a token is 256 random bits, so there is nothing to guess, no list of likely ones, and no two alike.

``rate`` is requests a second in the long run, ``burst`` how many of them may come at once (by default a second's
worth), ``concurrent`` how many may be served at a time. What is not said is not limited.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import ceil, isfinite
from typing import Final

KEYS_MOST: Final = 1000  # of a file: names are labels of metrics
PREFIX: Final = "sl-"  # of a token that is made here, by which scanners for lost secrets can know it
TOKEN_BYTES: Final = 32

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")
_BEARER: Final = b"bearer "
RATE_MOST: Final = 1e6
COUNT_MOST: Final = 1_000_000


class BadApiKeys(ValueError):
    """What a file of keys holds makes no sense. The message names lines by number."""


@dataclass(frozen=True)
class Limits:
    """Of one key; 0: none."""

    rate: float = 0.0
    burst: int = 0
    concurrent: int = 0

    def __post_init__(self) -> None:
        if not (isfinite(self.rate) and 0 <= self.rate <= RATE_MOST):
            raise ValueError(f"rate: expected a number of requests a second above 0, up to {RATE_MOST:.0f}")
        if self.burst and not self.rate:
            raise ValueError("burst: expected a rate beside it")
        if not 0 <= self.burst <= COUNT_MOST:
            raise ValueError(f"burst: expected a number from 1 to {COUNT_MOST}")
        if not 0 <= self.concurrent <= COUNT_MOST:
            raise ValueError(f"concurrent: expected a number from 1 to {COUNT_MOST}")

    @property
    def most_at_once(self) -> int:
        """Of its rate, after a pause."""
        return self.burst or max(1, ceil(self.rate))

    def said(self) -> str:
        """As it stands in the file."""
        words = [f"rate={self.rate:g}"] if self.rate else []
        words += [
            f"{name}={value}" for name, value in (("burst", self.burst), ("concurrent", self.concurrent)) if value
        ]
        return " ".join(words)


@dataclass(frozen=True)
class ApiKey:
    """A line of the file."""

    name: str
    digest: bytes  # SHA-256 of its token
    limits: Limits = Limits()

    def line(self) -> str:
        return f"{self.name} sha256:{self.digest.hex()} {self.limits.said()}".rstrip()


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def digest_of(credentials: bytes) -> bytes:
    """What identifies whoever sends this as its ``authorization`` or ``x-api-key``."""
    if credentials[: len(_BEARER)].lower() == _BEARER:
        credentials = credentials[len(_BEARER) :].strip()
    return sha256(credentials).digest()


def parse(text: str) -> tuple[ApiKey, ...]:
    """The keys of a file, in its order. Raises BadApiKeys."""
    found: dict[str, ApiKey] = {}
    numbers: dict[bytes, int] = {}
    for number, line in _lines(text):
        key = _key(line, number)
        if key.name in found:
            raise BadApiKeys(f"line {number}: there is a key {key.name} already")
        if (first := numbers.setdefault(key.digest, number)) != number:
            raise BadApiKeys(f"line {number} is the key of line {first}, under another name")
        found[key.name] = key
    if len(found) > KEYS_MOST:
        raise BadApiKeys(f"there are {len(found)} keys in it, and {KEYS_MOST} at most are known")
    return tuple(found.values())


def without(text: str, name: str) -> str:
    """A file's text without the line of this key; as it is, if there is none."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.split(maxsplit=1)[:1] != [name])


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        line = raw.strip()
        if line and not line.startswith("#"):
            yield number, line


def _key(line: str, number: int) -> ApiKey:
    """Nothing of a line is repeated but its words before a ``=``: somebody may have written a token there."""
    name, *words = line.split()
    if not is_name(name):
        raise BadApiKeys(f"line {number}: expected a name of at most 64 letters, digits, _ . @ and -")
    match = _HASH.fullmatch(words[0]) if words else None
    if match is None:
        raise BadApiKeys(f"line {number}: expected sha256: and 64 hexadecimal digits in small letters behind the name")
    said: dict[str, float] = {}
    for word in words[1:]:
        what, _, value = word.partition("=")
        if what not in _LIMITS or what in said:
            raise BadApiKeys(f"line {number}: expected {', '.join(f'{one}=' for one in _LIMITS)} once each, or nothing")
        said[what] = _number(what, value, number)
    try:
        limits = Limits(said.get("rate", 0.0), int(said.get("burst", 0)), int(said.get("concurrent", 0)))
    except ValueError as error:
        raise BadApiKeys(f"line {number}: {error}") from None
    return ApiKey(name, bytes.fromhex(match[1]), limits)


def _number(what: str, value: str, number: int) -> float:
    try:
        read = _LIMITS[what](value)
    except ValueError:
        read = 0
    if not read > 0:  # nor is nan
        raise BadApiKeys(f"line {number}: {what}: expected a number above 0")
    return read


_LIMITS: Final[Mapping[str, type[float] | type[int]]] = {"rate": float, "burst": int, "concurrent": int}


def admit(due: float, now: float, limits: Limits) -> tuple[float, float]:
    """One more request of a key, in whose account ``due`` stood (0 at first): what stands there then, and seconds that
    it has to wait - 0: it is admitted.

    The generic cell rate algorithm (ITU-T I.371, annex A): ``due`` is when the key would be even if each request took
    1/rate; it may be ahead of that by what its burst allows. One number is all there is to keep, and to share.
    """
    if not limits.rate:
        return due, 0.0
    each = 1.0 / limits.rate
    at = max(due, now)
    wait = at - (limits.most_at_once - 1) * each - now
    # What a float loses at a clock of months must not refuse a burst its last request.
    return (due, wait) if wait > 1e-6 else (at + each, 0.0)
