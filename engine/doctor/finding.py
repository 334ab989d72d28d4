"""What is found, and how it is shown. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from textwrap import wrap
from typing import Final

WIDTH: Final = 100


class Grade(str, Enum):
    GOOD = "good"
    NOTE = "note"  # it works, and might surprise
    BAD = "bad"  # it fails, or will


@dataclass(frozen=True)
class Finding:
    """``about``: one or two words; ``seen``: what is so; ``do``: what to do about it, of anything but a good one."""

    grade: Grade
    about: str
    seen: str
    do: str = ""


def good(about: str, seen: str) -> Finding:
    return Finding(Grade.GOOD, about, seen)


def note(about: str, seen: str, do: str) -> Finding:
    return Finding(Grade.NOTE, about, seen, do)


def bad(about: str, seen: str, do: str) -> Finding:
    return Finding(Grade.BAD, about, seen, do)


def text(findings: Sequence[Finding], *, colour: bool) -> str:
    """In lines; what is bad at the end, where it is looked at."""
    order = (Grade.GOOD, Grade.NOTE, Grade.BAD)
    lines = [line for grade in order for one in findings if one.grade is grade for line in _lines(one, colour=colour)]
    counts = [sum(one.grade is grade for one in findings) for grade in order]
    lines.append("")
    lines.append(
        "nothing is wrong" + (f", {counts[1]} to know" if counts[1] else "")
        if not counts[2]
        else f"{counts[2]} of {len(findings)} to mend, {counts[1]} to know"
    )
    return "\n".join(lines)


_COLOURS: Final = {Grade.GOOD: "32", Grade.NOTE: "33", Grade.BAD: "31"}


def _lines(one: Finding, *, colour: bool) -> Iterator[str]:
    word = f"{one.grade.value:<4}"
    word = f"\x1b[{_COLOURS[one.grade]}m{word}\x1b[0m" if colour else word
    indent = " " * 20
    seen = wrap(one.seen, WIDTH - len(indent)) or [""]
    yield f"{word}  {one.about:<13} {seen[0]}"
    yield from (indent + line for line in seen[1:])
    yield from (indent + line for line in wrap(f"-> {one.do}", WIDTH - len(indent)) if one.do)


def as_json(findings: Sequence[Finding]) -> str:
    is_ok = not any(one.grade is Grade.BAD for one in findings)
    return json.dumps({"ok": is_ok, "findings": [asdict(one) for one in findings]}, indent=2)
