"""Where the control groups of a process have their files: of version 2 or 1, or of both side by side.

Imported by whoever starts processes or threads, so it imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")


def folders(controller: str, pid: int | None = None, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[Path]:
    """Folders that may have files of this controller for a process (None: this one): its own group's first, then of
    each around it. Not all of them need exist. Nothing of a process that has ended."""
    try:
        lines = (proc / ("self" if pid is None else str(pid)) / "cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has no controllers in its line. Its folder is the root itself, or "unified" beside version 1's,
        # which are called by their controllers, in the order of the line or one by one.
        roots = [cgroups / controllers, cgroups / controller] if controllers else [cgroups, cgroups / "unified"]
        own = PurePosixPath(path.lstrip("/"))
        for root in roots:
            # In a container the path may be the host's while the mount begins at the own group: what is not there
            # is passed over, and the root is looked at in any case.
            for group in (own, *own.parents):
                yield root / group
