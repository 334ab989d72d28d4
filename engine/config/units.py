"""Sizes and times as people write them: "10 MiB", "1.5 GB", "250ms", "2 min". Pure text to number and back.

Decimal arithmetic, because 0.1 MB is 100,000 bytes and not 100,000.00000000001.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from engine.core.wear import Limits

# Powers of 1000 (SI) and of 1024 (IEC 80000-13). Letter case is ignored: nobody means millibits.
SIZES: Final[Mapping[str, int]] = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}

# In microseconds, so that every unit is a whole number.
TIMES: Final[Mapping[str, int]] = {
    "us": 1,
    "ms": 1000,
    "s": 1_000_000,
    "min": 60 * 1_000_000,
    "h": 3600 * 1_000_000,
}

# 18 digits hold any size or time that means something; more would only make the arithmetic slow.
_FORM: Final = re.compile(r"([+-]?[0-9]{1,18}(?:\.[0-9]{0,18})?|[+-]?\.[0-9]{1,18})\s*([A-Za-z]*)", re.ASCII)


class UnitError(ValueError):
    """The text is no number with a known unit; the message says which units are understood."""


def parse_size(text: str) -> int:
    """``"1.5 KiB"`` -> 1536 bytes. A bare number is bytes; a fraction of a byte is cut off. Raises UnitError."""
    number, factor = _split(text, SIZES, "B")
    return int(number * factor)


def parse_time(text: str, bare: str = "s") -> float:
    """``"250ms"`` -> 0.25 seconds. ``bare`` is the unit of a number without one. Raises UnitError."""
    number, factor = _split(text, TIMES, bare)
    return float(number * factor / TIMES["s"])


def format_size(size: int) -> str:
    """The shortest exact way to write a size: ``10485760`` -> ``"10 MiB"``."""
    units = sorted(SIZES.items(), key=lambda entry: entry[1], reverse=True)
    fits = (entry for entry in units if size >= entry[1] and size % entry[1] == 0)
    unit, factor = next(fits, ("B", 1))
    return f"{size // factor} {unit}"


def _split(text: str, units: Mapping[str, int], bare: str) -> tuple[Decimal, int]:
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"not a number with a unit; units are {', '.join(units)}")
    number, unit = match.groups()
    factors = {name.lower(): factor for name, factor in units.items()}
    factor = factors.get((unit or bare).lower())
    if factor is None:
        raise UnitError(f"unknown unit {unit!r}; units are {', '.join(units)}")
    return Decimal(number), factor


def warm_up_s(text: str) -> float | None:
    """``"30 s"``: so many seconds are for sizes of batches beyond the examples; ``"examples"``: none, 0. ``"auto"``:
    None, whoever warms up finds it out. Raises UnitError."""
    if text in ("auto", "examples"):
        return None if text == "auto" else 0.0
    seconds = parse_time(text, "s")
    if seconds < 0:
        raise UnitError(f"{text} is less than nothing")
    return seconds


def wear_limits(text: str) -> Limits:
    """``"12 h, 8 GiB"`` as limits of what a worker serves; "" for none. Raises UnitError."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not part[-1].isalpha():
            raise UnitError(f"{part} has no unit")
        number, _, unit = part.rpartition(" ")
        if unit in ("batch", "batches"):
            if not number.strip().isdecimal():
                raise UnitError(f"{part} is no number of batches")
            name, value = "batches", float(number)
        else:
            try:
                name, value = "age_s", parse_time(part, bare="")
            except UnitError:
                name, value = "nbytes", float(parse_size(part))
        if value <= 0:
            raise UnitError(f"{part} is no limit")
        if name in found:
            raise UnitError(f"{part} is the second of its kind")
        found[name] = value
    return Limits(**found)
