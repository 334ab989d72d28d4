"""Named types of many stages under one roof: a name each that is as short as it can be, and never shared by two. Pure.

Two stages may have classes of one name in different modules, or one class whose schema as a request differs from that
as an answer. Types are the same when they have the same module and name, and so have all types they refer to, with the
same schemas.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from engine.core.about import Boundary, Component, Schema, refs, rewritten, with_refs

_ODD: Final = re.compile(r"[^A-Za-z0-9._-]")  # what a component's name may not contain

_canonical = msgspec.json.Encoder(order="sorted").encode

Place = TypeVar("Place", bound=tuple[str, str])


@dataclass(frozen=True)
class _Variant:
    """One type as one schema. ``direction``: where it was met first."""

    name: str
    module: str
    direction: str


def merge(
    sides: Mapping[Place, Boundary], *, reserved: Collection[str] = ()
) -> tuple[dict[Place, Boundary], dict[str, Schema]]:
    """The boundaries with their references as they are in one document, and that document's components by name.

    A place is (anything, ``Input`` or ``Output``). Types that clash are told apart by their module, or by where they
    are used, or by a number.
    """
    variants: dict[bytes, _Variant] = {}
    keys: dict[Place, dict[str, bytes]] = {}
    for place, side in sides.items():
        keys[place] = {}
        for one, component in side.components.items():
            key = _canonical([one, _closure(one, side.components)])
            keys[place][one] = key
            variants.setdefault(key, _Variant(_ODD.sub("_", component.name), component.module, place[1]))
    names = _choose(variants, reserved)
    schemas: dict[str, Schema] = {}
    merged: dict[Place, Boundary] = {}
    for place, side in sides.items():
        local = {one: names[key] for one, key in keys[place].items()}
        merged[place] = replace(side, schema=_renamed(side.schema, local), components={})
        for one, component in side.components.items():
            schemas[local[one]] = _renamed(component.schema, local)
    return merged, schemas


def _closure(start: str, components: Mapping[str, Component]) -> dict[str, Schema]:
    """A component's schema and those of all it refers to, directly or not."""
    found: dict[str, Schema] = {}
    waiting = [start]
    while waiting:
        one = waiting.pop()
        if one not in found and one in components:
            found[one] = components[one].schema
            waiting.extend(refs(components[one].schema))
    return found


def _choose(variants: Mapping[bytes, _Variant], reserved: Collection[str]) -> dict[bytes, str]:
    by_name: dict[str, list[_Variant]] = {}
    for variant in variants.values():
        by_name.setdefault(variant.name, []).append(variant)
    taken = set(reserved)
    chosen: dict[bytes, str] = {}
    for key, variant in variants.items():
        alike = by_name[variant.name]
        name = variant.name
        if len(alike) > 1 or name in reserved:
            if len({one.module for one in alike}) > 1 or len(alike) == 1:
                name = _ODD.sub("_", f"{variant.module or 'service'}.{name}")
            if len({one.direction for one in alike if one.module == variant.module}) > 1:
                name = f"{name}-{variant.direction}"
        plain, number = name, 1
        while name in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name)
        chosen[key] = name
    return chosen


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    return rewritten(schema, lambda node: with_refs(node, names))
