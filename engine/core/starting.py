"""A start as people watch it: one line for the broker, each stage and the frontend, out of what is heard of them. Pure.

:class:`Start` is told every event of the deployment's processes and every action (:mod:`engine.core.processes`), and
says how each part stands; :func:`table` makes lines of that which fit a terminal. A part is as far as whoever of it is
furthest behind, for that is who is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final
from unicodedata import combining, east_asian_width

from engine.core.lifecycle import describe_exit
from engine.core.processes import Action, Child, Died, Event, Failed, Kind, Loading, Ready, Spawn, Warming


class State(Enum):
    """Of one process or of a part, in the order of how far it is."""

    FAILED = "failed"
    WAITING = "waiting"
    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"


_FAR: Final = {state: number for number, state in enumerate(State)}

# SGR parameters of ECMA-48.
_COLOURS: Final = {State.FAILED: "31", State.READY: "32", State.WAITING: "2"}
_MOVING: Final = "33"
_DIM: Final = "2"

_DOTS: Final = "..."
_WHAT_LEAST: Final = len("warming 9/9")  # else what stands behind it would move with every word

_KINDS: Final = (Kind.BROKER, Kind.WORKER, Kind.DAEMON, Kind.FRONTEND)  # the order of lines: that of a request's way


@dataclass
class _Seen:
    state: State = State.WAITING
    done: int = 0
    of: int = 0
    since: float | None = None  # when it was started
    took_s: float = 0.0  # to be ready
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One part. ``num`` processes, ``ready`` of them, which is shown where it is ``counted``; ``what`` is its state in
    words. ``seconds`` since it was started, or until all were ready; None: it was not. ``memory`` in bytes, 0: not
    known. ``where``: a device worth naming."""

    name: str
    counted: bool
    ready: int
    num: int
    state: State
    what: str
    seconds: float | None
    memory: int = 0
    where: str = ""


class Start:
    """See the module. ``children`` are those that are there when it begins."""

    def __init__(self, children: Iterable[Child]) -> None:
        self._seen = {child: _Seen() for child in children}

    def note(self, what: Event | Action, now: float) -> None:
        """Anything that happens or is done; what says nothing of the start is passed over."""
        child = getattr(what, "child", None)
        seen = self._seen.get(child) if child is not None else None
        if seen is None:
            return
        match what:
            case Spawn():
                seen.state, seen.since, seen.reason = State.STARTING, now, ""
            case Loading():
                seen.state = State.LOADING
            case Warming(_, done, of):
                seen.state, seen.done, seen.of = State.WARMING, done, of
            case Ready():
                if seen.state is not State.READY:
                    seen.took_s = now - (now if seen.since is None else seen.since)
                seen.state = State.READY
            case Failed(_, reason):
                seen.reason = " ".join(reason.split())
            case Died(_, code, reason):
                seen.state, seen.reason = State.FAILED, reason or seen.reason or describe_exit(code)

    def rows(
        self,
        now: float,
        memory: Callable[[Child], int] = lambda child: 0,
        devices: Mapping[Child, str] = {},
    ) -> list[Row]:
        """How each part stands; ``memory`` in bytes, by process."""
        parts: dict[tuple[Kind, str], list[Child]] = {}
        for kind in _KINDS:
            for child in self._seen:
                if child.kind is kind:
                    parts.setdefault((kind, child.name if kind is Kind.DAEMON else child.stage), []).append(child)
        return [self._row(members, now, memory, devices) for members in parts.values()]

    def _row(
        self, members: Sequence[Child], now: float, memory: Callable[[Child], int], devices: Mapping[Child, str]
    ) -> Row:
        seen, first = [self._seen[child] for child in members], members[0]
        begun = [one for one in seen if one.state not in (State.WAITING, State.READY)]
        waiting = [one for one in seen if one.state is State.WAITING]
        # Those that wait for their turn hide nobody who has begun.
        behind = min(begun or waiting or seen, key=lambda one: _FAR[one.state])
        if behind.state is State.READY:
            seconds: float | None = max(one.took_s for one in seen)
        else:
            seconds = now - min((one.since for one in begun if one.since is not None), default=now) if begun else None
        found = {device for child in members if (device := devices.get(child, "cpu")) != "cpu"}
        return Row(
            name=first.stage if first.kind is Kind.WORKER else first.name,
            counted=first.kind is Kind.WORKER or len(members) > 1,
            ready=sum(one.state is State.READY for one in seen),
            num=len(members),
            state=behind.state,
            what=_words(behind),
            seconds=seconds,
            memory=sum(map(memory, members)),
            where=", ".join(sorted(found)),
        )


def _words(seen: _Seen) -> str:
    if seen.state is State.WARMING and seen.of:
        return f"warming {min(seen.done, seen.of)}/{seen.of}"
    if seen.state is State.FAILED and seen.reason:
        return f"failed: {seen.reason}"
    return seen.state.value


# --- lines -----------------------------------------------------------------------------------------------------------


def table(title: str, rows: Sequence[Row], *, width: int, height: int, colour: bool) -> list[str]:
    """``title`` and a line for each row, none longer than ``width`` columns, ``height`` lines at most: where there are
    more rows, those that are ready are the first to be left out, and counted."""
    shown, left = _fitting(rows, max(1, height - 1))
    names = max((len(row.name) for row in shown), default=0)
    counts = max((len(_count(row)) for row in shown), default=0)
    states = max([_WHAT_LEAST, *(len(row.what) for row in shown if row.state is not State.FAILED)])
    lines = [_cut([(title, "")], width, colour)]
    for row in shown:
        cells = [(f"  {row.name:<{names}}  ", ""), (f"{_count(row):>{counts}}  " if counts else "", "")]
        tone = _COLOURS.get(row.state, _MOVING)
        if row.state is State.FAILED:
            cells.append((row.what, tone))
        else:
            cells += [(f"{row.what:<{states}}", tone), (_figures(row), _DIM)]
        lines.append(_cut(cells, width, colour))
    if left:
        ready = sum(row.state is State.READY for row in left)
        lines.append(_cut([(f"  and {len(left)} more, {ready} of them ready", _DIM)], width, colour))
    return lines


def _fitting(rows: Sequence[Row], most: int) -> tuple[list[Row], list[Row]]:
    """Those to be shown, in their order, and the others."""
    if len(rows) <= most:
        return list(rows), []
    by_need = sorted(range(len(rows)), key=lambda at: (rows[at].state is State.READY, at))
    chosen = set(by_need[: max(0, most - 1)])
    return [row for at, row in enumerate(rows) if at in chosen], [
        row for at, row in enumerate(rows) if at not in chosen
    ]


def _count(row: Row) -> str:
    return f"{row.ready}/{row.num}" if row.counted else ""


def _figures(row: Row) -> str:
    seconds = "" if row.seconds is None else f"{row.seconds:.1f} s"
    return f"  {seconds:>7}  {size(row.memory) if row.memory else '':>8}  {row.where}".rstrip()


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


def _cut(cells: Iterable[tuple[str, str]], width: int, colour: bool) -> str:
    """The texts one after the other, each in its colour, and no more of them than ``width`` columns. What moves the
    cursor is not among them: a reason is user code's."""
    line, left = "", width
    for text, tone in cells:
        text = _first("".join(char if char.isprintable() else "?" for char in text), left)
        left -= _columns(text)
        line += f"\x1b[{tone}m{text}\x1b[0m" if colour and tone and text.strip() else text
    return line.rstrip()


def _first(text: str, columns: int) -> str:
    """What fits, with dots where that is not all."""
    if _columns(text) <= columns:
        return text
    while text and _columns(text) > columns - len(_DOTS):
        text = text[:-1]
    return (text + _DOTS)[: max(0, columns)]


def _columns(text: str) -> int:
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)
