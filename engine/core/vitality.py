"""Whether a process lives, seen from outside it. Pure: what the system tells of it, and ``now``, in; a verdict out.

Two ways to be there and do nothing:

* *stopped*: the kernel does not let it run (SIGSTOP). That is seen in its state, and no work of its own can feign it;
* *hung*: a process of which it is known that it shows itself every second (the broker, the frontend's processes: no
  code of users runs there) has not, although it could have. Code that holds the interpreter may keep a worker from
  showing itself for as long as its time limits allow, so of workers nothing of the kind is concluded.

What is no reason: that the machine gives it no time. A process that waits for a processor or a disk could not have
shown itself, so that while does not count, nor does one during which the watcher itself was kept from looking. One that
computes counts little: it may be at something large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.core.liveness import BEAT_S, HANG_S, LOOK_S, STOPPED_S

STOPPED: Final = "T"  # in the kernel's letters; "t", traced, is a debugger's business
SLEEPING: Final = "S"

LATE_LOOKS: Final = 2.5  # a look that comes so many times later than it should: the watcher was kept from looking
BUSY_SHARE: Final = 0.5  # of a processor, from which on a silent process is at work rather than starved
BUSY_WEIGHT: Final = 0.3  # of a second of silent work beside one of silent sleep


@dataclass(frozen=True)
class Sample:
    """``state``: the kernel's letter; of a process with several threads "R" if one of them could run. ``cpu_s``: the
    time its threads have computed so far, in ticks of the kernel. ``ran_ns``: of one that is stopped, for how long its
    first thread has run, exactly; 0 where that is not told."""

    state: str
    cpu_s: float
    ran_ns: int = 0


class Vitals:
    """One process, of which a look is taken about every LOOK_S. Not thread-safe."""

    def __init__(self, now: float) -> None:
        self._looked = now
        self._cpu_s = 0.0
        self._stopped_s: float | None = None
        self._ran_ns = 0
        self._beats = False  # it is one that shows itself
        self._silent_s = 0.0

    def beat(self) -> None:
        """It has shown itself; from now on it is expected to, about every BEAT_S."""
        self._beats = True
        self._silent_s = 0.0

    def rest(self) -> None:
        """It is told to stop, and does not show itself any more."""
        self._beats = False
        self._silent_s = 0.0

    @property
    def is_doubtful(self) -> bool:
        """The next sample should tell of all its threads."""
        return self._beats and self._silent_s > BEAT_S

    def look(self, sample: Sample, now: float) -> str:
        """Take a look into account. Why it should be replaced, in words; empty: it should not."""
        gap, worked_s = now - self._looked, sample.cpu_s - self._cpu_s
        self._looked, self._cpu_s = now, sample.cpu_s
        if gap > LATE_LOOKS * LOOK_S:
            self._stopped_s, self._silent_s = None, 0.0
            return ""
        # Continued between two looks it runs, however little of a tick: each of its threads has to leave the stop.
        was_let, self._ran_ns = sample.ran_ns != self._ran_ns, sample.ran_ns
        if sample.state != STOPPED or worked_s > 0:
            self._stopped_s = None
        elif self._stopped_s is None or was_let:
            self._stopped_s = 0.0  # it may have begun just now
        else:
            self._stopped_s += gap
            if self._stopped_s >= STOPPED_S:
                return "was stopped by a signal and not continued"
        if self._beats:
            if worked_s >= BUSY_SHARE * gap:
                self._silent_s += gap * BUSY_WEIGHT
            elif sample.state == SLEEPING:
                self._silent_s += gap
            if self._silent_s >= HANG_S:
                return "hung"
        return ""
