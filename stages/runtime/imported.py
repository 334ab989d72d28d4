"""Which files of the user's this process has imported, told to a supervisor that replaces workers when these change.

Told while it loads, when it cannot, and of what is imported later with the next heartbeat. Only what lies below the
deployment's folder is anybody's to edit, and no environment of packages that lies there too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import accumulate
from types import TracebackType
from typing import Final

from engine.process import SOURCES_VARIABLE, Notifier

LINE_BYTES: Final = 3000  # of names in a line, which is then below PIPE_BUF: lines of several threads do not mix
_OTHERS: Final = frozenset({"site-packages", "dist-packages", "node_modules"})


class Imported:
    """Any thread may call it, one at a time."""

    def __init__(self, notify: Notifier) -> None:
        self._notify = notify
        self._folder = os.environ.get(SOURCES_VARIABLE, "")
        self._told: set[str] = set()
        self._modules = 0

    def __call__(self) -> None:
        """Tell what is new, if there may be something."""
        if self._folder and len(sys.modules) != self._modules:
            modules = list(sys.modules.values())
            if self._tell(map(_file, modules)):
                self._modules = len(modules)

    def failed(self, error: BaseException) -> None:
        """Of user code that did not load: a module that failed is not among the modules, but in the traceback."""
        if self._folder:
            self._modules = 0
            self()
            self._tell(_files(error))

    def _tell(self, files: Iterator[object]) -> bool:
        """Whether all of it was told."""
        new = sorted({name for file in files if (name := self._name(file))} - self._told)
        while new:
            some = [name for name, end in zip(new, accumulate(map(_bytes, new)), strict=True) if end <= LINE_BYTES]
            some = some or new[:1]
            if not self._notify.send("imported", files=some):
                return False
            self._told.update(some)
            new = new[len(some) :]
        return True

    def _name(self, file: object) -> str:
        """From the folder; empty for what lies elsewhere."""
        if not isinstance(file, str) or not file.startswith(self._folder + os.sep) or not file.endswith(".py"):
            return ""
        name = file[len(self._folder) + 1 :]
        is_other = any(part.startswith(".") or part in _OTHERS for part in name.split(os.sep))
        return "" if is_other else name


def _bytes(name: str) -> int:
    return len(json.dumps(name)) + 1


def _file(module: object) -> object:
    """Of one of sys.modules, where anything may stand. Those that load when they are first asked for something are not
    asked: that would load them, and may fail."""
    try:
        return object.__getattribute__(module, "__dict__").get("__file__")
    except Exception:
        return None


def _files(error: BaseException | None) -> Iterator[object]:
    """Of an error and of what it came from, which may be itself: ``raise error from error``."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, SyntaxError | OSError):
            yield error.filename  # of what is no Python at all, or cannot be read
        trace: TracebackType | None = error.__traceback__
        while trace is not None:
            yield trace.tb_frame.f_code.co_filename
            trace = trace.tb_next
        error = error.__context__ if error.__cause__ is None else error.__cause__
