"""How items end at a stage without a result: what the front is told, and what is released. Pure.

All of a stage's rules end items through here, so that none is told without being counted, or let go without its shared
memory being released once nobody can read it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from engine.core import wording
from engine.core.actions import Fail, Release, StageAction
from engine.core.arena import Ref
from engine.core.items import Item
from engine.core.messages import Status
from engine.core.stats import StageStats

# Why items are refused at a stage, as it is counted and told.
HOPELESS: Final = "hopeless"  # it would have been late
EXPIRED: Final = "expired"  # its time was over before it was computed
STUCK: Final = "timeout"  # it was computed for as long as may be
FULL: Final = "stage_full"  # the stage holds all the bytes it may
BROKEN: Final = "broken"  # the stage is not fed


class Ends:
    """See the module. ``actions`` is the stage's, shared with it."""

    __slots__ = ("_actions", "_stage", "_stats")

    def __init__(self, stage: int, stats: StageStats, actions: list[StageAction]) -> None:
        self._stage = stage
        self._stats = stats
        self._actions = actions

    def fail(
        self,
        items: Sequence[Item],
        status: Status,
        text: str,
        headers: Mapping[str, str] | None = None,
        *,
        why: str = "",
    ) -> None:
        """These are answered, and hold nothing any more. ``headers``: of the answers. ``why``: the label of a
        refusal."""
        if items:
            self._tell([item.request.uid for item in items], status, text, headers, why=why)
            self.let_go(items)

    def drop(self, items: Sequence[Item]) -> None:
        """Items that are not worth computing: closed ones were answered, late ones are now."""
        self._stats.dropped += len(items)
        late = [item.request.uid for item in items if not item.request.closed and item.hop == item.request.hop]
        if late:
            self._tell(late, Status.TIMEOUT, wording.TIMEOUT, why=EXPIRED)
        self.let_go(items)

    def refuse(self, items: Sequence[Item], needs_s: float, waiting: int) -> None:
        """Items that would not be done in time, however soon they began, or only if several others were not.
        ``needs_s``: how long they would have taken from now on, of ``waiting`` that were there."""
        stats = self._stats
        stats.hopeless += len(items)
        stats.dropped += len(items)
        uids = [item.request.uid for item in items]
        self._tell(uids, Status.OVERLOADED, wording.HOPELESS, why=HOPELESS, needs_s=needs_s, waiting=waiting)
        self.let_go(items)

    def let_go(self, items: Iterable[Item]) -> None:
        """A place in which each of these was is empty now."""
        for item in items:
            self.release(item.let_go())

    def release(self, refs: Sequence[Ref]) -> None:
        """Nobody will read these again."""
        if refs:
            self._actions.append(Release(list(refs)))

    def _tell(
        self,
        uids: list[int],
        status: Status,
        text: str,
        headers: Mapping[str, str] | None = None,
        *,
        why: str = "",
        needs_s: float = 0.0,
        waiting: int = 0,
    ) -> None:
        self._stats.failed += len(uids)
        if why:
            self._stats.refused[why] += len(uids)
        is_hopeless = why == HOPELESS
        self._actions.append(
            Fail(self._stage, uids, int(status), text, is_hopeless, dict(headers or {}), why, needs_s, waiting)
        )
