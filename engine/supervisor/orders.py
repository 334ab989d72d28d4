"""Orders to a running supervisor: a socket in the run directory, a JSON line there and JSON lines back.

Who can reach the socket owns the deployment: the run directory is private. An order is ``{"do": "reload"}``,
``{"do": "scale", "nums": {"encode": 3}}`` or ``{"do": "health"}``, which only asks; the answer is any number of
``{"say": TEXT}`` and in the end ``{"error": TEXT, "pids": [...]}``: the text is empty where it was done, and the pids
are those of the workers that are this supervisor's to change. The supervisor never waits for whoever asked: one that
does not read its answer misses it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from engine.errors import Unavailable
from engine.supervisor.rundir import ORDERS

HEALTH: Final = {"do": "health"}

LINE_MAX: Final = 64 * 1024  # bytes of an order
ASKERS_MOST: Final = 16  # connections at once; more are closed at once


class Orders:
    """The supervisor's end. ``handle`` is called with an order and with how to answer it."""

    def __init__(self, folder: Path, handle: Callable[[dict[str, Any], Asker], None]) -> None:
        self._path = folder / ORDERS
        self._handle = handle
        self._askers: dict[int, Asker] = {}
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        with suppress(FileNotFoundError):
            self._path.unlink()
        self._sock.bind(os.fspath(self._path))
        self._sock.listen(ASKERS_MOST)

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> Asker | None:
        """Somebody new; None when there is nobody, or too many are here."""
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return None
        self._askers = {fd: asker for fd, asker in self._askers.items() if not asker.closed}
        if len(self._askers) >= ASKERS_MOST:
            sock.close()
            return None
        asker = self._askers[sock.fileno()] = Asker(sock)
        return asker

    def read(self, asker: Asker) -> bool:
        """Take what has come of an order, and have it handled when it is whole; False when there is nothing more to
        come of this one."""
        order = asker.take()
        if order is None:
            return not asker.closed
        self._handle(order, asker)
        return False

    def close(self) -> None:
        for asker in self._askers.values():
            asker.close()
        self._sock.close()
        with suppress(OSError):
            self._path.unlink()


class Asker:
    """Whoever gave an order, by its connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._data = b""
        self.closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def take(self) -> dict[str, Any] | None:
        try:
            data = self._sock.recv(LINE_MAX)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self._data += data
        line, end, _ = self._data.partition(b"\n")
        if not data or (not end and len(self._data) > LINE_MAX):
            self.close()
            return None
        if not end:
            return None
        try:
            order = json.loads(line)
        except ValueError:
            order = None
        return order if isinstance(order, dict) else {}

    def say(self, text: str) -> None:
        self._send({"say": text})

    def end(self, error: str = "", pids: Iterable[int] = ()) -> None:
        self._send({"error": error, "pids": list(pids)})
        self.close()

    def close(self) -> None:
        self.closed = True
        self._sock.close()

    def _send(self, line: dict[str, Any]) -> None:
        with suppress(OSError):
            self._sock.send(json.dumps(line).encode() + b"\n")


def give(folder: Path, order: dict[str, Any], say: Callable[[str], None], *, within_s: float | None = None) -> set[int]:
    """Give an order to the supervisor of the deployment in ``folder``, and ``say`` what it says until it is done. The
    pids of its workers then. ``within_s``: for how long each word of it is waited for.

    Raises Unavailable when there is no supervisor, or it ends before it is done; RuntimeError with its reason when it
    does not do it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(within_s)
        try:
            sock.connect(os.fspath(folder / ORDERS))
        except OSError as error:
            raise Unavailable(503, f"no supervisor listens in {folder}: {error.strerror or error}") from error
        for told in _answer(sock, order, folder):
            if "error" not in told:
                say(str(told.get("say", "")))
            elif told["error"]:
                raise RuntimeError(str(told["error"]))
            else:
                return set(told.get("pids", ()))
    raise Unavailable(503, "the supervisor ended before it had done it")


def _answer(sock: socket.socket, order: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """What it says, line by line. Raises Unavailable where it breaks off: of its own, so that what becomes of a line is
    not taken for it."""
    try:
        sock.sendall(json.dumps(order).encode() + b"\n")
        with sock.makefile("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line)
    except TimeoutError:
        raise Unavailable(503, f"the supervisor in {folder} does not answer") from None
    except OSError as error:  # it ends, or more are asking it than it listens to
        raise Unavailable(503, f"the supervisor in {folder} has hung up: {error.strerror or error}") from None
