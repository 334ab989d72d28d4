"""What a stage says of itself: schemas as trees, in which only schemas are changed, and how long it is kept."""

from __future__ import annotations

from typing import Any

from engine.core.about import REF_PREFIX, refs, rewritten, with_refs
from engine.core.batching import Policy
from engine.core.messages import Ready
from engine.core.stage import StageMachine, StageSpec
from tests.core.twin import DEPLOYMENT, topology, worker_words


def ref(name: str) -> dict[str, Any]:
    return {"$ref": REF_PREFIX + name}


def renamed(schema: Any) -> Any:
    return rewritten(schema, lambda node: with_refs(node, {"a": "b"}))


def test_references_are_renamed_wherever_schemas_can_stand() -> None:
    for wrap in (
        lambda inner: inner,
        lambda inner: {"type": "array", "items": inner},
        lambda inner: {"type": "array", "prefixItems": [inner, {"type": "null"}]},
        lambda inner: {"anyOf": [{"type": "null"}, inner]},
        lambda inner: {"type": "object", "properties": {"x": inner}, "required": ["x"]},
        lambda inner: {"type": "object", "additionalProperties": inner},
        lambda inner: {"$defs": {"d": {"not": inner}}},
    ):
        assert renamed(wrap(ref("a"))) == wrap(ref("b"))
        assert list(refs(wrap(ref("a")))) == ["a"]
        assert renamed(wrap(ref("other"))) == wrap(ref("other"))


def test_fields_that_are_named_like_keywords_are_fields() -> None:
    names = ("default", "const", "enum", "examples", "$ref", "properties", "discriminator", "required")
    schema = {"properties": {name: ref("a") for name in names}}
    assert renamed(schema) == {"properties": {name: ref("b") for name in names}}


def test_data_stays_as_it_is() -> None:
    schema = {"default": ref("a"), "examples": [ref("a")], "const": ref("a"), "enum": [ref("a")]}
    assert renamed(schema) == schema
    assert list(refs(schema)) == []


def test_a_discriminator_points_where_its_schemas_went() -> None:
    schema = {"discriminator": {"propertyName": "type", "mapping": {"one": REF_PREFIX + "a", "two": "elsewhere"}}}
    mapping = renamed(schema)["discriminator"]["mapping"]
    assert mapping == {"one": REF_PREFIX + "b", "two": "elsewhere"}


def test_what_was_given_is_not_changed() -> None:
    schema = {"items": ref("a"), "discriminator": {"mapping": {"one": REF_PREFIX + "a"}}}
    before = repr(schema)
    renamed(schema)
    assert repr(schema) == before


def test_references_to_elsewhere_are_left_alone() -> None:
    schema = {"items": {"$ref": "#/$defs/a"}, "not": {"$ref": "https://example.com/a"}}
    assert renamed(schema) == schema
    assert list(refs(schema)) == []


def test_a_stage_keeps_the_newest_word_beyond_the_worker_that_said_it() -> None:
    made = topology()
    spec = StageSpec("s0", 1, Policy(1, 1, 0.0), timeout_s=1.0, kill_after_s=1.0, max_queue_bytes=1)
    machine = StageMachine(0, spec, made, epoch=1, deployment=DEPLOYMENT)

    def start(pid: int, about: bytes) -> int:
        key = machine.introduce(worker_words(made, "s0", pid=pid), local=True, now=0.0)
        assert isinstance(key, int)
        machine.ready(Ready(key, "application/json", about=about), 0.0)
        return key

    assert machine.about == b""
    first = start(1, b"one")
    assert machine.about == b"one"
    machine.exited(first, 0.0)
    assert machine.about == b"one"
    start(2, b"two")
    assert machine.about == b"two"
    start(3, b"")
    assert machine.about == b"two"
