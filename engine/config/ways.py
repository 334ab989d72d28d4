"""``[[route]] stages``: the notation of ways that branch, and what it says of each stage. Pure.

A list of stages is a chain. A table in it stands for one of several stages, by a field of the result before it::

    stages = ["detect", { by = "lang", of = { en = "english", de = "german" }, default = "english" }, "post"]

A branch is a stage, or a list of several, or of none: then what stands behind the table comes next. However a route
branches, its stages also stand in one line, which is what everybody sees who only asks which they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias

from engine.core.routing import FINAL, NOWHERE, After, Fork

BRANCHES_MOST: Final = 256
TEXT_MOST: Final = 256  # characters of a field's name, or of what stands there


class NoWay(ValueError):
    """What is written leads nowhere; the message says why."""


@dataclass(frozen=True)
class Choice:
    """One of several branches, by the text of field ``by``. ``default``: for any other text; None: none is allowed."""

    by: str
    of: tuple[tuple[str, tuple[str, ...]], ...]
    default: tuple[str, ...] | None = None

    @property
    def branches(self) -> Iterator[tuple[str, ...]]:
        yield from (branch for _, branch in self.of)
        if self.default is not None:
            yield self.default


Step: TypeAlias = str | Choice


class Stages(tuple[str, ...]):
    """The names of a route's stages in one line, each behind all that may come before it; ``steps`` as written."""

    steps: tuple[Step, ...]

    def __new__(cls, steps: Iterable[Step]) -> Stages:
        written = tuple(steps)
        made = super().__new__(cls, dict.fromkeys(_names(written)))
        made.steps = written
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple) and tuple(self) == tuple(other) and self.steps == _steps_of(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.steps)


def plain(stages: Sequence[str]) -> list[Any]:
    """As a file has it, in the types of JSON."""
    return [
        step
        if isinstance(step, str)
        else {
            "by": step.by,
            "of": {text: list(branch) for text, branch in step.of},
            **({} if step.default is None else {"default": list(step.default)}),
        }
        for step in _steps_of(stages)
    ]


def after(stages: Sequence[str], numbers: Mapping[str, int]) -> tuple[After, ...]:
    """What comes after each of them, in their order, by the stages' numbers; empty for a chain."""
    steps = _steps_of(stages)
    if all(isinstance(step, str) for step in steps):
        return ()
    found: dict[str, After] = {}
    coming: After = FINAL  # behind the step that is looked at
    for step in reversed(steps):
        if isinstance(step, str):
            found[step] = coming
            coming = numbers[step]
            continue
        targets: dict[tuple[str, ...], int] = {}
        for branch in step.branches:
            for name, then in pairwise(branch):
                found[name] = numbers[then]
            if branch:
                found[branch[-1]] = coming
            elif isinstance(coming, Fork):
                raise NoWay("a branch of no stage cannot lead to another choice")
            targets[branch] = numbers[branch[0]] if branch else coming  # type: ignore[assignment]  # no Fork
        default = NOWHERE if step.default is None else targets[step.default]
        coming = Fork(step.by, tuple((text, targets[branch]) for text, branch in step.of), default)
    return tuple(found[name] for name in stages)


def read(value: Sequence[object]) -> Stages:
    """Out of a list as it stands in a file. Raises NoWay."""
    if not value:
        raise NoWay("at least one")
    steps: list[Step] = []
    for one in value:
        if not isinstance(one, (str, Mapping)):
            raise NoWay("a stage is named by a string, and a table chooses among several")
        if not steps and not isinstance(one, str):
            raise NoWay("a choice is made by the result of the stage before it: begin with a stage")
        steps.append(one if isinstance(one, str) else _choice(one))
    seen: set[str] = set()
    for step in steps:
        here = [step] if isinstance(step, str) else list(_names([step]))
        if twice := sorted(seen.intersection(here)):
            raise NoWay(f"{', '.join(twice)} more than once")
        seen.update(here)
    stages = Stages(steps)
    after(stages, dict.fromkeys(stages, 0))
    return stages


def _choice(table: Mapping[Any, object]) -> Choice:
    if unknown := [key for key in table if key not in ("by", "of", "default")]:
        raise NoWay(f'a choice has "by", "of" and "default", not {unknown[0]!r}')
    by, of = table.get("by"), table.get("of")
    if not isinstance(by, str) or not 0 < len(by) <= TEXT_MOST:
        raise NoWay('a choice says by which field of the result it is made: by = "lang"')
    if not isinstance(of, Mapping) or not 0 < len(of) <= BRANCHES_MOST or not all(_is_text(text) for text in of):
        raise NoWay(f'a choice by "{by}" says of which stages, by what the field has: of = {{ en = "english" }}')
    branches = [(str(text), _branch(by, branch)) for text, branch in of.items()]
    default = None if "default" not in table else _branch(by, table["default"])
    # Stages of different branches that are also followed by different ones would have to know how they were reached.
    several = {branch for _, branch in branches} | ({default} if default is not None else set())
    names = [name for branch in several for name in branch]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise NoWay(f"{', '.join(twice)} stands in several branches that are not the same")
    return Choice(by, tuple(branches), default)


def _branch(by: str, branch: object) -> tuple[str, ...]:
    names = (branch,) if isinstance(branch, str) else branch
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise NoWay(f'a branch of the choice by "{by}" is a stage, or a list of stages')
    return tuple(names)


def _is_text(text: object) -> bool:
    return isinstance(text, str) and len(text) <= TEXT_MOST


def _names(steps: Iterable[Step]) -> Iterator[str]:
    for step in steps:
        if isinstance(step, str):
            yield step
        else:
            for branch in step.branches:
                yield from branch


def _steps_of(stages: object) -> tuple[Step, ...]:
    if isinstance(stages, Stages):
        return stages.steps
    return tuple(stages) if isinstance(stages, (list, tuple)) else ()
