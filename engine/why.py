"""What ``engine why`` prints: the broker's own account (JSON) in lines for a terminal of 100 columns.

First what the last thousand decisions of each stage and of the door amount to, then the last of them, the newest at the
bottom. The only module that looks at the clock on the wall, for people want to find an instant in other logs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

_DOOR = "the door"


def now() -> float:
    """What the clock on the wall shows, in seconds since 1970."""
    return time.time()


def latest(answer: bytes, last: int) -> str:
    """The broker's JSON with so many decisions: several brokers tell so many each."""
    told = json.loads(answer)
    return json.dumps({**told, "decisions": told.get("decisions", [])[-last:]})


def text(answer: bytes, shown_at: float, *, last: int = 20, stage: str = "", request: str = "") -> str:
    """The broker's JSON in lines. ``shown_at``: what the clock on the wall showed when it was told. ``last``,
    ``stage``, ``request``: what was asked for. Raises ValueError when it is not JSON."""
    told: Mapping[str, Any] = json.loads(answer)
    if error := told.get("error"):
        return f"{told.get('name', '?')}: {error}"
    stages = [one for one in told.get("stages", ()) if stage in ("", one["name"])]
    width = max([len(_DOOR), *(len(one["name"]) for one in stages)])
    lines = [line for one in stages for line in _stage(one, width)]
    if not stage:
        lines += _door(told.get("door", {}), width)
    decisions: Sequence[Mapping[str, Any]] = told.get("decisions", ())[-last:]
    if request and not decisions:
        lines += ["", f"no decision about request {request} is kept"]
    elif decisions:
        lines += ["", *_table(decisions, shown_at)]
    return "\n".join(lines)


def _table(decisions: Sequence[Mapping[str, Any]], shown_at: float) -> list[str]:
    has_cells = any("cell" in one for one in decisions)
    where = [(one["stage"] or _DOOR) + (f"/{one['cell']}" if has_cells else "") for one in decisions]
    width = max(map(len, where))
    head = f"{'ITEMS':>9}  {'WAITED':>8}  {'WORKER':<11}  {'PREDICTED':>9}  {'TOOK':>8}"
    lines = [f"{'TIME':<12}  {'WHERE':<{width}}  {'WHY':<9}  {head}"]
    for one, place in zip(decisions, where, strict=True):
        clock = datetime.fromtimestamp(shown_at - one["age_s"]).strftime("%H:%M:%S.%f")[:-3]
        said = _batch(one) if one["what"] == "batch" else _refusal(one)
        lines.append(f"{clock}  {place:<{width}}  {one['reason']:<9}  {said}".rstrip())
    return lines


def _stage(told: Mapping[str, Any], width: int) -> list[str]:
    name: str = told["name"]
    reasons: Mapping[str, int] = told.get("batches", {})
    count = sum(reasons.values())
    if not count:
        lines = [f"{name:<{width}}  no batch yet"]
    else:
        mean = told.get("items", 0) / count
        batches = "batch" if count == 1 else "batches"
        lines = [
            f"{name:<{width}}  {count} {batches} in the last {_time(told['since_s'] * 1000)}, mean size {mean:.1f}: "
            f"{_shares(reasons, count)}"
        ]
        if compared := told.get("compared", 0):
            lines.append(
                f"{'':<{width}}  took what was predicted, within 20 %: {_good(told, compared)} of {compared} batches"
            )
    if refused := told.get("refused"):
        lines.append(f"{'':<{width}}  refused here: {_counts(refused)}")
    return lines


def _door(told: Mapping[str, Any], width: int) -> list[str]:
    refused: Mapping[str, int] = told.get("refused", {})
    lines = [f"{_DOOR:<{width}}  " + (f"refused: {_counts(refused)}" if refused else "refused nobody")]
    if compared := told.get("compared", 0):
        lines.append(
            f"{'':<{width}}  done when predicted, within 20 %: {_good(told, compared)} of {compared} compared requests"
        )
    return lines


def _batch(one: Mapping[str, Any]) -> str:
    taken, waiting = one["items"], one["waiting"]
    number = f"{taken}" if taken == waiting else f"{taken} of {waiting}"
    ahead = f"behind {one['ahead']}" if one["ahead"] else "idle"
    worker = f"{one['worker']} {ahead}"
    predicted = "-" if one["predicted_ms"] is None else _time(one["predicted_ms"])
    took = "-" if one["took_ms"] is None else _time(one["took_ms"])
    notes = []
    if one["fate"]:
        notes.append("its worker died" if one["fate"] == "died" else one["fate"])
    elif not one["is_done"]:
        notes.append("under way")
    if (batches := one.get("batches", 1)) > 1:
        notes.append(f"{batches} batches in one")
    if one["is_cut"]:
        notes.append("cut to be in time")
    if one["failed"]:
        notes.append(f"{one['failed']} failed")
    return f"{number:>9}  {_time(one['waited_ms']):>8}  {worker:<11}  {predicted:>9}  {took:>8}  {', '.join(notes)}"


def _refusal(one: Mapping[str, Any]) -> str:
    facts = []
    if one["predicted_ms"] is not None:
        facts.append(f"takes {_time(one['predicted_ms'])}, had {_time(one['had_ms'])}")
    if one["waiting"]:
        facts.append(f"{one['waiting']} {'waiting' if one['stage'] else 'served'}")
    if one["retry_ms"]:
        facts.append(f"back in {_time(one['retry_ms'])}")
    if one["route"]:
        facts.append(one["route"])
    number = f"{one['items']} refused"
    return f"{number:>9}  {', '.join(facts)}"


def _shares(counts: Mapping[str, int], total: int) -> str:
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{reason} {100 * count / total:.0f} %" for reason, count in ordered)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items(), key=lambda entry: -entry[1]))


def _good(told: Mapping[str, Any], compared: int) -> str:
    return f"{100 * told.get('within_20_percent', 0) / compared:.0f} %"


def _time(ms: float) -> str:
    if ms >= 10_000:
        return f"{ms / 1000:.0f} s"
    if ms >= 1000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms"
