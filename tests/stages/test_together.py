"""Values of a batch that go to the next stage together: what each payload is, as if it had been made alone, and who a
failure strikes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.arena import SHARED_MIN, Ref
from engine.core.wire import Buffer, Payload
from stages import Worker, buffers, ipc
from stages.compute import Codec, run_batch
from stages.context import ItemIn

DEEP: Any = [[[[[1]]]]]
SELF: list[Any] = []
SELF.append(SELF)

OTHERS: dict[str, Any] = {
    "bytes, which may be large": b"x",
    "a view": memoryview(b"x"),
    "a class of dicts": OrderedDict(a=1),
    "a class of numbers": type("Number", (int,), {})(1),
    "an object": object(),
    "deeper than is looked": DEEP,
    "wider than is looked": [0] * (buffers.WIDTH + 1),
    "itself": SELF,
    "an object as a key": {object(): 1},
    "an object in a value": {"a": {"b": [object()]}},
}

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers()), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.lists(plain, min_size=1, max_size=6))
def test_each_payload_is_what_it_would_be_alone(values: list[Any]) -> None:
    packed = ipc.pack_all(values)
    if packed is not None:  # else one of them is too deep
        assert packed == [ipc.pack(value) for value in values]
    alone = [ipc.pack(value) for value in values]
    assert ipc.unpack_all(alone) == values == [ipc.unpack(payload) for payload in alone]


def test_plain_values_of_all_kinds_are_packed_together() -> None:
    values = [1, 1.5, "a", None, True, 1 << 80, [1, [2]], (1, {"a": ("b",)}), {"a": 1, 2: [None]}, {}, []]
    packed = ipc.pack_all(values)
    assert packed is not None
    assert ipc.unpack_all(packed) == values
    assert [type(value) for value in ipc.unpack_all(packed) or ()] == [type(value) for value in values]


@pytest.mark.parametrize("name", OTHERS)
def test_all_else_is_left_to_who_looks_at_each(name: str) -> None:
    assert ipc.pack_all([1, OTHERS[name]]) is None
    assert ipc.pack_all([{"a": OTHERS[name]}, {"a": 1}]) is None


def test_large_ones_go_to_shared_memory_as_they_do_alone() -> None:
    put: list[int] = []

    def into(data: Buffer) -> Ref | None:
        if len(data) < SHARED_MIN:
            return None
        put.append(len(data))
        return Ref(1, 0, len(data))

    large = ["x" * SHARED_MIN, "y"]
    assert ipc.pack_all(large, into) == [Ref(1, 0, put[0]), ipc.pack("y")]
    together = ipc.pack_all(large)
    assert together is not None
    assert ipc.unpack_all(together) == large


class Passing(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return [(lambda: None) if value == "no pickle" else value for value in data]


def passed(payloads: Sequence[Payload], codec: Codec | None = None) -> list[tuple[int, Any]]:
    """What becomes of values that one stage gets from another and gives to a third."""
    worker = Passing()
    given = [ItemIn(uid, payload, first=False, last=False) for uid, payload in enumerate(payloads)]
    done = run_batch(worker, given, max_batch_size=8, codec=codec or Codec(worker)).outcomes
    return [
        (outcome.status, ipc.unpack(outcome.payload) if outcome.status == 200 else outcome.payload) for outcome in done
    ]


def test_values_pass_through_a_stage() -> None:
    assert passed([ipc.pack(value) for value in ({"a": 1}, "b", [3])]) == [(200, {"a": 1}), (200, "b"), (200, [3])]


@pytest.mark.parametrize("torn", [b"", b"\x01", ipc.pack({"a": 1})[:-1], b"\x80\x05cno_such\nname\n."])  # type: ignore[index]  # bytes
def test_what_cannot_be_unpickled_fails_alone(torn: bytes) -> None:
    first, second, third = passed([ipc.pack(1), torn, ipc.pack(3)])
    assert (first, third) == ((200, 1), (200, 3))
    assert second[0] == 500


def test_what_cannot_be_pickled_fails_alone() -> None:
    first, second, third = passed([ipc.pack(1), ipc.pack("no pickle"), ipc.pack(3)])
    assert (first, third) == ((200, 1), (200, 3))
    assert second == (500, b"encoding error: the result cannot be passed on to the next stage")


def test_what_the_next_stage_never_takes_fails_alone() -> None:
    worker = Passing()
    first, second = passed([ipc.pack("x" * 100), ipc.pack("y")], Codec(worker, most_between=100))
    assert first[0] == 500
    assert b"max_queue_bytes" in first[1]
    assert second == (200, "y")
