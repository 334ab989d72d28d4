"""What a subclass of a plain type is to a format: its characters, its number, its bytes.

A label that is a ``str`` with a ``__str__`` for people, a number that is a ``float`` with a unit: their own methods say
how they are shown, not what they are. So those are never called here, only those of the plain type. (Dicts, lists and
tuples of any class msgspec writes by what they hold, and members of an enumeration by their value.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_WHOLE: Final = slice(None)

_BASES: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (float, float.__float__),
    (int, int.__int__),
    (bytes, lambda value: bytes.__getitem__(value, _WHOLE)),
    (bytearray, lambda value: bytearray.__getitem__(value, _WHOLE)),
)


def as_base(value: Any) -> Any:
    """For encoders of msgspec, which ask about what they do not know. Raises TypeError, which names the type, for
    anything but an object of a subclass of a plain type."""
    for base, convert in _BASES:
        if isinstance(value, base) and type(value) is not base:
            return convert(value)
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    raise TypeError(f"Encoding objects of type {name} is unsupported")
