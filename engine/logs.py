"""The log of a deployment that was started on a terminal, read again: chosen lines, readable or as they are.

Pure but for :func:`read` and :func:`follow`, which touch the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.log import Line

LOOK_S: Final = 0.2  # between two looks at a file that is followed
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


def read(paths: Iterable[Path]) -> Iterator[bytes]:
    """All lines of these files, one after the other; those that are not there are passed over."""
    for path in paths:
        try:
            with path.open("rb") as file:
                for line in file:
                    yield line.rstrip(b"\n")
        except FileNotFoundError:
            continue


def follow(path: Path, is_over: Callable[[], bool]) -> Iterator[list[bytes]]:
    """What comes from now on, until it is over and all has been read; also when the file is begun anew."""
    place, rest, identity = -1, b"", (0, 0)
    while True:
        over = is_over()
        try:
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                if place < 0:
                    place = about.st_size
                elif (about.st_dev, about.st_ino) != identity or about.st_size < place:
                    place, rest = 0, b""
                identity = (about.st_dev, about.st_ino)
                file.seek(place)
                data = file.read(READ_MOST)
                place += len(data)
        except FileNotFoundError:
            data = b""
            place = max(place, 0)
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            yield lines
        elif over:
            return
        else:
            time.sleep(LOOK_S)
