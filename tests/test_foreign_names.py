"""No name of ours hides one that a class we derive from has: a method so named is called in place of theirs, or ours is
overwritten by their constructor. A new version of Python or of a package can bring such a name, so each is looked at
with the versions that are installed.

Theirs are the attributes of the class, and those its methods set on instances, read from their code: a thread's handle
can be seen in no other way before it is started. What is meant to override stands in a table.
"""

from __future__ import annotations

import dis
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

import pytest

from frontend.serving import names as gunicorn_names

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("engine", "frontend", "stages")
MODULES: Final = tuple(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
)

# These say what a class is like, or collect fields; they have no state that a name could hide.
HARMLESS: Final = ("object", "Generic", "Protocol", "ABC", "Enum", "IntEnum", "ReprEnum")

# What is meant to override, or is set on another object, by class. gunicorn's underscored ones have a table of their
# own, with reasons.
INTENDED: Final[dict[str, set[str]]] = {
    "frontend.serving.application.Application": {"load", "load_config"},
    "frontend.serving.master.Log": {"cfg", "info", "loglevel", "propagate"},
    "frontend.serving.process.Worker": {"app"},
    "engine.curve.Context": {"_socket_class"},
    "engine.curve.Socket": {"close", "rcvhwm"},
    "engine.log._Stderr": {"emit"},
    "frontend.jobs.hooks._Stay": {"redirect_request"},
    "engine.log._Ours": {"callHandlers", "disabled", "isEnabledFor"},
    "engine.log.JSONFormatter": {"format"},
    "engine.log.ReadableFormatter": {"format"},
}
PROTOCOL: Final = {"connection_made", "connection_lost", "data_received", "eof_received", "pause_writing",
                   "resume_writing"}  # fmt: skip


def loaded(module: str) -> ModuleType | None:
    """None where a package is missing that is an extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] in PACKAGES:
            raise
        return None


def classes(module: str) -> Iterator[type]:
    """Those defined in a module, nested ones included."""
    waiting = list(vars(loaded(module)).values())
    seen: set[type] = set()
    while waiting:
        cls = waiting.pop()
        if isinstance(cls, type) and cls.__module__ == module and cls not in seen:
            seen.add(cls)
            waiting += vars(cls).values()
            yield cls


def is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in PACKAGES


def stored(cls: type) -> set[str]:
    """Attributes that the methods of a class set on something, mostly on their instance."""
    functions = [
        getattr(member, "__func__", getattr(member, "fget", member)) for member in vars(cls).values()
    ]  # of class and static methods, and of properties
    return {
        step.argval
        for function in functions
        if isinstance(function, FunctionType)
        for step in dis.get_instructions(function)
        if step.opname == "STORE_ATTR"
    }


def names(cls: type) -> set[str]:
    own = {*vars(cls), *vars(cls).get("__annotations__", ()), *stored(cls)}
    return {name for name in own if not (name.startswith("__") and name.endswith("__"))} - {"_abc_impl"}


def foreign(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if not is_ours(base) and base.__name__ not in HARMLESS]


def hidden(cls: type) -> set[str]:
    """Names of ours, in a class or in those of ours that it derives from, that a foreign base has as well."""
    ours = set().union(*(names(base) for base in cls.__mro__ if is_ours(base)))
    return ours & set().union(*(names(base) for base in foreign(cls)))


def derived() -> list[Any]:
    found = []
    for module in MODULES:
        for cls in classes(module) if loaded(module) is not None else ():
            # What msgspec's and the standard library's makers of values put into a class is theirs and meant.
            if foreign(cls) and not issubclass(cls, tuple):
                found.append(pytest.param(cls, id=f"{module}.{cls.__qualname__}"))
    return found


@pytest.mark.parametrize("cls", derived())
def test_no_name_of_ours_hides_one_of_theirs(cls: type) -> None:
    name = f"{cls.__module__}.{cls.__qualname__}"
    intended = INTENDED.get(name, set())
    bases = {base.__name__ for base in foreign(cls)}
    if "BaseProtocol" in bases:
        intended = intended | PROTOCOL
    if any(base.__module__.startswith("gunicorn") for base in foreign(cls)):
        module = cls.__module__.rpartition(".")[2]
        intended = intended | {entry.name for entry in gunicorn_names.NAMES if entry.used == module}
    assert hidden(cls) <= intended


def test_the_look_finds_what_only_an_instance_has() -> None:
    """A name that is seen neither on the class nor in its documentation: set by a method."""

    class Sleeper(threading.Thread):
        def _started(self) -> None: ...

    assert "_started" not in vars(threading.Thread)
    assert "_started" in names(Sleeper) & names(threading.Thread)


def test_nobody_of_ours_is_a_thread_or_a_process() -> None:
    """They hold them: those classes have the most names of their own, and get new ones in every version."""
    for module in MODULES:
        for cls in classes(module) if loaded(module) is not None else ():
            assert not {"Thread", "BaseProcess", "Popen"} & {base.__name__ for base in foreign(cls)}, cls
