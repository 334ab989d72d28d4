"""The files that a deployment is written in, looked at again and again: which of them have changed.

Those that somebody has imported, the deployment's own, and every module beside one of these. Looked at by what the
system tells of a file, and where that differs by what is in it: who saves a file without a change has changed nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final, TypeAlias

About: TypeAlias = tuple[int, int, int]
MISSING: Final = (0, 0, 0)


class Sources:
    """Named by their paths from the folder of ``file``. One thread may use it."""

    def __init__(self, file: Path) -> None:
        self.folder = file.parent
        self._named = {file.name}
        self._folders = {""}
        self._about: dict[str, About] = {}
        self._digests: dict[str, bytes] = {}
        self.look()

    def add(self, names: Collection[str]) -> None:
        """Look at these as well, as they are now."""
        self._named.update(names)
        self._folders.update(os.path.dirname(name) for name in names)
        for name in self._all():
            if name not in self._about:
                self._has_changed(name)

    def look(self) -> set[str]:
        """Those whose content has changed since the last look, that are new, or gone."""
        return {name for name in {*self._all(), *self._about} if self._has_changed(name)}

    def _all(self) -> Iterator[str]:
        yield from self._named
        for folder in self._folders:
            try:
                with os.scandir(self.folder / folder) as entries:
                    yield from [os.path.join(folder, entry.name) for entry in entries if entry.name.endswith(".py")]
            except OSError:  # it is gone
                continue

    def _has_changed(self, name: str) -> bool:
        path = self.folder / name
        try:
            found = os.stat(path)
            about = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._about.get(name) == about:
                return False
            digest = blake2b(path.read_bytes()).digest()
        except OSError:
            about, digest = MISSING, b""
        former, self._about[name] = self._digests.get(name), about
        self._digests[name] = digest
        return former != digest
