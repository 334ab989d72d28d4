"""What is kept of the metrics of processes that have gone: the sums of what only grows.

Their last families come from peers and are opaque until they are read here, so they may be unreadable, or have other
labels with every process that is started. Neither ends the broker, and neither grows without bound.
"""

from __future__ import annotations

import logging
from typing import Final

from engine.errors import ProtocolError
from engine.metrics import Family, fold, unpack

log: Final = logging.getLogger("stageline.broker")

SAMPLES_MOST: Final = 100_000  # of all that have gone, by part: as many as one process may have


class Retired:
    """Used by one thread."""

    def __init__(self) -> None:
        self.families: list[Family] = []

    def add(self, data: bytes, *, whose: str) -> None:
        """The last families of a process; what cannot be read or would be too much is logged and left out."""
        try:
            families = fold(self.families, unpack(data))
        except ProtocolError as error:
            log.warning("metrics of a process that has gone are lost", extra={"whose": whose, "reason": str(error)})
            return
        if sum(len(family.samples) for family in families) > SAMPLES_MOST:
            log.warning("metrics of a process that has gone are left out: too many", extra={"whose": whose})
            return
        self.families = families
