"""The log of a deployment that was started on a terminal, read again: chosen lines, readable or as they are.

Pure but for :class:`Tail`, which reads a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.log import Line

READ_MOST: Final = 1 << 20  # bytes at once


@dataclass(frozen=True)
class Choice:
    """Which lines. ``level``: the least severe, as a number of :mod:`logging`; ``request``: an x-request-id, or its
    beginning. Lines that are not ours - whatever user code and libraries have printed - say nothing of all this, and
    are left out where one is asked for."""

    level: int = 0
    process: str = ""
    stage: str = ""
    request: str = ""

    @property
    def is_all(self) -> bool:
        return self == Choice()

    def has(self, line: Line | None) -> bool:
        if line is None:
            return self.is_all
        return (
            line.level >= self.level
            and self.process in ("", line.process)
            and self.stage in ("", line.stage)
            and line.request_id.startswith(self.request)
        )


def chosen(lines: Iterable[bytes], choice: Choice, *, raw: bool, colour: bool) -> Iterator[str]:
    """As they are shown. ``raw``: as they were written."""
    for data in lines:
        line = Line.of(data)
        if choice.has(line):
            text = data.decode(errors="backslashreplace")
            yield text if raw or line is None else line.readable(colour=colour)


class Tail:
    """What a file has, and what comes to it, line by line; also when it is begun anew, or is not there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self._rest = b""  # of a line that has not ended
        self._identity = (0, 0)

    def lines(self) -> list[bytes]:
        """What is new since the last time; none: nothing is."""
        found: list[bytes] = []
        while data := self._more():
            *lines, self._rest = (self._rest + data).split(b"\n")
            found += lines
        return found

    def last(self) -> list[bytes]:
        """All that is left, when nobody writes any more."""
        found = self.lines()
        rest, self._rest = self._rest, b""
        return [*found, rest] if rest else found

    def _more(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                identity = (about.st_dev, about.st_ino)
                if identity != self._identity or about.st_size < self._place:
                    self._place, self._rest = 0, b""
                self._identity = identity
                file.seek(self._place)
                data = file.read(READ_MOST)
        except FileNotFoundError:
            return b""
        self._place += len(data)
        return data
