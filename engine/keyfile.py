"""The key file of a deployment: read, watched for changes, and made (``engine keys new``).

What a file says is read by :mod:`engine.core.keys`. Here it is seen to that nobody else can read it: a file that its
group or everybody may read is refused, as ssh refuses such a key. But for one case: orchestrators mount secrets as
files of root that a group may read, which then is that of the service (mode 0440); no user can make such a file.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final, TypeAlias

from engine.config import Deployment
from engine.core.keys import SIZE, BadKeyFile, Secret, parse
from engine.errors import StartError
from engine.log import get_logger

BYTES_MOST: Final = 64 * 1024
_NEW: Final = "`engine keys new` makes one, to be copied to every host"

_HEAD: Final = (
    "# The secret of a deployment: who has it can read, answer and stop what is served, and run code in its workers.\n"
    "# Copy it to every host of the deployment, mode 0600, and nowhere else.\n"
)

_Stamp: TypeAlias = tuple[int, int, int, int]

log: Final = get_logger("stageline.keys")


class Keyring:
    """The secrets of a key file, as it was when it was read last. One thread, or a glance from another."""

    def __init__(self, path: str) -> None:
        """Raises StartError, in a line that says what to do."""
        self.path = path
        self.secrets, self._stamp = _read(path)
        self._complaint = ""  # as it was told last

    def reread(self) -> bool:
        """Look whether the file has changed, at the price of a ``stat``; True when other secrets are in it now. One
        that cannot be read changes nothing: it may be half written."""
        try:
            if _stamp(os.stat(self.path)) == self._stamp:
                return False
            found, self._stamp = _read(self.path)
        except (OSError, StartError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("the key file has changed, and is not taken: %s", error)
            return False
        self._complaint = ""
        former, self.secrets = self.secrets, found
        return former != found


def keyring_of(deployment: Deployment) -> Keyring | None:
    """What a process of the deployment makes its links with; None where they need no key. Raises StartError."""
    engine = deployment.engine
    return Keyring(engine.key) if engine.is_tcp and engine.key else None


def make(path: str) -> None:
    """Write a new secret into a file of its own. Raises StartError, also for one that exists."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise StartError(
            f"{path} exists, and is left as it is; to replace its key, make another file and append that to it"
        ) from None
    except OSError as error:
        raise StartError(f"{path} cannot be made: {error.strerror}") from None
    with open(fd, "w") as file:
        os.fchmod(fd, 0o600)
        file.write(f"{_HEAD}{Secret(secrets.token_bytes(SIZE)).line()}\n")


def _stamp(about: os.stat_result) -> _Stamp:
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_mode


def _read(path: str) -> tuple[tuple[Secret, ...], _Stamp]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe does not keep us
    except FileNotFoundError:
        raise StartError(f"there is no key file {path}; {_NEW}") from None
    except OSError as error:
        raise StartError(f"the key file {path} cannot be read: {error.strerror}") from None
    try:
        about = os.fstat(fd)
        if problem := _problem(about):
            raise StartError(f"the key file {path} {problem}")
        try:
            found = parse(os.read(fd, BYTES_MOST))
        except BadKeyFile as error:
            raise StartError(f"the key file {path} makes no sense: {error}; {_NEW}") from None
        except OSError as error:
            raise StartError(f"the key file {path} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    return found, _stamp(about)


def _problem(about: os.stat_result) -> str:
    """Why this file cannot hold a secret, or nothing."""
    if not stat.S_ISREG(about.st_mode):
        return "is not a file"
    mode = stat.S_IMODE(about.st_mode)
    mounted = about.st_uid == 0 and not mode & (stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO)
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and not mounted:
        return f"may be read by others (mode {mode:04o}), who may have read it: chmod 600, or a new key"
    return ""


def told_next(path: str) -> str:
    """What is to be done with a new key file, for people."""
    name = Path(path).name
    return (
        f"{path} is new, and only you may read it.\n"
        f"1. Copy it to every host of the deployment, mode 0600 (scp -p {path} HOST:), and nowhere else.\n"
        f'2. Name it in the file, below [engine]: key = "{name}", or by --key or ENGINE_KEY (a path, too).\n'
        "To replace the key of a running deployment, append it to the file it has: docs/SECURITY.md says how to go on."
    )
