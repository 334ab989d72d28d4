"""What a request of the Open Inference Protocol says beside its inputs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.core import meta, oip
from engine.core.meta import Traced
from engine.core.oip import Asked, Malformed, Terms


def read(request: Any, header: bytes | None = None) -> tuple[Asked, Terms]:
    return oip.read("m", request if isinstance(request, bytes) else json.dumps(request).encode(), header)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v2/models/adder/infer", "adder"),
        ("/v2/models/a.b-c_1/infer", "a.b-c_1"),
        ("/v2/models/stats/infer", None),  # /v2/models/stats is about all
        ("/v2/models/adder", None),
        ("/v2/models/a/b/infer", None),
        ("/v2/models//infer", None),
        ("/inference", None),
    ],
)
def test_a_path_names_the_model(path: str, model: str | None) -> None:
    assert oip.model_of(path) == model


@pytest.mark.parametrize(
    ("path", "own"),
    [("/v2", True), ("/v2/", True), ("/v2/models/x", True), ("/v2/health/live", True), ("/v2/trace/setting", True),
     ("/v2/rerank", False), ("/v20", False), ("/v1/models", False), ("/", False)],
)  # fmt: skip
def test_what_is_a_path_of_the_protocol(path: str, own: bool) -> None:
    assert oip.is_about(path) is own


def test_what_a_request_asks_for() -> None:
    request = {
        "id": "42",
        "inputs": [{"name": "x", "data": [[1, 2], {"not": "looked at"}]}],
        "outputs": [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}],
        "parameters": {"timeout": 500_000, "priority": 1, "binary_data_output": True, "mine": "yes", "k": 3},
    }
    asked, terms = read(request)
    assert terms == Terms(timeout_s=0.5, priority=1)
    assert (asked.model, asked.id, asked.outputs, asked.binary) == ("m", "42", [("a", False), ("b", True)], True)
    assert asked.parameters == {"mine": "yes", "k": 3}
    assert asked.length == len(json.dumps(request))


@pytest.mark.parametrize("request_", [{"inputs": []}, {"inputs": [], "outputs": []}, {"outputs": None, "id": None}])
def test_nothing_asked_for_is_everything_as_json(request_: Any) -> None:
    asked, terms = read(request_)
    assert (asked.outputs, asked.binary, asked.id, terms) == (None, False, "", Terms())


def test_the_bytes_behind_the_json_are_not_looked_at() -> None:
    head = b'{"inputs":[]}'
    asked, _ = read(head + b"\xff\x00[[[", str(len(head)).encode())
    assert asked.length == len(head)


def test_a_body_without_json_is_answered_in_bytes() -> None:
    assert read(b"\xff\x00", b"0")[0] == Asked("m", 0, binary=True)


@pytest.mark.parametrize("header", [b"-1", b"+1", b"1.0", b"0x1", b"", b" 1", b"1,1", b"9" * 19, b"14", "٣".encode()])
def test_a_length_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(Malformed, match="inference-header-content-length"):
        read(b'{"inputs":[]}', header)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"inputs": NaN}',
        b"[" * 100_000,
        b'{"x":' * 100_000,
        {"id": 1},
        {"id": "x" * 20_000},
        {"parameters": {"timeout": -1}},
        {"parameters": {"timeout": True}},
        {"parameters": {"timeout": 1.5}},
        {"parameters": {"timeout": "1"}},
        {"parameters": {"timeout": 1 << 70}},
        {"parameters": {"mine": 1 << 70}},
        {"parameters": {"mine": "x" * 20_000}},
        {"parameters": {"mine": []}},
        {"parameters": {"priority": -1}},
        {"parameters": {"binary_data_output": 1}},
        {"parameters": {"sequence_id": 7}},
        {"parameters": {"sequence_id": "a"}},
        {"outputs": [{}]},
        {"outputs": [{"name": "a"}, {"name": "a"}]},
        {"outputs": [{"name": "a", "parameters": {"classification": 3}}]},
        {"outputs": [{"name": "a", "parameters": {"shared_memory_region": "r"}}]},
        {"outputs": [{"name": "a", "parameters": {"binary_data": "yes"}}]},
        {"outputs": [{"name": str(n)} for n in range(1025)]},
    ],
)
def test_what_the_protocol_does_not_know_is_refused(request_: Any) -> None:
    with pytest.raises(Malformed):
        read(request_)


@pytest.mark.parametrize("trace", [None, Traced("00-1-2-01", "x=y")])
@pytest.mark.parametrize("head", [b"", meta.pack_head(b"a=b", [(b"k", b"v")])])
def test_it_travels_with_what_else_is_known_of_a_request(trace: Traced | None, head: bytes) -> None:
    asked = Asked("m", 7, "id", [("a", True)], binary=True, parameters={"x": 1.5})
    packed = meta.pack("abc", meta.asking(meta.traced(head, trace) if trace is not None else head, asked))
    assert meta.asked_of(packed) == asked
    assert meta.traced_of(packed) == trace
    assert meta.request_id_of(packed) == "abc"
    assert meta.head_of(packed).query == (b"a=b" if head else b"")


def test_others_ask_for_nothing() -> None:
    for told in (b"", meta.pack_head(b"", []), meta.traced(b"", Traced("p"))):
        assert meta.asked_of(meta.pack("abc", told)) is None
    assert meta.asked_of(b"") is None
