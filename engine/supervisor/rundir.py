"""The run directory: private, owned by one running deployment at a time, empty again when that ends.

It holds the broker's sockets, ``lock`` (held for the supervisor's life), ``pid`` and ``deployment.json`` (what the
children read). Private (0700) because whoever can reach the sockets can make workers unpickle.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engine.errors import StartError

LOCK: Final = "lock"
PID: Final = "pid"
SNAPSHOT: Final = "deployment.json"


class Busy(StartError):
    """Somebody else has what this deployment needs: its name, or its port."""


@contextlib.contextmanager
def claim(path: Path, name: str) -> Iterator[Path]:
    """Make ``path`` if need be and hold its lock inside the ``with``; clean up on entry and on leaving.

    Raises Busy when a deployment of this ``name`` runs, StartError when the directory cannot be trusted or made.
    """
    lock = _lock(path, name)
    try:
        _sweep(path)  # a predecessor that was killed leaves its sockets
        _write(path / PID, f"{os.getpid()}\n".encode())
        yield path
    finally:
        _sweep(path)
        (path / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else lies in it (or it was shared): not ours to remove
            path.rmdir()
        os.close(lock)


def write_snapshot(path: Path, data: bytes) -> Path:
    """Write the deployment for the children, whole or not at all: one may be reading while it changes."""
    target = path / SNAPSHOT
    scratch = path / f"{SNAPSHOT}.new"
    _write(scratch, data)
    scratch.replace(target)
    return target


def make_private(path: Path) -> None:
    """Create ``path`` as a directory that only this user can enter. Raises StartError when that cannot be held.

    The folder above must be root's or this user's too: whoever owns it could put another directory in its place.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path.parent, (0, os.geteuid()))
        path.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink():
            raise StartError(f"the run directory must not be a symbolic link: {path}; set another run_dir")
        _check_owner(path, (os.geteuid(),))
        if stat.S_IMODE(path.stat().st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise StartError(f"cannot make the run directory {path}: {error}; set another run_dir") from error


def _check_owner(path: Path, owners: tuple[int, ...]) -> None:
    """Of a link its own owner is checked: root's (/var/run) are the system's, this user's are meant."""
    if (owner := path.lstat().st_uid) not in owners:
        raise StartError(f"{path} belongs to user {owner}; set another run_dir")


def _lock(path: Path, name: str) -> int:
    """A descriptor that holds the lock.

    A finishing deployment removes the lock file and the directory while this one opens them. So the lock counts only if
    the file that was locked is still the one of that name; else begin again.
    """
    while True:
        make_private(path)
        try:
            fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StartError(f"cannot open {path / LOCK}: {error}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path / LOCK)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise Busy(_who(path, name)) from None
        except FileNotFoundError:
            pass
        os.close(fd)


def _who(path: Path, name: str) -> str:
    try:
        pid = f" (pid {(path / PID).read_text().strip()})"
    except OSError:  # it has the lock, and is about to write the file or has just removed it
        pid = ""
    return (
        f"{name} is already running{pid} in {path}; look at it with engine status, stop it, "
        "or give this one another name or run_dir"
    )


def _sweep(path: Path) -> None:
    """Remove what a deployment leaves: sockets and its own files. A run_dir set by hand may hold other things."""
    with contextlib.suppress(FileNotFoundError):
        for entry in path.iterdir():
            if entry.name in (PID, SNAPSHOT, f"{SNAPSHOT}.new") or stat.S_ISSOCK(entry.lstat().st_mode):
                entry.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
