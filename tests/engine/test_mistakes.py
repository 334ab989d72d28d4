"""What is wrong with a file is shown where it stands, with what is mostly meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import load
from engine.config.flags import strangers
from engine.config.mistakes import line_of
from engine.errors import ConfigError

STAGE = '[[stage]]\nname = "encode"\nworker = "service:Encode"\n'


def problems(tmp_path: Path, text: str, name: str = "stages.toml") -> list[str]:
    path = tmp_path / name
    path.write_bytes(text.encode())
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "number", "hint"),
    [
        ("[[stage]]\nname = encode\n", 2, 'text stands in quotes: name = "encode"'),
        ("[[stage]]\n\tworker = service:Encode  # mine\n", 2, 'worker = "service:Encode"'),
        ("[frontend]\nmax_request_size = 10 MiB\n", 2, 'max_request_size = "10 MiB"'),
        ("[frontend]\naddress = 0.0.0.0\n", 2, 'address = "0.0.0.0"'),
        ("[frontend]\ncompression = True\n", 2, "compression = true"),
        ("[frontend]\ncertfile = None\n", 2, "leave certfile out"),
        ("[frontend]\nport =\n", 2, "port has no value"),
        ("[frontend]\nport: 8000\n", 2, "port = 8000"),
        ("[frontend]\nport = 1\nport = 2\n", 3, "port is set more than once in this table"),
        ('[[stage]]\nname = "encode\n', 2, "a closing quote is missing"),
        ('[[route]]\npath = "/x"\nstages = [encode, "b"]\n', 3, 'also in a list: "encode"'),
        ('[engine]\nrun_dir = "C:\\temp\\q"\n', 2, "run_dir = 'C:\\temp\\q'"),
        ("[engine]\nname = \u201cx\u201d\n", 2, "curly quotes"),
        ('[stage]\nname = "a"\n[stage]\nname = "b"\n', 3, "each stage is written with two brackets: [[stage]]"),
        ('[route]\npath = "/a"\n[route]\npath = "/b"\n', 3, "two brackets: [[route]]"),
        ("[engine]\nhello\n", 2, "a line is a [table], or a key = value"),
    ],
)
def test_a_line_that_is_no_toml_is_shown_with_what_is_meant(tmp_path: Path, text: str, number: int, hint: str) -> None:
    (problem,) = problems(tmp_path, text)
    told = problem.splitlines()
    assert told[0].startswith(f"stages.toml: line {number}, column ")
    assert told[1] == f"    {text.splitlines()[number - 1]}"
    assert told[2].strip() == "^"
    assert hint in told[3]


def test_the_caret_stands_below_the_column(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "[engine]\nname = encode\n")
    _, line, caret, _ = problem.splitlines()
    assert line[caret.index("^") :] == "encode"


def test_a_file_that_ends_too_early_is_shown_at_its_end(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "[engine]\nx = [1,")
    assert problem.splitlines()[0].startswith("stages.toml: line 2, column 8: ")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("service.py", "from engine import Worker\n", "this is Python: run it with python"),
        ("stages.toml", "import os\nfrom engine import Server\n", "this is Python: run it with python"),
        ("stages.yaml", "engine:\n  name: x\n", "this is YAML"),
        ("stages.txt", '{"engine": {}}', "this is JSON"),
    ],
)
def test_a_file_in_another_language_is_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    (problem,) = problems(tmp_path, text, name)
    assert problem.startswith(f"{name}: {words}")
    assert "\n" not in problem


def test_a_mark_at_the_beginning_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "stages.toml").write_bytes(b"\xef\xbb\xbf" + STAGE.encode())
    assert load(tmp_path, environ={}).stages[0].name == "encode"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (STAGE + "num = 0\n", 'stages.toml:4: stage[0] "encode".num: expected'),
        (STAGE + '\n[[stage]]\nname = "b"\n', 'stages.toml:5: stage[1] "b".worker: missing'),
        (STAGE + "[stage.args]\nnum = 1\n[frontend]\nport = -1\n", "stages.toml:7: frontend.port: expected"),
        ("[stage]\n" + STAGE.partition("\n")[2], "stages.toml:1: stage: expected tables, each written [[stage]]"),
        ("stage = 3\n", "stages.toml:1: stage: expected tables"),
        ("[engin]\n" + STAGE, "stages.toml:1: engin: unknown section; did you mean [engine]?"),
        (STAGE + '[[route]]\npath = "/a"\nstages = ["encod"]\n', 'stages.toml:6: route[0] "/a".stages: there is no'),
        ("", "stages.toml: stage: expected at least one"),
    ],
)
def test_a_wrong_value_is_told_with_its_line(tmp_path: Path, text: str, start: str) -> None:
    (problem, *_) = problems(tmp_path, text)
    assert problem.startswith(start)


def test_a_key_of_a_sub_table_is_not_the_tables_own() -> None:
    text = STAGE + "[stage.args]\nnum = 1\n" + STAGE + "num = 2\n"
    assert line_of(text, "stage", 0, "num") == 1
    assert line_of(text, "stage", 0, "args") == 4
    assert line_of(text, "stage", 1, "num") == 9


def test_unknown_variables_are_named_with_the_nearest_known() -> None:
    environ = {
        "ENGINE_PORT": "1",
        "ENGINE_PROT": "1",
        "ENGINE_NUM": "2",
        "ENGINE_VERSION_OF_A_CAR": "v8",
        "ENGINE_EMPTY": "",
        "ENGINE_CPUS": "0",
        "ENGINE_SERVICE_HOST": "10.0.0.1",
        "ENGINE_PORT_80_TCP_ADDR": "10.0.0.1",
        "ENGINE_WAIT": "5",
        "OTHER": "x",
    }
    assert strangers(environ, also=["ENGINE_WAIT"]) == [
        "ENGINE_NUM is set and not read; num is set in the file, under stage",
        "ENGINE_PROT is set and not read; did you mean ENGINE_PORT?",
        "ENGINE_VERSION_OF_A_CAR is set and not read",
    ]
