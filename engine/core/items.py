"""What the broker keeps of a request: the request itself, and its current payload at one stage.

Ownership. The front makes a :class:`Request`, keeps it in the ledger until it is answered, and alone sets ``closed``,
``stream_hop`` and ``streamer``. Stages only read it, with three exceptions: the stage that has an item sets
``is_begun``; it hastens a request of nobody by its ``rank``, which nobody else reads; and the stage that accepts a
result advances ``hop`` to its own. A second copy of the same result (a worker that died after sending was replayed)
finds ``hop`` already advanced and is dropped. Where only one stage can follow hop *k*, no two ever write it there.
Where several can, because the route branches or its stages may skip some, two copies may go to two stages, which look
at the same time: so each has to be the first in ``claims``, by one operation that the interpreter makes whole
(:meth:`engine.core.stage.StageMachine.accept`). Reading ``closed`` a moment too early is harmless: the item is computed
once in vain, and its answer is dropped. So is reading ``stream_hop``: a replay that should not have been is found out
by its ``streamer`` (:meth:`engine.core.front.FrontMachine.events`).

On threads of their own (``[engine] threads``) the parts share these values as follows, also on interpreters without a
lock. A result leads to its request by the books of the stage that holds the item (:meth:`engine.core.crew.Crew.held`):
dicts that one thread changes and others look up, in single operations, which the interpreter makes whole. What changes
in a request while others read it - ``closed``, ``hop``, ``stream_hop``, ``is_begun`` - holds booleans and small
numbers, which exist once and for ever, so that a reader gets the old one or the new one and never one that is being
freed; ``streamer``, which may be a large number, is the front's alone. All else is written before the request is handed
on, and handing on is a letter or a parcel, which orders what went before it. An :class:`Item` belongs to one stage;
which request's it is never changes.

Two may look past each other: a stage finds a request open and advances its hop while the front closes it and looks
where it is. So the front tells the next stage as well (:meth:`engine.core.ledger.Ledger.stages_of`).

Structs of msgspec, made in C, and without cycles, so that the garbage collector need not look at them: several are made
for every request.
"""

from __future__ import annotations

import msgspec

from engine.core.arena import Ref
from engine.core.wire import Payload, refs_of


class Request(msgspec.Struct, eq=False, gc=False):
    """One admitted HTTP request, with three instants in this process's monotonic seconds. At its ``deadline`` it is
    answered 408 wherever it is. ``due`` is when its answer is wanted, by its goal (:mod:`engine.core.goals`), and
    never later: by this it is judged who can still be served. Those of a queue come in the order of ``rank``, which is
    ``due`` or before it."""

    uid: int
    frontend: bytes  # the peer that waits for the answer
    seq: int  # its number there
    route: int
    deadline: float
    due: float
    rank: float
    meta: bytes
    size: int  # bytes of its body, for the admission's books
    closed: bool = False  # answered, expired or cancelled: nothing more is computed for it
    hop: int = 0  # where on its route it is: the position of the stage that accepted it last
    stream_hop: int = -1  # where on its route events of it were last sent from; -1: none were
    streamer: int = -1  # the worker there that sent them
    is_begun: bool = False  # it was computed in vain: its worker died, or the time limit was reached
    claims: dict[int, int] | None = None  # hop -> the one after it; None: on its route only one can be


class Item(msgspec.Struct, eq=False, gc=False):
    """A request's payload at one stage. ``arrived`` is when it came to this stage, kept when it is replayed.

    ``holds`` counts the places that may still read the payload: the queue or a batch, and after a revocation both. What
    it has in shared memory is released with the last of them.
    """

    request: Request
    payload: Payload
    size: int  # bytes
    arrived: float
    attempt: int = 1
    trail: bytes = b""
    hop: int = 0  # where on its route this payload belongs
    holds: int = 1
    units: float = 1.0  # what it costs in its batch, where that differs (engine.core.costs)
    cuts: int = 0  # so often the connection to a worker that had it was lost

    def let_go(self) -> tuple[Ref, ...]:
        """One place holds the payload no longer; returns what nobody will read again."""
        self.holds -= 1
        if self.holds or type(self.payload) is bytes:
            return ()
        return refs_of(self.payload)

    @property
    def due(self) -> float:
        """Until when it is worth computing. Who was begun with already has until the deadline, whatever its goal."""
        request = self.request
        return request.deadline if request.is_begun else request.due

    def is_due(self, now: float) -> bool:
        """Worth computing: somebody waits, there is time left, and no other copy has gone further meanwhile."""
        request = self.request
        return not request.closed and request.deadline > now and request.hop == self.hop
