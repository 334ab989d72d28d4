"""When requests come: one after the other independently, in bursts, or as they were recorded. Pure.

People who do not know take arrivals for independent (a Poisson process), and plan too few workers where they come in
bursts. So a recording of real ones can be given: a column of a CSV file with the instant of each request, or with the
gap before it. It is gone round from a place of its own by each seed, gaps in their order, for bursts are a matter of
order; and stretched or shrunk to the rate that is asked for.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from itertools import islice, pairwise
from math import isfinite, sqrt
from typing import Final, Protocol

GAPS: Final = ("gap", "gaps", "interval", "interarrival", "inter_arrival", "delta")
INSTANTS: Final = ("timestamp", "time", "ts", "at", "arrival", "arrived", "arrived_at", "start", "date", "datetime")
_FRACTION: Final = re.compile(r"\.([0-9]+)")
FEW: Final = 1000  # gaps of a recording that say little of bursts
TOTAL_MOST: Final = 1e12  # seconds of a recording: more is none
EPOCHS: Final = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))  # from where on a number is no seconds, and what it is of one


class Arrivals(Protocol):
    """``instants`` are in seconds, in order and without end."""

    @property
    def rate(self) -> float: ...
    @property
    def cv(self) -> float: ...
    @property
    def words(self) -> str: ...
    def at(self, rate: float) -> Arrivals: ...
    def instants(self, seed: int | str) -> Iterator[float]: ...


@dataclass(frozen=True)
class Renewal:
    """Gaps that know nothing of each other, from a gamma distribution: with ``cv`` (standard deviation by mean) 1 a
    Poisson process, with more bursts and pauses, with less a steady stream, and with 0 a clock."""

    rate: float
    cv: float = 1.0

    @property
    def words(self) -> str:
        return "Poisson" if self.cv == 1.0 else f"gamma, CV {self.cv:g}"

    def at(self, rate: float) -> Renewal:
        return Renewal(rate, self.cv)

    def instants(self, seed: int | str) -> Iterator[float]:
        rng = random.Random(f"arrivals {seed}")
        mean = 1.0 / self.rate
        variance = self.cv * self.cv
        at = 0.0
        while True:
            if not variance:
                at += mean
            elif variance == 1.0:
                at += rng.expovariate(self.rate)
            else:
                at += rng.gammavariate(1.0 / variance, mean * variance)
            yield at


@dataclass(frozen=True)
class Recording:
    """Gaps as they were, in seconds, gone round; ``name`` is the file's. ``rate`` is what they are stretched to."""

    gaps: tuple[float, ...]
    rate: float
    name: str

    @property
    def own_rate(self) -> float:
        return len(self.gaps) / sum(self.gaps)

    @property
    def cv(self) -> float:
        mean = sum(self.gaps) / len(self.gaps)
        return sqrt(sum([(gap - mean) ** 2 for gap in self.gaps]) / len(self.gaps)) / mean

    @property
    def words(self) -> str:
        return f"{len(self.gaps)} gaps of {self.name}, CV {self.cv:.2g}"

    def at(self, rate: float) -> Recording:
        return Recording(self.gaps, rate, self.name)

    def instants(self, seed: int | str) -> Iterator[float]:
        factor = self.own_rate / self.rate
        place = random.Random(f"arrivals {seed}").randrange(len(self.gaps))
        at = 0.0
        while True:
            at += self.gaps[place] * factor
            yield at
            place = (place + 1) % len(self.gaps)


class TraceError(ValueError):
    """A recording that cannot be read; the message says where and what was expected."""


def read_trace(text: str, name: str, column: str = "") -> Recording:
    """A recording out of CSV. ``column``: its name or its number from 1; else the one that is called like instants or
    gaps, or the first in which there are numbers or dates. Raises TraceError."""
    rows = [(number, row) for number, row in enumerate(csv.reader(StringIO(text)), start=1) if any(map(str.strip, row))]
    if not rows:
        raise TraceError(f"{name}: it is empty; expected a column of instants or of gaps, in seconds")
    head = [cell.strip() for cell in rows[0][1]]
    has_head = all(_number(cell) is None for cell in head)
    place = _column(head, has_head, rows[1 if has_head else 0 :], name, column)
    title = head[place].lower() if has_head and place < len(head) else ""
    values: list[float] = []
    for number, row in rows[has_head:]:
        cell = row[place].strip() if place < len(row) else ""
        value = _number(cell)
        if value is None:
            raise TraceError(f"{name}, line {number}: expected a number of seconds or a date, got {cell[:40]!r}")
        values.append(value)
    gaps = _gaps(values, title, name) if values else []
    total = sum(gaps)
    if len(gaps) < 2 or not 0.0 < total < TOTAL_MOST:
        raise TraceError(f"{name}: {len(gaps)} gaps of {total:g} s together; expected some hundreds of requests")
    return Recording(tuple(gaps), len(gaps) / total, name)


def _column(head: Sequence[str], has_head: bool, rows: Sequence[tuple[int, list[str]]], name: str, asked: str) -> int:
    names = [cell.lower() for cell in head]
    if asked:
        if has_head and asked.lower() in names:
            return names.index(asked.lower())
        if asked.isdecimal() and 0 < int(asked) <= len(head):
            return int(asked) - 1
        known = ", ".join(head) if has_head else f"1 to {len(head)}"
        raise TraceError(f"{name}: there is no column {asked}; expected one of {known}")
    if has_head:
        for known in (*GAPS, *INSTANTS):
            for place, title in enumerate(names):
                if known == title or title.startswith((f"{known}_", f"{known} ")):
                    return place
    first = rows[0][1] if rows else []
    for place, cell in enumerate(first):
        if _number(cell.strip()) is not None:
            return place
    raise TraceError(f"{name}: no column of numbers or dates in its first row; say which one with --column")


def _number(cell: str) -> float | None:
    """Seconds; None for what is neither a number nor a date."""
    try:
        value = float(cell)
    except ValueError:
        try:
            return datetime.fromisoformat(_FRACTION.sub(_six_digits, cell.replace("Z", "+00:00"))).timestamp()
        except (ValueError, OverflowError, OSError):  # the latter two: no instant of any clock
            return None
    return value if isfinite(value) else None


def _six_digits(fraction: re.Match[str]) -> str:
    """As Python 3.10 wants it."""
    return f".{fraction[1][:6]:0<6}"


def _gaps(values: Sequence[float], title: str, name: str) -> list[float]:
    in_order = all(former <= later for former, later in pairwise(values))
    if title.startswith(GAPS) or (not in_order and not title.startswith(INSTANTS) and max(values) < 1e8):
        if min(values) < 0.0:
            raise TraceError(f"{name}: a gap of {min(values):g} s; expected none below 0, or instants in their order")
        scale = 1e-3 if title.endswith(("_ms", " ms", "(ms)")) else 1.0
        return [value * scale for value in values]
    # A log is written when requests end, so what it says of their begins is out of order here and there.
    ordered = sorted(values)
    per_second = next((unit for least, unit in EPOCHS if ordered[-1] >= least), 1.0)
    if title.endswith(("_ms", " ms", "(ms)")):
        per_second = 1e3
    return [(later - former) / per_second for former, later in pairwise(ordered)]


def taken(arrivals: Arrivals, seed: int | str, count: int) -> list[float]:
    """The first ``count`` instants."""
    return list(islice(arrivals.instants(seed), count))
