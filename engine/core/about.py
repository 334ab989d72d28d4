"""What a stage says about itself for the OpenAPI document: made in a worker, kept by the broker, read in a frontend.

The broker never looks inside: an :class:`About` travels as opaque JSON in Ready, so a stage whose description is odd
costs nobody anything but a schema.

A component (a named type) is keyed by an id that is unique within its boundary, and ``$ref`` values in the schemas are
``REF_PREFIX`` plus such an id. Names that clients read are given where all stages are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from engine.core.oip import Tensor
from engine.core.wire import UNREADABLE
from engine.errors import ProtocolError

REF_PREFIX: Final = "#/components/schemas/"

# Any: a JSON Schema, whose shape is not ours to say.
Schema = dict[str, Any]


class Component(msgspec.Struct, frozen=True, omit_defaults=True):
    """A type that has a name. ``module`` tells apart two of one name; empty when it is not known."""

    name: str
    schema: Schema
    module: str = ""


class Boundary(msgspec.Struct, frozen=True, omit_defaults=True):
    """One side of a stage: what it takes, or what it gives. ``schema`` None: its class declares no type. ``example``: a
    body that it is sure to take; empty where there is none. ``stream``: in what it may be given instead, as it comes;
    empty where it may not. ``tensors``: what it is to the Open Inference Protocol, on a route that speaks that; None
    where any are taken."""

    mime: str
    schema: Schema | None = None
    components: dict[str, Component] = {}
    example: bytes = b""
    stream: str = ""
    tensors: list[Tensor] | None = None


class About(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stage as its class describes it. ``doc`` is the class's docstring without its indentation."""

    request: Boundary
    response: Boundary
    doc: str = ""


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(About)
_all_decoder = msgspec.msgpack.Decoder(dict[str, bytes])


def pack(about: About) -> bytes:
    """One stage's description. Raises TypeError or ValueError for a schema that JSON cannot say."""
    return _encode(about)


def unpack(data: bytes) -> About:
    """Inverse of :func:`pack`. Raises ProtocolError."""
    try:
        return _decoder.decode(data)
    except UNREADABLE as error:
        raise ProtocolError(f"unreadable description of a stage: {error}") from error


def pack_all(abouts: Mapping[str, bytes]) -> bytes:
    """The answer to the question ``about``: by stage, what :func:`pack` made; stages that said nothing are left out."""
    return msgspec.msgpack.encode({stage: about for stage, about in abouts.items() if about})


def unpack_all(data: bytes) -> dict[str, bytes]:
    """Inverse of :func:`pack_all`. Raises ProtocolError."""
    try:
        return _all_decoder.decode(data)
    except UNREADABLE as error:
        raise ProtocolError(f"unreadable descriptions of stages: {error}") from error


# --- schemas as trees ------------------------------------------------------------------------------------------------

# Keywords whose values are data, or names of ours with schemas behind them; all other objects in a schema are schemas.
_DATA: Final = frozenset({"default", "const", "enum", "examples", "example", "discriminator", "required"})
_NAMES: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs"})


def rewritten(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """A copy of a schema with ``change`` applied to every schema in it, from the inside out."""
    if isinstance(schema, list | tuple):
        return [rewritten(one, change) for one in schema]
    if not isinstance(schema, dict):
        return schema
    copy: Schema = {}
    for key, value in schema.items():
        if key in _DATA:
            copy[key] = value
        elif key in _NAMES and isinstance(value, dict):
            copy[key] = {name: rewritten(one, change) for name, one in value.items()}
        else:
            copy[key] = rewritten(value, change)
    return change(copy)


def with_refs(node: Schema, names: Mapping[str, str]) -> Schema:
    """One schema, without those in it, with its references to components renamed; a name not in ``names`` stays."""

    def renamed(ref: str) -> str:
        name = ref.removeprefix(REF_PREFIX)
        return REF_PREFIX + names.get(name, name) if ref.startswith(REF_PREFIX) else ref

    changed = dict(node)
    if isinstance(ref := node.get("$ref"), str):
        changed["$ref"] = renamed(ref)
    if isinstance(choice := node.get("discriminator"), dict) and isinstance(mapping := choice.get("mapping"), dict):
        changed["discriminator"] = {**choice, "mapping": {tag: renamed(to) for tag, to in mapping.items()}}
    return changed


def refs(schema: Any) -> Iterator[str]:
    """Ids of the components that a schema refers to, itself and in all schemas in it."""
    found: list[str] = []

    def note(node: Schema) -> Schema:
        ref = node.get("$ref")
        if isinstance(ref, str) and ref.startswith(REF_PREFIX):
            found.append(ref.removeprefix(REF_PREFIX))
        return node

    rewritten(schema, note)
    return iter(found)
