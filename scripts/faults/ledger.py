"""What was asked and what came back, request by request, what that amounts to, and whether it may. Pure.

A request has a number that no other has, and an answer that only it can have; so an answer tells whose it is. The four
that must never be are told apart here:

* lost: no answer at all, though the client stayed. A cut connection, or silence until long after the deadline.
* wrong: another's answer, or a false one.
* double: a second answer to one request, or bytes that nobody had asked for; and, at a stage that computes things once
  only, a second computation.
* late: an answer after its deadline and a grace.

Instants are given, of one monotonic clock.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

OK: Final = 200
GOOD: Final = frozenset((OK,))


@dataclass(frozen=True)
class Allowed:
    """What a fault may cost. By default nothing: every good request is answered 200, rightly, once, in time.

    ``cut``: why connections may end without an answer, where the process that holds them dies. (Silence is never
    allowed.)
    """

    cut: str = ""


@dataclass(frozen=True)
class Ask:
    """A request to be made. ``expects`` are the statuses it may have in any case; ``proof`` is the answer to it."""

    number: int
    body: Mapping[str, Any]
    proof: int
    path: str = "/work"
    expects: frozenset[int] = GOOD
    deadline_s: float | None = None  # asked for with a header; None: the service's own
    leaves_after_s: float | None = None  # a client that goes away, if it has no answer by then
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ordinary(self) -> bool:
        """Nothing about it is special: only such are counted in a percentile."""
        return self.expects == GOOD and self.leaves_after_s is None and self.deadline_s is None


@dataclass
class _Entry:
    ask: Ask
    at: float
    deadline: float
    ended: bool = False


@dataclass(frozen=True)
class Took:
    """How long a right answer to an ordinary request took, and when that had been asked."""

    at: float
    seconds: float


@dataclass
class Tally:
    """What a run amounts to. Each of the first lists names the requests, for whoever has to find out."""

    cut: list[str] = field(default_factory=list)  # the connection ended
    silent: list[str] = field(default_factory=list)  # nothing came, long after the deadline
    wrong: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # a status that the request does not expect
    sent: int = 0
    right: int = 0
    left: int = 0
    computed: int = 0  # computations of the last stage, as the service counted
    statuses: Counter[int] = field(default_factory=Counter)
    took: list[Took] = field(default_factory=list)

    def problems(self, allowed: Allowed) -> list[str]:
        """What is not allowed, in words that begin with the kind of it; also that nothing was shown."""
        kinds = {"wrong": self.wrong, "double": self.double, "late": self.late, "refused": self.refused}
        kinds["lost"] = self.silent if allowed.cut else self.silent + self.cut
        found = [f"{kind}: {len(lines)}; {lines[0]}" for kind, lines in kinds.items() if lines]
        if not self.right:
            found.append("empty: nothing was answered rightly")
        return found

    @property
    def lost(self) -> int:
        """How many have no answer at all."""
        return len(self.cut) + len(self.silent)

    def p99_ms(self, since: float = -math.inf, until: float = math.inf) -> float:
        """Of the right answers to ordinary requests of a time."""
        return percentile([one.seconds for one in self.took if since <= one.at < until], 0.99) * 1000


class Ledger:
    """Keeps account: everything that a client sees goes through here. ``late_s`` is the grace of a deadline."""

    def __init__(self, *, deadline_s: float, late_s: float) -> None:
        self._deadline_s = deadline_s
        self._late_s = late_s
        self._entries: dict[int, _Entry] = {}
        self._tally = Tally()

    def asked(self, ask: Ask, at: float) -> None:
        """It is being sent. Raises ValueError when that number was asked before: then nothing would mean anything."""
        if ask.number in self._entries:
            raise ValueError(f"number {ask.number} was asked before")
        allowed = self._deadline_s if ask.deadline_s is None else ask.deadline_s
        self._entries[ask.number] = _Entry(ask, at, at + allowed)
        self._tally.sent += 1

    def answered(self, number: int, status: int, body: bytes, at: float) -> None:
        """A whole answer came where that of request ``number`` was awaited."""
        entry, tally = self._entries[number], self._tally
        if entry.ended:
            tally.double.append(f"{number}: a second answer, {status} {_shown(body)}")
            return
        entry.ended = True
        tally.statuses[status] += 1
        took = at - entry.at
        if at > entry.deadline + self._late_s:
            tally.late.append(f"{number}: {took:.2f} s, of {entry.deadline - entry.at:.2f} s")
        if status not in entry.ask.expects:
            tally.refused.append(f"{number}: {status} {_shown(body)} after {took:.2f} s")
        if status != OK:
            return
        problem = self._problem(entry.ask, body)
        if problem:
            tally.wrong.append(f"{number}: {problem}: {_shown(body)}")
            return
        tally.right += 1
        if entry.ask.ordinary:
            tally.took.append(Took(entry.at, took))

    def unasked(self, data: bytes) -> None:
        """Bytes came on a connection on which nothing was awaited."""
        self._tally.double.append(f"bytes that nobody asked for: {_shown(data)}")

    def cut(self, number: int, reason: str, at: float) -> None:
        """The connection ended before the answer was there."""
        self._end(number, self._tally.cut, reason, at)

    def silent(self, number: int, at: float) -> None:
        """Patience ended before the answer was there."""
        self._end(number, self._tally.silent, "no answer", at)

    def _end(self, number: int, lines: list[str], reason: str, at: float) -> None:
        entry = self._entries[number]
        if not entry.ended:
            entry.ended = True
            lines.append(f"{number}: {reason} after {at - entry.at:.2f} s")

    def left(self, number: int) -> None:
        """Its client has gone: it awaits nothing any more."""
        entry = self._entries[number]
        if not entry.ended:
            entry.ended = True
            self._tally.left += 1

    def awaited(self) -> list[int]:
        """Requests without an answer."""
        return [number for number, entry in self._entries.items() if not entry.ended]

    def close(self, computed: Iterable[tuple[str, int]], once: Sequence[str] = ()) -> Tally:
        """What it all amounts to; ``computed`` is what the service wrote down: (stage, number), one per computation.

        Numbers that were never asked are passed over. ``once`` names the stages that must not compute anything twice.
        """
        counts = Counter((stage, number) for stage, number in computed if number in self._entries)
        self._tally.computed = sum(counts.values())
        for (stage, number), times in counts.items():
            if stage in once and times > 1:
                self._tally.double.append(f"{number}: computed {times} times by {stage}, which computes once")
        for number in self.awaited():
            self.silent(number, self._entries[number].deadline)
        return self._tally

    def _problem(self, ask: Ask, body: bytes) -> str:
        try:
            told = json.loads(body)
        except ValueError:
            return "not JSON"
        if not isinstance(told, dict):
            return "not an answer of this service"
        if told.get("number") != ask.body["number"]:
            return "the answer to another request"
        return "" if told.get("proof") == ask.proof else "a false answer"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of them do not exceed; 0 of none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * share) - 1)] if ranked else 0.0


def _shown(data: bytes) -> str:
    return repr(data[:160].decode("utf-8", "replace"))
