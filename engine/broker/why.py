"""What ``engine why`` is told: what the traces of all parts amount to, and the last decisions, as JSON.

Each stage makes its part of its own trace (:func:`stage_why`), and the front puts them together with the refusals, of
which it hears all (:func:`why`). Instants are told by how long ago they were, for clocks on walls are the asker's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from engine.core import meta
from engine.core.front import FrontMachine
from engine.core.messages import Ask
from engine.core.released import Released
from engine.core.stage import StageMachine
from engine.core.trace import Refusal, by_reason, has, ids_of, is_near


class Batch(msgspec.Struct, frozen=True, tag="batch", tag_field="what"):
    """A batch that left a stage's queue."""

    age_s: float
    stage: str
    reason: str
    items: int
    waiting: int  # of so many
    waited_ms: float  # the first of them
    worker: int
    ahead: int  # batches that it had before
    predicted_ms: float | None  # from when it was its turn; None: nobody knew
    took_ms: float | None  # None: it is not done, or was not done in its turn
    is_done: bool
    is_cut: bool  # it was made smaller, for more would have been late
    failed: int
    fate: str
    requests: list[str]
    batches: int = 1  # as many it was, handed over as one


class Refused(msgspec.Struct, frozen=True, tag="refusal", tag_field="what"):
    """Requests that were refused together, at a stage or at the door ("")."""

    age_s: float
    stage: str
    reason: str
    items: int
    waiting: int
    route: str
    predicted_ms: float | None  # in how long it would have been done
    had_ms: float
    retry_ms: float
    requests: list[str]


class StageWhy(msgspec.Struct):
    """One stage's part. ``since_s``: how long ago the first batch was of which this tells."""

    name: str
    since_s: float
    batches: dict[str, int]  # by reason
    items: int
    compared: int  # batches of which it is known how long they were to take, and did
    within_20_percent: int
    refused: dict[str, int] = {}
    decisions: list[Batch] = []


def stage_why(machine: StageMachine, ask: Ask, now: float) -> StageWhy:
    """The part of one stage in the answer to this question."""
    entries, name = machine.trace.entries(), machine.spec.name
    known = [entry for entry in entries if entry.is_known]
    asked = _asked(entries, ask) if ask.stage in ("", name) else []
    return StageWhy(
        name,
        _since(entries, now),
        by_reason(entries),
        sum([entry.count for entry in entries]),
        len(known),
        sum([is_near(entry.expected_s, entry.took_s) for entry in known]),
        decisions=[_batch(entry, name, now) for entry in asked],
    )


def why(machine: FrontMachine, ask: Ask, parts: Sequence[StageWhy | None], name: str, now: float) -> bytes:
    """The whole answer, from the parts of all stages in their order (None: a stage could not make its own)."""
    names, refusals = machine.topology.stages, machine.trace.entries()
    at_door: Counter[str] = Counter()
    at_stages: list[Counter[str]] = [Counter() for _ in names]
    for entry in refusals:
        (at_stages[entry.stage] if entry.stage >= 0 else at_door)[entry.reason] += entry.count
    told = [part or StageWhy(names[number], 0.0, {}, 0, 0, 0) for number, part in enumerate(parts)]
    for part, counts in zip(told, at_stages, strict=True):
        part.refused = dict(counts)
    wanted = [entry for entry in refusals if not ask.stage or (entry.stage >= 0 and names[entry.stage] == ask.stage)]
    decisions: list[Batch | Refused] = [batch for part in told for batch in part.decisions]
    decisions += [_refused(entry, machine, now) for entry in _asked(wanted, ask)]
    for part in told:
        part.decisions = []
    recent = machine.foretold.recent
    return msgspec.json.encode(
        {
            "name": name,
            "stages": [
                {key: getattr(part, key) for key in StageWhy.__struct_fields__ if key != "decisions"} for part in told
            ],
            "door": {
                "since_s": _since(refusals, now),
                "refused": dict(at_door),
                "compared": len(recent),
                "within_20_percent": sum([took > 0.0 and is_near(needs, took) for needs, took in recent]),
            },
            "decisions": sorted(decisions, key=_age, reverse=True)[-ask.last :] if ask.last else [],
        }
    )


Entry = TypeVar("Entry", Released, Refusal)


def _asked(entries: Sequence[Entry], ask: Ask) -> Sequence[Entry]:
    """The last of those that have to do with the request, if one is asked for."""
    if not ask.last:
        return []
    if ask.request:
        head = meta.pack(ask.request) if ask.request.isascii() else b""  # which would be nobody's
        entries = [entry for entry in entries if head and has(entry, head)]
    return entries[-ask.last :]


def _batch(entry: Released, stage: str, now: float) -> Batch:
    return Batch(
        age_s=round(now - entry.at, 6),
        stage=stage,
        reason=entry.reason,
        items=entry.count,
        waiting=entry.waiting,
        waited_ms=_ms(entry.waited_s),
        worker=entry.slot,
        ahead=entry.ahead,
        predicted_ms=_ms(entry.expected_s) if entry.expected_s else None,
        took_ms=_ms(entry.took_s) if entry.took_s > 0.0 else None,
        is_done=entry.took_s >= 0.0,
        is_cut=entry.is_cut,
        failed=entry.failed,
        fate=entry.fate,
        requests=ids_of(entry),
        batches=entry.calls,
    )


def _refused(entry: Refusal, machine: FrontMachine, now: float) -> Refused:
    topology = machine.topology
    return Refused(
        age_s=round(now - entry.at, 6),
        stage=topology.stages[entry.stage] if entry.stage >= 0 else "",
        reason=entry.reason,
        items=entry.count,
        waiting=entry.waiting,
        route=topology.routes[entry.route].path if 0 <= entry.route < len(topology.routes) else "",
        predicted_ms=_ms(entry.needs_s) if entry.needs_s else None,
        had_ms=_ms(entry.had_s),
        retry_ms=_ms(entry.retry_s),
        requests=ids_of(entry),
    )


def _since(entries: Sequence[Released] | Sequence[Refusal], now: float) -> float:
    return round(max(0.0, now - entries[0].at), 3) if entries else 0.0


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _age(decision: Batch | Refused) -> float:
    return decision.age_s
