"""`engine completion`: the shells complete what there is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import cli
from engine.commands.completion import SHELLS
from engine.exitcodes import ExitCode

COMPLETE = """
source {script}
words=({words})
COMP_WORDS=("${{words[@]}}"); COMP_CWORD=$(( ${{#words[@]}} - 1 )); COMPREPLY=()
_shtab_engine engine "${{words[COMP_CWORD]}}" "${{words[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(["completion", shell]) == ExitCode.OK
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("engine che", ["check"]),
        ("engine up --re", ["--reload"]),
        ("engine up --run-d", ["--run-dir"]),
        ("engine up st", ["stages.toml"]),
        ("engine up stages.toml --only", ["--only"]),
        ("engine init --kind ''", ["text", "image", "embedding", "streaming"]),
        ("engine up --access-log ''", ["off", "text", "json"]),  # settings, which argparse does not check
        ("engine broker --log-level w", ["warning"]),
        ("engine init mi", ["mine"]),
        ("engine render kubernetes st", ["stages.toml"]),
        ("engine up --par", [""]),  # how a supervisor starts its children is nobody's to complete
    ],
)
def test_bash_completes_commands_flags_values_and_files(
    words: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stages.toml").touch()
    (tmp_path / "mine").mkdir()
    written = tmp_path / "engine.bash"
    written.write_text(script("bash", capsys))
    told = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE.format(script=written, words=words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert told.stderr == ""
    assert told.stdout.splitlines() == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_every_command(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = script(shell, capsys)
    assert not [name for name in cli.NAMES if name not in written]
    if shutil.which(shell):
        (tmp_path / "script").write_text(written)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True, timeout=30)


def test_where_shtab_is_missing_it_is_said_how_to_have_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.run(["completion", "zsh"]) == ExitCode.FAILED
    told = capsys.readouterr()
    assert told.out == ""
    assert "pip install 'stageline[completion]'" in told.err
