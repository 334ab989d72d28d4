"""By what caches know values: equal digests are equal values, and what cannot be told is computed."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.messages import MEMO_KEY_SIZE, Batch, Parts, Results, Role
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


def sent(route: int, stage: int, values: list[Any]) -> list[tuple[int, Results | Parts, list[Any]]]:
    worker = Echo()
    way = way_of(TABLE, route, stage)
    payloads = [Codec(worker).encode_between(value) for value in values]
    items = [ItemIn(n, one, first=False, last=way.last, way=way) for n, one in enumerate(payloads)]
    computed = run_batch(worker, items, max_batch_size=8)
    assert all(outcome.status == OK for outcome in computed.outcomes)
    n = len(values)
    batch = Batch(7, 0, "full", [*range(n)], [route] * n, [0] * n, [1] * n, [b""] * n, [0] * n, [b""] * n)
    return Plan(TABLE, stage).results(
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


class Streams(SSEWorker):
    def forward(self, data: Any) -> Any:
        return data


def test_a_stream_cannot_be_kept() -> None:
    check_class(Streams, "s")
    with pytest.raises(StartError, match="a stream cannot be kept"):
        check_class(Streams, "s", is_cached=True)
