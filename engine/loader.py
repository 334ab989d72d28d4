"""Finding the user's class or function: ``module:Class`` beside the file or installed, or ``script.py:Class``.

Errors keep two cases apart that Python mixes up. A module that is not there is a mistake in naming it, told in one line
with what was looked for. An exception inside a module that is there (a missing dependency of its own included) is the
user's, and reaches its author whole, with its own traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from engine import names
from engine.errors import StartError

_importing: list[str] = []  # the spec being loaded by this process; see :func:`importing`


def load_class(spec: str, folder: Path) -> type:
    """The class that ``spec`` names: ``module:Class``, ``pkg.mod:Outer.Inner`` or ``path/script.py:Class``.

    ``folder`` goes to the front of ``sys.path`` and stays there, so that the module's own imports, and unpickling of
    its classes later, find what lies beside it; a relative script path starts there. A script is imported under its
    own name and not as ``__main__``, so its ``if __name__ == "__main__"`` guard holds. Raises StartError when module
    or class cannot be found or is no class; exceptions of the module itself pass through.
    """
    return _class(*_found(spec, folder, "module:Class"), spec)


def load_function(spec: str, folder: Path) -> Callable[..., Any]:  # what it takes and gives is its caller's business
    """The same of a function, or whatever else can be called: ``module:function``."""
    module, name = _found(spec, folder, "module:function")
    found: object = module
    for part in name.split("."):
        holder, found = found, getattr(found, part, None)
        if found is None:
            names_there = [key for key, value in vars(holder).items() if callable(value) and not key.startswith("_")]
            near = get_close_matches(part, names_there, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise StartError(f'cannot load "{spec}": {module.__file__} has no {name}{hint}')
    if not callable(found):
        raise StartError(f'cannot load "{spec}": {name} is no function but {type(found).__name__}')
    return found


def _found(spec: str, folder: Path, expected: str) -> tuple[ModuleType, str]:
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise StartError(f'cannot load "{spec}": expected "{expected}"')
    place = str(folder)
    if sys.path[:1] != [place]:
        sys.path.insert(0, place)
    _importing.append(spec)
    try:
        module = _script(folder / where) if where.endswith(".py") else _module(where, folder)
    except AttributeError as error:  # ``import stages`` gave ours, and ``stages.Mine`` is not in it
        name = getattr(error.obj, "__name__", "") if isinstance(error.obj, ModuleType) else ""
        if names.held(name) and (problem := names.taken(name)):
            raise StartError(problem) from error
        raise
    finally:
        _importing.pop()
    return module, name


def stand_in(argv: Sequence[str], path: Sequence[str]) -> None:
    """Give this process the command line and the search path of the script that described its deployment.

    A worker imports that script to find its class, and with it whatever the script reads from ``sys.argv``, and finds
    on a ``sys.path`` it has added to, when it is loaded. Nothing happens without a script (both are empty).
    """
    if argv:
        sys.argv[:] = argv
        sys.path[:] = [*path, *(place for place in sys.path if place not in path)]


def importing() -> str | None:
    """The spec whose module is being executed right now, or None.

    ``Server.run`` asks, because a script without the ``__main__`` guard would otherwise start a deployment inside each
    worker of the deployment that it started.
    """
    return _importing[-1] if _importing else None


def _module(name: str, folder: Path) -> ModuleType:
    top = name.partition(".")[0]
    if names.held(top) and (problem := names.taken(top, [str(folder)])):
        raise StartError(problem)
    importlib.invalidate_caches()  # the file may be younger than the finders' view of its folder
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        prefix = ".".join(parts[:end])
        spec = _find(prefix)
        if spec is None:
            raise StartError(_not_found(prefix, folder))
        if end == len(parts):
            break
        if spec.submodule_search_locations is None:
            raise StartError(f'module "{name}" not found: {spec.origin} is a module, not a package')
        importlib.import_module(prefix)  # the user's own code: what it raises is theirs to see
    return importlib.import_module(name)


def _find(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # loaded, but by no import system: __main__ of an embedding program
        return None


def _not_found(name: str, folder: Path) -> str:
    leaf = name.rpartition(".")[2]
    beside = [path.stem for path in folder.glob("*.py")] + [path.parent.name for path in folder.glob("*/__init__.py")]
    near = get_close_matches(leaf, beside, n=1)
    hint = f'; did you mean "{near[0]}"?' if near and "." not in name else ""
    return f'module "{name}" not found, neither in {folder} nor installed for {sys.executable}{hint}'


def _script(path: Path) -> ModuleType:
    if not path.is_file():
        raise StartError(f"script {path} not found")
    name = re.sub(r"\W", "_", path.stem)  # server-2.py cannot be imported as it is called
    loaded = sys.modules.get(name)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        if file is not None and Path(file).resolve() == path.resolve():
            return loaded
        raise StartError(f'script {path} has the name of the module "{name}" ({file}): rename the script')
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StartError(f"script {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as import does: dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _class(module: ModuleType, name: str, spec: str) -> type:
    found: object = module
    for part in name.split("."):
        holder, found = found, getattr(found, part, None)
        if found is None:
            classes = [key for key, value in vars(holder).items() if isinstance(value, type)]
            near = get_close_matches(part, classes, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; its classes are {', '.join(sorted(classes)) or 'none'}"
            raise StartError(f'cannot load "{spec}": {module.__file__} has no {name}{hint}')
    if not isinstance(found, type):
        raise StartError(f'cannot load "{spec}": {name} is no class but {type(found).__name__}')
    return found
