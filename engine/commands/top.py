"""``engine top``: a running deployment, live in a terminal, by stage and worker; in colour where there is ``rich``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from engine import log
from engine.commands import watching
from engine.commands.command import Command, add_on
from engine.commands.status import ask, every, nobody
from engine.errors import Unavailable

if TYPE_CHECKING:
    from engine.config import Deployment
    from engine.top import Line

EVERY_S: Final = 1.0
PLAIN: Final = "without colours, for which: pip install 'stageline[top]'"
PIPE_COLUMNS, PIPE_ROWS = 100, 40  # of a look that is printed and not drawn

Paint: TypeAlias = "Callable[[Sequence[Line]], str]"


def top(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.top import Top

    log.setup("top", level=deployment.engine.log_level)
    seen = Top()
    paint, hint = _painter() if watching.is_terminal() else (plain, "")
    last: list[bytes] = []

    def show(answer: bytes | None, trouble: str, columns: int, rows: int) -> str:
        if answer is not None and last != [answer]:
            last[:] = [answer]
            seen.take(answer)
        if not rows:
            return plain(seen.lines(trouble, PIPE_COLUMNS, PIPE_ROWS))
        return paint(seen.lines(trouble, columns, rows, hint))

    try:
        return watching.watch(lambda: ask(options, deployment), show, options.every, pressed=seen.pressed)
    except Unavailable as error:
        return nobody(options, deployment, error)


def plain(lines: Sequence[Line]) -> str:
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


def _painter() -> tuple[Paint, str]:
    """How lines become text for this terminal, and what there is to say of it."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return plain, PLAIN
    styles = {
        "title": "bold", "quiet": "dim", "good": "green", "warn": "yellow", "bad": "bold red", "bar": "blue",
        "chosen": "bold reverse",
    }  # fmt: skip
    console = Console(force_terminal=True, highlight=False, markup=False, soft_wrap=True)

    def paint(lines: Sequence[Line]) -> str:
        with console.capture() as capture:
            for line in lines:
                console.print(Text.assemble(*[(text, styles.get(style, "")) for text, style in line]))
        return capture.get()

    return paint, ""


def _arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--every",
        metavar="SECONDS",
        type=every,
        default=EVERY_S,
        help=f"so many seconds between two looks (default: {EVERY_S:g})",
    )
    add_on(sub)


TOP: Final = Command(
    "top",
    "watch a running deployment, live: its stages and their workers",
    top,
    "engine top stages.toml",
    linked=True,
    arguments=_arguments,
)
