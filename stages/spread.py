"""A result that goes on in parts, and a value whose parts have come together. Pure.

What :class:`engine.core.routing.Split` says is done here to values: :func:`parted` before they are encoded, where a
stage has computed them, and :func:`together` after they are decoded, for the stage that gathers. Neither changes what
it is given: user code may keep what it returned, and a result may be split anew when its worker dies.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, Final

import msgspec

from engine.core.routing import Split
from engine.errors import ValidationError
from stages.ways import WrongWay

_NO_LISTS: Final = (str, bytes, bytearray, memoryview, Mapping, Set)


def parted(split: Split, value: Any) -> tuple[Any, list[Any]]:
    """The frame of a result, None where nothing is left without them, and its parts. Raises WrongWay where there is no
    such list, and ValidationError, which its client is told, where it is too long."""
    if split.names:
        return None, [value] * len(split.names)
    found = value if not split.field else _field(value, split.field)
    parts = _elements(split, found)
    if len(parts) > split.most:
        what = f'"{split.field}"' if split.field else "the list"
        raise ValidationError(f"{what} has {len(parts)} elements, and at most {split.most} are taken")
    return (None if not split.field else with_field(value, split.field, [])), parts


def together(split: Split, frame: Any, results: Sequence[Any]) -> Any:
    """What the stage that gathers gets: ``results`` are the parts', in order, None for such as failed."""
    if split.names:
        return dict(zip(split.names, results, strict=True))
    return [*results] if not split.field else with_field(frame, split.field, [*results])


def with_field(value: Any, name: str, found: Any) -> Any:
    """A copy of a mapping, as a dict, or of any other object, that has something else in one of its fields. What the
    class says of its fields - frozen, of another type - counts for whoever made the object: nobody has seen this copy
    yet. Raises WrongWay for a field that is computed."""
    if isinstance(value, Mapping):
        return {**value, name: found}
    if isinstance(value, tuple) and hasattr(value, "_replace"):  # a NamedTuple
        return value._replace(**{name: found})
    made = copy.copy(value)
    if name in getattr(made, "__dict__", ()):  # past what would check it, or read it as another type
        made.__dict__[name] = found
        return made
    for put in (setattr, object.__setattr__, msgspec.structs.force_setattr):
        try:
            put(made, name, found)
        except Exception:  # frozen, say; the class's own code may raise anything
            continue
        return made
    raise WrongWay(
        f'"{name}" of a result that goes on in parts, a {type(value).__name__}, cannot have anything else in it: '
        "it has to be a field that is stored"
    )


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
    elif hasattr(value, name):
        return getattr(value, name)
    raise WrongWay(
        f'the route takes each of "{name}" behind this stage, and its result, a {type(value).__name__}, has no such '
        f'{"key" if isinstance(value, Mapping) else "attribute"}; of a result that is a list itself it is each = ""'
    )


def _elements(split: Split, found: Any) -> list[Any]:
    if isinstance(found, list):
        return found
    if not isinstance(found, _NO_LISTS) and hasattr(found, "__len__") and isinstance(found, Iterable):
        with suppress(TypeError):  # an array of no dimensions
            return list(found)  # of an array or a tensor, along its first dimension
    where = f'"{split.field}" of its result' if split.field else "its result"
    raise WrongWay(f"the route takes each of a list behind this stage, and {where} is a {type(found).__name__}")
