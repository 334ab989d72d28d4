"""Results as SVG: one file per picture of a case, a line (or bars, where x is words) per system."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.result import Case, Picture, Point, Summary

COLOURS: Final = {
    "stageline": "#0b6e4f",
    "mosec": "#c8553d",
    "litserve": "#6c6f93",
    "offline": "#333333",
    "bare": "#333333",
}
SIZE_IN: Final = (6.0, 3.6)


def file_name(case: Case, picture: Picture) -> str:
    return f"{case.name}-{picture.metric.removesuffix('_ms').replace('_', '-')}.svg"


def draw(case: Case, summary: Summary, folder: Path) -> list[Path]:
    """Draw the case's pictures into ``folder``, which is made. A picture without any value is left out."""
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file, apart from a rounding of another release.
    matplotlib.rcParams.update({"svg.hashsalt": "stageline", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for picture in case.pictures:
        panels = _panels(case, summary, picture)
        if not panels:
            continue
        width, height = SIZE_IN
        figure, axes = pyplot.subplots(1, len(panels), figsize=(width * len(panels), height), squeeze=False)
        for axis, panel in zip(axes[0], panels, strict=True):
            _panel(axis, summary, picture, panel)
        figure.suptitle(picture.title)
        figure.tight_layout()
        path = folder / file_name(case, picture)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        files.append(path)
    return files


def _panels(case: Case, summary: Summary, picture: Picture) -> list[list[Point]]:
    """The points that have a value, apart by what they are besides x."""
    apart: dict[tuple[Any, ...], list[Point]] = {}  # values of points: numbers and words
    for point in summary.points():
        if any(summary.value(system, point, picture.metric) is not None for system in summary.systems):
            apart.setdefault(tuple(point[key] for key in case.by if key != picture.x), []).append(point)
    return list(apart.values())


def _panel(axis: Any, summary: Summary, picture: Picture, points: list[Point]) -> None:  # matplotlib's axes
    xs = [point[picture.x] for point in points]
    words = any(isinstance(x, str) for x in xs)
    systems = [
        system
        for system in summary.systems
        if any(summary.value(system, point, picture.metric) is not None for point in points)
    ]
    for index, system in enumerate(systems):
        found = [(x, summary.value(system, point, picture.metric)) for x, point in zip(xs, points, strict=True)]
        shown = [(x, value) for x, value in found if value is not None]
        colour = COLOURS.get(system)
        if words:
            width = 0.8 / len(systems)
            places = [xs.index(x) + (index - (len(systems) - 1) / 2) * width for x, _ in shown]
            axis.bar(places, [value for _, value in shown], width, label=system, color=colour)
        else:
            axis.plot([x for x, _ in shown], [value for _, value in shown], marker="o", label=system, color=colour)
    if words:
        axis.set_xticks(range(len(xs)), xs)
    else:
        if picture.log_x:
            axis.set_xscale("log", base=2)
        axis.set_xticks(xs, [f"{x:g}" for x in xs if not isinstance(x, str)])
        axis.minorticks_off()
    if picture.log_y:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    others = {key: value for key, value in points[0].items() if key != picture.x}
    axis.set_title(", ".join(value if isinstance(value, str) else f"{value:g} {key}" for key, value in others.items()))
    axis.set_xlabel(picture.x)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
