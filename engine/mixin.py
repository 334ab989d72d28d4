"""Formats for ``deserialize`` and ``serialize``, where a service written for Mosec finds them.

They are defined in :mod:`stages.mixin` and looked up there on first use, so that one which needs a package that is not
installed troubles only the service that asks for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.mixin import *  # noqa: F403  # whatever it exports


def __getattr__(name: str) -> Any:  # PEP 562; classes, each of a type of its own
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module("stages.mixin")
    try:
        return getattr(home, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("stages.mixin").__all__})
