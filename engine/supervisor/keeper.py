"""What a worker started ends with it, and what a deployment started ends with its supervisor, however that ends.

The processes of a deployment have a parent-death signal; what user code starts in them has none, and may have left
their group and session. But it has inherited a mark in its environment: ENGINE_TREE, with a token of the supervisor's
and a word for each process it started. The supervisor ends what a worker leaves by that mark. For the case that the
supervisor itself is killed it has a *keeper*, this file run as a script: a process in a session of its own that does
nothing until its standard input ends or its parent is another one, and then ends whatever has the supervisor's mark.

A process is held by a pidfd while its mark is read, so nobody's number can be taken for it. Whoever shall outlive a
worker on purpose is started without the variable. Linux only: elsewhere nothing is found.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

VARIABLE = "ENGINE_TREE"
LOOK_S = 1.0  # between two looks for the parent: a forked process may hold the pipe open
END_S = 2.0  # for what is found to be killed, and what it started meanwhile


def end(mark: str, within_s: float) -> int:
    """Kill every process whose variable begins with ``mark``, again until none is left; how many were found."""
    needle = b"\0%s=%s" % (VARIABLE.encode(), mark.encode())
    until, found = time.monotonic() + within_s, set[int]()
    while (left := _kill(needle)) and time.monotonic() < until:
        found |= left
        time.sleep(0.005)  # nothing else is to be done; deaths come within a scheduler tick
    return len(found | left)


def _kill(needle: bytes) -> set[int]:
    if not os.path.isdir("/proc/self") or not hasattr(os, "pidfd_open"):
        return set()
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            fd = os.pidfd_open(int(name))
        except OSError:  # it has ended
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if needle not in b"\0" + file.read():  # of a zombie it is empty
                    continue
            found.add(int(name))
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except OSError:  # another user's, or it has ended
            continue
        finally:
            os.close(fd)
    return found


class Keeper:
    """Used by the supervisor's one thread."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def renew(self) -> None:
        """It has ended: another one."""
        self._close()
        self._process = self._start()

    def close(self) -> None:
        """What is left ends with it. Returns when it has gone."""
        self._close()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._token, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S + LOOK_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _main(token: str, parent: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when there is nobody left to keep
    while os.getppid() == parent and not select.select([0], [], [], LOOK_S)[0]:
        pass
    end(f"{token}/", END_S)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
