"""A worker's standing with the broker, as a pure state machine: messages and ``now`` in, events and owed messages out.

    SEEKING --Welcome--> JOINED --Pulse(not known, or another epoch)--> SEEKING
                         JOINED --silence--> JOINED, on a new socket: its next beat is known, or is not
                         JOINED --results may be lost--> SEEKING
    any --Leave asked--> LEAVING --Dismiss, silence, or an epoch that does not know us--> dismissed

A worker never gives up because the broker is away: it seeks until it is welcomed, refused or stopped. Messages are
*owed* (:meth:`Membership.due`) until the shell says that they left (:meth:`Membership.sent`), since a socket
without a connection takes nothing. Ready is so until the broker says that it knows: what a former connection carried
may be lost, and whoever is told that a deployment is ready (:meth:`Membership.is_ready`) sends requests at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from engine.core.introduction import Introduction, Refusal, Stranger
from engine.core.liveness import BEAT_S, BROKER_SILENCE_S, INTRODUCE_FAST_S, INTRODUCE_SLOW_S, RESEND_S
from engine.core.messages import (
    Dismiss,
    Leave,
    Message,
    Pulse,
    Ready,
    Welcome,
    WorkerBeat,
)
from engine.core.wire import MICROS, AnyWords
from stages.runtime.shared import Dismissed, Joined, ToMain, Turned, Warm

FAST_TRIES: Final = 8
ALONE_S: Final = 1.0  # without a welcome behind the warm-up: there is no broker


@dataclass(frozen=True)
class Elsewhere:
    """The socket that was tried is another stage's at this broker: ``stage`` is the number of ours."""

    stage: int


class Membership:
    """See the module. One thread calls it."""

    def __init__(self, who: Introduction) -> None:
        self.maps = False  # said in Ready: this process can read arenas; set by the shell, before it asks what is due
        self._who = who
        self._welcome: Welcome | None = None
        self._warm: Warm | None = None
        self._announced = False  # Ready has left, for this welcome
        self._taken = False  # and was, by some broker
        self._warm_at = inf
        self._is_told = False  # that the worker is ready
        self._leaving = False
        self._left = False  # Leave has left
        self._dismissed = False
        self._lost = False  # silent, and not heard since on the new socket
        self._introductions = 0
        self._introduce_at = -inf  # when the next is due
        self._unsent_since = inf  # the present socket has not taken one
        self._beat_at = inf
        self._asked_at = inf  # the first message since the broker was last heard
        self._sent_at = inf  # of those that are answered at once, the first since one was
        self._round_trip_us = 0  # until then, the last time

    @property
    def worker(self) -> int | None:
        """The key the broker knows this worker by, while it does."""
        return None if self._welcome is None else self._welcome.worker

    def handle(self, message: AnyWords, now: float) -> ToMain | Elsewhere | None:
        """A message from the broker; returns what the main thread must know."""
        self._asked_at = inf
        self._lost = False
        if isinstance(message, Welcome | Pulse) and self._sent_at < inf:
            self._round_trip_us = round((now - self._sent_at) * MICROS)
        self._sent_at = inf
        if isinstance(message, Welcome):
            if message == self._welcome or self._leaving:
                return None
            self._welcome = message
            self._announced = False
            self._beat_at = now + BEAT_S
            return Joined(message)
        if isinstance(message, Pulse):
            if self._welcome is None:
                return None
            if not message.known or message.epoch != self._welcome.epoch:
                return self._lose(now)
            self._announced = self._announced and not message.is_loading  # it may have been lost: once more
            self._taken = self._taken or self._announced
            return None
        if isinstance(message, Stranger):
            if self._welcome is not None:
                return self._lose(now)
            return Elsewhere(message.stage) if message.stage >= 0 else None  # else: not now, try again
        if isinstance(message, Refusal):
            # A member is told so by another broker than the one that welcomed it, which cannot read its words: it
            # introduces itself, which any broker can read.
            return Turned(message.reason) if self._welcome is None else self._lose(now)
        if isinstance(message, Dismiss):
            return self._dismiss()
        return None

    def warm(self, warm: Warm, now: float) -> None:
        """The worker can compute: Ready is owed."""
        self._warm, self._warm_at = warm, now

    def is_ready(self, now: float) -> bool:
        """Whether the worker is to be called ready, now and once: the broker knows that it can compute, and so does its
        door; or there is none that could, and whoever starts workers first need not wait for it."""
        is_alone = self._welcome is None and now - self._warm_at > ALONE_S
        if self._is_told or not (self._taken or is_alone):
            return False
        self._is_told = True
        return True

    def leave(self) -> ToMain | None:
        """The worker wants to stop: Leave is owed, or nothing is if there is no broker that knows it."""
        self._leaving = True
        return self._dismiss() if self._welcome is None or self._lost else None

    def due(self, now: float) -> list[Message | Introduction]:
        """What should be sent now, in order."""
        if self._welcome is None:
            return [self._who] if now >= self._introduce_at and not self._leaving else []
        owed: list[Message | Introduction] = []
        key = self._welcome.worker
        if self._leaving and not self._left:
            owed.append(Leave(key))
        warm = None if self._announced or self._leaving else self._warm
        if warm is not None:
            ready = Ready(
                key,
                warm.mime,
                warm.took_ms,
                flow=warm.flow,
                about=warm.about,
                maps=self.maps,
                times_us=dict(warm.times_us),
                tells_cost=warm.tells_cost,
                costs=dict(warm.costs),
                most=warm.most,
                device=warm.device,
                node=warm.node,
                may_rest=warm.may_rest,
            )
            owed.append(ready)
        if warm is not None or now >= self._beat_at:  # whose answer says whether that has been taken
            owed.append(WorkerBeat(key, round_trip_us=self._round_trip_us))
        return owed

    def sent(self, message: Message | Introduction, now: float) -> None:
        """This owed message has left."""
        self._asked_at = min(self._asked_at, now)
        if isinstance(message, Introduction):
            self._sent_at = now
        elif isinstance(message, WorkerBeat):
            self._sent_at = min(self._sent_at, now)
        if isinstance(message, Introduction):
            self._introductions += 1
            self._unsent_since = inf
            self._introduce_at = now + (INTRODUCE_FAST_S if self._introductions < FAST_TRIES else INTRODUCE_SLOW_S)
        elif isinstance(message, WorkerBeat):
            self._beat_at = now + BEAT_S
        elif isinstance(message, Ready):
            self._announced = True
            self._beat_at = min(self._beat_at, now)
        elif isinstance(message, Leave):
            self._left = True

    def is_silent(self, now: float) -> bool:
        """Nothing was heard for BROKER_SILENCE_S after a message that has an answer, or none could be sent: try a new
        socket.

        Counted from the unanswered message and not from the last answer: a thread that was kept from running, by C code
        that holds the interpreter, has asked nothing meanwhile and may blame nobody.
        """
        return now - min(self._asked_at, self._beat_at, self._unsent_since) > BROKER_SILENCE_S

    def opened(self, now: float) -> None:
        """The shell has made the first socket."""
        self._unsent_since = now

    def cut(self, now: float) -> ToMain | None:
        """A connection that results went by is lost, and perhaps some of them with it: the broker is to have computed
        again whatever it has not got. What comes of it twice, the broker drops."""
        return None if self._welcome is None else self._lose(now)

    def reopened(self, now: float) -> ToMain | None:
        """The shell has made a new socket. The broker may merely have been slow: nothing is given up yet."""
        self._asked_at = self._sent_at = inf
        self._lost = True
        if self._welcome is None:
            self._introduce_at = self._unsent_since = now
        else:
            self._beat_at = now
        return self._dismiss() if self._leaving else None

    def wake_at(self, now: float) -> float:
        """When :meth:`due` or :meth:`is_silent` should be looked at again at the latest."""
        if self.due(now):
            return now + RESEND_S
        upcoming = self._beat_at if self._welcome is not None else self._introduce_at
        return max(now, min(upcoming, self._asked_at + BROKER_SILENCE_S, now + BEAT_S))

    def _lose(self, now: float) -> ToMain | None:
        self._welcome = None
        self._beat_at = inf
        self._introductions = 0
        self._introduce_at = self._unsent_since = now
        self._sent_at = inf
        return self._dismiss() if self._leaving else None

    def _dismiss(self) -> ToMain | None:
        if self._dismissed:
            return None
        self._dismissed = True
        return Dismissed()
