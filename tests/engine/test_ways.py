"""How a file says that a route branches: what it means, and every mistake in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config import build, dump, load
from engine.config.load import FILE_NAME
from engine.config.ways import Choice, Stages, after, plain, read
from engine.core.routing import FINAL, Fork
from engine.errors import ConfigError

NUMBERS = {name: number for number, name in enumerate("abcdefg")}


def choice(**of: Any) -> dict[str, Any]:
    default = {"default": of.pop("default")} if "default" in of else {}
    return {"by": "x", "of": of, **default}


@pytest.mark.parametrize(
    ("written", "line", "ways"),
    [
        (["a", "b", "c"], "abc", ()),
        (["a", choice(k="b", l="c"), "d"], "abcd", (Fork("x", (("k", 1), ("l", 2))), 3, 3, FINAL)),
        (["a", choice(k="b", l="c")], "abc", (Fork("x", (("k", 1), ("l", 2))), FINAL, FINAL)),
        (["a", choice(k="b", default="c"), "d"], "abcd", (Fork("x", (("k", 1),), 2), 3, 3, FINAL)),
        (["a", choice(k="b", l="b", m="c"), "d"], "abcd", (Fork("x", (("k", 1), ("l", 1), ("m", 2))), 3, 3, FINAL)),
        (["a", choice(k=["b", "c"], l="d"), "e"], "abcde", (Fork("x", (("k", 1), ("l", 3))), 2, 4, 4, FINAL)),
        (["a", choice(k="b", default=[]), "c"], "abc", (Fork("x", (("k", 1),), 2), 2, FINAL)),
        (["a", choice(k="b", l=[])], "ab", (Fork("x", (("k", 1), ("l", FINAL))), FINAL)),
        (
            ["a", choice(k="b", l="c"), choice(m="d", n="e"), "f"],
            "abcdef",
            (Fork("x", (("k", 1), ("l", 2))), *[Fork("x", (("m", 3), ("n", 4)))] * 2, 5, 5, FINAL),
        ),
    ],
)
def test_what_is_written_says_what_comes_next(written: Any, line: str, ways: Any) -> None:
    stages = read(written)
    assert "".join(stages) == line
    assert after(stages, NUMBERS) == ways
    assert read(plain(stages)) == stages


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ([], "at least one"),
        ([choice(k="a"), "b"], "begin with a stage"),
        (["a", "a"], "a more than once"),
        (["a", choice(k="a")], "a more than once"),
        (["a", choice(k="b"), "b"], "b more than once"),
        (["a", choice(k=["b", "c"], l=["d", "c"])], "c stands in several branches that are not the same"),
        (["a", {"by": "x", "off": {}}], "not 'off'"),
        (["a", {"of": {"k": "b"}}], "by which field"),
        (["a", {"by": 3, "of": {"k": "b"}}], "by which field"),
        (["a", {"by": "x"}], "of which stages"),
        (["a", {"by": "x", "of": {}}], "of which stages"),
        (["a", {"by": "x", "of": {"k": 3}}], "is a stage, or a list of stages"),
        (["a", {"by": "x", "of": {"k": "b"}, "default": {"by": "y"}}], "is a stage, or a list of stages"),
        (["a", choice(k="b", default=[]), choice(k="c")], "cannot lead to another choice"),
        (["a", 3], "a stage is named by a string"),
    ],
)
def test_a_mistake_is_told_with_what_was_expected(written: Any, why: str, tmp_path: Path) -> None:
    stages = [{"name": name, "worker": "m:C"} for name in "abcd"]
    data = {"stage": stages, "route": [{"path": "/r", "stages": written}]}
    with pytest.raises(ConfigError) as caught:
        build(data, file=tmp_path / FILE_NAME, label=FILE_NAME, flags={}, environ={})
    (problem,) = [one for one in caught.value.problems if "route[0]" in one]
    assert "expected a list of stage names" in problem
    assert why in problem


TEXT = """
[[stage]]
name = "pre"
worker = "m:C"
[[stage]]
name = "english"
worker = "m:C"
[[stage]]
name = "german"
worker = "m:C"
[[route]]
path = "/say"
stages = ["pre", { by = "lang", of = { en = "english", de = "GERMAN" }, default = "english" }]
"""


def test_a_branch_that_is_no_stage_is_told_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(TEXT.replace("GERMAN", "germann"))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / FILE_NAME)
    (problem,) = caught.value.problems
    assert ":13: " in problem
    assert "did you mean german?" in problem


def test_the_snapshot_keeps_how_a_route_branches_and_another_way_is_another_deployment(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    file.write_text(TEXT.replace("GERMAN", "german"))
    found = load(file)
    assert found.topology.way(0) == (
        "pre -> lang? en english, de german, else english; english -> the answer; german -> the answer"
    )
    snapshot = tmp_path / "deployment.json"
    snapshot.write_bytes(dump(found))
    assert load(snapshot) == found
    file.write_text(TEXT.replace("GERMAN", "german").replace(', default = "english"', ""))
    assert load(file) != found
    assert load(file).routes[0].stages != found.routes[0].stages
    assert tuple(load(file).routes[0].stages) == ("pre", "english", "german")


def test_a_chain_is_equal_to_its_names() -> None:
    assert read(["a", "b"]) == ("a", "b")
    assert read(["a", "b"]) == ("a", "b")
    assert Stages(["a", Choice("x", (("k", ("b",)),))]) != ("a", "b")
    assert hash(read(["a", "b"])) == hash(Stages(["a", "b"]))
