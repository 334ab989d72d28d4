"""What a part was sent and did not take: counted by reason, and told in the log without being flooded.

A peer that is broken or hostile can send such things as fast as the socket carries them. So of each reason one line a
second is written, with how many there were since the last one; the metric counts them all.

    malformed    it cannot be read: no parcel, or numbers that nothing has
    unexpected   it can be read, and has no business on this socket
    failed       handling it raised: a fault of ours, with its traceback
"""

from __future__ import annotations

import logging
from typing import Final

from engine.clock import now as clock

log: Final = logging.getLogger("stageline.broker")

MALFORMED: Final = "malformed"
UNEXPECTED: Final = "unexpected"
FAILED: Final = "failed"

QUIET_S: Final = 1.0  # between two lines of a reason


class Complaints:
    """Of one part; used by the thread that carries it. ``counts`` is where they are counted, by reason."""

    def __init__(self, counts: dict[str, int], *, quiet_s: float = QUIET_S, of_what: str = "messages") -> None:
        self._counts = counts
        self._quiet_s = quiet_s
        self._of_what = of_what
        self._told: dict[str, tuple[float, int]] = {}  # reason -> when the last line was written, and the count then

    def note(self, kind: str, what: str, /, *, trace: bool = False, **fields: object) -> None:
        """A message was dropped. ``trace``: with the traceback of the exception that is being handled."""
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        instant = clock()
        at, before = self._told.get(kind, (-self._quiet_s, 0))
        if instant - at < self._quiet_s:
            return
        self._told[kind] = instant, count
        if count - before > 1:
            fields[self._of_what] = count - before
        log.log(logging.ERROR if trace else logging.WARNING, what, exc_info=trace, extra=fields)
