"""What ``engine status`` prints: the broker's own account (JSON) as small tables, for a terminal of 100 columns. Pure.

An older broker tells less; then there is less, and nothing breaks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

_LEAVING: Final = ("leaving", "dying")
_DEATHS: Final = {
    "oom": "out of memory (oom)",
    "outside": "ended from outside",
    "own": "of their own doing",
    "forgotten": "without a word",
}
_THREADS: Final = {"stage": ", a broker thread per stage", "one": ", one broker thread"}
ERRORS: Final = 5  # that are shown
_MESSAGE: Final = 96  # columns of one

_NUMBER: Final = re.compile(r"[\d.]+k?( / [\d.]+)?( ?[a-zA-Z%]+)?")

# What a client or user code has written must not move the cursor or end a line.
_VISIBLE: Final = dict.fromkeys((*range(32), *range(127, 160), 8232, 8233), "?") | {9: " ", 10: " ", 13: " "}


def table(answer: bytes) -> str:
    """The broker's JSON in lines for a terminal. Raises ValueError when it is not JSON; missing numbers show as 0."""
    told: Mapping[str, Any] = json.loads(answer)
    if error := told.get("error"):
        return f"{told.get('name', '?')}: {error}"
    stages: Sequence[Mapping[str, Any]] = told.get("stages", ())
    lines = [
        *heading(told),
        "",
        *_stages(stages),
        *(line for stage in stages for line in _remarks(stage)),
        *map(_goal, told.get("goals", ())),
        *_refusals(told),
        *(
            f"{one['part']} has no place yet: it waits for {one['needs']}"
            for one in told.get("parts", ())
            if not one["host"]
        ),
    ]
    for some in (_lately(stages), _routes(told), workers(told), _frontends(told), failures(told)):
        if some:
            lines += ["", *some]
    return "\n".join(lines)


def fitted(text: str, trouble: str, columns: int, rows: int) -> str:
    """The same on a screen of this size, 0 for one without bounds; with ``trouble``, why it is not the newest."""
    lines = [f"no answer: {trouble.translate(_VISIBLE)}", ""] if trouble else []
    lines += text.splitlines()
    if rows and len(lines) > rows:
        lines = [*lines[: rows - 1], f"... and {len(lines) - rows + 1} lines more"]
    return "\n".join([line[:columns] for line in lines] if columns else lines)


def heading_state(told: Mapping[str, Any]) -> tuple[str, str]:
    """How the whole stands, in a word or two, and whether that is good, warn or bad."""
    if error := told.get("error"):
        return str(error), "bad"
    missing = [stage["name"] for stage in told.get("stages", ()) if is_missing(stage)]
    if told.get("draining"):
        return "draining", "warn"
    if missing:
        return f"not ready: {', '.join(missing)}", "bad"
    silent = told.get("cells", 1) - told.get("cells_answering", told.get("cells", 1))
    return (f"{silent} of {told['cells']} cells silent", "warn") if silent else ("serving", "good")


def is_missing(stage: Mapping[str, Any]) -> bool:
    """Whether a stage cannot serve; one that may be without workers takes requests all the same, as /readyz has it."""
    return bool(stage.get("error") or stage.get("not_fed")) or not (stage.get("ready") or _may_rest(stage))


def is_resting(stage: Mapping[str, Any]) -> bool:
    """Whether it has no worker because nobody asks. ``wanted`` need not say so: its demand may be followed by others
    than who is asked."""
    has_none = not (stage.get("ready") or stage.get("starting") or stage.get("queued"))
    return has_none and _may_rest(stage) and not is_missing(stage)


def _may_rest(stage: Mapping[str, Any]) -> bool:
    bounds: Sequence[int] | None = stage.get("bounds")
    return bounds is not None and bounds[0] == 0


def heading(told: Mapping[str, Any]) -> Iterator[str]:
    """What there is to say of the whole."""
    state = "draining" if told.get("draining") else "up"
    yield (
        f"{told.get('name', '?')}: {state} for {duration(told.get('uptime_s', 0))}, "
        f"{told.get('admitted', 0)} of {told.get('capacity', 0)} requests admitted"
        f"{_THREADS.get(told.get('threads', ''), '')}{_cells(told)}"
    )
    urls = dict.fromkeys(one["url"] for one in told.get("frontends", ()) if one.get("url"))
    logs = dict.fromkeys(one["log"] for one in told.get("brokers", ()) if one.get("log"))
    if urls or logs:
        yield ", ".join([*urls, *(f"log: {log}" for log in logs)])
    if rates := told.get("rates"):
        yield (
            f"lately {rate(rates.get('answered_s', 0))} requests/s answered, {rate(rates.get('failed_s', 0))} failed, "
            f"{rate(rates.get('refused_s', 0))} refused"
        )


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """How they stand now, and what was lost since the start."""
    sound = [stage for stage in stages if not stage.get("error")]
    is_recent = any("lately" in stage for stage in sound)
    columns: dict[str, list[Any]] = {
        "STAGE": [stage["name"] for stage in sound],
        "READY": [f"{stage.get('ready', 0)}/{stage.get('wanted', 0)}{_beside(stage)}" for stage in sound],
        "DEMAND": [f"{stage.get('demand_workers', 0):.1f}" for stage in sound],
        "STARTING": [stage.get("starting", 0) for stage in sound],
        "QUEUED": [f"{stage.get('queued', 0)} ({size(stage.get('queued_bytes', 0))})" for stage in sound],
        "OLDEST": [time_ms(stage.get("oldest_ms", 0)) for stage in sound],
        "IN FLIGHT": [stage.get("in_flight", 0) for stage in sound],
        "BATCHES": [sum(stage.get("batches_by_reason", {}).values()) for stage in sound],
        "MEAN": [f"{stage.get('mean_batch', 0):.1f}" for stage in sound],
        "DEATHS": [stage.get("deaths", 0) for stage in sound],
        "REPLAYS": [stage.get("replayed", 0) for stage in sound],
    }
    left_out = {"BATCHES", "MEAN"} if is_recent else set()
    if not any(columns["STARTING"]):
        left_out.add("STARTING")
    shown = {head: cells for head, cells in columns.items() if head not in left_out}
    lines = aligned([[*shown], *zip(*shown.values(), strict=True)])
    return [*lines, *(f"{stage['name']}  {stage['error']}" for stage in stages if stage.get("error"))]


def _beside(stage: Mapping[str, Any]) -> str:
    """Its spares, and the bounds between which its demand scales it."""
    spares = sum(worker["state"] == "spare" for worker in stage.get("workers", ()))
    bounds = stage.get("bounds")
    return (f" +{spares}" if spares else "") + (f" of {bounds[0]}-{bounds[1]}" if bounds else "")


def _lately(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """How they went in the last seconds; of an older broker why batches left since the start."""
    rows: list[Sequence[Any]] = []
    for stage in stages:
        if lately := stage.get("lately"):
            queue, compute = lately.get("queue", {}), lately.get("compute", {})
            rows.append(
                (
                    stage["name"],
                    rate(lately.get("items_s", 0)),
                    rate(lately.get("batches_s", 0)),
                    f"{lately.get('mean_batch', 0):.1f}",
                    span(queue),
                    span(compute),
                    f"{100 * lately.get('busy', 0):.0f} %",
                    shares(lately.get("reasons", {})),
                )
            )
    if rows:
        head = ("LATELY", "ITEMS/S", "BATCH/S", "MEAN", "WAIT p50/p99", "COMPUTE p50/p99", "BUSY", "RELEASED BY")
        return aligned([head, *rows])
    reasons = [(stage["name"], stage.get("batches_by_reason", {})) for stage in stages if not stage.get("error")]
    if not any(counts for _, counts in reasons):
        return []
    return aligned([("STAGE", "RELEASED BY"), *((name, counted(counts) or "-") for name, counts in reasons)])


def _routes(told: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            route["path"],
            rate(route.get("answers_s", 0)),
            time_ms(route.get("p50_ms", 0)),
            time_ms(route.get("p99_ms", 0)),
            counted(route.get("answers", {})) or "-",
        )
        for route in told.get("routes", ())
    ]
    return aligned([("ROUTE", "ANSWERS/S", "p50", "p99", "BY STATUS, SINCE THE START"), *rows]) if rows else []


def workers(told: Mapping[str, Any], stage: str = "") -> list[str]:
    """All of them, or those of one stage. A column that says the same of all, and nothing much, is left out."""
    found = [
        (part["name"], worker)
        for part in told.get("stages", ())
        if stage in ("", part["name"])
        for worker in sorted(part.get("workers", ()), key=lambda one: (one["slot"], one.get("cell", 0), one["pid"]))
    ]
    if not found:
        return []
    hosts = {worker.get("node", "") for _, worker in found}
    columns: dict[str, list[Any]] = {
        "WORKER": [f"{name}-{one['slot']}" for name, one in found],
        "CELL": [one.get("cell", "") for _, one in found],
        "PID": [one["pid"] for _, one in found],
        "STATE": [one["state"] for _, one in found],
        "BATCHES": [one["batches"] for _, one in found],
        "ITEMS": [one["items"] for _, one in found],
    }
    if any("lately" in one for _, one in found):
        del columns["BATCHES"]
        recent = [one.get("lately", {}) for _, one in found]
        columns["ITEMS/S"] = [rate(one.get("items_s", 0)) for one in recent]
        columns["BUSY"] = [f"{100 * one.get('busy', 0):.0f} %" for one in recent]
        columns["CPU"] = [f"{one.get('cpu', 0):.2f}" for one in recent]
        columns["MEMORY"] = [size(one.get("resident_bytes", 0)) for _, one in found]
        columns["DEATHS"] = [one.get("deaths", 0) for _, one in found]
    columns["DEVICE"] = [one.get("device", "") for _, one in found]
    columns["GPU MEMORY"] = [size(held) if (held := one.get("device_bytes")) else "" for _, one in found]
    if len(hosts) > 1:
        columns["HOST"] = [one.get("node", "") for _, one in found]
    shown = {head: cells for head, cells in columns.items() if any(cell not in ("", "cpu") for cell in cells)}
    return aligned([[*shown], *zip(*shown.values(), strict=True)])


def _frontends(told: Mapping[str, Any]) -> list[str]:
    """And brokers: what is no worker."""
    rows: list[Sequence[Any]] = []
    is_told = False
    for one in told.get("frontends", ()):
        is_told = is_told or "resident_bytes" in one
        usage = f"{one.get('cpu', 0):.2f}", size(one.get("resident_bytes", 0)), one.get("version", "")
        rows.append((one["name"], one["pid"], one["pending"], *usage))
    lines = aligned([row if is_told else row[:3] for row in _headed(rows)]) if rows else []
    brokers = [
        (
            f"broker {one['cell']}" if "cell" in one else "broker",
            one.get("pid", 0),
            f"{one.get('cpu', 0):.2f}",
            size(one.get("resident_bytes", 0)),
            one.get("version", ""),
            one.get("endpoint") or one.get("node", ""),
        )
        for one in told.get("brokers", ())
    ]
    if brokers:
        lines += ["", *aligned([("BROKER", "PID", "CPU", "MEMORY", "VERSION", "AT"), *brokers])]
    return lines


def _headed(rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    return [("FRONTEND", "PID", "PENDING", "CPU", "MEMORY", "VERSION"), *rows]


def failures(told: Mapping[str, Any], most: int = ERRORS) -> list[str]:
    """The last of them, as their clients were told; the newest first."""
    rows = [
        (
            f"{duration(one.get('age_s', 0))} ago",
            one.get("stage") or "-",
            one.get("status", 0),
            one.get("count", 1),
            next(iter(one.get("requests", ())), "-"),
            f"{one.get('route') or '-'}: {one.get('message', '')}".translate(_VISIBLE),
        )
        for one in told.get("errors", ())[:most]
    ]
    if not rows:
        return []
    head, *lines = aligned([("FAILED", "STAGE", "STATUS", "TIMES", "LAST REQUEST"), *(row[:-1] for row in rows)])
    told_as = [row[-1] for row in rows]
    shown = [head]
    for line, message in zip(lines, told_as, strict=True):
        shown += [line, f"    {message}" if len(message) <= _MESSAGE else f"    {message[: _MESSAGE - 3]}..."]
    return shown


def _cells(told: Mapping[str, Any]) -> str:
    cells, answering = told.get("cells", 1), told.get("cells_answering", 1)
    if cells == 1:
        return ""
    return f", {cells} cells" if answering == cells else f", {answering} of {cells} cells answer"


def strangers(answer: bytes, own: Collection[int]) -> str:
    """The workers in the broker's JSON that are not among those with the pids ``own`` on its host, in words; empty:
    there are none."""
    counts: dict[str, int] = {}
    for stage in json.loads(answer).get("stages", ()):
        for worker in stage.get("workers", ()):
            if worker["state"] not in _LEAVING and not (worker.get("here", True) and worker["pid"] in own):
                counts[stage["name"]] = counts.get(stage["name"], 0) + 1
    return ", ".join(f"{count} worker{'s' * (count > 1)} of {stage}" for stage, count in counts.items())


def _remarks(stage: Mapping[str, Any]) -> Iterator[str]:
    """What is not so every day."""
    if why := stage.get("not_fed"):
        yield f"{stage['name']} is not fed: {why}"
    if (cost := stage.get("cost")) and cost["items"]:
        yield (
            f"{stage['name']}: a batch costs {cost['mean']:.4g} of {cost['most']:.4g} in the mean, "
            f"{100 * cost['waste']:.0f} % of it padding, as its {cost['by']} have it"
        )
    deaths: Mapping[str, int] = stage.get("deaths_by_cause", {})
    if any(deaths.values()):
        causes = [f"{count} {_DEATHS.get(cause, cause)}" for cause, count in sorted(deaths.items()) if count]
        yield f"{stage['name']} lost workers: {', '.join(causes)}"


def _goal(goal: Mapping[str, Any]) -> str:
    text = f"{goal['route']} is to be answered within {goal['slo_s'] * 1000:g} ms"
    if goal["unmet"]:
        takes = f"{goal['least_s'] * 1000:.0f} ms"
        return f"{text}, and cannot be: one request alone takes {takes}; its timeout counts instead"
    answers = goal["within"] + goal["late"]
    return f"{text}: {100 * goal['within'] / answers:.2f} % of {answers} results were" if answers else text


def _refusals(told: Mapping[str, Any]) -> Iterator[str]:
    """Who was refused since the start, where and why."""
    where = [("at the door", told), *((f"at {stage['name']}", stage) for stage in told.get("stages", ()))]
    for place, counts in where:
        refused: Mapping[str, int] = counts.get("refused", {})
        if any(refused.values()):
            yield f"refused {place}: {' '.join(f'{reason}:{count}' for reason, count in sorted(refused.items()))}"


def counted(counts: Mapping[str, int]) -> str:
    return " ".join(f"{name}:{count}" for name, count in sorted(counts.items()))


def shares(counts: Mapping[str, int]) -> str:
    """The largest first."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return " ".join(f"{name} {100 * count / total:.0f}%" for name, count in ordered if count) or "-"


def rate(number: float) -> str:
    """So often a second."""
    if number >= 10_000:
        return f"{number / 1000:.1f}k"
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}"


def time_ms(ms: float) -> str:
    if ms >= 10_000:
        return duration(ms / 1000)
    if ms >= 1000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if ms >= 100 or not ms else f"{ms:.1f} ms" if ms >= 0.1 else f"{ms:.2f} ms"


def span(latency: Mapping[str, float]) -> str:
    """p50 and p99 in one unit."""
    half, most = latency.get("p50_ms", 0.0), latency.get("p99_ms", 0.0)
    if most >= 1000:
        return f"{half / 1000:.1f} / {most / 1000:.1f} s"
    digits = 0 if most >= 100 or not most else 1 if most >= 1 else 2
    return f"{half:.{digits}f} / {most:.{digits}f} ms"


def aligned(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Columns as wide as their widest cell: text to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    right = [len(rows) > 1 and all(map(_is_number, (row[column] for row in rows[1:]))) for column in range(len(widths))]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int) or (isinstance(cell, str) and bool(_NUMBER.fullmatch(cell)))


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}"
