"""Tells of processes of this host whether the kernel killed them for want of memory (:mod:`engine.core.killings`).

Where no control group counts - off Linux, in a sandbox - nothing is ever concluded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from engine import cgroups
from engine.clock import now as clock
from engine.core.killings import Killings, counted

# Version 2 (".local": of this group alone, not of those in it), then version 1.
_FILES: Final = ("memory.events.local", "memory.events", "memory.oom_control")


class OomWatch:
    """Looks at processes while they live, for a dead one has no group any more. Used by one thread."""

    def __init__(self, proc: Path = cgroups.PROC, groups: Path = cgroups.CGROUPS) -> None:
        self._proc = proc
        self._groups = groups
        self._files: dict[int, Path | None] = {}  # by pid
        self._looks = 0
        self._killings = Killings()

    def look(self, pids: Iterable[int]) -> None:
        """To be called now and then, and soon after a start, with all processes that may be asked about.

        A process stays in its group but for somebody who moves it: so each time one is looked for again, in turn.
        """
        files = {pid: self._files[pid] if pid in self._files else self._file(pid) for pid in pids}
        if files:
            self._looks += 1
            again = [*files][self._looks % len(files)]
            files[again] = self._file(again) or files[again]
        for file in {file for file in files.values() if file is not None}:
            if (count := _read(file)) is not None:
                self._killings.look(str(file), count, clock())
        self._files = files

    def killed(self, pid: int) -> bool:
        """Whether a process that has just been found dead by SIGKILL was killed so. To be asked once."""
        file = self._files.pop(pid, None)
        count = None if file is None else _read(file)
        return count is not None and self._killings.explains(str(file), count, clock())

    def _file(self, pid: int) -> Path | None:
        """Where kills in this process's group are counted; None of one that has ended: it is in no group any more, or
        is shown in the first of all until it is reaped."""
        if self._has_ended(pid):
            return None
        for folder in cgroups.folders("memory", pid, proc=self._proc, cgroups=self._groups):
            for name in _FILES:
                if _read(folder / name) is not None:
                    return folder / name
        return None

    def _has_ended(self, pid: int) -> bool:
        try:
            text = (self._proc / str(pid) / "stat").read_text()
        except (OSError, UnicodeDecodeError):
            return False  # what follows finds out
        return text.rpartition(")")[2].split()[:1] in (["Z"], ["X"])  # proc(5)


def _read(file: Path) -> int | None:
    try:
        return counted(file.read_text())
    except (OSError, UnicodeDecodeError):
        return None
