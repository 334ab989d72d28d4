"""The last failures of requests, as their clients were told: for whoever operates the deployment. Pure.

Kept by the door, of what workers and stages say of requests that were admitted; who was not let in is counted and kept
elsewhere (:mod:`engine.core.trace`). Equal ones are one entry, with how many they were and the ids of the last: a
client that sends the same mistake a thousand times hides nobody else's. Nothing is noted for what succeeds.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

import msgspec

from engine.core import meta

KEPT: Final = 50  # failures that differ
IDS: Final = 5  # requests of one, the newest
TEXT_MOST: Final = 300  # characters of what a client was told


class Failure(msgspec.Struct, eq=False):
    """``at``: when it was the last time; ``stage`` -1: nobody's in particular."""

    stage: int
    route: int
    status: int
    text: str
    at: float = 0.0
    count: int = 0
    ids: tuple[str, ...] = ()  # the newest first


class Failures:
    """See the module. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int, int, str], Failure] = OrderedDict()  # the newest last
        self.counts: Counter[tuple[int, int]] = Counter()  # since the start, by stage and status

    def add(self, now: float, stage: int, route: int, status: int, text: str, about: bytes) -> None:
        """One request has failed; ``about`` is its meta."""
        self.counts[stage, status] += 1
        text = text if len(text) <= TEXT_MOST else f"{text[:TEXT_MOST]}..."
        key = stage, route, status, text
        failure = self._kept.get(key)
        if failure is None:
            failure = self._kept[key] = Failure(stage, route, status, text)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        failure.at = now
        failure.count += 1
        failure.ids = (meta.request_id_of(about), *failure.ids[: IDS - 1])

    def entries(self) -> list[Failure]:
        """All that is kept, the newest first."""
        return [*reversed(self._kept.values())]
