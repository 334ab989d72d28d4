"""The file of API keys: read, and written by ``engine api-keys``. What it says is :mod:`engine.core.apikeys`' business.

Whoever may write it lets in whom he likes, so a file that its group or everybody may write to is refused. That others
may read it does less harm, for it holds no token; it is made for its owner alone all the same.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

from engine.core.apikeys import PREFIX, TOKEN_BYTES, ApiKey, BadApiKeys, Limits, digest_of, is_name, parse, without
from engine.errors import StartError

BYTES_MOST: Final = 1 << 20
MAKE: Final = "`engine api-keys new NAME` makes one"

_HEAD: Final = "# Who may ask: NAME sha256:OF ITS TOKEN [rate=A SECOND] [burst=AT ONCE] [concurrent=AT A TIME]\n"

Stamp: TypeAlias = tuple[int, int, int, int]


def stamp(path: str) -> Stamp:
    """What changes with the file. Raises OSError."""
    about = os.stat(path)
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_mode


def read(path: str) -> tuple[ApiKey, ...]:
    """Its keys. Raises StartError, in a line that says what to do."""
    text = _text(path)
    if text is None:
        raise StartError(f"there is no file of API keys {path}; {MAKE}")
    return _parsed(path, text)


def add(path: str, name: str, limits: Limits) -> str:
    """Give ``name`` a key; its token, which is nowhere else. Makes the file where there is none. Raises StartError."""
    if not is_name(name):
        raise StartError(f"{name!r} cannot be a key's name: at most 64 letters, digits, _ . @ and -")
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    with _locked(path):
        text = _text(path)
        known = _parsed(path, text or "")
        if any(key.name == name for key in known):
            raise StartError(f"{path} has a key {name} already; `engine api-keys remove {name}` takes it away")
        text = _HEAD if text is None else text if not text or text.endswith("\n") else f"{text}\n"
        text += ApiKey(name, digest_of(token.encode()), limits).line() + "\n"
        _parsed(path, text)
        _write(path, text)
    return token


def remove(path: str, name: str) -> None:
    """Take a key away. Raises StartError."""
    with _locked(path):
        text = _text(path)
        if text is None:
            raise StartError(f"there is no file of API keys {path}")
        if not any(key.name == name for key in _parsed(path, text)):
            raise StartError(f"{path} has no key {name}")
        _write(path, without(text, name))


def _parsed(path: str, text: str) -> tuple[ApiKey, ...]:
    try:
        return parse(text)
    except BadApiKeys as error:
        raise StartError(f"the file of API keys {path} makes no sense: {error}") from None


def _text(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe does not keep us
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartError(f"the file of API keys {path} cannot be read: {error.strerror}") from None
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        os.close(fd)
        raise StartError(f"{path} is not a file")
    with open(fd, "rb") as file:
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(about.st_mode)
            raise StartError(f"the file of API keys {path} may be written by others (mode {mode:04o}): chmod 600")
        try:
            data = file.read(BYTES_MOST + 1)
        except OSError as error:
            raise StartError(f"the file of API keys {path} cannot be read: {error.strerror}") from None
    if len(data) > BYTES_MOST:
        raise StartError(f"the file of API keys {path} is too large")
    return data.decode("utf-8", "replace")


def _write(path: str, text: str) -> None:
    """All of it at once: who reads it meanwhile reads the former one. Of a link, what it names is replaced."""
    target = os.path.realpath(path)
    beside = f"{target}.{os.getpid()}.new"
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                os.fchmod(fd, 0o600)
                file.write(text)
                file.flush()
                os.fsync(fd)
            os.replace(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise StartError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Against another command that changes it: neither loses the other's key. The folder is locked, for the file is
    replaced."""
    folder = os.path.dirname(os.path.realpath(path))
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StartError(f"{path} cannot be written: {folder}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
