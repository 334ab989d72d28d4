"""The request to try is one that the stage answers: made by the inverse of what will read it."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import msgspec
import numpy as np
import pytest

from stages.base import Worker
from stages.mixin.msgpack import MsgpackMixin
from stages.mixin.typed import TypedJSONMixin, TypedMsgPackMixin
from stages.trial import BODY_MAX, example_body, trial


class Point(msgspec.Struct):
    x: int
    label: str = "it's"


class Plain(Worker):
    example = {"x": 3, "text": "it's {url} é"}

    def forward(self, data: Any) -> Any:
        return data


class Listed(Plain):
    example = [{"x": 1}, {"x": 2}]
    max_batch_size = 8


class Several(Plain):
    example = None
    multi_examples = ([[1, 2]], [[3]])
    max_batch_size = 2


class Typed(TypedJSONMixin, Plain):
    example = Point(1)  # type: ignore[assignment]

    def forward(self, data: Point) -> Any:
        return data


class Packed(MsgpackMixin, Plain):
    example = {"x": b"\x00\xff"}  # type: ignore[dict-item]


class TypedPacked(TypedMsgPackMixin, Plain):
    example = [Point(1)]  # type: ignore[assignment]
    max_batch_size = 4

    def forward(self, data: list[Point]) -> Any:
        return data


class Own(Plain):
    def deserialize(self, data: bytes) -> Any:
        return data


class NoExample(Plain):
    example = None  # type: ignore[assignment]


class Array(Plain):
    example = np.zeros(3)  # type: ignore[assignment]


class Long(Plain):
    example = "x" * BODY_MAX  # type: ignore[assignment]


def body_of(line: str, tmp_path: Any) -> bytes:
    """What the shell would send: run with a `curl` that writes its body down."""
    curl = tmp_path / "curl"
    curl.write_text(
        "#!/bin/sh\nwhile [ $# -gt 0 ]; do\n"
        'case $1 in -d) printf %s "$2"; shift;; --data-binary) cat;; esac\nshift\ndone\n'
    )
    curl.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", line.replace("{url}", "http://x", 1)],
        env={"PATH": f"{tmp_path}:/bin:/usr/bin"},
        capture_output=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("cls", "value"),
    [
        (Plain, Plain.example),
        (Listed, {"x": 1}),
        (Several, [1, 2]),
        (Typed, Point(1)),
        (Packed, {"x": b"\x00\xff"}),
        (TypedPacked, Point(1)),
    ],
)
def test_the_body_is_what_the_stage_reads_as_its_example(cls: type[Worker], value: Any, tmp_path: Any) -> None:
    worker = cls()
    line = trial(worker)
    assert line is not None
    assert worker.deserialize(body_of(line, tmp_path)) == value
    if cls.req_mime_type != "application/json":
        assert f"content-type: {cls.req_mime_type}" in shlex.split(line)


def test_of_a_class_that_reads_bodies_itself_nothing_is_guessed() -> None:
    assert "--data-binary @FILE" in (trial(Own()) or "")


class File(Own):
    example = b"\x89PNG"  # type: ignore[assignment]


class Unpacked(File):
    def deserialize(self, data: bytes) -> Any:
        return data[1:]


class Parsed(Own):
    def deserialize(self, data: bytes) -> Any:
        return {"x": len(data)}


@pytest.mark.parametrize(("cls", "body"), [(File, File.example), (Own, None), (Unpacked, None), (Parsed, None)])
def test_the_example_of_a_class_that_leaves_bodies_as_they_are_is_one(cls: type[Worker], body: bytes | None) -> None:
    assert example_body(cls()) == body


class NoNumber(Plain):
    example = {"x": [float("nan")]}  # JSON would say null


@pytest.mark.parametrize("cls", [NoExample, Array, Long, NoNumber])
def test_without_an_example_that_can_be_written_there_is_none(cls: type[Worker]) -> None:
    assert trial(cls()) is None
