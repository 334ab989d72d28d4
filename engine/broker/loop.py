"""The life of the broker's parts and of the thread that carries them: set up, pass after pass, close.

A pass is bounded: so many letters, so many parcels of each socket, then time limits, then sending; so no source can
keep the others waiting. A thread that fails ends the process: the supervisor starts a new broker, whose epoch tells
everybody to submit and to say hello again, which is a state that is tested, unlike a broker with a missing thread.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Final, Generic, TypeVar

from engine import transport
from engine.broker.complaints import FAILED, Complaints
from engine.broker.letters import Distrust, ToStage
from engine.broker.poll import Inlet, Inlets, Poll, Source
from engine.clock import now
from engine.core.messages import Parts, Results, StreamEvents
from engine.core.wire import AnyWords
from engine.mailbox import Bell, Mailbox

log: Final = logging.getLogger("stageline.broker")

LONGEST_POLL_S: Final = (
    1.0  # an upper bound on every wait: nothing depends on it, it only limits the damage of a mistake
)

Letter = TypeVar("Letter")
AnyInlet = TypeVar("AnyInlet", bound=Inlet)


class Part(ABC, Generic[Letter]):
    """One machine with its sockets and its mailbox, carried by a :class:`PartThread`, which alone calls it."""

    carries_work = True  # it would be late for requests if it were called late

    def __init__(self, messages_dropped: dict[str, int]) -> None:
        """``messages_dropped``: where it is counted what was sent to it in vain."""
        self.complaints = Complaints(messages_dropped)
        self.mailbox: Mailbox[Letter] = Mailbox()
        self.stages: Sequence[Mailbox[ToStage]] = ()  # of all stages' parts, set before start
        self.unrung: dict[Bell | None, bool] = {}  # its thread's: who got letters in this pass; whether any is urgent
        self.wake = 0.0  # when it wants to be called at the latest
        self.due = False  # one of its sources is ready
        self._open_inlets: list[Inlet] = []

    @abstractmethod
    def open(self, poll: Poll) -> None:
        """Make sockets and listen to them. StartError when an address cannot be bound."""

    @abstractmethod
    def work(self, now: float) -> float:
        """Do what there is to do; returns when to come again at the latest."""

    def close(self) -> None:
        """Close what ``open`` made, as far as it came."""
        for inlet in self._open_inlets:
            inlet.sock.close()

    def is_idle(self) -> bool:
        """Whether a letter that is not urgent may wait until the part is called for another reason."""
        return False

    def _post(self, mailbox: Mailbox[Any], letter: object, *, urgent: bool = True) -> None:
        """Hand a letter to another part. A thread that sleeps is woken once, at the end of the pass: under the
        interpreter's lock it could do nothing before, and each wake-up costs both sides a system call and a turn. For
        letters that are not urgent it is not woken at all when it is idle."""
        mailbox.letters.append(letter)
        bell = mailbox.bell
        if bell is not self.mailbox.bell:
            self.unrung[bell] = urgent or self.unrung.get(bell, False)

    def _distrust(self, message: AnyWords) -> None:
        """Handling what a worker delivered has failed, halfway perhaps. Nobody can tell how much of it was taken, so
        the worker is given up as if it had died: what was taken counts, the rest is computed again, and the worker
        introduces itself anew. What it named in shared memory stays held, for some of it may be in use."""
        self.complaints.note(
            FAILED, "a worker is given up: its message cannot be handled", trace=True, kind=type(message).__name__
        )
        if isinstance(message, Results | Parts | StreamEvents) and message.stage < len(self.stages):
            self._post(self.stages[message.stage], Distrust(message.worker))

    def _inlet(self, poll: Poll, sock: transport.Socket) -> Inlet:
        """Listen to a socket, and close it in the end."""
        return self._listen(poll, Inlet(sock, self, poll, self.complaints))

    def _inlets(self, poll: Poll, socks: Iterable[transport.Socket]) -> Inlets:
        """The same of several that are for the same."""
        return Inlets([self._inlet(poll, sock) for sock in socks])

    def _listen(self, poll: Poll, inlet: AnyInlet) -> AnyInlet:
        self._open_inlets.append(inlet)
        poll.add(inlet)
        return inlet

    def _leave(self, poll: Poll, inlet: Inlet) -> None:
        """Close a socket that was listened to."""
        self._open_inlets.remove(inlet)
        poll.remove(inlet)
        inlet.sock.close()

    def _source(self, poll: Poll, fd: int | None) -> Source:
        """Listen to a descriptor; without one it is never ready."""
        source = Source(-1 if fd is None else fd, self)
        if fd is not None:
            poll.add(source)
        return source


class PartThread:
    """A thread that carries parts: opens them, works them pass after pass until it is stopped, closes them.
    Parts do not know which thread carries which of them."""

    def __init__(self, name: str, parts: Sequence[Part[Any]], failed: Callable[[], None]) -> None:
        self.started = threading.Event()
        self.error: Exception | None = None  # why it could not start
        self._parts = tuple(parts)
        working = [part for part in parts if part.carries_work]
        self._alone = working[0] if len(working) == 1 else None
        self._failed = failed
        self._bell = Bell()
        self._unrung: dict[Bell | None, bool] = {}
        for part in parts:
            part.mailbox.bell, part.unrung = self._bell, self._unrung
        self._poll = Poll()
        self._rings = Source(self._bell.fileno(), self)
        self.due = False  # the bell has rung
        self._stopping = False
        self.passes = 0  # so far; whoever watches reads it
        self._thread = threading.Thread(target=self._main, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End it and wait; False when it is still running. From any thread but its own."""
        self._stopping = True
        self._bell.ring()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        for part in self._parts:
            part.mailbox.bell = None  # its descriptor may soon be somebody else's
        self._bell.close()
        return True

    @property
    def cpu_s(self) -> float:
        """CPU time that it has used; while it runs. From any thread."""
        ident = self._thread.ident
        return time.clock_gettime(time.pthread_getcpuclockid(ident)) if ident is not None else 0.0

    def _main(self) -> None:
        try:
            try:
                for part in self._parts:
                    part.open(self._poll)
            except Exception as error:
                self.error = error
                return
            finally:
                self.started.set()
            self._poll.add(self._rings)
            while not self._stopping:
                self.passes += 1
                self._wait()
                instant = now()
                for part in self._parts:
                    if part.due or part.mailbox.letters or instant >= part.wake:
                        part.due = False
                        part.wake = part.work(instant)
                if self._unrung:
                    self._ring()
        except Exception:
            log.critical("%s failed", self._thread.name, exc_info=True)
            self._failed()
        finally:
            for part in reversed(self._parts):  # the one who is told of others' sockets comes first
                part.close()

    def _ring(self) -> None:
        """Wake who got letters in this pass. Whoever went to sleep since then has looked at its mailboxes once more."""
        for bell, urgent in self._unrung.items():
            if bell is not None and bell.asleep and (urgent or not bell.idle):
                bell.ring()
        self._unrung.clear()

    def _wait(self) -> None:
        """Poll until something is readable, a letter came, or a part wants to be called."""
        bell = self._bell
        bell.idle = self._alone is not None and self._alone.is_idle()  # before it is announced
        bell.asleep = True
        wake = inf
        for part in self._parts:
            wake = min(wake, 0.0 if part.mailbox.letters else part.wake)
        timeout = 0.0 if self._stopping else min(max(0.0, wake - now()), LONGEST_POLL_S)
        self._poll.wait(timeout)
        bell.asleep = False
        if self.due:
            self.due = False
            bell.silence()
