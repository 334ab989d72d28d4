"""What the brokers of several cells answer to one question, as the one answer that a single broker would give. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from engine.core.about import pack_all, unpack_all
from engine.core.failures import IDS
from engine.core.failures import KEPT as FAILURES
from engine.metrics import Family, Sources, add_labels, merge, pack, pack_sources, unpack, unpack_sources

# Of a stage, or the whole: what adds up. All else is the first's, but for what _stage and _status say.
_SUMS: Final = frozenset(
    (
        "wanted", "ready", "starting", "queued", "in_flight", "queued_bytes", "replayed", "deaths", "arrived",
        "demand_workers", "admitted", "capacity", "admitted_bytes",
    )
)  # fmt: skip


def join(what: str, answers: Sequence[bytes | None]) -> bytes:
    """The answers of all cells, one at least (None: it did not answer), as one. Raises ProtocolError for metrics or
    descriptions that cannot be read, ValueError for a status that cannot."""
    given = {cell: answer for cell, answer in enumerate(answers) if answer is not None}
    if what == "status":
        return _status({cell: json.loads(answer) for cell, answer in given.items()}, len(answers))
    if what == "about":
        told = [unpack_all(answer) for answer in given.values()]
        return pack_all({stage: about for one in reversed(told) for stage, about in one.items()})
    if what == "why":
        return _why({cell: json.loads(answer) for cell, answer in given.items()})
    return _metrics({cell: unpack_sources(answer) for cell, answer in given.items()})


def _metrics(answers: Mapping[int, Sources]) -> bytes:
    """What a broker counts bears the number of its cell: a counter that begins anew when a broker does would be taken
    for one of all cells. What others count does not, be they there or gone."""
    brokers = {cell: unpack(answer.broker) if answer.broker else [] for cell, answer in answers.items()}
    for cell in [*brokers][1:]:
        brokers[cell] = [_of_one(family) for family in brokers[cell]]
    own = {family.name for families in brokers.values() for family in families}
    retired: list[list[Family]] = []
    for cell, answer in answers.items():
        gone = unpack(answer.retired) if answer.retired else []
        retired.append(_labelled([family for family in gone if family.name in own], cell))
        retired.append([family for family in gone if family.name not in own])
    frontends: dict[str, bytes] = {}
    for answer in answers.values():
        for name, families in answer.frontends:  # which beats to all of them, and tells one what it has counted
            frontends[name] = max(frontends.get(name, b""), families, key=len)
    return pack_sources(
        Sources(
            broker=pack(merge(_labelled(families, cell) for cell, families in brokers.items())),
            frontends=list(frontends.items()),
            workers=[worker for answer in answers.values() for worker in answer.workers],
            retired=pack(merge(retired)),
        )
    )


def _of_one(family: Family) -> Family:
    """Without the processes that belong to no cell: all brokers tell of the same."""
    if not any("process" in sample.labels for sample in family.samples):
        return family
    samples = [one for one in family.samples if one.labels.get("process") not in ("frontend", "supervisor")]
    return replace(family, samples=samples)


def _labelled(families: Sequence[Family], cell: int) -> list[Family]:
    return add_labels(families, cell=str(cell + 1))


def _status(answers: Mapping[int, dict[str, Any]], cells: int) -> bytes:
    for cell, one in answers.items():
        for stage in one.get("stages", ()):
            _number(stage.get("workers", ()), cell)
        _number(one.get("brokers", ()), cell)
    told = [*answers.values()]
    whole = _summed(told)
    whole["cells"], whole["cells_answering"] = cells, len(told)
    whole["uptime_s"] = min(one.get("uptime_s", 0.0) for one in told)
    whole["refused"] = _added(told, "refused")
    whole["demand"] = _added(told, "demand")
    whole["draining"] = all(one.get("draining", False) for one in told)
    if errors := [one["error"] for one in told if "error" in one]:
        whole["error"] = errors[0]
    stages: dict[str, list[dict[str, Any]]] = {}
    for one in told:
        for stage in one.get("stages", ()):
            stages.setdefault(stage["name"], []).append(stage)
    whole["stages"] = [_stage(parts) for parts in stages.values()]
    frontends: dict[tuple[str, int], dict[str, Any]] = {}
    for one in told:
        for frontend in one.get("frontends", ()):
            known = frontends.setdefault((frontend["name"], frontend["pid"]), {**frontend, "pending": 0})
            known["pending"] += frontend["pending"]
    whole["frontends"] = list(frontends.values())
    goals: dict[str, dict[str, Any]] = {}
    for one in told:
        for goal in one.get("goals", ()):
            known = goals.setdefault(goal["route"], {**goal, "within": 0, "late": 0})
            known["within"] += goal["within"]
            known["late"] += goal["late"]
            known["unmet"] = known["unmet"] or goal["unmet"]
    whole["goals"] = list(goals.values())
    whole["brokers"] = [broker for one in told for broker in one.get("brokers", ())]
    whole["errors"] = _errors([error for one in told for error in one.get("errors", ())])
    whole["rates"] = _rates([one["rates"] for one in told if "rates" in one])
    routes: dict[str, list[dict[str, Any]]] = {}
    for one in told:
        for route in one.get("routes", ()):
            routes.setdefault(route["path"], []).append(route)
    whole["routes"] = [_route(parts) for parts in routes.values()]
    means: dict[tuple[str, str], list[float]] = {}
    for one in told:
        for parts in one.get("parts", ()):
            means.setdefault((parts["route"], parts["stage"]), []).append(parts["mean"])
    whole["parts"] = [
        {"route": route, "stage": stage, "mean": round(sum(some) / len(some), 3)}
        for (route, stage), some in means.items()
    ]
    failed: dict[str, list[dict[str, Any]]] = {}
    for one in told:
        for name, counts in one.get("failed", {}).items():
            failed.setdefault(name, []).append({"failed": counts})
    whole["failed"] = {name: _added(parts, "failed") for name, parts in failed.items()}
    return json.dumps(whole, separators=(",", ":")).encode()


def _number(entries: Sequence[dict[str, Any]], cell: int) -> None:
    for entry in entries:
        entry["cell"] = cell + 1


def _errors(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest first, and equal ones of several cells as one, as those of one cell are."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: float(entry["age_s"])):
        key = tuple(entry.get(name) for name in ("stage", "route", "status", "message"))
        known = kept.setdefault(key, {**entry, "count": 0, "requests": []})
        known["count"] += entry.get("count", 1)
        known["requests"] = [*known["requests"], *entry.get("requests", ())][:IDS]
    return [*kept.values()][:FAILURES]


def _route(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the cells one, mostly, has heard what the frontends count."""
    whole = {**parts[0], "answers": _added(parts, "answers")}
    whole["answers_s"] = round(sum(part.get("answers_s", 0.0) for part in parts), 2)
    return {**whole, **_latency(parts, [part.get("answers_s", 0.0) for part in parts])}


def _lately(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one stage, of the cells that tell of it; of shares and latencies the mean, of what few reach the worst."""
    whole = _rates(parts)
    whole["reasons"] = _added(parts, "reasons")
    whole["batches"] = sum(part.get("batches", 0) for part in parts)
    whole["mean_batch"] = round(whole["items_s"] / whole["batches_s"], 2) if whole.get("batches_s") else 0.0
    whole["busy"] = round(sum(part.get("busy", 0.0) for part in parts) / len(parts), 4)
    weights = [part.get("batches_s", 0.0) for part in parts]
    for key in ("queue", "compute"):
        whole[key] = _latency([part.get(key, {}) for part in parts], weights)
    return whole


def _latency(parts: Sequence[dict[str, Any]], weights: Sequence[float]) -> dict[str, float]:
    """What half of all stay below is taken to be the mean of the halves; what 99 of 100 do, the worst."""
    halves = [(part.get("p50_ms", 0.0), weight) for part, weight in zip(parts, weights, strict=True)]
    total = sum(weights)
    p50 = sum(half * weight for half, weight in halves) / total if total else max(half for half, _ in halves)
    return {"p50_ms": round(p50, 3), "p99_ms": max(part.get("p99_ms", 0.0) for part in parts)}


def _rates(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What happens so often a second (``..._s``), added up."""
    names = dict.fromkeys(key for part in parts for key in part if key.endswith("_s"))
    return {name: round(sum(part.get(name, 0.0) for part in parts), 2) for name in names}


def _stage(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One stage of several cells."""
    if errors := [part for part in parts if "error" in part]:
        return errors[0]
    whole = _summed(parts)
    whole["oldest_ms"] = max(part["oldest_ms"] for part in parts)
    for key in ("batches_by_reason", "deaths_by_cause", "refused"):
        whole[key] = _added(parts, key)
    batches = [sum(part["batches_by_reason"].values()) for part in parts]
    items = sum(count * part["mean_batch"] for count, part in zip(batches, parts, strict=True))
    whole["mean_batch"] = round(items / sum(batches), 2) if sum(batches) else 0.0
    if costs := [cost for part in parts if (cost := part.get("cost"))]:
        cost = {**costs[0], **{key: sum(one[key] for one in costs) for key in ("batches", "items", "padded")}}
        cost["mean"] = round(cost["padded"] / cost["batches"], 3) if cost["batches"] else 0.0
        cost["waste"] = round(1.0 - cost["items"] / cost["padded"], 4) if cost["padded"] else 0.0
        whole["cost"] = cost
    whole["workers"] = [worker for part in parts for worker in part["workers"]]
    if recent := [part["lately"] for part in parts if "lately" in part]:
        whole["lately"] = _lately(recent)
    whole["not_fed"] = next((part["not_fed"] for part in parts if part.get("not_fed")), "")
    return whole


def _why(told: Mapping[int, dict[str, Any]]) -> bytes:
    """Accounts add up; each decision bears the number of its cell."""
    if errors := [one for one in told.values() if "error" in one]:
        return json.dumps(errors[0]).encode()
    stages: dict[str, list[dict[str, Any]]] = {}
    decisions: list[dict[str, Any]] = []
    for cell, one in told.items():
        for stage in one["stages"]:
            stages.setdefault(stage["name"], []).append(stage)
        decisions += [{**decision, "cell": cell + 1} for decision in one["decisions"]]
    whole = {
        "name": next(iter(told.values()))["name"],
        "stages": [_accounts(parts) for parts in stages.values()],
        "door": _accounts([one["door"] for one in told.values()]),
        "decisions": sorted(decisions, key=lambda one: -float(one["age_s"])),
    }
    return json.dumps(whole, separators=(",", ":")).encode()


def _accounts(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    whole = dict(parts[0])
    for key in whole.keys() & {"items", "compared", "within_20_percent"}:
        whole[key] = sum(part[key] for part in parts)
    for key in whole.keys() & {"batches", "refused"}:
        whole[key] = _added(parts, key)
    whole["since_s"] = max(part["since_s"] for part in parts)
    return whole


def _added(parts: Sequence[dict[str, Any]], key: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.get(key, {}))
    return dict(counts)


def _summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first of them, with what adds up from all."""
    keys = {key for part in parts for key in part} & _SUMS
    return {**parts[0], **{key: sum(part.get(key, 0) for part in parts) for key in sorted(keys)}}
