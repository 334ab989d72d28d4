"""A batch that left: what is in flight of it, and afterwards what is told of it (:mod:`engine.core.trace`). Pure.

One struct for both, for stages whose batches take fifty microseconds: to make one is half of what it costs to keep
account of a batch, and where caches are cold, to touch one is the other half.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.core.items import Item


class Released(msgspec.Struct, eq=False, gc=False):
    """Seconds; ``at`` is an instant. ``items`` shrinks as results reach the next stage or the front, and is empty once
    the batch is nobody's any more.

    ``apart``: nothing is given to its worker beside it. ``revoked``: its items have another holder, and it answers for
    none of them; a result that comes is as good as any.
    """

    number: int
    items: dict[int, Item]
    at: float
    reason: str
    count: int  # items it had
    waiting: int  # of so many that waited
    waited_s: float  # the first of them
    slot: int  # of its worker
    ahead: int  # batches that its worker had before it
    expected_s: float  # how long it was to take, once it was the worker's turn; 0: nobody knew
    units: int = 0  # ``count`` of one batch, or what its items cost, as Times counts it
    calls: int = 1  # as many batches it is, for whom it was handed to
    is_cut: bool = False  # it was made smaller, for more would have been late
    apart: bool = False
    shared: bool = False  # some of it may be in shared memory
    revoked: bool = False
    nbytes: int = 0  # of its items, where they were when it left
    is_good: bool = False  # some of it was computed rightly
    failed: int = 0  # how many of it the worker could not compute
    compute_us: int = 0  # how long it took, as its worker says
    cost: float = 0.0  # of those that are done, where that is counted, and of the costliest
    costliest: float = 0.0
    before_s: float = 0.0  # how long those took that were settled before the last of it
    took_s: float = -1.0  # once it was the worker's turn; below 0: it is not settled; 0: nobody knows, it had no turn
    fate: str = ""  # DIED, GIVEN
    metas: Sequence[bytes] = ()  # of some of its requests, or none

    @property
    def is_last(self) -> bool:
        """Of a bundle of single items all but one are done."""
        return self.count == self.calls and len(self.items) == 1

    @property
    def is_known(self) -> bool:
        """How long it was to take, and how long it did."""
        return self.is_good and self.took_s > 0.0 and self.expected_s > 0.0
