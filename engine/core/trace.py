"""The last decisions of one part of the broker: what was waiting, what was predicted, and what happened. Pure.

A stage keeps the batches that it released (:class:`Releases`), the door keeps who was refused, by itself or by a stage
(:class:`Refusals`). What happened to a batch is filled in when it is settled.

There are stages whose batches take fifty microseconds, and to note one must cost well under one: a place of a list for
what is in the books anyhow, written where the batch leaves, for a method would cost more than what it does. Nothing is
done for an item. The ids of requests, which are read from their metas when somebody asks, are held only while KEPT
batches take IDS_S and more - else nobody could ask in time - and no more than METAS_MOST bytes of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from engine.core import meta
from engine.core.released import Released

KEPT: Final = 1000  # decisions
METAS_OF_ONE: Final = 32  # requests of a decision that can be told by their ids
METAS_MOST: Final = 4 << 20  # bytes of their metas
IDS_S: Final = 2.0
LOOK_EVERY: Final = 64  # batches; then it is looked whether ids can be held again
NEAR: Final = 0.2  # a prediction that is off by no more, of what it really took, is a good one

# What became of a batch whose worker did not simply do it.
DIED: Final = "died"  # its worker, and others have its items, or they ended
GIVEN: Final = "given to others"  # it took too long, and its items were given to others too


class Releases:
    """The last KEPT batches of a stage, which are numbered from 1 on. Batch ``n`` is put at ``rows[n % KEPT]``; after
    that :meth:`hold` is called if ``has_ids``, and :meth:`look` with every LOOK_EVERYth if not."""

    __slots__ = ("_nbytes", "has_ids", "rows")

    def __init__(self) -> None:
        self.rows: list[Released | None] = [None] * KEPT
        self.has_ids = True
        self._nbytes = 0  # of metas, at most

    def hold(self, number: int, metas: Sequence[bytes]) -> None:
        """The requests of batch ``number`` can be asked for, if batches are not too many."""
        told = self.rows[number % KEPT]
        if told is None or not self.look(number):
            return
        told.metas = metas = metas[:METAS_OF_ONE]
        self._nbytes += sum(map(len, metas))
        if self._nbytes > METAS_MOST:
            self._nbytes = _let_go([row for row in self._newest(number) if row is not None])

    def look(self, number: int) -> bool:
        """Whether ids are held, from batch ``number`` on."""
        oldest, newest = self.rows[(number + 1) % KEPT], self.rows[number % KEPT]
        self.has_ids = oldest is None or newest is None or newest.at - oldest.at > IDS_S
        return self.has_ids

    def entries(self) -> list[Released]:
        """All that is kept, the oldest first."""
        return sorted([row for row in self.rows if row is not None], key=_at)

    def _newest(self, number: int) -> list[Released | None]:
        place = number % KEPT + 1
        return [*reversed(self.rows[:place]), *reversed(self.rows[place:])]


class Refusal(msgspec.Struct, eq=False):
    """Requests that were refused together."""

    at: float
    reason: str
    stage: int  # where; -1: at the door
    route: int  # of the first of them; below 0: none's
    count: int
    waiting: int  # requests that were being served (door), or items that waited (stage)
    needs_s: float  # in how long it would have been done; 0: that was not the reason
    had_s: float  # and how much time it had
    retry_s: float  # when it was told to come again; 0: that it was not
    metas: Sequence[bytes]


class Refusals:
    """The last KEPT refusals. Those that are made in one instant for one reason are one. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: deque[Refusal] = deque(maxlen=KEPT)
        self._nbytes = 0  # of metas, at most

    def add(
        self,
        at: float,
        reason: str,
        *,
        stage: int = -1,
        route: int = -1,
        waiting: int = 0,
        needs_s: float = 0.0,
        had_s: float = 0.0,
        retry_s: float = 0.0,
        meta: bytes = b"",
    ) -> None:
        """One request is refused."""
        kept = self._kept
        last = kept[-1] if kept else None
        if last is not None and last.at == at and (last.reason, last.stage, last.route) == (reason, stage, route):
            last.count += 1
            if len(last.metas) >= METAS_OF_ONE or not meta:
                return
            last.metas = (*last.metas, meta)
        else:
            metas = (meta,) if meta else ()
            kept.append(Refusal(at, reason, stage, route, 1, waiting, needs_s, had_s, retry_s, metas))
        self._nbytes += len(meta)
        if self._nbytes > METAS_MOST:
            self._nbytes = _let_go([*reversed(kept)])

    def entries(self) -> list[Refusal]:
        """All that is kept, the oldest first."""
        return list(self._kept)


def _let_go(newest: Sequence[Released | Refusal]) -> int:
    """Too much is held: the ids of the newer ones are kept. Returns how many bytes they take."""
    total = 0
    for entry in newest:
        size = sum(map(len, entry.metas))
        if total + size > METAS_MOST // 2:
            entry.metas = ()
        else:
            total += size
    return total


def is_near(predicted_s: float, took_s: float) -> bool:
    """Whether a prediction was good."""
    return abs(predicted_s - took_s) <= NEAR * took_s


def has(entry: Released | Refusal, head: bytes) -> bool:
    """Whether a request is among those of a decision; ``head`` is :func:`engine.core.meta.pack` of its id."""
    return any(one.startswith(head) for one in entry.metas)


def by_reason(entries: Iterable[Released]) -> dict[str, int]:
    """How many batches left for which reason."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.reason] = counts.get(entry.reason, 0) + entry.calls
    return counts


def ids_of(entry: Released | Refusal) -> list[str]:
    """The ids of its requests, as far as they are kept."""
    return [meta.request_id_of(one) for one in entry.metas]


def _at(entry: Released) -> float:
    return entry.at
