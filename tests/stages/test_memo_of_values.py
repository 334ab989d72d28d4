"""By what caches know values: equal digests are equal values, and what cannot be told is computed."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.items import Request
from engine.core.messages import MEMO_KEY_SIZE, Batch, Parts, Results, Role
from engine.core.parts import Gatherings
from engine.core.routing import FINAL, JOIN, Route, Split, Topology
from engine.errors import StartError
from stages import SSEWorker, Worker
from stages.compute import OK, Codec, run_batch
from stages.context import ItemIn
from stages.contract import check_class
from stages.memo import key_of
from stages.runtime.parcels import Origin, Plan
from stages.ways import Skip, way_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, VALUES)
def test_equal_digests_are_equal_values(one: Any, other: Any) -> None:
    keys = [key_of({"x": value, "y": 1}, pickle.dumps(value), ["x"]) for value in (one, other)]
    assert [len(key) for key in keys] == [MEMO_KEY_SIZE] * 2
    if keys[0] == keys[1]:
        assert repr(one) == repr(other)


@dataclass
class Page:
    text: str
    size: int


def test_fields_of_mappings_and_of_objects_and_all_of_what_is_large() -> None:
    assert key_of(Page("a", 1), b"1", ["text"]) == key_of({"text": "a", "size": 2}, b"2", ["text"])
    assert key_of(Page("a", 1), b"1", ["text", "size"]) != key_of(Page("a", 2), b"1", ["text", "size"])
    assert key_of(Page("a", 1), b"1", []) != key_of(Page("a", 1), b"2", [])
    assert key_of(Page("a", 1), b"x", ["text"]) != key_of("a", pickle.dumps(["a"], protocol=5), [])  # of another kind
    large = numpy.arange(9)
    assert key_of(large, (b"head", b"one"), []) == key_of(large.copy(), (b"head", b"two"), [])
    assert key_of(large, (b"head", b"one"), []) != key_of(large + 1, (b"head", b"one"), [])


@pytest.mark.parametrize(
    "value", [{"size": 1}, Page, None, {"text": lambda: 1}], ids=["none", "class", "None", "lambda"]
)
def test_what_cannot_be_told_is_computed(value: Any) -> None:
    assert key_of(value, b"", ["text"]) == b""


# --- on their way ----------------------------------------------------------------------------------------------------

PRE, A, POST = range(3)
TABLE = Topology(
    ("pre", "a", "post"),
    (
        Route("/chain", (PRE, A, POST)),
        Route("/each", (PRE, A, POST), (POST, JOIN, FINAL), {PRE: Split((A,), POST)}),
        Route("/last", (PRE, A)),
    ),
    {A: ("text",)},
)


class Echo(Worker):
    max_batch_size = 8

    def forward(self, data: list[Any]) -> list[Any]:
        return data


def sent(
    route: int, stage: int, values: list[Any], table: Topology = TABLE
) -> list[tuple[int, Results | Parts, list[Any]]]:
    worker = Echo()
    way = way_of(table, route, stage)
    payloads = [Codec(worker).encode_between(value) for value in values]
    items = [ItemIn(n, one, first=False, last=way.last, way=way) for n, one in enumerate(payloads)]
    computed = run_batch(worker, items, max_batch_size=8)
    assert all(outcome.status == OK for outcome in computed.outcomes)
    n = len(values)
    batch = Batch(7, 0, "full", [*range(n)], [route] * n, [0] * n, [1] * n, [b""] * n, [0] * n, [b""] * n)
    return Plan(table, stage).results(
        Origin(stage, 1), batch, computed.outcomes, mime="text/x", targets=computed.targets
    )


def test_what_goes_to_a_cache_goes_by_way_of_the_front_with_its_key() -> None:
    ((target, parts, payloads),) = sent(0, PRE, [{"text": "x"}, {"text": "y"}, {"no": 1}])
    assert target == JOIN
    assert isinstance(parts, Parts)
    assert parts.targets == [A, A, A]
    assert parts.roles == [Role.DONE] * 3
    assert [bool(key) for key in parts.keys] == [True, True, False]
    assert parts.keys[0] == key_of({"text": "x"}, b"", ["text"])
    assert len(payloads) == 3


def test_what_comes_from_a_cache_goes_there_too_with_where_it_goes() -> None:
    ((_, parts, _),) = sent(0, A, [{"text": "x"}])
    assert isinstance(parts, Parts)
    assert (parts.targets, parts.keys) == ([POST], [b""])
    ((_, parts, payloads),) = sent(2, A, [{"text": "x"}])
    assert isinstance(parts, Parts)
    assert (parts.targets, parts.mime, payloads) == ([FINAL], "text/x", [b'{"text":"x"}'])


def test_each_part_has_a_key_of_its_own_and_who_is_sent_past_has_none() -> None:
    ((_, parts, _),) = sent(1, PRE, [[{"text": "x"}, {"text": "y"}]])
    assert isinstance(parts, Parts)
    assert parts.roles == [Role.FRAME, Role.PART, Role.PART]
    assert [bool(key) for key in parts.keys] == [False, True, True]
    ((target, results, _),) = sent(0, PRE, [Skip({"text": "x"}, to="post")])
    assert (target, type(results)) == (POST, Results)


@pytest.mark.parametrize(
    ("split", "fields", "alike", "unlike"),
    [
        (Split((A,), POST, field="crops"), (), [{"a": 1, "crops": [1, 2]}], [{"a": 2, "crops": [1, 2]}]),
        (Split((A,), POST, field="crops"), ("a",), [{"a": 1, "crops": [2]}], [{"a": 2, "crops": [1, 2]}]),
        (Split((A,), POST, field="crops"), ("crops",), [{"a": 2, "crops": [1, 2]}], [{"a": 1, "crops": [2, 1]}]),
        (
            Split((A,), POST, field="crops"),
            ("crops", "a"),
            [{"b": 2, "a": 1, "crops": [1, 2]}],
            [{"a": 2, "crops": []}],
        ),
        (Split((A,), POST), (), [[1, 2]], [[1], [2, 1], []]),
    ],
)
def test_what_is_gathered_has_a_key_of_its_frame_and_parts(
    split: Split, fields: tuple[str, ...], alike: list[Any], unlike: list[Any]
) -> None:
    table = Topology(
        ("pre", "a", "post"), (Route("/r", (PRE, A, POST), (POST, JOIN, FINAL), {PRE: split}),), {POST: fields}
    )

    def key(value: Any) -> bytes:
        """The whole way, large ones in pieces; each part is its own result."""
        ((_, parts, payloads),) = sent(0, PRE, [value], table)
        assert isinstance(parts, Parts)
        gatherings = Gatherings()
        whole, *others = [Request(uid, b"f", uid, 0, 9.0, 9.0, 9.0, b"", 0) for uid in range(len(payloads))]
        found = gatherings.begin(whole, split, payloads[0], b"", others, parts.keys[0])
        values = value["crops"] if split.field else value
        for other, one in zip(others, values, strict=True):
            ((_, done, (payload,)),) = sent(0, A, [one], table)
            assert isinstance(done, Parts)
            found = gatherings.done(other.uid, payload, b"", done.keys[0])
        assert found is not None
        return found.memo_key(fields)

    plain = {"a": 1, "crops": [1, 2]} if split.field else [1, 2]
    large = numpy.arange(100_000)
    assert len(key(plain)) == MEMO_KEY_SIZE
    assert [key(one) == key(plain) for one in alike] == [True] * len(alike)
    assert [key(one) == key(plain) for one in unlike] == [False] * len(unlike)
    one, same, other = ({"a": 1, "crops": [array]} if split.field else [array] for array in (large, large + 0, -large))
    assert key(one) == key(same)
    assert (key(one) == key(other)) is (fields == ("a",))


def test_of_branches_those_count_that_the_key_names_and_of_a_hole_that_it_is_one() -> None:
    split = Split((PRE, A), POST, names=("x", "y"), holes=True)
    keys = [bytes([number]) * MEMO_KEY_SIZE for number in range(4)]

    def key(fields: Sequence[str], x: bytes, y: bytes | None) -> bytes:
        gatherings = Gatherings()
        whole, *parts = [Request(uid, b"f", uid, 0, 9.0, 9.0, 9.0, b"", 0) for uid in range(3)]
        gatherings.begin(whole, split, b"", b"", parts, keys[1])
        gatherings.done(1, b"", b"", x)
        found = gatherings.failed(2) if y is None else gatherings.done(2, b"", b"", y)
        assert found is not None
        return found.memo_key(fields)

    assert key((), keys[2], keys[3]) == key(("x", "y"), keys[2], keys[3]) != key((), keys[3], keys[2])
    assert key(("x",), keys[2], keys[3]) == key(("x",), keys[2], None) == key(("x",), keys[2], b"")
    assert key((), keys[2], None) not in (key((), keys[2], keys[3]), b"")
    assert key((), keys[2], b"") == key(("z",), keys[2], keys[3]) == b""  # a worker of an older version; a mistake


class Streams(SSEWorker):
    def forward(self, data: Any) -> Any:
        return data


def test_a_stream_cannot_be_kept() -> None:
    check_class(Streams, "s")
    with pytest.raises(StartError, match="a stream cannot be kept"):
        check_class(Streams, "s", is_cached=True)
