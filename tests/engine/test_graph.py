"""``engine graph``: what is drawn of stages and routes, and what Mermaid must not take for its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from engine.config import Deployment, build
from engine.graph import as_json, mermaid


def made(*routes: tuple[str, list[Any]], names: str = "abcd", **keys: Any) -> Deployment:
    stages = [{"name": name, "worker": "m:C", **keys} for name in names]
    data = {"engine": {"name": "g"}, "stage": stages, "route": [{"path": path, "stages": way} for path, way in routes]}
    return build(data, file=Path("/nowhere/stages.toml"), label="stages.toml", flags={}, environ={})


FORK = {"by": "kind", "of": {"x": "b", "y": "b", "z": "c"}, "default": "c"}


def test_a_chain_is_a_line_from_the_request_to_the_answer() -> None:
    assert mermaid(made(("/r", ["a", "b"]), names="ab", max_batch_size=4, num=2)) == (
        "flowchart LR\n"
        '  r0(["POST /r"])\n'
        '  s0["a<br/>2 workers, batches of 4"]\n'
        '  s1["b<br/>2 workers, batches of 4"]\n'
        '  answer(["the answer"])\n'
        "  r0 --> s0\n"
        "  s0 --> s1\n"
        "  s1 --> answer\n"
    )


def test_a_branch_says_when_it_is_taken() -> None:
    text = mermaid(made(("/r", ["a", FORK, "d"])))
    assert '  s0 -- "kind = x, y" --> s1\n' in text
    assert '  s0 -- "kind = z or else" --> s2\n' in text
    assert "  s1 --> s3\n" in text
    assert "  s3 --> answer\n" in text


PARTS = ["a", {"each": "crops", "through": "b"}, "c", {"all": {"x": "d", "y": ["e", "f"]}}, "g"]


def test_parts_say_of_what_they_are_and_come_together() -> None:
    text = mermaid(made(("/r", PARTS), names="abcdefg"))
    assert '  s0 -- "each of crops" --> s1\n' in text
    assert "  s1 --> s2\n" in text
    assert "s0 --> s2" not in text
    assert '  s2 -- "x" --> s3\n' in text
    assert '  s2 -- "y" --> s4\n' in text
    assert "  s3 --> s6\n" in text
    assert "  s4 --> s5\n  s5 --> s6\n  s6 --> answer\n" in text
    (route,) = json.loads(as_json(made(("/r", PARTS), names="abcdefg")))["routes"]
    assert route["stages"] == list("abcdefg")
    assert {"from": "a", "to": "b", "when": "each of crops"} in route["steps"]
    assert {"from": "f", "to": "g", "when": None} in route["steps"]


def test_a_shared_stage_is_drawn_once_and_steps_that_differ_say_whose_they_are() -> None:
    text = mermaid(made(("/one", ["a", FORK, "d"]), ("/two", ["a", "d"])))
    assert text.count('["a<br/>') == 1
    assert '  s0 -- "/two" --> s3\n' in text
    assert '  s0 -- "kind = x, y<br/>/one" --> s1\n' in text
    assert "  s3 --> answer\n" in text  # of both


def test_what_stands_in_a_file_does_not_get_out_of_its_quotes() -> None:
    odd = {"by": 'a"b', "of": {'"]; click s0 "x"': "b", "#<script>`\n": "c"}}
    text = mermaid(made(("/r", ["a", odd]), names="abc"))
    for line in text.splitlines():
        for quoted in re.findall(r'"([^"]*)"', line):
            assert not re.search(r"[`\n]|<(?!br/>)", quoted)
        assert line.count('"') in (0, 2)
    assert "#quot;]; click s0 #quot;x#quot;" in text


def test_as_data_each_step_has_its_ends() -> None:
    told = json.loads(as_json(made(("/r", ["a", FORK, "d"]))))
    assert [stage["name"] for stage in told["stages"]] == ["a", "b", "c", "d"]
    (route,) = told["routes"]
    assert route["stages"] == ["a", "b", "c", "d"]
    assert route["steps"] == [
        {"from": "a", "to": "b", "when": "kind = x, y"},
        {"from": "a", "to": "c", "when": "kind = z or else"},
        {"from": "b", "to": "d", "when": None},
        {"from": "c", "to": "d", "when": None},
        {"from": "d", "to": None, "when": None},
    ]
