"""What a mistake in user code looks like to its author: one line, and a traceback that begins at a line of theirs.

Used wherever user code fails: at a worker's start, in ``engine check`` and while it serves. The frames between the
process's entry and the user's first line are ours, and say nothing about the mistake; nor does a traceback say
anything where an error of ours has put it into a sentence already.

Nothing here may fail: what user code raises can be any object with any ``__str__``, and a start must not lose its
reason for that.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from pathlib import Path
from traceback import TracebackException, walk_tb
from types import TracebackType
from typing import Final

from engine.errors import ConfigError, EngineError, StartError

LINE_MAX: Final = 1000  # characters of a line; what is longer is a dump, not a reason

_ROOT: Final = Path(__file__).resolve().parents[1]
_OURS: Final = tuple(f"{_ROOT / name}{os.sep}" for name in ("engine", "frontend", "stages"))
_MACHINERY: Final = ("<frozen ", f"{os.path.dirname(importlib.__file__)}{os.sep}")  # of importing, and of ``-m``
# Where frames of libraries lie: the reader looks for the last line of their own.
_INSTALLED: Final = tuple(
    {f"{path}{os.sep}" for name, path in sysconfig.get_paths().items() if name in ("stdlib", "purelib", "platlib")}
)


def line(error: BaseException) -> str:
    """What went wrong, on one line, with the place in the user's own files where that can be told."""
    if isinstance(error, StartError | ConfigError):  # a sentence already
        return _folded(_said(error))
    if isinstance(error, SystemExit):
        what = f"user code ended the process with sys.exit({_shown(error.code)})"
    else:
        what = f"{type(error).__name__}: {_said(error)}" if _said(error) else type(error).__name__
    cause = error.__cause__
    if isinstance(error, EngineError) and cause is not None and _said(cause) not in what:
        what += f": {type(cause).__name__}: {_said(cause)}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        what += f"; is it installed for {sys.executable}?"
    place = _place(error)
    return _folded(f"{what} ({place})" if place and not isinstance(error, SyntaxError) else what)


def traceback(error: BaseException) -> str:
    """The traceback from the user's first line on, without a line break at its end; "" where :func:`line` says all.

    Where no line of theirs is in it, it is whole: then the fault may be ours.
    """
    if isinstance(error, StartError | ConfigError) or (isinstance(error, EngineError) and not begins_theirs(error)):
        return ""
    try:
        return "".join(TracebackException.from_exception(own(error), compact=True).format()).rstrip("\n")
    except BaseException:  # a cause or a note that cannot be shown
        return f"{type(error).__name__}: its traceback cannot be shown"


def own(error: BaseException) -> BaseException:
    """The same exception; its traceback, and those of what it came from, now begin at a line of the user's."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if (first := _theirs(one.__traceback__)) is not None or isinstance(one, SyntaxError):
            one.__traceback__ = first  # a file that cannot be compiled has no frame: the error itself shows the line
        waiting += [one.__cause__, one.__context__]
    return error


def begins_theirs(error: BaseException) -> bool:
    """Whether a line of the user's is in its traceback; else :func:`own` leaves that whole."""
    return _theirs(error.__traceback__) is not None


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame on that is neither ours nor of the import machinery; None: there is none."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((*_OURS, *_MACHINERY)):
        trace = trace.tb_next
    return trace


def _place(error: BaseException) -> str:
    """``service.py, line 5``: the last line of the user's own files that was passed."""
    found = ""
    for frame, number in walk_tb(_theirs(error.__traceback__)):
        file = frame.f_code.co_filename
        if not file.startswith((*_OURS, *_MACHINERY, *_INSTALLED, "<")):
            found = f"{os.path.basename(file)}, line {number}"
    return found


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as other:  # the user's __str__; which of them it is makes no difference
        return f"its text cannot be shown ({type(other).__name__} in {type(error).__name__}.__str__)"


def _shown(code: object) -> str:
    try:
        return "" if code is None else repr(code)
    except BaseException:
        return f"a {type(code).__name__}"


def _folded(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LINE_MAX else text[: LINE_MAX - 3] + "..."
