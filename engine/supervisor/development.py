"""``engine up --reload``: what is edited is served.

The workers of a stage are replaced when a file that they have imported has changed, or their settings have: by the same
rollout as ``engine reload``, so that a version which cannot start leaves the one before serving. What cannot change
while a deployment runs has all of it started again. Which stages, and when, says :mod:`engine.core.edits`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from engine.clock import now
from engine.core.edits import Edits
from engine.core.processes import Replace
from engine.log import get_logger
from engine.process import SOURCES_VARIABLE
from engine.supervisor.changes import Changes, NotWhileRunning, Refused
from engine.supervisor.sources import Sources

LOOK_S: Final = 0.25

log = get_logger()


class Development:
    """One run of a deployment whose files are edited. The supervisor's thread only."""

    def __init__(self, file: Path) -> None:
        self._sources = Sources(file)
        self._edits = Edits(file.name)
        self._look_at = now() + LOOK_S
        self._began = 0.0
        self._asked: Replace | None = None
        self.starts_again = False  # the deployment shall end, and begin anew

    @property
    def environment(self) -> dict[str, str]:
        """Of workers: they tell what they import. And they keep no compiled modules, for which two versions of one
        length and one second are the same."""
        return {SOURCES_VARIABLE: str(self._sources.folder), "PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def wake_at(self) -> float:
        return self._look_at

    @property
    def is_under_way(self) -> bool:
        return self._edits.under_way is not None

    def imported(self, stage: str, files: Collection[str]) -> None:
        self._sources.add(files)
        self._edits.imported(stage, files)

    def look(self, changes: Changes, *, serving: bool) -> Replace | None:
        """About every LOOK_S. What is to be done, until :meth:`over`."""
        self._look()
        if not serving or changes.is_changing or (edit := self._edits.take(now())) is None:
            return None
        self._began = now()
        try:
            asked = changes.renew(edit.stages, str(edit))
        except NotWhileRunning as error:
            log.info("%s: %s can only change with a new start: starting all of it again", edit, error)
            self._edits.over(served=True)
            self.starts_again = True
            return None
        except Refused as error:
            self._edits.over(served=False)
            log.error("%s, and is not served: %s", edit, error)
            return None
        if asked is None:
            self._edits.over(served=True)
            log.info("%s, and nothing that is served with it", edit)
        self._asked = asked
        return asked

    def over(self, error: str, *, stopping: bool = False) -> None:
        """The replacement has ended; ``error`` says why it was not done. ``stopping``: since all of it stops, which
        whoever has ended it knows."""
        edit = self._edits.under_way
        assert edit is not None
        self._edits.over(served=not error)
        if stopping:
            return
        if error:
            log.error("%s, and is not served: %s", edit, error)
        else:
            names = ", ".join(sorted((self._asked and self._asked.renew) or ()))
            log.info("%s: %s in %.1f s", edit, f"{names} replaced" if names else "done", now() - self._began)

    def has_settled(self) -> bool:
        """Of one that does not run: whether something has changed, and it is time to try again."""
        self._look()
        if self._edits.take(now()) is None:
            return False
        self._edits.over(served=False)  # as far as anybody knows
        return True

    def fail(self) -> None:
        """It could not start: whatever changes may be the remedy."""
        self._edits.fail()

    def _look(self) -> None:
        self._look_at = now() + LOOK_S
        self._edits.changed(self._sources.look(), now())
