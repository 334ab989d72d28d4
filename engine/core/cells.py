"""Several brokers of one deployment: who belongs to which, and which gets a request. Pure.

A *cell* is a broker with workers of every stage: a whole pipeline. Nothing passes between cells but through a frontend,
which is joined to all of them and chooses one for each request. One interpreter carries some 100,000 small requests a
second; on a machine with CPUs to spare a second one carries as many again. A queue of its own for each costs batching,
so there is one at first (:mod:`engine.core.growth`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from engine.core.link import View
from engine.core.messages import StageState

KEY_BYTES: Final = 8  # of an Idempotency-Key's fingerprint, that say to which cell it belongs


def cell_of(slot: int, cells: int) -> int:
    """The cell, from 0, of a stage's worker ``slot``, from 1."""
    return (slot - 1) % cells


def share(count: int, cells: int, cell: int, *, begin: int = 1) -> int:
    """How many of ``count`` workers, in slots from ``begin`` on, are that cell's."""
    return sum(cell_of(slot, cells) == cell for slot in range(begin, begin + count))


def bound(amount: int, cells: int) -> int:
    """A cell's part of a bound, rounded up."""
    return -(-amount // cells)


def by_key(key: bytes, cells: int) -> int:
    """The cell of all requests with an Idempotency-Key: only who has met the first of them knows its answer."""
    return int.from_bytes(key[:KEY_BYTES], "little") % cells


def order(pending: Sequence[int], ready: Sequence[int], turn: int) -> list[int]:
    """The cells in the order in which they are asked to take a request: by the requests under way for each of their
    ``ready`` workers; those that cannot serve now, with 0 of these, last. Equals take turns, by a number that grows."""
    count = len(pending)
    return sorted(
        range(count),
        key=lambda cell: (
            not ready[cell],
            (pending[cell] + 1) / (ready[cell] or 1),
            (cell - turn) % count,
        ),
    )


def view_of(views: Sequence[View]) -> View:
    """How all cells stand as one deployment: as those that can serve, where there are any."""
    heard = [view for view in views if view.connected] or views
    whole = [
        view for view in heard if not view.draining and view.stages and all(s.ready or not s.least for s in view.stages)
    ]
    told = whole or heard[:1]  # of cells none of which is whole, parts do not make one
    return View(
        connected=any(view.connected for view in views),
        draining=all(view.draining for view in heard),
        headroom=sum(view.headroom for view in told),
        stages=together([view.stages for view in told]),
        retry_s=min(view.retry_s for view in told),
    )


def together(states: Iterable[Sequence[StageState]]) -> tuple[StageState, ...]:
    """How the stages of several cells stand as one deployment's."""
    found: dict[str, StageState] = {}
    for stages in states:
        for stage in stages:
            known = found.get(stage.name)
            found[stage.name] = stage if known is None else _sum(known, stage)
    return tuple(found.values())


def _sum(one: StageState, other: StageState) -> StageState:
    return replace(
        one,
        wanted=one.wanted + other.wanted,
        ready=one.ready + other.ready,
        starting=one.starting + other.starting,
        queued=one.queued + other.queued,
        in_flight=one.in_flight + other.in_flight,
        **({"mime": other.mime, "flow": other.flow} if other.ready and not one.ready else {}),
    )
