"""Results as aligned text for a terminal and as Markdown: medians per system, and the ratio to Mosec. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.result import OURS, PEER, Case, Metric, Point, Summary

Cells = list[list[str]]


def cells(case: Case, summary: Summary) -> Cells:
    """Head and lines: one per point and metric, with each system's median (smallest to largest) and the ratio."""
    systems = summary.systems
    compared = OURS in systems and PEER in systems
    head = [*case.by, "", *systems, *([f"ratio to {PEER}"] if compared else [])]
    lines = [head]
    for point in summary.points():
        for metric in case.metrics:
            if all(summary.value(system, point, metric.key) is None for system in systems):
                continue
            line = [plain(point.get(key, "")) for key in case.by] + [metric.label]
            line += [_cell(summary, system, point, metric) for system in systems]
            if compared:
                ratio = summary.ratio(point, metric.key)
                line.append("-" if ratio is None else f"{ratio:.2f}x")
            lines.append(line)
    return lines


def _cell(summary: Summary, system: str, point: Point, metric: Metric) -> str:
    if metric.to:
        ratio = summary.ratio(point, metric.key, to=metric.to, of=system)
        return "-" if ratio is None else number(ratio, metric.digits)
    value = summary.value(system, point, metric.key)
    spread = summary.spread(system, point, metric.key)
    if value is None or spread is None:
        return "-"
    low, high = spread
    shown = number(value, metric.digits)
    return shown if low == high else f"{shown} ({number(low, metric.digits)}-{number(high, metric.digits)})"


def number(value: float, digits: int) -> str:
    """With thousands apart, and no digits after the point where they would only be noise."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.{digits}f}"


def plain(value: float | str) -> str:
    """A point's value: 64 rather than 64.0."""
    return f"{value:g}" if isinstance(value, int | float) else value


def text(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell: numbers to the right, words to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    words = [any(line[column][:1].isalpha() for line in lines[1:]) for column in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    return "\n".join(_rows(lines))


def _rows(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for index, line in enumerate(lines):
        yield "| " + " | ".join(line) + " |"
        if index == 0:
            yield "|" + " --- |" * len(line)


def targets(case: Case, summary: Summary) -> Cells:
    """Head and lines: each target of the case, what was measured, whether it holds. Only the head if it has none."""
    lines = [["target", "bound", "measured", ""]]
    for target in case.targets:
        found, met = target.measure(summary), target.met(summary)
        lines.append(
            [
                target.claim,
                f"{'at least' if target.at_least else 'at most'} {target.bound:g}{target.unit}",
                "not measured" if found is None else f"{found:.2f}{target.unit}",
                {True: "met", False: "missed", None: ""}[met],
            ]
        )
    return lines
