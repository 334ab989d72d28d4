"""Where the broker of a deployment listens, and how long a path its sockets can come to.

``ipc`` sockets are files in the run directory, and a system takes about a hundred bytes for the path of one; a lane,
which has the longest name, is made when its worker says hello, long after the deployment was told to be ready. So the
longest path that can occur is looked at when the configuration is read.

Ports when ``bind`` is ``tcp://HOST:PORT``: front PORT, admin +1, egress +2, then two per stage in file order (control,
intake); lanes take free ports, which the broker tells each worker.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

# sun_path of sockaddr_un (unix(7)) without its final zero byte.
PATH_MAX: Final = 107 if sys.platform.startswith("linux") else 103

# Every name that a socket of a broker can have in its run directory.
_LANE: Final = re.compile(r"l[0-9a-f]+-[0-9a-f]+")
_NAMES: Final = re.compile(rf"front|admin|egress|handles|control-[0-9]+|intake-[0-9]+|{_LANE.pattern}")

_CELL: Final = re.compile(r"cell-[0-9]+")

LANE_KEYS: Final = 1 << 42  # keys of workers are below it: too many to guess one of, and short in the name of a lane


@dataclass(frozen=True)
class Endpoints:
    """Where the broker of a deployment listens. ``base`` is a run directory (ipc) or ``tcp://host:port``."""

    base: str
    stages: tuple[str, ...]

    @property
    def is_tcp(self) -> bool:
        return self.base.startswith("tcp://")

    @property
    def front(self) -> str:
        return self._named("front", 0)

    @property
    def admin(self) -> str:
        return self._named("admin", 1)

    @property
    def egress(self) -> str:
        return self._named("egress", 2)

    def control(self, stage: int) -> str:
        return self._named(_control(stage), 3 + 2 * stage)

    def intake(self, stage: int) -> str:
        return self._named(f"intake-{stage}", 4 + 2 * stage)

    def lane(self, stage: int, worker: int) -> str:
        """What to bind a lane to; the endpoint to connect to is what the system makes of it."""
        if self.is_tcp:
            return f"tcp://{_bracket(self._host)}:*"
        return f"ipc://{self.base}/{_lane(stage, worker)}"

    @property
    def handles(self) -> str | None:
        """The path of the socket by which descriptors pass, which they do within one host only."""
        return None if self.is_tcp else f"{self.base}/handles"

    @property
    def _host(self) -> str:
        return urlsplit(self.base).hostname or ""

    def _named(self, name: str, offset: int) -> str:
        if self.is_tcp:
            return f"tcp://{_bracket(self._host)}:{(urlsplit(self.base).port or 0) + offset}"
        return f"ipc://{self.base}/{name}"


def cell_dir(folder: Path, cell: int) -> Path:
    """Where in a run directory the sockets of a cell lie: those of the first in itself."""
    return folder / f"cell-{cell + 1}" if cell else folder


def is_cell(name: str) -> bool:
    """Whether a folder of this name in a run directory may be a cell's."""
    return _CELL.fullmatch(name) is not None


def room(stages: int, cells: int = 1) -> int:
    """The most bytes that the path of a run directory may have, with so many stages and cells."""
    last = stages - 1
    folder = len(str(cell_dir(Path(), cells - 1))) + 1 if cells > 1 else 0
    return PATH_MAX - 1 - folder - max(len(_control(last)), len(_lane(last, LANE_KEYS - 1)))


def is_name(name: str) -> bool:
    """Whether a socket of this name in a run directory may be a broker's."""
    return _NAMES.fullmatch(name) is not None


def is_lane(name: str) -> bool:
    """Whether it may be a lane, of which no other broker has one of the same name."""
    return _LANE.fullmatch(name) is not None


def length(path: str) -> int:
    """The bytes of a path: a letter may have several."""
    return len(os.fsencode(path))


def _control(stage: int) -> str:
    return f"control-{stage}"


def _lane(stage: int, worker: int) -> str:
    """Short, so that a deployment's name can be long; whole, for a worker of a former broker that comes back to its
    lane must not find another's."""
    return f"l{stage:x}-{worker:x}"


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
