"""Mistakes in a Worker class that can be known before its object is made: each would fail every request.

A class is looked at only as far as is certain. A decorated method is taken at its word (a decorator may make a plain
function of a coroutine), and where there is no source nothing is said about it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import FunctionType
from typing import Any, Final

from engine.errors import StartError
from stages.base import Worker
from stages.stream import SSEWorker, StreamWorker

# The methods the runtime calls, and with how many arguments after self. __init__ gets the stage's args.
_CALLED: Final = {
    "__init__": None,
    "setup": 0,
    "teardown": 0,
    "forward": 1,
    "deserialize": 1,
    "serialize": 1,
    "deserialize_ipc": 1,
    "serialize_ipc": 1,
}


def check_class(cls: type, stage: str, *, asks_cost: bool = False, is_cached: bool = False) -> None:
    """Raise StartError, in a sentence that says what to write instead, for a class that cannot work. ``asks_cost``: it
    is asked what values cost; else a method of that name is its own affair. ``is_cached``: its results are kept."""
    if not (isinstance(cls, type) and issubclass(cls, Worker)):
        raise StartError(f"{getattr(cls, '__qualname__', cls)} of stage {stage} is not derived from engine.Worker")
    if is_cached and issubclass(cls, SSEWorker | StreamWorker):
        raise StartError(
            f"{cls.__qualname__} of stage {stage} streams, and a stream cannot be kept: leave out its cache"
        )
    if cls.forward is Worker.forward:
        raise StartError(f"{cls.__qualname__} of stage {stage} must define forward(self, data)")
    called = {**_CALLED, "cost": 1} if asks_cost else _CALLED
    for name, arguments in called.items():
        method = inspect.getattr_static(cls, name)
        bound = not isinstance(method, staticmethod | classmethod)
        function = getattr(cls, name)
        if not isinstance(function, FunctionType) or function.__module__.partition(".")[0] == "stages":
            continue  # ours; or an object that can be called, of which nothing is certain
        where = f"{cls.__qualname__}.{name} of stage {stage}{_place(function)}"
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise StartError(f'{where} is "async def", which nobody would await: write "def {name}"')
        if arguments is not None and not _takes(function, arguments + bound):
            words = ", ".join(["self"] * bound + ["data"] * arguments)
            raise StartError(f"{where} cannot be called with ({words}): write def {name}({words})")
    _check_result(cls, f"{cls.__qualname__}.forward of stage {stage}")


def _check_result(cls: type[Worker], where: str) -> None:
    forward: Any = cls.forward
    if not isinstance(forward, FunctionType) or issubclass(cls, SSEWorker):
        return
    if inspect.isgeneratorfunction(forward):
        if not issubclass(cls, StreamWorker):
            raise StartError(
                f"{where}{_place(forward)} yields: return the results; "
                "or derive from StreamWorker, to answer in pieces, or from SSEWorker, to send events"
            )
    elif _returns_nothing(forward):
        raise StartError(
            f'{where}{_place(forward)} never returns a result: is a "return" missing? '
            '("return None" where that is meant)'
        )


def _takes(function: FunctionType, arguments: int) -> bool:
    try:
        inspect.signature(function, follow_wrapped=False).bind(*[None] * arguments)
    except TypeError:
        return False
    except ValueError:  # it has no signature to read
        return True
    return True


def _returns_nothing(function: FunctionType) -> bool:
    """Whether it can be read that the function ends without a value, and that this was not written down."""
    if hasattr(function, "__wrapped__"):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):  # made at run time, or its file has changed since
        return False
    if len(tree.body) != 1 or not isinstance(body := tree.body[0], ast.FunctionDef) or body.name != function.__name__:
        return False
    if body.decorator_list or isinstance(body.body[-1], ast.Raise):  # one that refuses everything is whole
        return False
    return not any(isinstance(node, ast.Return) and node.value is not None for node in _inside(body))


def _inside(function: ast.FunctionDef) -> list[ast.AST]:
    """The nodes of a function's own body, without those of functions and classes in it."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
    return found


def _place(function: FunctionType) -> str:
    code = function.__code__
    return f" ({code.co_filename.rpartition('/')[2]}, line {code.co_firstlineno})"
