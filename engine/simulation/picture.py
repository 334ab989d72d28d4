"""Lines over two axes as SVG, of a plan above all: which share of the requests is answered within which time. Pure.

By hand, some fifty lines: what draws pictures well is larger than all the rest of the project, and a plan is made where
nobody has installed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from typing import Final

from engine.simulation.table import Plan, workers

COLOURS: Final = ("#0b6e4f", "#c8553d", "#6c6f93", "#333333")
WIDTH, HEIGHT = 560, 330
FONT: Final = 'font-family="sans-serif" font-size="11"'
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 34, 46


@dataclass(frozen=True)
class Line:
    """``points`` in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """A value of x, or of y, that a dashed line is drawn at."""

    name: str
    x: float | None = None
    y: float | None = None


def chart(title: str, x_name: str, y_name: str, lines: Sequence[Line], marks: Sequence[Mark] = ()) -> str:
    """A whole SVG. Both axes begin with 0; a line without points is left out."""
    lines = [line for line in lines if line.points]
    x_most = max([x for line in lines for x, _ in line.points] + [mark.x for mark in marks if mark.x] + [1e-9])
    y_most = max([y for line in lines for _, y in line.points] + [mark.y for mark in marks if mark.y] + [1e-9])

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / x_most * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - y / y_most * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{WIDTH / 2:g}" y="18" text-anchor="middle" font-size="13">{escape(title)}</text>',
    ]
    for value in _steps(x_most):
        x, y = at(value, 0)
        parts.append(f'<path d="M{x:.1f} {TOP}V{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">{value:g}</text>')
    for value in _steps(y_most):
        x, y = at(0, value)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for mark in marks:
        x, y = at(mark.x or 0, mark.y or 0)
        way = f"M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" if mark.x is not None else f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"
        place = (
            f'x="{x - 4:.1f}" y="{HEIGHT - BOTTOM - 6}" text-anchor="end"'
            if mark.x is not None
            else f'x="{LEFT + 6}" y="{y + 13:.1f}"'
        )
        parts.append(f'<path d="{way}" stroke="#888888" stroke-dasharray="4 3"/>')
        parts.append(f'<text {place} fill="#666666">{escape(mark.name)}</text>')
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line.points))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = HEIGHT - BOTTOM - 12 - 16 * (len(lines) - number)
        parts.append(
            f'<text x="{WIDTH - RIGHT - 8}" y="{y}" text-anchor="end" fill="{colour}">{escape(line.name)}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts += [
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#333333"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(14 {middle:g}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _steps(most: float) -> list[float]:
    """Round values from 0 to ``most``, some five."""
    power: float = 10.0 ** floor(log10(most))
    step = next(power * factor for factor in (0.1, 0.2, 0.5, 1.0, 2.0) if most / (power * factor) <= 6)
    return [round(step * number, 12) for number in range(int(most / step * (1 + 1e-9)) + 1)]


def drawn(plan: Plan) -> str:
    """Both lines of a plan, with its goal. Who was refused or too late was answered within no time."""
    found = []
    for figures in (plan.best, plan.more):
        last = max(len(figures.curve) - 1, 1)
        points = [
            (seconds * 1000, 100 * figures.answered * place / last) for place, seconds in enumerate(figures.curve)
        ]
        found.append(Line(f"{workers(figures)} workers" if len(figures.stages) == 1 else workers(figures), points))
    goals = [Mark("goal", x=slo_s * 1000) for slo_s in dict.fromkeys(plan.slos_s)]
    marks = [*goals, Mark(f"{100 * plan.target:g} %", y=100 * plan.target)]
    return chart(
        f"{plan.name}: {plan.best.rate:.4g} requests/s, {plan.arrivals}",
        "answered within, ms",
        "requests, %",
        found if plan.more.counts != plan.best.counts else found[:1],
        marks,
    )
