"""Requests that go on in parts: whose a part is, what has come of the others, and when all are together. Pure.

A part is a request of its own in the ledger, with its own uid, which nobody waits for but its *whole*: it belongs to
PARTS, a frontend that nobody is, as a request with a key belongs to another (:mod:`engine.core.idempotency`). So
whatever becomes of one - it is computed, replayed, refused, late or called off - becomes of it as of any request, at
stages that know nothing of parts, and its answer comes here (:meth:`engine.core.hub.Hub.hear`).

A whole whose parts are under way is nowhere itself. Its payload is the *frame*, what is left of the result without the
parts, and is kept here with what became of those that are done. It ends as any request does, and then its parts are
called off. Parts may be wholes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from engine.core import gathered
from engine.core.arena import Ref
from engine.core.items import Request
from engine.core.messages import MEMO_KEY_SIZE
from engine.core.routing import Split
from engine.core.wire import STEP_BYTES, Payload, payload_size, refs_of

PARTS: Final = b"\0parts"  # who waits for the answers to parts; frontends are named otherwise
HOLE: Final = bytes(MEMO_KEY_SIZE)  # as the key of a part of which nothing came


@dataclass(slots=True, eq=False)
class Gathering:
    """A whole, and what became of its parts so far: by their numbers, None where nothing has or will."""

    whole: Request
    split: Split
    frame: Payload
    trail: bytes  # of the whole, until it was split
    slots: list[Payload | None]
    under_way: dict[int, Request]  # parts by uid
    trails: list[bytes]  # of parts that are done: of branches each one's, of a list's elements the last one's
    nbytes: int  # of the frame and what is in the slots
    frame_key: bytes  # what its stage says of the frame for the cache of the one that gathers; empty: nothing
    keys: list[bytes]  # the same of what is in the slots

    def payload(self) -> Payload:
        """For the stage that gathers."""
        return gathered.pack(self.frame, self.slots)

    def memo_key(self, fields: Sequence[str]) -> bytes:
        """By what a cache knows it, or these fields of it; empty: that cannot be told."""
        if not self.frame_key:
            return b""
        names, wanted = self.split.names, [*range(len(self.slots))]
        if names and fields:
            if not {*fields}.issubset(names):
                return b""
            wanted = [names.index(field) for field in fields]
        elif fields and self.split.field not in fields:
            wanted = []
        digest = blake2b(self.frame_key, digest_size=MEMO_KEY_SIZE, person=b"gathered")
        for place in wanted:
            key = self.keys[place] if self.slots[place] is not None else HOLE
            if len(key) != MEMO_KEY_SIZE:
                return b""
            digest.update(key)
        return digest.digest()

    def trail_to(self, hop: int) -> bytes:
        """What the whole has passed before the stage at ``hop``: at each stage what that part did which came last; of
        branches, the one that passes there."""
        size = hop * STEP_BYTES
        first, *others = [one.ljust(size, b"\0")[:size] for one in (self.trail, *self.trails)]
        for other in others:
            first = b"".join(
                [
                    (first[at : at + STEP_BYTES].rstrip(b"\0") and first[at : at + STEP_BYTES])
                    or other[at : at + STEP_BYTES]
                    for at in range(0, size, STEP_BYTES)
                ]
            )
        return first


class Gatherings:
    """All of them at one broker. ``nbytes``: what is held for each stage that gathers."""

    def __init__(self) -> None:
        self.wholes: dict[int, Gathering] = {}  # by uid
        self.nbytes: dict[int, int] = {}
        self._of: dict[int, tuple[Gathering, int]] = {}  # part -> its whole's, and its number

    def __len__(self) -> int:
        """Parts under way."""
        return len(self._of)

    def begin(
        self, whole: Request, split: Split, frame: Payload, trail: bytes, parts: Sequence[Request], key: bytes = b""
    ) -> Gathering | None:
        """A whole goes on in these parts, in their order. All of it, if there are none. ``key``: of the frame."""
        by_uid = {part.uid: part for part in parts}
        slots: list[Payload | None] = [None] * len(parts)
        found = self.wholes[whole.uid] = Gathering(
            whole, split, frame, trail, slots, by_uid, [], 0, key, [b""] * len(parts)
        )
        self._of.update({uid: (found, index) for index, uid in enumerate(by_uid)})
        self._hold(found, payload_size(frame))
        return self._ended(found)

    def done(self, uid: int, payload: Payload, trail: bytes, key: bytes = b"") -> Gathering | None:
        """This came of a part. All of its whole, if it was the last; else None."""
        found, index = self._of.pop(uid)
        del found.under_way[uid]
        found.slots[index] = payload
        found.keys[index] = key
        if not found.split.names:
            found.trails.clear()
        found.trails.append(trail)
        self._hold(found, payload_size(payload))
        return self._ended(found)

    def failed(self, uid: int) -> Gathering | None:
        """Nothing comes of a part, and its whole goes on without. As :meth:`done`."""
        found, _ = self._of.pop(uid)
        del found.under_way[uid]
        return self._ended(found)

    def whose(self, uid: int) -> Gathering | None:
        """What a part belongs to; None: its whole has ended."""
        found = self._of.get(uid)
        return None if found is None else found[0]

    def end(self, whole: Request) -> tuple[Iterable[Request], list[Ref]]:
        """A whole has ended early: its parts that are under way, and what nobody will read any more."""
        found = self.wholes.pop(whole.uid)
        for uid in found.under_way:
            del self._of[uid]
        self._hold(found, -found.nbytes)
        refs = [ref for payload in (found.frame, *found.slots) if payload is not None for ref in refs_of(payload)]
        return found.under_way.values(), refs

    def _ended(self, found: Gathering) -> Gathering | None:
        if found.under_way:
            return None
        del self.wholes[found.whole.uid]
        self._hold(found, -found.nbytes)
        return found

    def _hold(self, found: Gathering, nbytes: int) -> None:
        found.nbytes += nbytes
        held = self.nbytes.get(found.split.gather, 0) + nbytes
        if held:
            self.nbytes[found.split.gather] = held
        else:
            self.nbytes.pop(found.split.gather, None)
