"""``engine logs``: which lines are chosen, how they are shown, and a file that is followed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from engine import cli
from engine.exitcodes import ExitCode
from engine.logs import Choice, Tail, chosen
from engine.supervisor.rundir import FORMER_LOG, LOG, make_private

FILE = """
[engine]
name = "tried"
[[stage]]
name = "encode"
worker = "service:Encode"
"""


def made(message: str, *, level: str = "info", process: str = "worker", **more: object) -> bytes:
    told = {"time": "2026-11-28T00:00:00.000Z", "level": level, "process": process, "pid": 1, "logger": "stageline"}
    return json.dumps({**told, "message": message, **more}).encode()


LINES = [
    made("begun", stage="encode", worker=1),
    b"printed by a library",
    made("slow", level="warning", stage="encode", worker=1, request_id="6f1c0e"),
    made("lost", level="error", process="broker", stage="other"),
]


@pytest.mark.parametrize(
    ("choice", "messages"),
    [
        (Choice(), ["begun", "printed by a library", "slow", "lost"]),
        (Choice(level=logging.WARNING), ["slow", "lost"]),
        (Choice(stage="encode"), ["begun", "slow"]),
        (Choice(process="broker"), ["lost"]),
        (Choice(request="6f1"), ["slow"]),
    ],
)
def test_lines_are_chosen(choice: Choice, messages: list[str]) -> None:
    shown = list(chosen(LINES, choice, raw=False, colour=False))
    assert len(shown) == len(messages)
    assert all(message in text for text, message in zip(shown, messages, strict=True))


def test_as_they_were_written_or_readable() -> None:
    assert list(chosen(LINES, Choice(), raw=True, colour=False)) == [line.decode() for line in LINES]
    readable = next(chosen(LINES, Choice(), raw=False, colour=False))
    assert readable == "2026-11-28T00:00:00.000Z info    worker encode-1 begun"


def test_a_file_is_read_as_it_grows_and_when_it_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.lines() == []  # it is not there yet
    path.write_bytes(b"one\ntw")
    assert tail.lines() == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert tail.lines() == [b"two", b"three"]
    path.write_bytes(b"x\n")  # it was cut
    assert tail.lines() == [b"x"]
    path.rename(tmp_path / "former")
    path.write_bytes(b"another\nand its end")
    assert tail.last() == [b"another", b"and its end"]
    assert tail.last() == []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "stages.toml").write_text(FILE)
    make_private(tmp_path / "run")
    return tmp_path / "stages.toml"


def logs(file: Path, *words: str) -> int:
    return cli.run(["logs", str(file), "--run-dir", str(file.parent / "run"), *words])


def test_the_last_lines_of_both_files(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "run" / FORMER_LOG).write_bytes(made("older") + b"\n")
    (file.parent / "run" / LOG).write_bytes(b"\n".join(LINES) + b"\n")
    assert logs(file, "--last", "2", "--json") == ExitCode.OK
    assert [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()] == ["slow", "lost"]
    assert logs(file) == ExitCode.OK
    assert "older" in capsys.readouterr().out


def test_without_a_log_it_is_said_where_it_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert logs(file) == ExitCode.FAILED
    assert "journalctl" in capsys.readouterr().err


def test_that_nothing_was_found_is_said_apart_from_what_would_be(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / "run" / LOG).write_bytes(b"\n".join(LINES) + b"\n")
    assert logs(file, "--request", "nobody's", "--json") == ExitCode.OK
    told = capsys.readouterr()
    assert told.out == ""
    assert "no such line among the 4 in" in told.err


def test_a_stage_that_is_not_there(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert logs(file, "--stage", "x") == ExitCode.CONFIG
    assert "expected one of encode" in capsys.readouterr().err


def test_one_that_has_ended_is_followed_to_its_end(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "run" / LOG).write_bytes(b"\n".join(LINES) + b"\n")
    assert logs(file, "--follow", "--level", "error") == ExitCode.OK
    assert "lost" in capsys.readouterr().out
