"""What was found, as a table for people and as data for programs; and read back from the data. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from engine.simulation.figures import Figures, StageFigures

FORMAT: Final = "stageline plan 1"
HEAD: Final = ("WORKERS", "P50", "P99", "IN TIME", "REFUSED", "LATE", "BUSY", "LOAD")
NEAR: Final = 0.8  # of those that may be late: with more of them it was close
FULL: Final = 0.85  # of what full batches carry: from there on a stage has little room


class PlanError(ValueError):
    """A plan that cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Plan:
    """The answer to one question. ``best`` has the fewest workers for ``rate``, or the highest rate for ``devices``
    (0: the former was asked); ``more`` is the same with one worker more. ``slos_s`` are the goals of the routes, and
    ``alone_s`` what one request takes there that is alone. ``notes`` are what to keep in mind."""

    name: str
    rate: float
    slos_s: tuple[float, ...]
    target: float
    arrivals: str
    profile: str
    best: Figures
    more: Figures
    is_met: bool
    devices: int = 0
    alone_s: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    times_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # what it was made of, for the curious

    @property
    def goals(self) -> str:
        """In words."""
        return " and ".join([_ms(slo_s) for slo_s in dict.fromkeys(self.slos_s)])

    @property
    def limits(self) -> str:
        """What keeps it from being better, in words."""
        stage = self.best.stages[self.best.limit]
        where = stage.name if len(self.best.stages) > 1 else "the workers"
        for slo_s, alone_s in zip(self.slos_s, self.alone_s, strict=False):
            if alone_s > slo_s:
                return f"one request alone takes {_ms(alone_s)}, and no number of workers changes that"
        if stage.load >= FULL:
            return f"{where}: at {_percent(stage.load)} of what full batches carry there is little room"
        if stage.wait_p99_s < stage.batch_s:
            return f"{where}: not waiting but the batches themselves, {_ms(stage.batch_s)} in the mean"
        return (
            f"{where}: requests come together, and one in a hundred waits {_ms(stage.wait_p99_s)} for those before it"
        )

    def to_json(self) -> str:
        """To be read by programs, and by ``engine plan --check``."""
        return json.dumps({"format": FORMAT, **asdict(self), "limits": self.limits}, indent=1) + "\n"


def read_plan(text: str, name: str) -> Plan:
    """Inverse of :meth:`Plan.to_json`; ``name`` is the file's. Raises PlanError."""
    try:
        told = json.loads(text)
        if told.pop("format") != FORMAT:
            raise ValueError("of another version")
        told.pop("limits")
        return Plan(
            **{
                **told,
                "best": _figures(told["best"]),
                "more": _figures(told["more"]),
                "notes": tuple(told["notes"]),
                "slos_s": tuple(told["slos_s"]),
                "alone_s": tuple(told["alone_s"]),
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PlanError(f"{name}: not a plan ({error}); engine plan ... --json > {name} writes one") from None


def _figures(told: dict[str, Any]) -> Figures:
    stages = tuple(StageFigures(**stage) for stage in told["stages"])
    return Figures(**{**told, "stages": stages, "curve": tuple(told["curve"])})


def text(plan: Plan) -> str:
    """For people."""
    goal = f"within {plan.goals} for {_percent(plan.target)}"
    if plan.devices:
        asked = f"the highest rate of {plan.devices} workers, {goal}"
    else:
        asked = f"the fewest workers for {plan.rate:g} requests/s, {goal}"
    lines = [
        f"{plan.name}: {asked}",
        f"arrivals: {plan.arrivals}",
        f"profile: {plan.profile}",
        f"simulated: {plan.best.requests} requests for each line",
        "",
        *aligned([HEAD, *(_row(one) for one in (plan.best, plan.more))]),
        "",
    ]
    if not plan.is_met:
        lines.append(f"NOT MET: {goal} cannot be had; the first line comes nearest")
    elif plan.devices:
        lines.append(f"up to {plan.best.rate:.4g} requests/s; the second line is the same rate with one worker more")
    else:
        margin = " and is close to the goal: take it where a miss costs little" if _is_close(plan) else ""
        lines.append(f"the first line does{margin}; the second is one worker more, to be safe")
    lines.append(f"limited by {plan.limits}")
    lines += [f"(!) {note}" for note in plan.notes]
    return "\n".join(lines)


def _is_close(plan: Plan) -> bool:
    missed, may_be = 1.0 - plan.best.lowest, 1.0 - plan.target
    return missed > NEAR * may_be or max(stage.load for stage in plan.best.stages) >= FULL


def workers(figures: Figures) -> str:
    """``tokenize 1, encode 3``; a bare number where there is one stage."""
    if len(figures.stages) == 1:
        return f"{figures.stages[0].workers}"
    return ", ".join(f"{stage.name} {stage.workers}" for stage in figures.stages)


def _row(figures: Figures) -> tuple[str, ...]:
    shares = (_percent(share) for share in (figures.in_time, figures.refused, figures.late))
    busy = ", ".join(_percent(stage.busy) for stage in figures.stages)
    load = ", ".join(_percent(stage.load) for stage in figures.stages)
    return (workers(figures), _ms(figures.p50_s), _ms(figures.p99_s), *shares, busy, load)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _percent(share: float) -> str:
    """With as many digits as tell it from all and from none."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent in (0.0, 100.0) else f"{percent:.3g} %" if percent < 99 else f"{percent:.4g} %"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 10 else f"{seconds:.3g} s"


@dataclass(frozen=True)
class Seen:
    """What a running deployment did in a while: the counterparts of :class:`Figures`, None where nothing tells."""

    seconds: float
    rate: float
    in_time: float | None
    refused: float | None
    p50_s: float | None
    p99_s: float | None
    busy: Mapping[str, float]
    workers: Mapping[str, int]


def compared(figures: Figures, seen: Seen) -> str:
    """A plan beside a running deployment."""
    rows = [("", "PLANNED", "RUNNING")]

    def row(what: str, planned: float, running: float | None, form: Any) -> None:  # a function of one number
        rows.append((what, form(planned), "-" if running is None else form(running)))

    row("requests/s", figures.rate, seen.rate, lambda value: f"{value:.4g}")
    for stage in figures.stages:
        rows.append((f"{stage.name}: workers", f"{stage.workers}", f"{seen.workers.get(stage.name, 0)}"))
        row(f"{stage.name}: busy", stage.busy, seen.busy.get(stage.name), _percent)
    row("in time", figures.in_time, seen.in_time, _percent)
    row("refused", figures.refused, seen.refused, _percent)
    row("p50", figures.p50_s, seen.p50_s, _ms)
    row("p99", figures.p99_s, seen.p99_s, _ms)
    return "\n".join(aligned(rows))
