"""What was found, as a table for people, as data for programs, and as a picture. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from engine.bench.figures import STEPS, Figures
from engine.bench.highest import Found as Highest
from engine.bench.versus import Verdict
from engine.simulation.picture import Line, Mark, chart

FORMAT: Final = "stageline bench 1"
SHOWN: Final = 4.0  # times the goal: beyond that a picture shows nothing but the overload
HEAD: Final = ("RATE", "ANSWERED", "IN TIME", "MEAN", "P50", "P90", "P99", "P99.9", "MAX")


@dataclass(frozen=True)
class Found:
    """``services`` and what each was sent. ``runs``: all that were made, in order. ``highest``: where that was asked
    for; ``verdicts`` and ``rounds`` where two were compared."""

    services: Sequence[str]
    sends: Sequence[str]
    arrivals: str
    slo_s: float
    target: float
    runs: Sequence[Figures]
    is_met: bool
    highest: Highest | None = None
    verdicts: Sequence[Verdict] = field(default_factory=tuple)
    rounds: tuple[Sequence[Figures], Sequence[Figures]] = ((), ())


def table(found: Found) -> str:
    return "\n".join(_lines(found))


def _lines(found: Found) -> Iterator[str]:
    if found.rounds[0]:
        yield from _compared(found)
        return
    yield f"{found.services[0]}  ({found.arrivals} arrivals; sent: {found.sends[0]})"
    if found.highest is None:
        run = found.runs[0]
        yield ""
        yield from _aligned([HEAD, _row(run, found.slo_s)])
        yield from _notes(run)
        if found.slo_s:
            verdict = "met" if found.is_met else "MISSED"
            yield f"goal: {100 * found.target:g} % within {_ms(found.slo_s * 1e3)}: {verdict} ({_share(run.share)})"
        return
    best, missed = found.highest.figures, found.highest.missed
    goal = f"{100 * found.target:g} % within {_ms(found.slo_s * 1e3)}"
    if best is None:
        yield f"no rate was found at which {goal} are answered"
        last = missed or found.runs[-1]
        yield ""
        yield from _aligned([HEAD, _row(last, found.slo_s)])
        yield from _notes(last)
        return
    yield f"highest rate with {goal}: {best.rate:.4g}/s"
    yield ""
    rows = [HEAD, _row(best, found.slo_s)]
    if missed is not None:
        rows.append(_row(missed, found.slo_s))
    yield from _aligned(rows)
    yield from _notes(best)
    if missed is None:
        yield "It may be higher: this client cannot ask more often. Run several, or on a machine with more CPUs."


def _compared(found: Found) -> Iterator[str]:
    for name, service, sends in zip("AB", found.services, found.sends, strict=True):
        yield f"{name}: {service}  (sent: {sends})"
    run = found.rounds[0][0]
    turns = f"{len(found.rounds[0])} rounds of {run.seconds:g} s in turns"
    yield f"{turns}, {run.rate:.4g}/s, {found.arrivals} arrivals, the same for both"
    yield ""
    rows: list[Sequence[str]] = [("", "A", "B", "B / A", "95 % BETWEEN", "")]
    for one in found.verdicts:
        digits = (lambda value: f"{value:.4g}/s") if one.unit == "/s" else _ms
        rows.append(
            (one.name, digits(one.first), digits(one.second), f"{one.ratio:.3f}", f"{one.low:.3f} and {one.high:.3f}",
             one.words)
        )  # fmt: skip
    yield from _aligned(rows, left=(0, 5))
    for name, rounds in zip("AB", found.rounds, strict=True):
        failed = sum(run.sent - run.answered for run in rounds)
        if failed:
            yield f"{name}: {failed} of {sum(run.sent for run in rounds)} were not answered: {_wrong(rounds)}"
    if any(run.is_behind for rounds in found.rounds for run in rounds):
        yield BEHIND


BEHIND: Final = "This client could not keep up in part: a good part of these latencies is its own. Ask for less."


def _notes(run: Figures) -> Iterator[str]:
    if run.streams:
        yield f"first byte: p50 {_ms(run.first_p50_ms)}, p99 {_ms(run.first_p99_ms)}"
    if run.sent > run.answered:
        yield f"{run.sent - run.answered} of {run.sent} were not answered: {_wrong([run])}"
    if run.waited:
        yield f"{run.waited} waited for one of {run.connections} connections: allow more with --connections"
    if run.is_behind:
        yield BEHIND
    elif run.is_disturbed:
        yield (
            f"One request in a hundred left {_ms(run.lag_p99_ms)} late, for want of CPU here: the longest times are "
            "this client's own."
        )


def _wrong(runs: Sequence[Figures]) -> str:
    counts: dict[str, int] = {}
    texts: dict[str, str] = {}
    for run in runs:
        for status, count in run.statuses.items():
            if not status.isdecimal() or int(status) >= 400:
                counts[status] = counts.get(status, 0) + count
                texts.setdefault(status, run.wrong.get(status, ""))
    return "; ".join(
        f"{count} times {status}" + (f" ({texts[status][:80]})" if texts[status] else "")
        for status, count in counts.items()
    )


def step(run: Figures, slo_s: float, target: float, *, is_last: bool) -> str:
    """A line about one step of a search."""
    kept = "kept" if run.share >= target else "missed"
    what = "confirmed" if is_last and kept == "kept" else kept
    if kept == "missed" and run.sent > run.answered:
        what = f"{what}: {_wrong([run])}"
    return f"{run.rate:>8.4g}/s  {_share(run.share):>8} within {_ms(slo_s * 1e3)}, p99 {_ms(run.p99_ms):>8}  {what}"


def _row(run: Figures, slo_s: float) -> Sequence[str]:
    return (
        f"{run.rate:.4g}/s",
        f"{run.throughput:.4g}/s",
        _share(run.share) if slo_s else "",
        *(
            _ms(value) if run.answered else ""
            for value in (run.mean_ms, run.p50_ms, run.p90_ms, run.p99_ms, run.p999_ms, run.max_ms)
        ),
    )


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> Iterator[str]:
    """Columns of figures; those without any are left out."""
    places = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    widths = {place: max(len(row[place]) for row in rows) for place in places}
    for row in rows:
        cells = (
            row[place].ljust(widths[place]) if place in left else row[place].rjust(widths[place]) for place in places
        )
        yield "  ".join(cells).rstrip()


def _ms(value: float) -> str:
    """Milliseconds, with as many digits as say something."""
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def _share(value: float) -> str:
    text = f"{100 * value:.2f}"
    return f"{'<100' if text == '100.00' and value < 1 else text.removesuffix('.00')} %"


# --- as data ---------------------------------------------------------------------------------------------------------


def as_json(found: Found) -> str:
    """All of it."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "services": [{"url": url, "sends": sends} for url, sends in zip(found.services, found.sends, strict=True)],
        "arrivals": found.arrivals,
        "slo_ms": found.slo_s * 1e3 or None,
        "target": found.target,
        "met": found.is_met,
    }
    if found.rounds[0]:
        data["rounds"] = {name: [_data(run) for run in rounds] for name, rounds in zip("AB", found.rounds, strict=True)}
        data["verdicts"] = [{**asdict(one), "sure": one.sure, "words": one.words} for one in found.verdicts]
    else:
        data["runs"] = [_data(run) for run in found.runs]
        if found.highest is not None:
            data["highest"] = found.highest.figures and found.highest.figures.rate
    return json.dumps(_rounded(data), indent=2)


def _data(run: Figures) -> dict[str, Any]:
    return {
        **asdict(run),
        "share": run.share,
        "behind": run.is_behind,
    }


def _rounded(value: Any) -> Any:  # Any: what JSON can say
    """To as many digits as say something."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


# --- as a picture ----------------------------------------------------------------------------------------------------


def picture(found: Found) -> str:
    """An SVG: which share is answered within which time; of a search, the latency at each rate."""
    goal = [Mark("goal", x=found.slo_s * 1e3)] if found.slo_s else []
    if found.highest is not None:
        last = {run.rate: run for run in found.runs if run.answered}  # of what was tried again the second
        runs = [last[rate] for rate in sorted(last)]
        most = SHOWN * found.slo_s * 1e3
        lines = [
            Line("p99", [(run.rate, min(run.p99_ms, most)) for run in runs]),
            Line("p50", [(run.rate, min(run.p50_ms, most)) for run in runs]),
        ]
        marks = [Mark("goal", y=found.slo_s * 1e3)]
        if (best := found.highest.figures) is not None:
            marks.append(Mark(f"{best.rate:.4g}/s", x=best.rate))
        return chart(found.services[0], "requests/s", "latency, ms", lines, marks)
    if found.rounds[0]:
        lines = [Line(name, _curve(rounds)) for name, rounds in zip("AB", found.rounds, strict=True)]
        title = f"A {found.services[0]}, B {found.services[1]}"
    else:
        lines = [Line("latency", _curve(found.runs))]
        title = found.services[0]
    return chart(f"{title}: {found.runs[0].rate:.4g}/s", "answered within, ms", "requests, %", lines, goal)


def _curve(runs: Sequence[Figures]) -> list[tuple[float, float]]:
    """Of several the median at each share. The last hundredth is left out: it would make all else small."""
    curves = [run.curve_ms for run in runs if run.curve_ms]
    if not curves:
        return []
    middle = [sorted(curve[place] for curve in curves)[len(curves) // 2] for place in range(STEPS + 1)]
    answered = sum(run.answered for run in runs) / max(1, sum(run.sent for run in runs))
    return [(ms, 100 * answered * place / STEPS) for place, ms in enumerate(middle[: STEPS * 99 // 100 + 1])]
