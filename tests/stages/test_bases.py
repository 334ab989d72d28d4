"""Results of subclasses of plain types: a format writes what they are, not what their own methods say."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import json
import math
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest

from engine.errors import EncodingError
from stages import Worker
from stages.bases import as_base
from stages.mixin import MsgpackMixin, TypedJSONMixin, TypedMsgPackMixin


class Label(str):
    def __str__(self) -> str:
        return "wrong"

    __repr__ = __str__

    def encode(self, *_: Any) -> bytes:
        return b"wrong"


class Metres(float):
    def __float__(self) -> float:
        return -1.0

    def __repr__(self) -> str:
        return "wrong"

    __str__ = __repr__


class Count(int):
    def __int__(self) -> int:
        return -1

    __index__ = __int__

    def __gt__(self, _: Any) -> bool:
        return False

    def __repr__(self) -> str:
        return "wrong"

    __str__ = __repr__


class Blob(bytes):
    def __bytes__(self) -> bytes:
        return b"wrong"

    def __getitem__(self, _: Any) -> Any:
        return b"wrong"


class Filled(bytearray):
    def __bytes__(self) -> bytes:
        return b"wrong"


class Table(dict[str, int]):
    def items(self) -> Any:
        return [("wrong", 1)]

    def keys(self) -> Any:
        return ["wrong"]

    def __iter__(self) -> Any:
        return iter(["wrong"])

    def __getitem__(self, _: Any) -> int:
        return -1

    def __len__(self) -> int:
        return 1


class Rows(list[int]):
    def __iter__(self) -> Any:
        return iter([-1])

    def __getitem__(self, _: Any) -> Any:
        return -1

    def __len__(self) -> int:
        return 3


class Pair(tuple[int, int]):
    def __iter__(self) -> Any:
        return iter([-1])


class Colour(str, enum.Enum):
    RED = "red"

    def __str__(self) -> str:
        return "wrong"


class Described(str, enum.Enum):
    """With a value that is not its characters: json writes the characters."""

    def __new__(cls, text: str, value: str) -> Described:
        made = str.__new__(cls, text)
        made._value_ = value
        return made

    ONE = ("characters", "wrong")


class Level(int, enum.Enum):
    HIGH = 7

    def __str__(self) -> str:
        return "wrong"


class Bits(enum.IntFlag):
    A = 1
    B = 2


class JSON(TypedJSONMixin, Worker):
    pass


class Packed(MsgpackMixin, Worker):
    pass


class TypedPacked(TypedMsgPackMixin, Worker):
    pass


FORMATS: dict[type[Worker], Any] = {
    Worker: json.loads,
    JSON: json.loads,
    Packed: lambda data: msgpack.unpackb(data, strict_map_key=False),
    TypedPacked: lambda data: msgpack.unpackb(data, strict_map_key=False),
}
SUBCLASSES = [
    (Label("cat"), "cat"),
    (Metres(2.5), 2.5),
    (Count(5), 5),
    (np.float64(1.5), 1.5),
    (np.str_("word"), "word"),
    (Colour.RED, "red"),
    (Described.ONE, "characters"),
    (Level.HIGH, 7),
    (Bits.A | Bits.B, 3),
]
CONTAINERS = [
    (Table(a=1, b=2), {"a": 1, "b": 2}),
    (Rows([1, 2]), [1, 2]),
    (Pair((1, 2)), [1, 2]),
    (collections.defaultdict(int, a=1), {"a": 1}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
]
BINARY = [(Blob(b"xy"), b"xy"), (Filled(b"xy"), b"xy"), (np.bytes_(b"xy"), b"xy")]


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize(("value", "base"), SUBCLASSES + CONTAINERS, ids=lambda value: type(value).__name__)
def test_it_is_written_as_what_it_is(cls: type[Worker], value: Any, base: Any) -> None:
    for shape in (lambda one: one, lambda one: [one, 1], lambda one: {"a": {"b": [one]}}, lambda one: (one,)):
        sent = json.loads(json.dumps(shape(base)))
        assert FORMATS[cls](cls().serialize(shape(value))) == sent


@pytest.mark.parametrize("cls", [Worker, JSON])
@pytest.mark.parametrize(("key", "base"), SUBCLASSES, ids=lambda value: type(value).__name__)
def test_a_key_of_json_is_written_as_json_writes_it(cls: type[Worker], key: Any, base: Any) -> None:
    value = {"outer": [{key: Label("cat"), None: Metres(1.0), True: Rows([1, 2])}]}
    expected = {"outer": [json.loads(json.dumps({base: "cat", None: 1.0, True: [1, 2]}))]}
    assert json.loads(cls().serialize(value)) == expected


@pytest.mark.parametrize("cls", [Packed, TypedPacked])
@pytest.mark.parametrize(("key", "base"), SUBCLASSES + BINARY[:1], ids=lambda value: type(value).__name__)
def test_a_key_of_messagepack_is_written_as_what_it_is(cls: type[Worker], key: Any, base: Any) -> None:
    assert FORMATS[cls](cls().serialize({key: Label("cat")})) == {base: "cat"}


@pytest.mark.parametrize(("value", "base"), BINARY, ids=lambda value: type(value).__name__)
def test_bytes_are_written_as_bytes(value: Any, base: bytes) -> None:
    for packed in (Packed, TypedPacked):
        assert FORMATS[packed](packed().serialize([value])) == [base]
    for text in (Worker, JSON):
        assert text().serialize([value]) == msgspec.json.encode([base])


def test_odd_keys_and_odd_text_may_stand_beside_what_only_msgspec_knows() -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    when = datetime.datetime(2020, 1, 2, 3, 4, 5)
    for cls in (Worker, JSON):
        assert cls().serialize({None: Point(1), Label("at"): when}) == b'{"null":{"x":1},"at":"2020-01-02T03:04:05"}'
        assert cls().serialize({1: "\ud800", "x": math.nan}) == b'{"1":"\\ud800","x":null}'


def test_messagepacks_own_kinds_stay_what_they_are() -> None:
    value = {
        "e": msgpack.ExtType(5, b"abc"),
        "t": msgpack.Timestamp(1, 2),
        "p": ((1, 2), [(3,)]),
        "m": memoryview(b"x"),
    }
    assert Packed().serialize(value) == msgpack.packb(value)


@pytest.mark.parametrize("cls", FORMATS)
def test_what_a_format_lacks_is_named(cls: type[Worker]) -> None:
    class Odd:
        pass

    with pytest.raises(EncodingError, match="Odd"):
        cls().serialize({"a": [Odd()]})
    with pytest.raises(EncodingError):
        cls().serialize({Odd(): 1})


def test_a_base_is_exactly_of_its_type() -> None:
    for value, base in SUBCLASSES[:5] + BINARY:
        assert type(as_base(value)) in (type(base), bytearray)
    with pytest.raises(TypeError, match="object"):
        as_base(object())
