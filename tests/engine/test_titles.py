"""What processes are called where people look for them; and who looks for them by their arguments finds them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.titles import comm, titled

BOOTSTRAP = "/usr/lib/python3/dist-packages/engine/bootstrap.py"
TITLE = "stageline encode-1 (echo)"


def line(*arguments: str) -> bytes:
    return b"".join(argument.encode() + b"\0" for argument in arguments)


def arguments(shown: bytes) -> list[str]:
    return shown.decode().split("\0")[:-1]


@pytest.mark.parametrize("title", ["", "x", TITLE, f"{TITLE} {'y' * 40}", "z" * 300, "a\0b"])
@pytest.mark.parametrize(
    "python", ["/usr/bin/python3", "/home/somebody/with/a/long/path/to/an/environment/bin/python3"]
)
@pytest.mark.parametrize("script", [BOOTSTRAP, "engine/bootstrap.py", "/usr/bin/engine", "-m"])
def test_a_line_is_as_long_and_has_as_many_arguments_as_before(title: str, python: str, script: str) -> None:
    before = line(python, script, "worker", "/run/deployment.json", "--stage", "encode", "", "--slot", "1")
    after = titled(before, title.encode())
    assert len(after) == len(before)
    first, second, *others = arguments(after)
    assert others == arguments(before)[2:]
    assert script.endswith(second)
    if script.endswith("bootstrap.py"):
        assert second.endswith("engine/bootstrap.py")
    assert title.replace("\0", " ").startswith(first.rstrip())


def test_there_is_room_for_the_title_beside_a_short_interpreter() -> None:
    first, second, *_ = arguments(titled(line("/usr/bin/python3", BOOTSTRAP, "worker"), TITLE.encode()))
    assert first == TITLE
    assert second == "ib/python3/dist-packages/engine/bootstrap.py"[-len(second) :]


def test_a_title_can_be_set_again() -> None:
    once = titled(line("/usr/bin/python3", BOOTSTRAP, "worker"), TITLE.encode())
    twice = titled(once, b"stageline post-12 (echo)")
    assert arguments(twice)[0].rstrip() == "stageline post-12 (echo)"
    assert len(once) == len(twice)


@pytest.mark.parametrize("shown", [b"", b"python\0", b"python"])
def test_a_line_without_arguments_is_survived(shown: bytes) -> None:
    assert len(titled(shown, TITLE.encode())) == len(shown)


@pytest.mark.parametrize(
    ("what", "short"),
    [
        ("broker", "broker"),
        ("encode-1", "encode-1"),
        ("a-stage-with-a-long-name-12", "a-stage-with-12"),
        ("ünïcödé-stäge-7", "ünïcöd-7"),
        ("x" * 40, "x" * 15),
    ],
)
def test_the_kernels_name_keeps_the_number(what: str, short: str) -> None:
    assert comm(what)[-2:] == short[-2:]
    assert len(comm(what).encode()) <= 15
    if what.isascii():
        assert comm(what) == short


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_a_process_is_shown_by_its_title_and_has_the_arguments_it_had() -> None:
    code = """import json, sys
from pathlib import Path
from engine.titles import entitle
entitle("encode-1", "echo")
shown = [Path(f"/proc/self/{name}").read_text() for name in ("cmdline", "comm")]
print(json.dumps([*shown, sys.argv, sys.executable]))"""
    told = subprocess.run(
        [sys.executable, "-c", code, "one", "two"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    shown, name, argv, executable = json.loads(told)
    first, *others = shown.split("\0")
    assert TITLE.startswith(first.rstrip())
    assert first.startswith("stageline enco")
    assert others == ["-c", code, "one", "two", ""]
    assert name == "encode-1\n"
    assert argv == ["-c", "one", "two"]
    assert executable == sys.executable
