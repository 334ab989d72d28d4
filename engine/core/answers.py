"""Answers on their way to frontends: in columns, as parcels carry them, until a pass of the broker ends. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TypeVar

import msgspec

from engine.core.messages import Answers, Refused, Speaker
from engine.core.wire import HEAD_ITEMS, WITH_HEADERS, Payload

_V = TypeVar("_V")


class Column(msgspec.Struct, eq=False):
    """Answers for one frontend, growing until they are taken."""

    seqs: list[int] = []
    statuses: list[int] = []
    mimes: list[str] = []
    trails: list[bytes] = []
    headers: dict[int, dict[str, str]] = {}
    speakers: dict[int, int] = {}
    retries_ms: dict[int, int] = {}
    refusals: dict[int, Refused] = {}
    payloads: list[Payload] = []

    def add(
        self,
        seq: int,
        status: int,
        body: Payload,
        *,
        mime: str = "",
        trail: bytes = b"",
        speaker: int = int(Speaker.WORKER),
        retry_ms: int = 0,
        headers: Mapping[str, str] | None = None,
        refused: Refused | None = None,
    ) -> None:
        """One more."""
        at = len(self.seqs)
        if headers:
            self.headers[at] = dict(headers)
        if speaker:
            self.speakers[at] = speaker
        if retry_ms:
            self.retries_ms[at] = retry_ms
        if refused is not None:
            self.refusals[at] = refused
        self.seqs.append(seq)
        self.statuses.append(status)
        self.mimes.append(mime)
        self.trails.append(trail)
        self.payloads.append(body)

    def parted(self) -> list[Column]:
        """As columns of which each makes a header of a size that is read."""
        count = len(self.seqs)
        step = WITH_HEADERS if self.headers else HEAD_ITEMS
        if count <= step:
            return [self]
        return [self._part(start, start + step) for start in range(0, count, step)]

    def _part(self, start: int, end: int) -> Column:
        def sparse(values: dict[int, _V]) -> dict[int, _V]:
            return {index - start: value for index, value in values.items() if start <= index < end}

        return Column(
            self.seqs[start:end],
            self.statuses[start:end],
            self.mimes[start:end],
            self.trails[start:end],
            sparse(self.headers),
            sparse(self.speakers),
            sparse(self.retries_ms),
            sparse(self.refusals),
            self.payloads[start:end],
        )

    def message(self) -> Answers:
        """All but the bodies."""
        return Answers(
            seqs=self.seqs,
            statuses=self.statuses,
            mimes=self.mimes,
            trails=self.trails,
            headers=self.headers,
            speakers=self.speakers,
            retries_ms=self.retries_ms,
            refusals=self.refusals,
        )


class AnswerBook:
    """What each frontend is to be told, until it is taken."""

    def __init__(self) -> None:
        self.columns: dict[bytes, Column] = {}  # by frontend; whoever answers many looks here itself

    def column(self, peer: bytes) -> Column:
        """Of this frontend, made if need be."""
        column = self.columns.get(peer)
        if column is None:
            column = self.columns[peer] = Column()
        return column

    def say(
        self,
        peer: bytes,
        seq: int,
        status: int,
        text: str,
        speaker: Speaker = Speaker.DOOR,
        *,
        retry_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
        refused: Refused | None = None,
    ) -> None:
        """An answer in the broker's own words."""
        self.column(peer).add(
            seq,
            int(status),
            text.encode(),
            speaker=int(speaker),
            retry_ms=ceil(retry_s * 1000),
            headers=headers,
            refused=refused,
        )

    def drop(self, peer: bytes) -> None:
        """Nobody is there any more."""
        self.columns.pop(peer, None)

    def take(self) -> list[tuple[bytes, Answers, list[Payload]]]:
        """All of it, one parcel per frontend; several where one would have too large a header."""
        taken = [
            (peer, column.message(), column.payloads)
            for peer, whole in self.columns.items()
            for column in whole.parted()
        ]
        self.columns = {}
        return taken
