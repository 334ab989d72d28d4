"""Small arrays between stages: what arrives is what was given, whatever else is left to pickle."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import numpy
import pytest
import torch

from engine.core.arena import SHARED_MIN
from stages import columns, ipc

ARRAYS = [
    numpy.arange(64),
    numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
    numpy.array([True, False]),
    numpy.array([1 + 2j]),
    numpy.array([255], dtype=numpy.uint8),
    numpy.arange(3, dtype=numpy.float16),
    torch.arange(5),
    torch.ones(2, 2, dtype=torch.float64),
    {"input_ids": numpy.arange(3), "attention_mask": numpy.ones((1, 3), dtype=numpy.int8)},
    {"ids": torch.arange(3), "length": numpy.array([3])},
]

Sub = type("Sub", (numpy.ndarray,), {})

OTHERS: dict[str, Any] = {
    "no array": 1.5,
    "an array of no dimensions": numpy.array(1),
    "an empty one": numpy.zeros((0, 3)),
    "objects": numpy.array([None]),
    "text": numpy.array(["a"]),
    "dates": numpy.array(["2026-01-01"], dtype="M8[D]"),
    "a record": numpy.zeros(1, dtype=[("a", "i4")]),
    "the other order of bytes": numpy.arange(3, dtype=">i4"),
    "columns first": numpy.asfortranarray(numpy.ones((2, 3))),
    "a step": numpy.arange(10)[::2],
    "a subclass": numpy.arange(3).view(Sub),
    "metadata": numpy.zeros(1, dtype=numpy.dtype("i4", metadata={"a": 1})),
    "a scalar": numpy.float32(1),
    "a large one": numpy.zeros(SHARED_MIN, dtype=numpy.uint8),
    "a gradient": torch.ones(2, requires_grad=True),
    "a parameter": torch.nn.Parameter(torch.ones(2)),
    "a type that numpy has not": torch.ones(2, dtype=torch.bfloat16),
    "a sparse one": torch.ones(2, 2).to_sparse(),
    "a conjugate": torch.tensor([1 + 2j]).conj(),
    "a list of arrays": [numpy.arange(3)],
    "a dict of nothing": {},
    "a dict of something else": {"a": numpy.arange(3), "b": 1},
    "other keys": {1: numpy.arange(3)},
    "large together": {name: numpy.zeros(SHARED_MIN // 2, dtype=numpy.uint8) for name in "ab"},
    "a class of dicts": OrderedDict(a=numpy.arange(3)),
}


def same(one: Any, other: Any) -> bool:
    """The same kind of value, of the same type, shape and numbers."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


@pytest.mark.parametrize("value", ARRAYS, ids=str)
def test_arrays_arrive_as_they_were_one_by_one_and_together(value: Any) -> None:
    packed = columns.pack(value)
    assert packed is not None
    assert columns.is_packed(packed)
    assert same(columns.unpack(packed), value)
    assert same(columns.unpack(memoryview(packed)), value)
    together = columns.unpack_all([packed] * 3)
    assert together is not None
    assert all(same(one, value) for one in together)


@pytest.mark.parametrize("value", OTHERS.values(), ids=OTHERS)
def test_what_is_not_plain_is_left_to_pickle(value: Any) -> None:
    assert columns.pack(value) is None
    ipc.unpack(ipc.pack(value))


@pytest.mark.parametrize("size", [4, 40_000], ids=["small ones in one piece", "larger ones by themselves"])
def test_who_writes_into_one_changes_no_other(size: int) -> None:
    given = [numpy.full(size, number, dtype=numpy.uint8) for number in range(4)]
    packed = [columns.pack(value) for value in given]
    found = columns.unpack_all([one for one in packed if one is not None])
    assert found is not None
    for one in found:
        one += 100
    assert [one.tolist() for one in found] == [[number + 100] * size for number in range(4)]
    alone = columns.unpack(packed[0] or b"")
    alone += 1
    assert alone.tolist() == [1] * size


def test_a_frozen_array_arrives_as_one_that_can_be_written_to() -> None:
    frozen = numpy.frombuffer(b"\1\2", dtype=numpy.uint8)
    found = columns.unpack(columns.pack(frozen) or b"")
    assert found.flags.writeable


def test_arrays_that_differ_are_taken_one_by_one() -> None:
    packed = [columns.pack(numpy.arange(length)) for length in (3, 4)]
    assert columns.unpack_all(packed) is None  # type: ignore[arg-type]  # none of them is None
    assert columns.unpack_all([packed[0] or b"", ipc.pack("text")]) is None
    assert columns.unpack_all([ipc.pack("text"), packed[0] or b""]) is None


def test_heads_are_forgotten_before_they_are_too_many() -> None:
    for length in range(1, columns.KEPT_MOST + 10):
        assert len(columns.unpack(columns.pack(numpy.zeros(length, dtype=numpy.uint8)) or b"")) == length
    assert len(columns._heads) <= columns.KEPT_MOST
    assert len(columns._layouts) <= columns.KEPT_MOST


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        b"\1\0\4\0",
        b"\1\0\5\0\x90",
        b"\1\0\xff\xff" + bytes(8),
        (columns.pack(numpy.arange(3)) or b"")[:-1],
        (columns.pack(numpy.arange(3)) or b"") + b"\0",
        (columns.pack(numpy.arange(3)) or b"").replace(b"<i8", b"|O8"),
        (columns.pack(numpy.arange(3)) or b"").replace(b"<i8", b"zzz"),
    ],
)
def test_bytes_that_are_none_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="array"):
        columns.unpack(data)


def test_a_method_of_the_users_own_gets_a_pickle() -> None:
    value = numpy.arange(3)
    assert same(pickle.loads(ipc.plain(ipc.pack(value))), value)
