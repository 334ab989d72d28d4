"""The life of a worker as its stage sees it: all states, all events, one table. Pure, and every rule of it here.

Peers say what they like, when they like: a Leave may still lie in a socket when its sender's death is known, a Ready
may come after a Leave. So the table is total: there is an entry for every event in every state, and where the entry is
the state itself the event changes nothing. ``GONE`` is the end: the stage forgets the worker, and its key is never used
again, so what still comes from it names nobody.

What follows from a change is :class:`engine.core.stage.StageMachine`'s: it asks the table in one place.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class WorkerState(str, Enum):
    STARTING = "starting"  # it has said hello, and loads its model
    READY = "ready"
    OVERDUE = "overdue"  # its batch has taken longer than the stage's time limit
    LEAVING = "leaving"  # it is given nothing more, and dismissed when nothing is in flight
    DYING = "dying"  # it has ended; what it sent before may still come
    GONE = "gone"


# Under names of their own, for who asks with every batch: to get at a member of an enumeration by its class costs a
# tenth of a microsecond before Python 3.12.
READY: Final = WorkerState.READY
OVERDUE: Final = WorkerState.OVERDUE
LEAVING: Final = WorkerState.LEAVING
DYING: Final = WorkerState.DYING


class WorkerEvent(Enum):
    READY = "ready"  # it says that it can compute
    LATE = "late"  # its batch has reached the time limit
    BACK = "back"  # the results of the batch it computed have come
    LEAVE = "leave"  # it says that it wants to stop
    END = "end"  # its process has ended, it said goodbye, or it is given up for its silence
    END_OWING = "end owing"  # the same, while it had items that must not be computed twice
    SETTLED = "settled"  # what it sent before its end was waited for, or has come
    AGAIN = "again"  # it says hello again: it will be another worker, and what it had is given up


# Those that count for readiness: an overdue worker may come back at any moment.
SERVING: Final = frozenset({WorkerState.READY, WorkerState.OVERDUE})


def _table() -> dict[tuple[WorkerState, WorkerEvent], WorkerState]:
    S, R, O, L, D, G = WorkerState  # noqa: E741  # a table is read by its columns
    rows = {
        #   READY  LATE  BACK  LEAVE  END  END_OWING  SETTLED  AGAIN
        S: (R,     S,    S,    L,     G,   G,         S,       G),
        R: (R,     O,    R,    L,     G,   D,         R,       G),
        O: (O,     O,    R,    L,     G,   D,         O,       G),
        L: (L,     L,    L,    L,     G,   D,         L,       G),
        D: (D,     D,    D,    D,     D,   D,         G,       G),
        G: (G,     G,    G,    G,     G,   G,         G,       G),
    }  # fmt: skip
    return {(state, event): row[i] for state, row in rows.items() for i, event in enumerate(WorkerEvent)}


TABLE: Final = _table()
