"""How a file says that a route branches: what it means, and every mistake in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import build, dump, load
from engine.config.load import FILE_NAME
from engine.config.ways import NESTED_MOST, Choice, Each, Stages, after, plain, read, splits
from engine.core.routing import FINAL, JOIN, PARTS_MOST, Fork, Route, Split, Topology, check
from engine.errors import ConfigError

NUMBERS = {name: number for number, name in enumerate("abcdefgh")}


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


def each(*through: Any, **more: Any) -> dict[str, Any]:
    return {"each": more.pop("each", "f"), "through": [*through], **more}


def side(**of: Any) -> dict[str, Any]:
    failed = {"failed": of.pop("failed")} if "failed" in of else {}
    return {"all": of, **failed}


@pytest.mark.parametrize(
    ("written", "line", "ways", "parted"),
    [
        (["a", each("b"), "c"], "abc", (2, JOIN, FINAL), {0: Split((1,), 2, (), "f")}),
        (["a", {"each": "", "through": "b"}, "c"], "abc", (2, JOIN, FINAL), {0: Split((1,), 2)}),
        (
            ["a", each("b", "c", failed="hole", most=9), "d", "e"],
            "abcde",
            (3, 2, JOIN, 4, FINAL),
            {0: Split((1,), 3, (), "f", True, 9)},
        ),
        (["a", each("b", failed="request"), "c"], "abc", (2, JOIN, FINAL), {0: Split((1,), 2, (), "f")}),
        (
            ["a", side(x="b", y=["c", "d"]), "e"],
            "abcde",
            (4, JOIN, 3, JOIN, FINAL),
            {0: Split((1, 2), 4, ("x", "y"))},
        ),
        (
            ["a", side(x="b", y="c", failed="hole"), "d"],
            "abcd",
            (3, JOIN, JOIN, FINAL),
            {0: Split((1, 2), 3, ("x", "y"), "", True)},
        ),
        (  # choices within, one of them with a branch of none
            ["a", each("b", choice(k="c", default=[])), "d"],
            "abcd",
            (3, Fork("x", (("k", 2),), JOIN), JOIN, FINAL),
            {0: Split((1,), 3, (), "f")},
        ),
        (  # a choice before, and a region behind what it leads to
            ["a", choice(k="b", l="c"), "d", each("e"), "f", choice(m="g", default=[])],
            "abcdefg",
            (Fork("x", (("k", 1), ("l", 2))), 3, 3, 5, JOIN, Fork("x", (("m", 6),), FINAL), FINAL),
            {3: Split((4,), 5, (), "f")},
        ),
        (  # a stage that gathers may split again
            ["a", each("b"), "c", side(x="d", y="e"), "f"],
            "abcdef",
            (2, JOIN, 5, JOIN, JOIN, FINAL),
            {0: Split((1,), 2, (), "f"), 2: Split((3, 4), 5, ("x", "y"))},
        ),
        (  # regions within regions
            ["a", each("b", side(x="c", y=["d", each("e"), "f"]), "g"), "h"],
            "abcdefgh",
            (7, 6, JOIN, 5, JOIN, JOIN, JOIN, FINAL),
            {0: Split((1,), 7, (), "f"), 1: Split((2, 3), 6, ("x", "y")), 3: Split((4,), 5, (), "f")},
        ),
    ],
)
def test_parts_go_through_their_region_and_come_together_behind_it(
    written: Any, line: str, ways: Any, parted: Any
) -> None:
    stages = read(written)
    assert "".join(stages) == line
    assert after(stages, NUMBERS) == ways
    assert splits(stages, NUMBERS) == parted
    assert read(plain(stages)) == stages
    check(Route("/r", tuple(NUMBERS[name] for name in stages), ways, parted))


def test_without_parts_there_are_no_splits() -> None:
    assert splits(read(["a", choice(k="b"), "c"]), NUMBERS) == {}
    assert splits(("a", "b"), NUMBERS) == {}


def nested(depth: int) -> list[Any]:
    return [f"s{depth}", each(*nested(depth - 1)), f"t{depth}"] if depth else ["s0"]


def test_regions_within_regions_have_a_bound() -> None:
    assert len(read(nested(NESTED_MOST))) == 2 * NESTED_MOST + 1
    with pytest.raises(ValueError, match=f"within each other at most {NESTED_MOST} times"):
        read(nested(NESTED_MOST + 1))


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
        (["a", {"eech": "f", "through": "b"}, "c"], "did you mean each?"),
        (["a", {}, "c"], '"each", for every element of a list'),
        (["a", {**each("b"), "by": "x"}, "c"], 'one of "by", "each" and "all", not "by" and "each"'),
        (["a", each("b", throu="b"), "c"], "not 'throu'; did you mean through?"),
        (["a", side(x="b", y="c") | {"most": 3}, "d"], 'has "all" and "failed", not \'most\''),
        ([each("b"), "c"], 'the parts of "each" of "f" are made of the result of the stage before it'),
        ([side(x="a", y="b"), "c"], 'the parts of "all" are made of the result of the stage before it'),
        (["a", choice(k="b"), each("c"), "d"], "of one stage: write it right before the table"),
        (["a", each("b"), each("c"), "d"], "of one stage: write it right before the table"),
        (["a", each("b")], "come together at one stage: write it right behind the table"),
        (["a", each("b"), choice(k="c"), "d"], "come together at one stage: write it right behind the table"),
        (["a", each("b", each("c")), "d"], "come together at one stage: write it right behind the table"),
        (["a", each("b", each="x" * 257), "c"], "which field of the result is the list"),
        (["a", {"each": 3, "through": "b"}, "c"], "which field of the result is the list"),
        (["a", {"each": "f"}, "c"], 'through which stages its elements go: through = ["classify"]'),
        (["a", each(), "c"], 'through of "each" of "f" is a stage, or a list of at least one'),
        (["a", {"each": "f", "through": {"by": "x"}}, "c"], "is a stage, or a list of at least one"),
        (["a", each(choice(k="b")), "c"], 'through of "each" of "f": a choice is made by'),
        (["a", each(3), "c"], 'through of "each" of "f": a stage is named by a string'),
        (["a", each("b", most=0), "c"], f"an integer from 1 to {PARTS_MOST}"),
        (["a", each("b", most=PARTS_MOST + 1), "c"], f"an integer from 1 to {PARTS_MOST}"),
        (["a", each("b", most=True), "c"], f"an integer from 1 to {PARTS_MOST}"),
        (["a", each("b", most="9"), "c"], f"an integer from 1 to {PARTS_MOST}"),
        (["a", each("b", failed="holes"), "c"], 'failed = "request", or "hole"'),
        (["a", each("b", failed=["hole"]), "c"], 'failed = "request", or "hole"'),
        (["a", side(x="b"), "c"], "from 2 to 256 branches by name"),
        (["a", {"all": ["b", "c"]}, "d"], "from 2 to 256 branches by name"),
        (["a", {"all": {"": "b", "x": "c"}}, "d"], "has a name of 1 to 256 characters"),
        (["a", {"all": {"y" * 257: "b", "x": "c"}}, "d"], "has a name of 1 to 256 characters"),
        (["a", side(x="b", y=[]), "c"], 'branch "y" of "all" is a stage, or a list of at least one'),
        (["a", side(x="b", y=3), "c"], 'branch "y" of "all" is a stage, or a list of at least one'),
        (["a", side(x="b", y=["c", each("d")]), "e"], "come together at one stage"),
        (["a", side(x="b", y="b"), "c"], "b more than once"),
        (["a", each("b", "b"), "c"], "b more than once"),
        (["a", each("b"), "a"], "a more than once"),
        (["a", each("b", choice(k=["c", each("d")])), "e"], "is a stage, or a list of stages"),
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


PARTS = """
[[stage]]
name = "detect"
worker = "m:C"
[[stage]]
name = "classify"
worker = "m:C"
[[stage]]
name = "format"
worker = "m:C"
[[route]]
path = "/page"
stages = [
  "detect",
  { each = "crops", through = ["classify"], failed = "hole", most = 256 },
  "format",
]
"""


def test_parts_stand_in_a_file_and_its_snapshot(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    file.write_text(PARTS)
    found = load(file)
    assert found.topology.way(0) == (
        "detect -> each of crops, at most 256: classify, holes, then format; classify -> together; format -> the answer"
    )
    assert found.topology.edges(0) == [
        ("detect", "classify", "each of crops"),
        ("classify", "format", ""),
        ("format", "", ""),
    ]
    snapshot = tmp_path / "deployment.json"
    snapshot.write_bytes(dump(found))
    assert load(snapshot) == found
    for was, becomes in (('failed = "hole"', 'failed = "request"'), ("most = 256", "most = 255"), ("crops", "lines")):
        file.write_text(PARTS.replace(was, becomes))
        assert load(file).routes[0].stages != found.routes[0].stages


def test_a_mistake_in_a_region_is_told_with_the_line_of_its_route(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(PARTS.replace('["classify"]', '["classifi"]'))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / FILE_NAME)
    (problem,) = caught.value.problems
    assert ":13: " in problem
    assert "did you mean classify?" in problem
    (tmp_path / FILE_NAME).write_text(PARTS.replace('"hole"', '"hol"'))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / FILE_NAME)
    (problem,) = caught.value.problems
    assert ":13: " in problem
    assert 'failed = "request", or "hole"' in problem


class _Written:
    """Draws a list as a file might have it, with each name once; and counts what must come out."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self.names = 0
        self.splits = 0

    def name(self) -> str:
        self.names += 1
        return f"s{self.names - 1}"

    def steps(self, depth: int) -> list[Any]:
        made: list[Any] = [self.name()]
        kinds = ["stage", "choice", "each", "all"] if depth else ["stage", "choice"]
        for kind in self._draw(st.lists(st.sampled_from(kinds), max_size=3)):
            if kind == "stage":
                made.append(self.name())
                continue
            if kind == "choice":
                if not isinstance(made[-1], str):
                    made.append(self.name())
                made.append(self.choice())
                continue
            if not isinstance(made[-1], str):
                made.append(self.name())
            self.splits += 1
            made += [self.each(depth) if kind == "each" else self.all(depth), self.name()]
        return made

    def choice(self) -> dict[str, Any]:
        branches = [[self.name() for _ in range(self._draw(st.integers(0, 2)))] for _ in range(2)]
        table: dict[str, Any] = {"by": "x", "of": {"k": branches[0], "l": branches[1], "m": branches[0]}}
        if self._draw(st.booleans()):
            table["default"] = self._draw(st.sampled_from(branches))
        return table

    def each(self, depth: int) -> dict[str, Any]:
        field, failed = self._draw(st.sampled_from(["", "f"])), self._draw(st.sampled_from(["request", "hole"]))
        most = self._draw(st.integers(1, PARTS_MOST))
        return {"each": field, "through": self.steps(depth - 1), "failed": failed, "most": most}

    def all(self, depth: int) -> dict[str, Any]:
        return {"all": {f"b{number}": self.steps(depth - 1) for number in range(self._draw(st.integers(2, 3)))}}


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[Any], _Written]:
    written = _Written(draw)
    return written.steps(3), written


@given(lists())
def test_whatever_is_read_is_a_route_and_comes_out_as_it_went_in(made: tuple[list[Any], _Written]) -> None:
    written, counts = made
    stages = read(written)
    assert read(plain(stages)) == stages
    assert hash(read(plain(stages))) == hash(stages)
    assert sorted(stages) == sorted(f"s{number}" for number in range(counts.names))
    numbers = {name: number for number, name in enumerate(reversed(stages))}
    parted = splits(stages, numbers)
    assert len(parted) == counts.splits
    line = tuple(numbers[name] for name in stages)
    route = Route("/r", line, after(stages, numbers), parted)
    check(route)
    table = Topology(tuple(numbers), (route,))
    place = {stage: hop for hop, stage in enumerate(line)}
    for stage in line:
        assert all(place[reader] > place[stage] for reader in table.readers(0, stage))
    for stage, split in parted.items():
        assert table.following(0, stage) == (split.gather,)
        assert [one for one in line if table.gathered(0, one) == split] == [split.gather]
        for head in split.heads:
            assert table.region(0, head) == stage
            ends = [one for one in (head, *table.later(0, head)) if JOIN in table.following(0, one)]
            assert ends  # every part comes together, and nowhere else
            assert all(split.gather in table.readers(0, one) for one in ends if table.region(0, one) == stage)
    assert table.ends(0)
    assert all(table.region(0, stage) is None for stage in table.ends(0))


def test_what_is_said_by_default_is_not_written() -> None:
    assert plain(Stages(["a", Each("f", ("b",)), "c"])) == ["a", {"each": "f", "through": ["b"]}, "c"]


def test_a_chain_is_equal_to_its_names() -> None:
    assert read(["a", "b"]) == ("a", "b")
    assert read(["a", "b"]) == ("a", "b")
    assert Stages(["a", Choice("x", (("k", ("b",)),))]) != ("a", "b")
    assert hash(read(["a", "b"])) == hash(Stages(["a", "b"]))
