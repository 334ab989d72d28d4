"""The names that are taken: ``engine`` and ``stages`` are this project's packages, whatever lies on the search path.

A service's folder comes first there, so a ``stages.py`` or a folder ``stages`` of the user's would be found in place of
ours as soon as something of ours is imported late, and a service that has such a file for reasons of its own would fail
somewhere inside of us. So the names are held: found beside this package and nowhere else. Code of the user that asks
for its *own* ``stages`` gets ours, lacks what it looks for, and is told which file to rename. (A script beside an
``engine.py`` never comes so far, since that file is what ``from engine import Server`` then means: Python names it.)

``frontend`` is a name that people use, and of our processes only the frontend needs it, which holds it for itself; in
workers and in a script it is the user's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[1]


class _Held:
    """First of the finders: a held name is ours."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(_ROOT)]) if name in self.names else None


class _Missed:
    """Last of the finders: a module inside of a held name that nobody has found was meant to be the user's own."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top, dot, _ = name.partition(".")
        if dot and top in _held.names and (problem := taken(top)):
            raise ImportError(f"{name} is not found: {problem}", name=name)
        return None


_held: Final = _Held()
_missed: Final = _Missed()


def hold(*names: str) -> None:
    """From now on these top-level names mean our packages in this process. May be called again."""
    _held.names.update(names)
    if _held not in sys.meta_path:
        sys.meta_path.insert(0, _held)
        sys.meta_path.append(_missed)


def held(name: str) -> bool:
    """Whether this top-level name means our package here."""
    return name in _held.names


def taken(name: str, places: Sequence[str] | None = None) -> str | None:
    """In words which file or folder of the user's has the held ``name``; None: there is none.

    Looked for in ``places``, by default where modules are searched for.
    """
    for place in sys.path if places is None else places:
        folder = Path(place).resolve()  # "" is the current folder
        if folder == _ROOT:
            continue
        file, package = folder / f"{name}.py", folder / name
        own = file if file.is_file() else package if any(package.glob("*.py")) else None
        if own is not None:
            return f'"{name}" is the name of a package of Stageline; rename {own}'
    return None
