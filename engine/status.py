"""What ``engine status`` prints: the broker's own account (JSON) as a small table. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

_HEAD: Final = (
    "STAGE",
    "READY",
    "DEMAND",
    "STARTING",
    "QUEUED",
    "OLDEST",
    "IN FLIGHT",
    "BATCHES",
    "MEAN",
    "RELEASED BY",
)
_LEAVING: Final = ("leaving", "dying")
_DEATHS: Final = {
    "oom": "out of memory (oom)",
    "outside": "ended from outside",
    "own": "of their own doing",
    "forgotten": "without a word",
}
_THREADS: Final = {"stage": ", a broker thread per stage", "one": ", one broker thread"}


def table(answer: bytes) -> str:
    """The broker's JSON in lines for a terminal. Raises ValueError when it is not JSON; missing numbers show as 0."""
    told: Mapping[str, Any] = json.loads(answer)
    if error := told.get("error"):
        return f"{told.get('name', '?')}: {error}"
    state = "draining" if told.get("draining") else "up"
    lines = [
        f"{told.get('name', '?')}: {state} for {_duration(told.get('uptime_s', 0))}, "
        f"{told.get('admitted', 0)} of {told.get('capacity', 0)} requests admitted"
        f"{_THREADS.get(told.get('threads', ''), '')}{_cells(told)}",
        "",
        *_aligned([_HEAD, *(_stage(stage) for stage in told.get("stages", ()))]),
        *(line for stage in told.get("stages", ()) for line in _remarks(stage)),
        *map(_goal, told.get("goals", ())),
        *_refusals(told),
        *(
            f"{one['part']} has no place yet: it waits for {one['needs']}"
            for one in told.get("parts", ())
            if not one["host"]
        ),
    ]
    workers = [
        (
            f"{stage['name']}-{worker['slot']}",
            worker["pid"],
            worker["state"],
            worker["batches"],
            worker["items"],
            _size(held) if (held := worker.get("device_bytes")) else "",
        )
        for stage in told.get("stages", ())
        for worker in sorted(stage.get("workers", ()), key=lambda worker: (worker["slot"], worker["pid"]))
    ]
    if workers:
        head = ("WORKER", "PID", "STATE", "BATCHES", "ITEMS", "GPU MEMORY")
        wide = len(head) if any(row[-1] for row in workers) else -1
        lines += ["", *_aligned([row[:wide] for row in (head, *workers)])]
    if frontends := told.get("frontends", ()):
        rows = [(one["name"], one["pid"], one["pending"]) for one in frontends]
        lines += ["", *_aligned([("FRONTEND", "PID", "PENDING"), *rows])]
    return "\n".join(lines)


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


def _stage(stage: Mapping[str, Any]) -> tuple[Any, ...]:
    if error := stage.get("error"):
        return (stage["name"], error, *[""] * (len(_HEAD) - 2))
    reasons: Mapping[str, int] = stage.get("batches_by_reason", {})
    spares = sum(worker["state"] == "spare" for worker in stage.get("workers", ()))
    ready = f"{stage.get('ready', 0)}/{stage.get('wanted', 0)}{f' +{spares}' if spares else ''}"
    if bounds := stage.get("bounds"):  # between which its demand scales it
        ready += f" of {bounds[0]}-{bounds[1]}"
    return (
        stage["name"],
        ready,
        f"{stage.get('demand_workers', 0):.1f}",
        stage.get("starting", 0),
        f"{stage.get('queued', 0)} ({_size(stage.get('queued_bytes', 0))})",
        f"{stage.get('oldest_ms', 0):.0f} ms",
        stage.get("in_flight", 0),
        sum(reasons.values()),
        f"{stage.get('mean_batch', 0):.1f}",
        " ".join(f"{reason}:{count}" for reason, count in sorted(reasons.items())) or "-",
    )


def _aligned(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Columns as wide as their widest cell: text to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    right = [len(rows) > 1 and all(isinstance(row[column], int) for row in rows[1:]) for column in range(len(widths))]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}"
