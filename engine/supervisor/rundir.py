"""The run directory: private, owned by one running deployment at a time, empty again when that ends.

It holds the broker's sockets, ``lock`` (held for the supervisor's life), ``pid``, ``deployment.json`` (what the
children read) and ``next.json`` while it is being changed, ``orders`` (:mod:`engine.supervisor.orders`), and
``stopping`` once that has begun: the seconds it may take. What stays is the log of one that was started on a terminal
(:mod:`engine.supervisor.logfile`). Private (0700) because whoever can reach the sockets can make workers unpickle. A
folder with other things in it, ``/tmp`` or a home, is used as it is or not at all: nothing in it is removed, and who
may enter it is not ours to change.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from engine.clock import Deadline
from engine.config import endpoints
from engine.config.load import NEXT, SNAPSHOT
from engine.errors import StartError
from engine.log import get_logger

LOCK: Final = "lock"
PID: Final = "pid"
ORDERS: Final = "orders"
STOPPING: Final = "stopping"
LOG: Final = "stageline.log"  # of a deployment that was started on a terminal: it and the one before are kept
FORMER_LOG: Final = "stageline.log.1"

_KEPT: Final = (LOCK, LOG, FORMER_LOG)
_FILES: Final = (LOCK, PID, SNAPSHOT, f"{SNAPSHOT}.new", NEXT, f"{NEXT}.new", ORDERS, STOPPING, LOG, FORMER_LOG)

LOOK_S: Final = 0.05  # between two looks at a lock that somebody holds
SIGNAL_S: Final = 0.3  # from a signal that was sent to a supervisor to its saying so: whoever stops and starts is quick
LATE_S: Final = 1.0  # on top of what a stopping deployment said it may take

log = get_logger()


class Busy(StartError):
    """Somebody else has what this deployment needs: its name, or its port."""


class Withdrawn(Exception):
    """The start was called off while it waited."""


def sleep(seconds: float) -> bool:
    """The pause of whoever waits in any case."""
    time.sleep(seconds)
    return True


@contextlib.contextmanager
def claim(path: Path, name: str, pause: Callable[[float], bool] = sleep) -> Iterator[Path]:
    """Make ``path`` if need be and hold its lock inside the ``with``; clean up on entry and on leaving.

    A predecessor that is stopping is waited for, for as long as that may take. ``pause`` waits so many seconds, and
    says whether to go on waiting. Raises Busy when a deployment of this ``name`` runs, StartError when the directory
    cannot be trusted or made, Withdrawn when ``pause`` says no.
    """
    lock = _wait_lock(path, name, pause)
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


def write_snapshot(path: Path, data: bytes, name: str = SNAPSHOT) -> Path:
    """Write the deployment for the children, whole or not at all: one may be reading while it changes."""
    target = path / name
    scratch = path / f"{name}.new"
    _write(scratch, data)
    scratch.replace(target)
    return target


def make_private(path: Path) -> None:
    """Create ``path`` as a directory that only this user can enter. Raises StartError when that cannot be held.

    All folders above must be such that nobody but root and this user can put another in the place of what is below.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_above(path)
        path.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink():
            raise StartError(f"the run directory must not be a symbolic link: {path}; set another run_dir")
        _check_owner(path, (os.geteuid(),))
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077 and any(not _is_ours(entry) for entry in path.iterdir()):
            raise StartError(
                f"the run directory {path} holds other things, and other users may enter it; set a run_dir of its own, "
                "which is made where it does not exist"
            )
        if mode != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise StartError(f"cannot make the run directory {path}: {error}; set another run_dir") from error


def check(path: Path) -> None:
    """Raises StartError when there is a run directory at ``path`` that may be a stranger's: a socket in it would be one
    too, and be taken for the broker's."""
    try:
        _check_above(path)
        _check_owner(path, (0, os.geteuid()))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"cannot look at the run directory {path}: {error}") from error


def _check_above(path: Path) -> None:
    """As ssh looks at the folders above a key: each belongs to root or this user, and nobody else may write to it, or
    its entries are their owners' (the sticky bit, as of /tmp). Of links both ways are looked at, as they are written
    and where they lead. Raises OSError, StartError."""
    me = os.geteuid()
    for folder in dict.fromkeys([*reversed(path.parents), *reversed(path.resolve().parents)]):
        _check_owner(folder, (0, me))
        about = folder.stat()
        writers = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if about.st_gid == 0 or _is_own_group(about.st_gid):
            writers &= ~stat.S_IWGRP
        if writers and not about.st_mode & stat.S_ISVTX:
            raise StartError(
                f"other users may write to {folder} (mode {stat.S_IMODE(about.st_mode):o}), and could put another "
                f"directory in the place of {path}; take that right from them, or set another run_dir"
            )


def _is_own_group(gid: int) -> bool:
    """Whether a group is this user's alone, as many systems give each user one of its name."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _check_owner(path: Path, owners: tuple[int, ...]) -> None:
    """Of a link its own owner is checked: root's (/var/run) are the system's, this user's are meant."""
    if (owner := path.lstat().st_uid) not in owners:
        raise StartError(f"{path} belongs to user {owner}; set another run_dir")


def holder(path: Path) -> int | None:
    """The pid of the supervisor that has the run directory now; None: nobody has it. Raises StartError where it may be
    a stranger's."""
    check(path)
    try:
        fd = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # it is just being taken, or left
            return int((path / PID).read_text())
    finally:
        os.close(fd)
    return None


def mark_stopping(path: Path, within_s: float) -> None:
    """Tell whoever comes next that the wait is worth it. Never raises: a full disk must not get in a stop's way."""
    with contextlib.suppress(OSError):
        _write(path / STOPPING, f"{within_s:.3f}\n".encode())


def _wait_lock(path: Path, name: str, pause: Callable[[float], bool]) -> int:
    patience = Deadline(SIGNAL_S)
    waits = False
    while True:
        try:
            return _lock(path, name)
        except Busy:
            if not waits and (within_s := _stopping(path)) is not None:
                waits, patience = True, Deadline(within_s + LATE_S)
                log.info(
                    "%s is still stopping%s; waiting for it, for up to %.0f s", name, _pid(path), within_s + LATE_S
                )
            if patience.passed and waits:
                raise Busy(f"{name} is stopping{_pid(path)} and takes longer than it may; end it") from None
            if patience.passed:
                raise
        if not pause(LOOK_S):
            raise Withdrawn


def _stopping(path: Path) -> float | None:
    """How many seconds the holder of the lock may take to stop, if it does."""
    try:
        return float((path / STOPPING).read_text())
    except (OSError, ValueError):  # not there, not whole yet, or just removed
        return None


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
    return (
        f"{name} is already running{_pid(path)} in {path}; look at it with engine status, stop it, "
        "or give this one another name or run_dir"
    )


def _pid(path: Path) -> str:
    try:
        return f" (pid {(path / PID).read_text().strip()})"
    except OSError:  # it has the lock, and is about to write the file or has just removed it
        return ""


def _sweep(path: Path) -> None:
    """Remove what a deployment leaves: its sockets and files, but for the lock and the log. Other things stay."""
    with contextlib.suppress(FileNotFoundError):
        for entry in path.iterdir():
            if entry.name in _KEPT or not _is_ours(entry):
                continue
            if endpoints.is_cell(entry.name):
                _sweep_cell(entry)
            else:
                entry.unlink(missing_ok=True)


def _sweep_cell(folder: Path) -> None:
    """The same of a cell's folder, unless its broker has it."""
    with contextlib.suppress(OSError):
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sweep(folder)
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()  # where nothing else lies in it
        finally:
            os.close(fd)


def _is_ours(entry: Path) -> bool:
    """Whether a deployment makes such an entry. Raises OSError."""
    if entry.name in _FILES:
        return True
    try:
        about = entry.lstat()
        is_known = (endpoints.is_name(entry.name) and stat.S_ISSOCK(about.st_mode)) or (
            endpoints.is_cell(entry.name) and stat.S_ISDIR(about.st_mode)
        )
        return is_known and about.st_uid == os.geteuid()
    except FileNotFoundError:  # just removed
        return True


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
