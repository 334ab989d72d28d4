"""``[[route]] stages``: the notation of ways that branch, and what it says of each stage. Pure.

A list of stages is a chain. A table in it stands for one of several stages, by a field of the result before it::

    stages = ["detect", { by = "lang", of = { en = "english", de = "german" }, default = "english" }, "post"]

A branch is a stage, or a list of several, or of none: then what stands behind the table comes next. Or it stands for a
region of stages that a request passes in parts, one for each element of a list, or one for each of several branches,
between the stage that they are made behind and the one that gets all of them together::

    stages = ["detect", { each = "crops", through = ["classify"], failed = "hole", most = 256 }, "format"]
    stages = ["load", { all = { boxes = "detect", text = ["ocr", "spell"] } }, "merge"]

A region is written as a route is, tables and all. However a route branches, its stages also stand in one line, which is
what everybody sees who only asks which they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, Final, TypeAlias

from engine.core.routing import FINAL, JOIN, NOWHERE, PARTS_MOST, After, Fork, Split

BRANCHES_MOST: Final = 256
TEXT_MOST: Final = 256  # characters of a field's name, or of what stands there, or of a branch's name
NESTED_MOST: Final = 8  # regions within regions

FAILED: Final = ("request", "hole")  # what a part that fails takes with it: its request, or only its place
_KEYS: Final = {"by": ("of", "default"), "each": ("through", "failed", "most"), "all": ("failed",)}


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


@dataclass(frozen=True)
class Each:
    """Every element of the list in ``field`` of the result ("": of the list that it is) by itself through a region."""

    field: str
    through: tuple[Step, ...]
    holes: bool = False
    most: int = PARTS_MOST

    @property
    def regions(self) -> tuple[tuple[Step, ...], ...]:
        return (self.through,)


@dataclass(frozen=True)
class All:
    """The result through each of several branches, side by side."""

    of: tuple[tuple[str, tuple[Step, ...]], ...]
    holes: bool = False

    @property
    def regions(self) -> tuple[tuple[Step, ...], ...]:
        return tuple(branch for _, branch in self.of)


Step: TypeAlias = str | Choice | Each | All


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
    return _plain(_steps_of(stages))


def _plain(steps: Iterable[Step]) -> list[Any]:
    return [step if isinstance(step, str) else _table(step) for step in steps]


def _table(step: Choice | Each | All) -> dict[str, Any]:
    if isinstance(step, Choice):
        default = {} if step.default is None else {"default": list(step.default)}
        return {"by": step.by, "of": {text: list(branch) for text, branch in step.of}, **default}
    failed = {"failed": "hole"} if step.holes else {}
    if isinstance(step, Each):
        most = {} if step.most == PARTS_MOST else {"most": step.most}
        return {"each": step.field, "through": _plain(step.through), **failed, **most}
    return {"all": {name: _plain(branch) for name, branch in step.of}, **failed}


def after(stages: Sequence[str], numbers: Mapping[str, int]) -> tuple[After, ...]:
    """What comes after each of them, in their order, by the stages' numbers; empty for a chain."""
    steps = _steps_of(stages)
    if all(isinstance(step, str) for step in steps):
        return ()
    told = _Told(numbers)
    told.of(steps, FINAL)
    return tuple(told.after[name] for name in stages)


def splits(stages: Sequence[str], numbers: Mapping[str, int]) -> dict[int, Split]:
    """Where a request goes on in parts: behind which stages, by their numbers."""
    told = _Told(numbers)
    told.of(_steps_of(stages), FINAL)
    return told.splits


class _Told:
    """What is written, said of each stage."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = numbers
        self.after: dict[str, After] = {}
        self.splits: dict[int, Split] = {}

    def of(self, steps: Sequence[Step], end: int) -> After:
        """``end``: what comes behind the last one. Where they begin, which is a stage, unless there are none."""
        coming: After = end
        for place in reversed(range(len(steps))):
            step = steps[place]
            if isinstance(step, str):
                self.after[step] = coming
                coming = self._numbers[step]
            elif isinstance(step, Choice):
                coming = self._fork(step, coming)
            else:
                self._split(step, steps[place - 1] if place else None, coming)
        return coming

    def _fork(self, step: Choice, coming: After) -> Fork:
        targets: dict[tuple[str, ...], int] = {}
        for branch in step.branches:
            for name, then in pairwise(branch):
                self.after[name] = self._numbers[then]
            if branch:
                self.after[branch[-1]] = coming
            elif isinstance(coming, Fork):
                raise NoWay("a branch of no stage cannot lead to another choice")
            targets[branch] = self._numbers[branch[0]] if branch else coming  # type: ignore[assignment]  # no Fork
        default = NOWHERE if step.default is None else targets[step.default]
        return Fork(step.by, tuple((text, targets[branch]) for text, branch in step.of), default)

    def _split(self, step: Each | All, before: Step | None, gather: After) -> None:
        if not isinstance(before, str):
            raise NoWay(
                f"the parts of {_called(step)} are made of the result of one stage: write it right before the table"
            )
        if isinstance(gather, Fork) or gather < 0:
            raise NoWay(f"the parts of {_called(step)} come together at one stage: write it right behind the table")
        heads = []
        for region in step.regions:
            head = self.of(region, JOIN)
            assert isinstance(head, int)  # read() lets no other begin one
            heads.append(head)
        if isinstance(step, Each):
            split = Split(tuple(heads), gather, (), step.field, step.holes, step.most)
        else:
            split = Split(tuple(heads), gather, tuple(name for name, _ in step.of), "", step.holes)
        self.splits[self._numbers[before]] = split


def read(value: Sequence[object]) -> Stages:
    """Out of a list as it stands in a file. Raises NoWay."""
    if not value:
        raise NoWay("at least one")
    steps = _steps(value, NESTED_MOST)
    names = list(_names(steps))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise NoWay(f"{', '.join(twice)} more than once")
    stages = Stages(steps)
    after(stages, {name: number for number, name in enumerate(stages)})
    return stages


def _steps(value: Sequence[object], room: int) -> tuple[Step, ...]:
    """``room``: so many regions may be within each other here."""
    steps: list[Step] = []
    for one in value:
        if not isinstance(one, (str, Mapping)):
            raise NoWay('a stage is named by a string, and a table has "by", "each" or "all"')
        step = one if isinstance(one, str) else _read_table(one, room)
        if not steps and not isinstance(step, str):
            what = "a choice is made by" if isinstance(step, Choice) else f"the parts of {_called(step)} are made of"
            raise NoWay(f"{what} the result of the stage before it: begin with a stage")
        steps.append(step)
    return tuple(steps)


def _read_table(table: Mapping[Any, object], room: int) -> Choice | Each | All:
    kinds = [kind for kind in _KEYS if kind in table]
    if len(kinds) > 1:
        raise NoWay(f'a table has one of "by", "each" and "all", not {_quoted(kinds)}')
    if not kinds and "of" not in table:
        near = next((f"; did you mean {near}?" for key in table for near in _near(key, [*_KEYS])), "")
        raise NoWay(
            'a table has "by", for one of several stages, "each", for every element of a list, or "all", for several '
            f"side by side{near}"
        )
    kind = kinds[0] if kinds else "by"
    known = [kind, *_KEYS[kind]]
    if unknown := [key for key in table if key not in known]:
        what = {"by": "a choice", "each": 'a table with "each"', "all": 'a table with "all"'}[kind]
        near = next((f"; did you mean {near}?" for near in _near(unknown[0], known)), "")
        raise NoWay(f"{what} has {_quoted(known)}, not {unknown[0]!r}{near}")
    if kind == "by":
        return _choice(table)
    if not room:
        raise NoWay(f'"each" and "all" stand within each other at most {NESTED_MOST} times')
    return _each(table, room - 1) if kind == "each" else _all(table, room - 1)


def _each(table: Mapping[Any, object], room: int) -> Each:
    field, most = table["each"], table.get("most", PARTS_MOST)
    if not isinstance(field, str) or len(field) > TEXT_MOST:
        raise NoWay('"each" says which field of the result is the list: each = "crops"; "" if the result itself is')
    called = f'"each" of "{field}"'
    if "through" not in table:
        raise NoWay(f'{called} says through which stages its elements go: through = ["classify"]')
    if not isinstance(most, int) or isinstance(most, bool) or not 0 < most <= PARTS_MOST:
        raise NoWay(f"{called} takes so many elements of a list: most is an integer from 1 to {PARTS_MOST}")
    return Each(field, _region(f"through of {called}", table["through"], room), _holes(called, table), most)


def _all(table: Mapping[Any, object], room: int) -> All:
    of = table["all"]
    if not isinstance(of, Mapping) or not 2 <= len(of) <= BRANCHES_MOST:
        raise NoWay(
            f'"all" has from 2 to {BRANCHES_MOST} branches by name: '
            'all = { boxes = "detect", text = ["ocr", "spell"] }'
        )
    if not all(_is_text(name) and name for name in of):
        raise NoWay(f'a branch of "all" has a name of 1 to {TEXT_MOST} characters')
    branches = tuple((str(name), _region(f'branch "{name}" of "all"', branch, room)) for name, branch in of.items())
    return All(branches, _holes('"all"', table))


def _region(where: str, value: object, room: int) -> tuple[Step, ...]:
    written = (value,) if isinstance(value, str) else value
    if not isinstance(written, (list, tuple)) or not written:
        raise NoWay(f"{where} is a stage, or a list of at least one")
    try:
        return _steps(written, room)
    except NoWay as error:
        raise NoWay(f"{where}: {error}") from None


def _holes(called: str, table: Mapping[Any, object]) -> bool:
    failed = table.get("failed", FAILED[0])
    if failed not in FAILED:
        raise NoWay(
            f'{called} says what a part that fails takes with it: failed = "request", or "hole": None in its place'
        )
    return failed == "hole"


def _called(step: Each | All) -> str:
    return f'"each" of "{step.field}"' if isinstance(step, Each) else '"all"'


def _quoted(words: Sequence[str]) -> str:
    *most, last = [f'"{word}"' for word in words]
    return f"{', '.join(most)} and {last}" if most else last


def _near(word: object, known: Sequence[str]) -> list[str]:
    return get_close_matches(word, known, n=1, cutoff=0.6) if isinstance(word, str) else []


def _choice(table: Mapping[Any, object]) -> Choice:
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
    """In one line; of a choice each once, for its branches may be the same."""
    for step in steps:
        if isinstance(step, str):
            yield step
        elif isinstance(step, Choice):
            yield from dict.fromkeys(name for branch in step.branches for name in branch)
        else:
            for region in step.regions:
                yield from _names(region)


def _steps_of(stages: object) -> tuple[Step, ...]:
    if isinstance(stages, Stages):
        return stages.steps
    return tuple(stages) if isinstance(stages, (list, tuple)) else ()
