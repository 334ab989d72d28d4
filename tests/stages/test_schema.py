"""What a worker says about itself, out of the annotations of `forward`."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import numpy as np
import pydantic
import pytest

from engine.core import about
from engine.core.about import About
from engine.errors import ValidationError
from stages.base import Worker
from stages.mixin import TypedJSONMixin, TypedMsgPackMixin
from stages.schema import ABOUT_MAX, EXAMPLE_MAX, describe
from stages.stream import SSEWorker, StreamWorker

HERE = __name__


class Colour(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    colour: Colour = Colour.RED


class Line(msgspec.Struct):
    ends: tuple[Point, Point]


@dataclass
class Plain:
    x: int


class Table(TypedDict):
    x: int


class Model(pydantic.BaseModel):
    default: Plain
    when: str = pydantic.Field(alias="at")

    @pydantic.computed_field
    @property
    def size(self) -> int:
        return 1


class Mixed(msgspec.Struct):
    model: Model


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


def told(kind: Any, returns: Any = None, *, base: tuple[type, ...] = (Worker,), batch: int = 1, **names: Any) -> About:
    def forward(self: Worker, data: Any) -> Any:
        return data

    forward.__annotations__ = {"data": kind, "return": returns}
    worker: Worker = type("Made", base, {"forward": forward, **names})()
    worker.max_batch_size = batch
    return about.unpack(describe(worker, first=True, last=True))


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


@pytest.mark.parametrize("kind", [Point, Plain, Table, Model])
def test_a_named_type_is_a_component_that_knows_its_module(kind: type) -> None:
    request = told(kind).request
    assert request.schema == ref(f"{HERE}.{kind.__name__}")
    component = request.components[f"{HERE}.{kind.__name__}"]
    assert (component.name, component.module) == (kind.__name__, HERE)
    assert component.schema["type"] == "object"


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (int, {"type": "integer"}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (None, {"type": "null"}),
        (bytes, {"type": "string", "contentEncoding": "base64"}),
    ],
)
def test_builtins_need_no_component(kind: Any, schema: dict[str, Any]) -> None:
    said = told(kind, kind)
    assert said.request.schema == said.response.schema == schema
    assert said.request.components == {}


def test_types_inside_types_come_along() -> None:
    request = told(Line).request
    assert set(request.components) == {f"{HERE}.Line", f"{HERE}.Point", f"{HERE}.Colour"}
    assert request.components[f"{HERE}.Point"].schema["properties"]["colour"]["default"] == "red"


def test_references_inside_models_and_mixtures_are_complete() -> None:
    for kind in (Model, Mixed, list[Model], dict[str, Mixed]):
        request = told(kind).request
        found = set(about.refs(request.schema))
        for component in request.components.values():
            found.update(about.refs(component.schema))
        assert found <= set(request.components)
        assert f"{HERE}.Plain" in found, "behind a field that is named like a keyword"


def test_a_model_is_described_as_it_is_sent_and_as_it_is_answered() -> None:
    said = told(Model, Model)
    assert "size" not in said.request.components[f"{HERE}.Model"].schema["properties"]
    assert "size" in said.response.components[f"{HERE}.Model"].schema["properties"]
    assert "at" in said.request.components[f"{HERE}.Model"].schema["properties"]


def test_a_tagged_union_keeps_its_mapping() -> None:
    request = told(Cat | Dog).request
    assert request.schema is not None
    assert request.schema["discriminator"]["mapping"] == {
        "Cat": f"#/components/schemas/{HERE}.Cat",
        "Dog": f"#/components/schemas/{HERE}.Dog",
    }


def test_a_batch_is_unwrapped_once_on_both_sides() -> None:
    said = told(list[Point], list[list[int]], batch=8)
    assert said.request.schema == ref(f"{HERE}.Point")
    assert said.response.schema == {"type": "array", "items": {"type": "integer"}}
    assert told(list, list, batch=8).request.schema is None


def test_exceptions_among_results_are_no_answers() -> None:
    assert told(int, list[int | ValidationError], batch=2).response.schema == {"type": "integer"}
    assert told(int, list[Exception | ValidationError], batch=2).response.schema is None


def test_a_worker_without_annotations_promises_nothing() -> None:
    class Bare(Worker):
        def forward(self, data):
            return data

    said = about.unpack(describe(Bare(), first=True, last=True))
    assert (said.request.schema, said.response.schema) == (None, None)
    assert (said.request.mime, said.response.mime) == ("application/json",) * 2
    assert told(Any, Any).request.schema is None


@pytest.mark.parametrize("kind", [np.ndarray, complex, "NotThere", object()])
@pytest.mark.parametrize("base", [(Worker,), (TypedJSONMixin, Worker)])
def test_what_no_schema_can_say_is_left_out_and_told_loudly_if_it_is_a_mistake(
    kind: Any, base: tuple[type, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    said = told(kind, int, base=base)
    assert said.request.schema is None
    assert said.response.schema == {"type": "integer"}
    (told_of,) = [record for record in caplog.records if "no schema of the request of Made" in record.message]
    assert told_of.levelname == ("WARNING" if kind == "NotThere" else "INFO")


def test_a_body_to_try_is_told_unless_it_is_large() -> None:
    class Echo(Worker):
        def forward(self, data):  # type: ignore[no-untyped-def]
            return data

    def example(body: bytes) -> bytes:
        return about.unpack(describe(Echo(), first=True, last=True, example=body)).request.example

    assert example(b'{"x":3}') == b'{"x":3}'
    assert example(b"x" * (EXAMPLE_MAX + 1)) == b""


def test_only_the_ends_of_routes_are_described(caplog: pytest.LogCaptureFixture) -> None:
    class Middle(Worker):
        def forward(self, data: np.ndarray) -> np.ndarray:
            return data

    said = about.unpack(describe(Middle(), first=False, last=False))
    assert (said.request.schema, said.response.schema) == (None, None)
    assert caplog.text == ""


def test_bytes_are_binary_where_the_format_has_them() -> None:
    packed = told(dict[str, bytes], bytes, base=(TypedMsgPackMixin, Worker))
    assert packed.request.mime == packed.response.mime == "application/msgpack"
    assert packed.request.schema == {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
    image = told(bytes, str, req_mime_type="image/png", resp_mime_type="text/plain")
    assert image.request.schema == {"type": "string", "format": "binary"}
    assert image.response.schema == {"type": "string"}


def test_a_class_that_takes_bodies_as_they_are_does_not_say_json() -> None:
    def deserialize(self: Worker, data: bytes) -> bytes:
        return data

    file = told(bytes, str, deserialize=deserialize).request
    assert (file.mime, file.schema) == ("application/octet-stream", {"type": "string", "format": "binary"})
    made = type("Made", (Worker,), {"deserialize": deserialize, "forward": lambda self, data: data})()
    bare = about.unpack(describe(made, first=True, last=True, example=b"\x89")).request
    assert (bare.mime, bare.schema, bare.example) == ("application/octet-stream", None, b"\x89")
    assert told(Point, str, deserialize=deserialize).request.mime == "application/json"
    assert told(bytes, str).request.mime == "application/json"  # a string of base64
    assert told(bytes, str, deserialize=deserialize, req_mime_type="image/png").request.mime == "image/png"


def test_streams_are_what_is_sent_and_not_what_is_returned() -> None:
    events = told(Point, None, base=(SSEWorker,)).response
    assert (events.mime, events.schema) == ("text/event-stream", {"type": "string"})
    pieces = told(Point, Iterator[bytes], base=(StreamWorker,)).response
    assert (pieces.mime, pieces.schema) == ("application/octet-stream", {"type": "string", "format": "binary"})

    class Quiet(TypedMsgPackMixin, SSEWorker):
        def forward(self, data: Point):
            return None

    said = about.unpack(describe(Quiet(), first=True, last=True))
    assert (said.response.mime, said.response.schema) == ("text/event-stream", None)
    assert said.request.schema is not None


def test_the_docstring_is_the_classs_own() -> None:
    class Documented(Worker):
        """First.

        Second,
            indented.
        """

        def forward(self, data: int) -> int:
            return data

    assert about.unpack(describe(Documented(), first=True, last=True)).doc == "First.\n\nSecond,\n    indented."
    assert told(int).doc == ""


def test_a_monstrous_schema_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    huge = msgspec.defstruct("Huge", [("x", int)], namespace={"__doc__": "x" * ABOUT_MAX})
    said = told(huge)
    assert said.request.schema is None
    assert said.request.mime == "application/json"
    assert "left out" in caplog.text


# --- on the way ------------------------------------------------------------------------------------------------------


def test_descriptions_travel_by_stage_and_silent_stages_are_left_out() -> None:
    one = about.pack(told(Line))
    assert about.unpack_all(about.pack_all({"a": one, "b": b""})) == {"a": one}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"request": 1}', b"\xff"])
def test_what_is_no_description_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(about.ProtocolError):
        about.unpack(data)
    with pytest.raises(about.ProtocolError):
        about.unpack_all(data)
