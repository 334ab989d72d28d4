"""The part that says who may come in, where the broker has keys, and counts who was refused.

ZeroMQ asks for each new connection (ZAP, RFC 27 of ZeroMQ) and lets nobody in while nobody answers. Who answers is a
part like the others, carried by the thread of the front: it cannot die and leave a broker that merely seems to work.

Who does not know the broker's own key, has none or talks of something else never comes so far that he is asked about.
Of those every socket's monitor tells; whoever makes the socket sends it here, to be heard.
"""

from __future__ import annotations

from math import inf

from engine import curve, transport
from engine.broker.complaints import Complaints
from engine.broker.loop import Part
from engine.broker.poll import Inlet, Poll
from engine.core.keys import REASONS, TELL_S, UNKNOWN_KEY
from engine.core.wire import Buffer


class Guard(Part[transport.Socket | str]):
    carries_work = False

    def __init__(self, context: transport.Context, refused: dict[str, int]) -> None:
        """``refused``: where it is counted who was refused, by reason."""
        super().__init__({})
        self._context = context
        self._refused = Complaints(refused, quiet_s=TELL_S, of_what="connections")
        self._monitors: dict[Inlet, curve.Visitors] = {}
        context.bound = context.refused = self.mailbox.post

    def open(self, poll: Poll) -> None:
        self._poll = poll
        self._asked = self._inlet(poll, transport.router(self._context, curve.ZAP))

    def work(self, now: float) -> float:
        for letter in self.mailbox.take():
            if isinstance(letter, str):
                self._refuse(letter)
                continue
            inlet = self._inlet(self._poll, letter)  # a monitor: this thread's from now on
            self._monitors[inlet] = curve.Visitors()
            self._hear(inlet)  # what it says already would not wake us
        if self._asked.ready:
            for frames in self._asked.frames():
                self._answer(frames)
        for inlet in [inlet for inlet in self._monitors if inlet.ready]:
            self._hear(inlet)
        return inf

    def close(self) -> None:
        for letter in self.mailbox.take():
            if not isinstance(letter, str):
                letter.close()
        super().close()

    def is_idle(self) -> bool:
        return True

    def _answer(self, frames: list[Buffer]) -> None:
        """Its question has: who asks, nothing, version, number, domain, address, identity, mechanism, key."""
        asker, _, version, number, domain, address, _, mechanism, *key = map(bytes, frames)
        pairs = self._context.pairs
        is_ours = pairs is not None and domain == curve.DOMAIN and mechanism == b"CURVE" and key == [pairs.peer_public]
        if not is_ours:
            self._refuse(UNKNOWN_KEY, address=address.decode("ascii", "replace"))
        status = [b"200", b"OK"] if is_ours else [b"400", b"unknown key"]
        self._asked.send([b"", version, number, *status, b"", b""], asker)

    def _hear(self, inlet: Inlet) -> None:
        visitors = self._monitors[inlet]
        for frames in inlet.frames():
            heard = visitors.heard(*curve.event(frames))
            if heard in REASONS:
                self._refuse(heard)
        if visitors.is_over:
            del self._monitors[inlet]
            self._leave(self._poll, inlet)

    def _refuse(self, reason: str, address: str = "") -> None:
        what = f"a connection is refused: {REASONS[reason]}"
        self._refused.note(reason, what, reason=reason, address=address or "unknown")
