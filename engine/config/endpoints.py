"""Where the broker of a deployment listens, by what others reach it, and how long a path its sockets can come to.

``ipc`` sockets are files in the run directory, and a system takes about a hundred bytes for the path of one; a lane,
which has the longest name, is made when its worker says hello, long after the deployment was told to be ready. So the
longest path that can occur is looked at when the configuration is read.

Over tcp all ports follow from one, PORT of ``bind``: front PORT, admin +1, egress +2, then two per stage in file order
(control, intake), and behind these the range of the lanes, of which the broker tells each worker one. It tells it as an
offset: a worker adds that to the port, and joins it to the host, by which it reached the broker itself. So what the
broker binds may be a wildcard, and addresses and ranges of ports may be translated on the way, without anything that
says so.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from engine.errors import ProtocolError

# sun_path of sockaddr_un (unix(7)) without its final zero byte.
PATH_MAX: Final = 107 if sys.platform.startswith("linux") else 103

# Every name that a socket of a broker can have in its run directory.
_LANE: Final = re.compile(r"l[0-9a-f]+-[0-9a-f]+")
_NAMES: Final = re.compile(rf"(?:front|egress|intake-[0-9]+)(?:-u)?|admin|handles|control-[0-9]+|{_LANE.pattern}")

NEAR: Final = "unix://"  # what such an endpoint begins with

_CELL: Final = re.compile(r"cell-[0-9]+")

PORT_MAX: Final = 65535

LANE_KEYS: Final = 1 << 42  # keys of workers are below it: too many to guess one of, and short in the name of a lane


@dataclass(frozen=True)
class Endpoints:
    """Where the broker of a deployment listens, or how it is reached. ``base`` is a run directory (ipc) or
    ``tcp://host:port``. ``is_near``: by the unix sockets beside the ipc ones (:mod:`engine.unix`)."""

    base: str
    stages: tuple[str, ...]
    is_near: bool = False

    @property
    def is_tcp(self) -> bool:
        return self.base.startswith("tcp://")

    @property
    def near(self) -> Endpoints | None:
        """The same by unix sockets, where everybody is on one host."""
        return None if self.is_tcp else replace(self, is_near=True)

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
        return self._named(_intake(stage), 4 + 2 * stage)

    def lane(self, stage: int, worker: int) -> str:
        """Of a worker on this host."""
        return f"{NEAR if self.is_near else 'ipc://'}{self.base}/{_lane(stage, worker)}"

    @property
    def first_lane(self) -> int:
        """How far behind the first port those of the lanes begin."""
        return 3 + 2 * len(self.stages)

    def lane_offsets(self, lanes: int, after: int) -> Iterator[int]:
        """All ports for lanes, beginning behind one: that of a worker that has gone is the last to be given to another
        one, which must not be taken for it."""
        first = self.first_lane
        for step in range(1, lanes + 1):
            yield first + (after - first + step) % lanes

    def lane_port(self, offset: int) -> str:
        """What to bind a lane to, over tcp."""
        return self._named("", offset)

    def told_lane(self, lane: str) -> str:
        """The lane of which a welcome speaks, to be connected to: an offset over tcp, else as it stands. ProtocolError
        for anything else."""
        if not self.is_tcp:
            return lane
        if not (lane.isascii() and lane.isdigit()) or self.port + int(lane) > PORT_MAX:
            raise ProtocolError(f"no lane: {lane[:80]!r}")
        return self.lane_port(int(lane))

    def at(self, address: str) -> Endpoints:
        """The same by an address that the name of its host stands for."""
        return replace(self, base=f"tcp://{bracket(address)}:{self.port}")

    @property
    def port(self) -> int:
        return urlsplit(self.base).port or 0

    @property
    def host(self) -> str:
        """Its name or address; "" of a run directory."""
        return (urlsplit(self.base).hostname or "") if self.is_tcp else ""

    @property
    def handles(self) -> str | None:
        """The path of the socket by which descriptors pass, which they do within one host only."""
        return None if self.is_tcp else f"{self.base}/handles"

    def _named(self, name: str, offset: int) -> str:
        if self.is_tcp:
            return f"tcp://{bracket(self.host)}:{self.port + offset}"
        return f"{NEAR}{self.base}/{name}-u" if self.is_near else f"ipc://{self.base}/{name}"


def file_of(broker: str) -> str | None:
    """The file that holds the address of a broker, where it is given so: ``@/path``."""
    return broker[1:] if broker.startswith("@") else None


def is_wildcard(host: str) -> bool:
    """Whether it stands for all addresses of a host: one to listen at, not to connect to, which some systems do not
    even allow."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def loopback_of(host: str) -> str:
    """By which whoever listens on all addresses is reached from its own host; another host's name as it is."""
    if not is_wildcard(host):
        return host
    return "::1" if ":" in host else "127.0.0.1"


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
    return PATH_MAX - 1 - folder - max(len(_intake(last)) + 2, len(_lane(last, LANE_KEYS - 1)))


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


def _intake(stage: int) -> str:
    return f"intake-{stage}"


def _lane(stage: int, worker: int) -> str:
    """Short, so that a deployment's name can be long; whole, for a worker of a former broker that comes back to its
    lane must not find another's."""
    return f"l{stage:x}-{worker:x}"


def bracket(host: str) -> str:
    """As it stands before a port."""
    return f"[{host}]" if ":" in host else host
