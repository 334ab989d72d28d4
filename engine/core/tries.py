"""Requests with an Idempotency-Key, at the door: a try joins what is being computed, or is told what is kept. Pure.

The books of the keys are in :mod:`engine.core.idempotency`. Such a request is computed for KEYED, a frontend that
nobody is, and its answer then shared among the tries that wait for it. So it outlives them.
"""

from __future__ import annotations

from typing import Final

from engine.core.admission import KEY_IN_USE, KEY_REUSED, NO_TIME, Rejection, at_capacity
from engine.core.idempotency import HEADER, Flight, Kept, Keys, Waiter, is_same
from engine.core.items import Request
from engine.core.ledger import Ledger
from engine.core.messages import Flow, Refused, Speaker, Status
from engine.core.wire import joined

KEYED: Final = b""  # who asks for requests with a key, and is answered: tries come and go
REPLAYED: Final = {HEADER: "true"}


class Tries:
    """See the module. ``capacity``: requests that may be inside, those who wait for another's answer among them.
    ``room``: bytes of answers that are kept."""

    def __init__(self, ledger: Ledger, capacity: int, room: int) -> None:
        self.capacity = capacity
        self.room = room
        self.keys = Keys()
        self.again: dict[bytes, list[int]] = {}  # by frontend: what it is to submit again
        self._ledger = ledger
        self._door = ledger.door
        self._ends = [ledger.topology.ends(route) for route in range(len(ledger.topology.routes))]

    def find(self, key: bytes, now: float) -> Flight | Kept | None:
        """What there is of this client's key. None: it is to be judged like any other, and computed."""
        self.hear(now)
        return self.keys.find(key, now)

    def settle(
        self, found: Flight | Kept, peer: bytes, seq: int, key: bytes, deadline: float, now: float
    ) -> Rejection | None:
        """One more try of a key of which there is this: it is answered, joins it, or is refused as it says."""
        if not is_same(found, key):
            return KEY_REUSED
        if isinstance(found, Kept):
            self._replay(peer, seq, found)
            return None
        if self.is_stream(found.request):
            return KEY_IN_USE
        if deadline <= now:
            return NO_TIME
        if (count := self._ledger.inside + self.keys.waiting) >= self.capacity:
            return at_capacity(count)
        self._ledger.stats.joined += 1
        self.keys.join(found, (peer, seq), deadline)
        self._ledger.asked[peer][seq] = found.request
        return None

    def expire(self, now: float) -> None:
        """Tries whose time is over before that of what they have joined."""
        if now >= self.keys.due_at:
            for waiter in self.keys.expire(now):
                self.tell(waiter, NO_TIME)

    def is_stream(self, request: Request) -> bool:
        """Whether the answer comes in pieces, which only one reader can be given."""
        return request.stream_hop >= 0 or any(
            self._door.stages[last].state.flow in (Flow.EVENTS, Flow.CHUNKS) for last in self._ends[request.route]
        )

    def is_left(self, peer: bytes, seq: int, request: Request) -> bool:
        """One who waits for the answer to a key has gone. Whether nobody can have any more of it."""
        flight = self.keys.flight(request.uid)
        self.keys.leave(flight, (peer, seq))
        self._forget(peer, seq)
        if flight.waiters or request.closed or not self.is_stream(request):
            return False
        self.keys.end(request.uid)
        return True

    def reader(self, request: Request) -> Waiter | None:
        """Who reads the events of a request with a key: the first who asked. Others had joined before it was known that
        it is a stream."""
        flight = self.keys.flight(request.uid)
        if not flight.waiters:
            self.keys.end(request.uid)
            self._ledger.drop([request])
            return None
        reader, *others = flight.waiters
        for waiter in others:
            self.keys.leave(flight, waiter)
            self.tell(waiter, KEY_IN_USE)
        return reader

    def hear(self, now: float) -> None:
        """Give the answers to requests with a key to all who wait for them, and keep those that are to be kept."""
        column = self._ledger.answers.columns.pop(KEYED, None)
        if column is None:
            return
        for index, (uid, status, mime, trail, payload) in enumerate(
            zip(column.seqs, column.statuses, column.mimes, column.trails, column.payloads, strict=True)
        ):
            flight = self.keys.end(uid)
            speaker = column.speakers.get(index, int(Speaker.WORKER))
            headers = column.headers.get(index, {})
            body = bytes(joined(payload))
            if speaker == Speaker.WORKER and not self.is_stream(flight.request):
                self.keys.keep(flight, status, mime, headers, body, now, self.room)
            # Not where a stage or a worker says so: it hangs, and would do so again.
            was_late = speaker == Speaker.FORECAST or (status == Status.TIMEOUT and speaker == Speaker.DOOR)
            until = flight.request.due if speaker == Speaker.FORECAST else flight.request.deadline
            for (peer, seq), deadline in flight.waiters.items():
                self._forget(peer, seq)
                if was_late and deadline > until and (peer, seq) != flight.first:  # this one may have more time
                    self.again.setdefault(peer, []).append(seq)
                    continue
                is_other = (peer, seq) != flight.first and speaker == Speaker.WORKER
                self._ledger.answers.column(peer).add(
                    seq,
                    status,
                    body,
                    mime=mime,
                    trail=trail,
                    speaker=speaker,
                    retry_ms=column.retries_ms.get(index, 0),
                    refused=column.refusals.get(index),
                    headers={**headers, **REPLAYED} if is_other else headers,
                )

    def _replay(self, peer: bytes, seq: int, kept: Kept) -> None:
        """The answer that is kept."""
        self._ledger.stats.replayed += 1
        headers = {**kept.headers, **REPLAYED}
        self._ledger.answers.column(peer).add(seq, kept.status, kept.body, mime=kept.mime, headers=headers)

    def tell(self, waiter: Waiter, rejection: Rejection) -> None:
        """One who waited gets an answer of its own."""
        reason, status, text, speaker = rejection
        self._forget(*waiter)
        self._ledger.answers.say(*waiter, status, text, speaker, refused=Refused(reason))

    def _forget(self, peer: bytes, seq: int) -> None:
        known = self._ledger.asked.get(peer)
        if known is not None:
            known.pop(seq, None)
