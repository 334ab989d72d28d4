"""Typed workers: what fits comes in as its type, what does not is 422, what cannot be read is 400."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any, TypedDict

import msgspec
import pydantic
import pytest

from engine.errors import DecodingError, EncodingError, StartError, ValidationError
from stages.base import Worker
from stages.compute import run_batch
from stages.context import ItemIn
from stages.mixin import TypedJSONMixin, TypedMsgPackMixin
from stages.mixin.typed import check_types


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclass
class Plain:
    x: int
    y: int = 0


class Table(TypedDict):
    x: int
    y: int


class Model(pydantic.BaseModel):
    x: int
    y: int = 0

    @pydantic.field_validator("y")
    @classmethod
    def small(cls, value: int) -> int:
        if value > 100:
            raise ValueError("y is larger than 100")
        return value


@pydantic.dataclasses.dataclass
class Checked:
    x: int
    y: int = pydantic.Field(default=0, le=100)


class Mixed(msgspec.Struct):
    """A model of pydantic's inside a type of msgspec's."""

    model: Model
    more: list[Model] = []


class Careless(msgspec.Struct):
    checked: Checked


class Unknown:
    """Of no library's kind."""


def json_worker(kind: Any, *, batch: int = 1) -> Worker:
    return _worker(TypedJSONMixin, kind, batch)


def msgpack_worker(kind: Any, *, batch: int = 1) -> Worker:
    return _worker(TypedMsgPackMixin, kind, batch)


def _worker(mixin: type, kind: Any, batch: int) -> Worker:
    def forward(self: Worker, data: Any) -> Any:
        return data

    forward.__annotations__["data"] = kind
    made: Worker = type("Made", (mixin, Worker), {"forward": forward})()
    made.max_batch_size = batch
    return made


KINDS = [Point, Plain, Model, Checked]


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_comes_in_as_its_type(kind: Any) -> None:
    assert json_worker(kind).deserialize(b'{"x": 3}') == kind(x=3, y=0)
    assert msgpack_worker(kind).deserialize(msgspec.msgpack.encode({"x": 3, "y": 4})) == kind(x=3, y=4)


def test_a_typed_dict_stays_a_dict() -> None:
    assert json_worker(Table).deserialize(b'{"x": 3, "y": 1}') == {"x": 3, "y": 1}


@pytest.mark.parametrize("kind", [*KINDS, Table])
@pytest.mark.parametrize("make", [json_worker, msgpack_worker])
def test_what_does_not_fit_is_a_validation_error_that_names_the_field(kind: Any, make: Any) -> None:
    encode = msgspec.json.encode if make is json_worker else msgspec.msgpack.encode
    with pytest.raises(ValidationError) as caught:
        make(kind).deserialize(encode({"x": "three", "y": 1}))
    assert caught.value.status == 422
    assert "x" in str(caught.value)
    with pytest.raises(ValidationError, match="x"):
        make(kind).deserialize(encode({"y": 1}))


def test_the_message_is_the_validators() -> None:
    with pytest.raises(ValidationError) as caught:
        json_worker(Point).deserialize(b'{"x": "a"}')
    assert caught.value.text == "request validation error: Expected `int`, got `str` - at `$.x`"
    with pytest.raises(ValidationError) as caught:
        json_worker(Model).deserialize(b'{"x": "a", "y": 101}')
    assert caught.value.text == (
        "request validation error: x: Input should be a valid integer, unable to parse string as an integer; "
        "y: Value error, y is larger than 100"
    )


def test_a_long_list_of_mistakes_is_cut() -> None:
    worker = json_worker(list[Model])
    with pytest.raises(ValidationError, match=r"0\.x: .*19\.x: .*; and 980 more$"):
        worker.deserialize(json.dumps([{"x": "a"}] * 1000).encode())


MALFORMED_JSON = [b"", b"{", b"nonsense", b'{"x": 1} {', b'"\xff"', b"[" * 200_000, b'{"x": "a", oops']


@pytest.mark.parametrize("kind", [*KINDS, Table, Any, list[Model]])
def test_what_is_no_json_is_a_decoding_error(kind: Any) -> None:
    worker = json_worker(kind)
    for body in MALFORMED_JSON:
        with pytest.raises(DecodingError) as caught:
            worker.deserialize(body)
        assert caught.value.status == 400


WHOLE = msgspec.msgpack.encode({"x": 1, "y": 2})
MALFORMED_MSGPACK = [b"", WHOLE[:-1], WHOLE + b"\x01", b"\xc1", b"\x91" * 200_000, b"\xa1\xff", b"\x82\xa1x\xa1a\xa1y"]


@pytest.mark.parametrize("kind", [*KINDS, Table, Any])
def test_what_is_no_msgpack_is_a_decoding_error(kind: Any) -> None:
    worker = msgpack_worker(kind)
    for body in MALFORMED_MSGPACK:
        with pytest.raises(DecodingError):
            worker.deserialize(body)


def test_models_inside_structs_are_checked_too() -> None:
    worker = json_worker(Mixed)
    assert worker.deserialize(b'{"model": {"x": 1}, "more": [{"x": 2}]}') == Mixed(Model(x=1), [Model(x=2)])
    with pytest.raises(ValidationError, match=r"y: Value error, y is larger than 100 - at `\$\.model`"):
        worker.deserialize(b'{"model": {"x": 1, "y": 101}}')


def test_models_in_a_union_are_told_apart() -> None:
    class Other(pydantic.BaseModel):
        name: str

    worker = json_worker(Model | Other)
    assert worker.deserialize(b'{"name": "n"}') == Other(name="n")
    assert worker.deserialize(b'{"x": 1}') == Model(x=1)


def test_a_batch_is_a_list_of_what_requests_hold() -> None:
    body = b'{"x": 3}'
    for kind in (list[Point], Sequence[Point], Point):
        assert json_worker(kind, batch=8).deserialize(body) == Point(3)
    assert json_worker(list[list[Point]], batch=8).deserialize(b'[{"x": 3}]') == [Point(3)]
    # Without batches a list is a list.
    assert json_worker(list[Point]).deserialize(b'[{"x": 3}]') == [Point(3)]
    with pytest.raises(ValidationError):
        json_worker(list[Point]).deserialize(body)


@pytest.mark.parametrize("kind", [Any, list, list[Any]])
def test_no_type_takes_anything(kind: Any) -> None:
    assert json_worker(kind, batch=2).deserialize(b'{"any": [1]}') == {"any": [1]}


def test_a_worker_without_annotation_takes_anything() -> None:
    class Bare(TypedMsgPackMixin, Worker):
        def forward(self, data):
            return data

    assert Bare().deserialize(msgspec.msgpack.encode({"any": b"1"})) == {"any": b"1"}


def test_constraints_of_builtins_count() -> None:
    worker = json_worker(Annotated[int, msgspec.Meta(ge=1)])
    assert worker.deserialize(b"1") == 1
    with pytest.raises(ValidationError, match="Expected `int` >= 1"):
        worker.deserialize(b"0")


def test_string_annotations_are_resolved_where_they_were_written() -> None:
    class Quoted(TypedJSONMixin, Worker):
        def forward(self, data: Point, missing: NotThere = None) -> AlsoMissing:  # noqa: F821
            return data

    assert Quoted().deserialize(b'{"x": 3}') == Point(3)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("NotThere", "name 'NotThere' is not defined"),
        (complex, "complex"),
        (dict[str, complex], "complex"),
        (Point | Plain, "[Uu]nion"),
        (Model | Unknown, "Unknown"),
        (dict[str, Unknown], "Unknown"),
        (dict[str, Model] | Point, "Point"),
        (Careless, "Checked is a dataclass of pydantic's inside a type of msgspec's: use a BaseModel"),
    ],
)
def test_a_type_that_cannot_be_checked_is_a_failed_start(kind: Any, reason: str) -> None:
    worker = json_worker(kind)
    with pytest.raises(StartError, match=reason) as caught:
        check_types(worker)
    assert "the annotation of Made.forward cannot be checked" in str(caught.value)


def test_types_of_an_untyped_worker_are_not_read() -> None:
    class Untyped(Worker):
        def forward(self, data: NotThere) -> Any:  # noqa: F821
            return data

    check_types(Untyped())


# --- answers ---------------------------------------------------------------------------------------------------------

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


class Aliased(pydantic.BaseModel):
    inner: int = pydantic.Field(alias="outer")
    at: datetime
    data: bytes = b""


@pytest.mark.parametrize("value", [Point(1, 2), Plain(1, 2), {"x": 1, "y": 2}, Model(x=1, y=2), Checked(x=1, y=2)])
def test_results_of_every_kind_are_encoded(value: Any) -> None:
    assert json.loads(json_worker(Any).serialize(value)) == {"x": 1, "y": 2}
    assert msgspec.msgpack.decode(msgpack_worker(Any).serialize([value])) == [{"x": 1, "y": 2}]


def test_models_leave_by_their_aliases_and_bytes_stay_bytes_in_msgpack() -> None:
    value = Aliased(outer=1, at=WHEN, data=b"\x00\xff")
    packed = msgspec.msgpack.decode(msgpack_worker(Any).serialize(value))
    assert packed == {"outer": 1, "at": WHEN, "data": b"\x00\xff"}
    text = json_worker(Any).serialize(Aliased(outer=1, at=WHEN, data=b"abc"))
    assert json.loads(text) == {"outer": 1, "at": "2026-01-02T03:04:05Z", "data": "abc"}


@pytest.mark.parametrize("make", [json_worker, msgpack_worker])
def test_a_result_that_the_format_lacks_is_an_encoding_error_that_names_its_type(make: Any) -> None:
    for value in (object(), {"a": lambda: None}, [complex(1)]):
        with pytest.raises(EncodingError, match=r"object|function|complex"):
            make(Any).serialize(value)


# --- among others ----------------------------------------------------------------------------------------------------


def test_one_bad_request_of_a_batch_fails_alone() -> None:
    worker = json_worker(list[Model], batch=4)
    bodies = [b'{"x": 1}', b'{"x": "a"}', b"{", b'{"x": 2}']
    outcomes = run_batch(worker, [ItemIn(n, body) for n, body in enumerate(bodies)], max_batch_size=4).outcomes
    assert [one.status for one in outcomes] == [200, 422, 400, 200]
    assert bytes(outcomes[3].payload) == b'{"x":2,"y":0}'


def test_mime_types_say_the_format() -> None:
    assert (TypedMsgPackMixin.req_mime_type, TypedMsgPackMixin.resp_mime_type) == ("application/msgpack",) * 2
    assert (TypedJSONMixin.req_mime_type, TypedJSONMixin.resp_mime_type) == ("application/json",) * 2


def test_the_mixin_alone_is_a_worker() -> None:
    class Alone(TypedMsgPackMixin):
        def forward(self, data: Point) -> int:
            return data.x

    assert Alone().deserialize(WHOLE) == Point(1, 2)
