"""What ``engine top`` draws of what the brokers say: lines of pieces, each with a style. Pure.

Above, the whole and its stages; below, of the stage that is chosen, one of PANES. A screen of 80 columns and 24 rows is
enough; one that is smaller is cut. How a style looks is the terminal's side's (:mod:`engine.commands.top`).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from engine.status import (
    duration,
    failures,
    heading_state,
    is_missing,
    is_resting,
    rate,
    shares,
    size,
    time_ms,
)

PANES: Final = ("workers", "failures", "routes")
KEYS: Final = "q quit   up/down stage   left/right: "
BLOCKS: Final = "▁▂▃▄▅▆▇█"
HISTORY: Final = 200  # looks
BAR: Final = 6  # columns

Piece: TypeAlias = tuple[str, str]  # text, style: "", title, quiet, good, warn, bad, bar, chosen
Line: TypeAlias = list[Piece]


class Top:
    """What is looked at, and what was seen of it."""

    def __init__(self) -> None:
        self._told: Mapping[str, Any] = {}
        self._rates: deque[float] = deque(maxlen=HISTORY)
        self._stage = 0  # the one that is chosen, from 1; 0: all
        self._pane = 0

    def take(self, answer: bytes) -> None:
        """Another look. Raises ValueError for what is not JSON."""
        self._told = json.loads(answer)
        self._rates.append(self._told.get("rates", {}).get("answered_s", 0.0))

    def pressed(self, key: str) -> bool:
        """Whether it changes what is shown."""
        stages = len(self._told.get("stages", ())) + 1
        if key in ("up", "k"):
            self._stage = (self._stage - 1) % stages
        elif key in ("down", "j"):
            self._stage = (self._stage + 1) % stages
        elif key in ("right", "l"):
            self._pane = (self._pane + 1) % len(PANES)
        elif key in ("left", "h"):
            self._pane = (self._pane - 1) % len(PANES)
        else:
            return False
        return True

    def lines(self, trouble: str, columns: int, rows: int, hint: str = "") -> list[Line]:
        """At most ``rows`` of them, none longer than ``columns``. ``trouble``: why it is not the newest; ``hint``: what
        else there is to say."""
        told = self._told
        upper = [*self._whole(trouble, columns), [], *_stages(told, self._stage)]
        pane = PANES[self._pane]
        below = {"workers": self._workers, "failures": self._failures, "routes": self._routes}[pane]()
        names = [(f" {name} ", "chosen" if name == pane else "quiet") for name in PANES]
        foot: list[Line] = [[(KEYS, "quiet"), *names]]
        if hint:
            foot.append([(hint, "quiet")])
        room = rows - len(upper) - len(foot) - 1
        if len(below) > room > 0:
            below = [*below[: room - 1], [(f"... and {len(below) - room + 1} more", "quiet")]]
        body = [*upper, [], *below[: max(room, 0)]]
        body = body[: rows - len(foot)]
        return [_cut(line, columns) for line in [*body, *[[]] * (rows - len(foot) - len(body)), *foot]]

    def _whole(self, trouble: str, columns: int) -> list[Line]:
        told = self._told
        words, style = heading_state(told)
        urls = dict.fromkeys(one["url"] for one in told.get("frontends", ()) if one.get("url"))
        first: Line = [
            (str(told.get("name", "?")), "title"), ("  ", ""), (words, style),
            (f"  up {duration(told.get('uptime_s', 0))}  {', '.join(urls)}", "quiet"),
        ]  # fmt: skip
        if trouble:
            first = [("no answer: ", "bad"), (trouble, "bad")]
        rates: Mapping[str, float] = told.get("rates", {})
        worst = max([route.get("p99_ms", 0.0) for route in told.get("routes", ())], default=0.0)
        failed, refused = rates.get("failed_s", 0.0), rates.get("refused_s", 0.0)
        second: Line = [
            (f"{rate(rates.get('answered_s', 0.0))}/s answered", "title"),
            ("  p99 ", "quiet"), (time_ms(worst), ""),
            ("  failed ", "quiet"), (f"{rate(failed)}/s", "bad" if failed else ""),
            ("  refused ", "quiet"), (f"{rate(refused)}/s", "warn" if refused else ""),
            ("  under way ", "quiet"), (f"{told.get('admitted', 0)} of {told.get('capacity', 0)}", ""),
        ]  # fmt: skip
        return [first, second, [(sparkline(list(self._rates), columns), "bar")]]

    def _chosen(self) -> str:
        stages = self._told.get("stages", ())
        return stages[self._stage - 1]["name"] if 0 < self._stage <= len(stages) else ""

    def _workers(self) -> list[Line]:
        chosen = self._chosen()
        found = [
            (stage["name"], worker)
            for stage in self._told.get("stages", ())
            if chosen in ("", stage["name"])
            for worker in sorted(stage.get("workers", ()), key=_place)
        ]
        hosts = {worker.get("node", "") for _, worker in found}
        rows = []
        for name, one in found:
            lately: Mapping[str, float] = one.get("lately", {})
            held = f" {size(one['device_bytes'])}" if one.get("device_bytes") else ""
            rows.append(
                [
                    (f"{name}-{one['slot']}", ""),
                    (str(one["pid"]), "quiet"),
                    (one["state"], "good" if one["state"] == "ready" else "warn"),
                    (rate(lately.get("items_s", 0.0)), ""),
                    *_bar(lately.get("busy", 0.0)),
                    (f"{lately.get('cpu', 0.0):.2f}", ""),
                    (size(one.get("resident_bytes", 0)), ""),
                    (str(one.get("deaths", 0)), "bad" if one.get("deaths") else "quiet"),
                    (f"{one.get('device', '')}{held}", ""),
                    (one.get("node", "") if len(hosts) > 1 else "", "quiet"),
                ]
            )
        head = ("WORKER", "PID", "STATE", "ITEMS/S", "BUSY", "", "CPU", "MEMORY", "DEATHS", "DEVICE", "")
        return _table(head, rows)

    def _failures(self) -> list[Line]:
        chosen = self._chosen()
        errors = [one for one in self._told.get("errors", ()) if chosen in ("", one.get("stage"))]
        lines: Sequence[str] = failures({"errors": errors}, most=len(errors)) or ["no request has failed"]
        return [[(line, "" if line.startswith(" ") else "quiet")] for line in lines]

    def _routes(self) -> list[Line]:
        chosen = self._chosen()
        rows = [
            [
                (route["path"], ""),
                (rate(route.get("answers_s", 0.0)), ""),
                (time_ms(route.get("p50_ms", 0.0)), ""),
                (time_ms(route.get("p99_ms", 0.0)), ""),
                (_through(route), "quiet"),
            ]
            for route in self._told.get("routes", ())
            if not chosen or chosen in route.get("stages", ())
        ]
        return _table(("ROUTE", "ANSWERS/S", "p50", "p99", "THROUGH"), rows)


def _through(route: Mapping[str, Any]) -> str:
    """The stages of a route in order; of one that branches each step that not every request takes, or not whole."""
    edges = route.get("edges") or ()
    if not edges:
        return " > ".join(route.get("stages", ()))
    forks = [f"{before} > {after or 'the answer'} ({when})" for before, after, when in edges if when]
    return "; ".join(forks)


def _stages(told: Mapping[str, Any], chosen: int) -> list[Line]:
    rows: list[list[Piece]] = []
    for number, stage in enumerate(told.get("stages", ()), 1):
        name = (f"{'>' if number == chosen else ' '} {stage['name']}", "chosen" if number == chosen else "title")
        if error := stage.get("error"):
            rows.append([name, (error, "bad")])
            continue
        lately: Mapping[str, Any] = stage.get("lately", {})
        ready, wanted = stage.get("ready", 0), stage.get("wanted", 0)
        if is_resting(stage):
            presence = ("resting", "quiet")
        elif is_missing(stage) and not ready:
            presence = (f"{ready}/{wanted}", "bad")
        else:
            presence = (f"{ready}/{wanted}", "good" if ready >= wanted and not stage.get("not_fed") else "warn")
        deaths = stage.get("deaths", 0)
        rows.append(
            [
                name,
                presence,
                (str(deaths), "bad" if deaths else "quiet"),
                (str(stage.get("queued", 0)), ""),
                (rate(lately.get("items_s", 0.0)), ""),
                (f"{lately.get('mean_batch', stage.get('mean_batch', 0)):.1f}", ""),
                (time_ms(lately.get("queue", {}).get("p99_ms", 0.0)), ""),
                (time_ms(lately.get("compute", {}).get("p99_ms", 0.0)), ""),
                *_bar(lately.get("busy", 0.0)),
                (shares(lately.get("reasons", {})), "quiet"),
            ]
        )
    head = ("  STAGE", "READY", "DEATHS", "QUEUE", "ITEMS/S", "BATCH", "WAIT p99", "COMPUTE", "BUSY", "", "LEFT FOR")
    return _table(head, rows)


def sparkline(values: Sequence[float], columns: int) -> str:
    """The newest on the right."""
    shown = values[-columns:] if columns > 0 else values
    most = max(shown, default=0.0) or 1.0
    return "".join(BLOCKS[min(int(value / most * len(BLOCKS)), len(BLOCKS) - 1)] for value in shown)


def _place(worker: Mapping[str, Any]) -> tuple[int, int, int]:
    return worker.get("cell", 0), worker["slot"], worker["pid"]


def _bar(share: float) -> list[Piece]:
    share = min(max(share, 0.0), 1.0)
    full = round(share * BAR)
    return [(f"{100 * share:.0f}%", "warn" if share > 0.95 else ""), ("█" * full + "░" * (BAR - full), "bar")]


def _table(head: Sequence[str], rows: Sequence[Sequence[Piece]]) -> list[Line]:
    """Numbers to the right, all else to the left; a column in which nothing stands is left out."""
    grid = [[(text, "quiet") for text in head], *([*row, *[("", "")] * (len(head) - len(row))] for row in rows)]
    kept = [at for at in range(len(head)) if not rows or any(row[at][0] for row in grid[1:])]
    widths = {at: max(len(row[at][0]) for row in grid) for at in kept}
    right = {at: bool(rows) and all(row[at][0][:1].isdigit() for row in grid[1:] if row[at][0]) for at in kept}
    lines = []
    for row in grid:
        line: Line = []
        for at in kept:
            text, style = row[at]
            line.append((text.rjust(widths[at]) if right[at] else text.ljust(widths[at]), style))
            line.append(("  ", ""))
        lines.append(line[:-1])
    return lines


def _cut(line: Line, columns: int) -> Line:
    if columns <= 0:
        return line
    out: Line = []
    for text, style in line:
        out.append((text[:columns], style))
        columns -= len(text)
        if columns <= 0:
            break
    return out
