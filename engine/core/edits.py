"""Files that are edited while a deployment runs: which stages have to be replaced for them, and when. Pure.

Who saves a file mostly saves another in the same breath, and editors write one in several steps: a change counts when
nothing has changed for SETTLE_S since. One replacement is under way at a time; what changes meanwhile is taken
afterwards, in one.

A stage is concerned by the files that its workers say they have imported. What nobody has imported - a test, a client -
concerns nobody, but after an attempt that failed: then it may be the very file that was missing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

SETTLE_S: Final = 0.3

NAMED: Final = 3  # files that a line of the log names


@dataclass(frozen=True)
class Edit:
    """``files`` that have changed, ``stages`` whose code they are. ``settings``: the deployment's own file is among
    them, which concerns whom it will."""

    files: tuple[str, ...]
    stages: frozenset[str]
    settings: bool

    def __str__(self) -> str:
        names = list(self.files[:NAMED])
        more = len(self.files) - len(names)
        return f"{', '.join(names)}{f' and {more} more' if more else ''} changed"


class Edits:
    """See the module. Files are names, which mean the same to whoever tells them; ``settings`` is the one of the
    deployment."""

    def __init__(self, settings: str) -> None:
        self._settings = settings
        self._imported: dict[str, set[str]] = {}  # by stage
        self._changed: set[str] = set()
        self._since = 0.0  # when the last of them was seen
        self._under_way: Edit | None = None
        self._unserved: frozenset[str] = frozenset()  # stages of an attempt that failed
        self._has_failed = False

    @property
    def under_way(self) -> Edit | None:
        return self._under_way

    def imported(self, stage: str, files: Collection[str]) -> None:
        self._imported.setdefault(stage, set()).update(files)

    def changed(self, files: Collection[str], now: float) -> None:
        if files:
            self._changed.update(files)
            self._since = now

    def take(self, now: float) -> Edit | None:
        """What to do now; to be followed by :meth:`over`. None: nothing yet."""
        if self._under_way is not None or not self._changed or now < self._since + SETTLE_S:
            return None
        changed, self._changed = self._changed, set()
        stages = {stage for stage, files in self._imported.items() if files & changed} | self._unserved
        if not (stages or self._has_failed or self._settings in changed):
            return None
        self._under_way = Edit(tuple(sorted(changed)), frozenset(stages), self._settings in changed)
        return self._under_way

    def fail(self) -> None:
        """There is nothing that is served."""
        self._has_failed = True

    def over(self, *, served: bool) -> None:
        """What was taken is served now, or is not and what was there before goes on."""
        assert self._under_way is not None
        self._unserved = frozenset() if served else self._under_way.stages
        self._has_failed = not served
        self._under_way = None
