"""pydantic, where a service uses it: checking, dumping and describing its models.

Nothing here imports pydantic unless the service has: a type that involves a model cannot exist before. msgspec takes
models inside its own types through the two hooks; a type *made of* models (``Item``, ``list[Item]``, ``A | B``) is
pydantic's altogether, whose unions and modes msgspec does not know.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from engine.core.about import REF_PREFIX, Schema
from engine.errors import DecodingError, ValidationError
from stages.bases import as_base

if TYPE_CHECKING:
    import pydantic

Mode = Literal["validation", "serialization"]

SHOWN = 20  # errors of one value that are told; a list of thousands may be wrong in every entry


def is_model(kind: object) -> bool:
    """Whether a class is a model of pydantic's, or a dataclass of pydantic's."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(kind, type):
        return False
    return issubclass(kind, pydantic.BaseModel) or pydantic.dataclasses.is_pydantic_dataclass(kind)


def is_made_of_models(kind: Any) -> bool:
    """Whether a model stands in a type expression; what stands inside the fields of other classes does not count."""
    return is_model(kind) or any(is_made_of_models(part) for part in get_args(kind))


# --- checking --------------------------------------------------------------------------------------------------------


def json_decoder(kind: Any) -> Callable[[bytes], Any]:
    """Bytes of JSON to a checked value. Raises TypeError for a type that cannot be checked.

    What it returns raises ValidationError, or DecodingError for what is no JSON.
    """
    adapter, refused = _adapter(kind)

    def decode(data: bytes) -> Any:
        try:
            return adapter.validate_json(data)
        except refused as error:
            if any(one["type"] == "json_invalid" for one in error.errors(include_url=False, include_context=False)):
                raise DecodingError(_text(error)) from error
            raise ValidationError(_text(error)) from error

    return decode


def value_checker(kind: Any) -> Callable[[Any], Any]:
    """A decoded value to a checked one. Raises TypeError for a type that cannot be checked.

    What it returns raises ValidationError.
    """
    adapter, refused = _adapter(kind)

    def check(value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except refused as error:
            raise ValidationError(_text(error)) from error

    return check


def _adapter(kind: Any) -> tuple[pydantic.TypeAdapter[Any], type[pydantic.ValidationError]]:
    import pydantic

    try:
        return pydantic.TypeAdapter(kind), pydantic.ValidationError
    except pydantic.errors.PydanticUserError as error:
        raise TypeError(str(error)) from error


def _text(error: pydantic.ValidationError) -> str:
    """What is wrong and where, on one line; pydantic's own text adds the input and a link, which help no client."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" if one["loc"] else one["msg"] for one in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"and {len(found) - SHOWN} more")
    return "; ".join(lines)


def known(kind: Any) -> Any:
    """The type itself, when msgspec can check all of it. Raises TypeError; msgspec takes any class until a value comes.

    A dataclass of pydantic's is a dataclass to msgspec, which would fill it in without asking its validators.
    """
    for cls in classes(kind):
        if is_model(cls) and is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is a dataclass of pydantic's inside a type of msgspec's: use a BaseModel")
    schemas(kind, "validation")
    return kind


def is_open(kind: Any) -> bool:
    """Whether a type of msgspec's takes values of any type somewhere: itself, or for a hook to look at."""
    return _is_open(msgspec.inspect.type_info(kind), set())


def _is_open(part: object, seen: set[int]) -> bool:
    if isinstance(part, msgspec.inspect.AnyType | msgspec.inspect.CustomType):
        return True
    if isinstance(part, tuple | list):
        return any(_is_open(one, seen) for one in part)
    if not isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field) or id(part) in seen:
        return False
    seen.add(id(part))  # a type may speak of itself
    return any(_is_open(getattr(part, name), seen) for name in part.__struct_fields__ if name not in _NO_PARTS)


_NO_PARTS = frozenset({"cls", "default", "default_factory", "name", "encode_name"})


def classes(kind: Any) -> set[type]:
    """Every class that a type speaks of, in its arguments and its fields."""
    found: set[type] = set()
    _collect(kind, found)
    return found


def _collect(kind: Any, found: set[type]) -> None:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    for part in (get_origin(kind), *get_args(kind)):
        if part is not None:
            _collect(part, found)
    if not isinstance(kind, type) or kind in found or kind.__module__ in ("builtins", "typing", "collections.abc"):
        return
    found.add(kind)
    try:
        hints = get_type_hints(kind, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return  # whoever needs the fields says what is wrong with them
    for hint in hints.values():
        _collect(hint, found)


# --- hooks of msgspec ------------------------------------------------------------------------------------------------


def dec_hook(kind: type, value: Any) -> Any:
    """A model inside a type of msgspec's. Raises ValueError, to which msgspec adds the path."""
    if is_model(kind):
        try:
            return value_checker(kind)(value)
        except ValidationError as error:
            raise ValueError(str(error)) from error
    raise NotImplementedError(f"values of type {kind.__name__} cannot be decoded")


def enc_hook_json(value: Any) -> Any:
    """A model in a result, for JSON: by its aliases, as its schema says."""
    return _dump(value, "json")


def enc_hook_msgpack(value: Any) -> Any:
    """A model in a result, for MessagePack: bytes stay bytes."""
    return _dump(value, "python")


def _dump(value: Any, mode: Literal["json", "python"]) -> Any:
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(value, pydantic.BaseModel):  # its dataclasses msgspec encodes by itself
        return as_base(value)
    return value.model_dump(mode=mode, by_alias=True)


# --- schemas ---------------------------------------------------------------------------------------------------------


def schema(kind: Any, mode: Mode) -> tuple[Schema, dict[str, Schema]]:
    """JSON Schema of a type made of models, and of the named types in it. Raises TypeError where there is none."""
    import pydantic

    adapter, _ = _adapter(kind)
    try:
        schemas, whole = pydantic.TypeAdapter.json_schemas(
            [("it", mode, adapter)], ref_template=REF_PREFIX + "{model}", by_alias=True
        )
    except pydantic.errors.PydanticUserError as error:
        raise TypeError(str(error)) from error
    return dict(schemas["it", mode]), whole.get("$defs", {})


def schemas(kind: Any, mode: Mode) -> tuple[Schema, dict[str, Schema]]:
    """JSON Schema of any type that a typed worker takes, and of the named types in it. Raises TypeError."""
    if is_made_of_models(kind):
        return schema(kind, mode)
    inner: dict[str, Schema] = {}

    def hook(custom: type) -> Schema:
        if not is_model(custom):
            raise NotImplementedError
        found, named = schema(custom, mode)
        inner.update(named)
        return found

    (outer,), named = msgspec.json.schema_components([kind], schema_hook=hook, ref_template=REF_PREFIX + "{name}")
    return outer, {**inner, **named}
