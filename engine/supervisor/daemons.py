"""Processes a script registers to live and die with its deployment, whatever kind of object it holds them by."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Daemons: TypeAlias = Mapping[str, Any] | Sequence[Any]


class Daemon:
    """A ``subprocess.Popen`` (running) or a ``multiprocessing.Process`` or its like (not started, or running).

    They keep their own process group and session: how they are started is their owner's business.
    """

    def __init__(self, name: str, process: Any) -> None:
        self.name = name
        self._process = process

    def start(self) -> None:
        if not isinstance(self._process, subprocess.Popen) and self._process.pid is None:
            self._process.start()

    @property
    def pid(self) -> int | None:
        pid: int | None = self._process.pid
        return pid

    def exit_code(self) -> int | None:
        """None while it runs. Reaps it through its own object, which would otherwise believe it alive for ever."""
        code: int | None
        code = self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode
        return code

    def send(self, number: int) -> None:
        if self.pid is not None and self.exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill and reap it, if it still runs."""
        self.send(signal.SIGKILL)
        if self.pid is not None and self.exit_code() is None:
            if isinstance(self._process, subprocess.Popen):
                self._process.wait(5)
            else:
                self._process.join(5)


def named(daemons: Daemons) -> list[Daemon]:
    """Daemons under names that differ: their own, their key's, or ``daemon-N``."""
    if isinstance(daemons, Mapping):
        return [Daemon(f"daemon {name}", process) for name, process in daemons.items()]
    found: dict[str, Daemon] = {}
    for index, process in enumerate(daemons, 1):
        name = f"daemon {getattr(process, 'name', None) or index}"
        if name in found:
            name = f"{name}-{index}"
        found[name] = Daemon(name, process)
    return list(found.values())
