"""The key file: made, read, watched, and refused where others may have read it."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from engine import cli, keyfile
from engine.config import build, dump
from engine.core.keys import Secret
from engine.exitcodes import ExitCode
from engine.keyfile import Keyring, keyring_of, make

STAGES = '[engine]\nbind = "tcp://127.0.0.1:7000"\nkey = "sub/deployment.key"\n[[stage]]\nname = "s"\nworker = "m:W"\n'


def test_a_new_file_is_for_its_owner_alone_and_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    former = os.umask(0)
    try:
        assert cli.run(["keys", "new"]) == ExitCode.OK
    finally:
        os.umask(former)
    made = tmp_path / "deployment.key"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    out, err = capsys.readouterr()
    assert 'key = "deployment.key"' in out
    (secret,) = Keyring(str(made)).secrets
    assert secret.line() not in out + err
    text = made.read_text()
    assert cli.run(["keys", "new"]) == ExitCode.START  # what hosts have already is not overwritten
    assert "deployment.key exists, and is left as it is" in capsys.readouterr().err
    assert made.read_text() == text
    assert cli.run(["keys", "new", str(tmp_path / "no" / "folder")]) == ExitCode.START
    assert cli.run(["keys", "new", "other.key"]) == ExitCode.OK
    assert Keyring("other.key").secrets != (secret,)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_what_the_owner_alone_may_read_is_taken(tmp_path: Path, mode: int) -> None:
    make(path := str(tmp_path / "k"))
    os.chmod(path, mode)
    assert len(Keyring(path).secrets) == 1


@pytest.mark.parametrize(
    ("mode", "owner", "is_taken"),
    [
        (0o640, 1000, False), (0o440, 1000, False), (0o604, 1000, False), (0o644, 0, False), (0o444, 0, False),
        (0o620, 0, False), (0o401, 0, False), (0o440, 0, True), (0o400, 0, True), (0o640, 0, True), (0o600, 1000, True),
    ],
)  # fmt: skip
def test_what_others_may_have_read_is_refused_but_for_what_orchestrators_mount(
    mode: int, owner: int, is_taken: bool
) -> None:
    about = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, 1, 100, 0, 0, 0))
    problem = keyfile._problem(about)
    assert bool(problem) is not is_taken
    assert is_taken or f"may be read by others (mode {mode:04o})" in problem


def test_a_file_that_is_missing_or_broken_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sub").mkdir()
    file, key = tmp_path / "stages.toml", tmp_path / "sub" / "deployment.key"
    file.write_text(STAGES)
    cases: list[tuple[Any, str]] = [
        (lambda: None, f"there is no key file {key}; `engine keys new` makes one"),
        (key.mkdir, f"the key file {key} is not a file"),
        (lambda: (key.rmdir(), os.mkfifo(key, 0o600)), f"the key file {key} is not a file"),
        (lambda: (key.unlink(), key.write_text("hunter2"), key.chmod(0o600)), "line 1 does not begin with"),
        (lambda: key.chmod(0o644), "may be read by others (mode 0644)"),
    ]
    for change, told in cases:
        change()
        for command in (["up"], ["broker"], ["frontend"], ["worker", "--stage", "s"], ["status"], ["why"]):
            name, *rest = command
            assert cli.run([name, str(file), *rest]) == ExitCode.START
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("engine: ")
            assert told in line
            assert "hunter2" not in line


def test_a_snapshot_and_the_environment_name_the_file_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    make(key := str(tmp_path / "sub" / "deployment.key"))
    data = {
        "engine": {"bind": "tcp://127.0.0.1:7000", "key": "sub/deployment.key"},
        "stage": [{"name": "s", "worker": "m:W"}],
    }
    deployment = build(data, file=tmp_path / "stages.toml", label="stages.toml")
    assert deployment.engine.key == key
    ring = keyring_of(deployment)
    assert ring is not None
    snapshot = dump(deployment).decode()
    assert key in snapshot
    assert ring.secrets[0].line() not in snapshot
    monkeypatch.chdir(tmp_path / "sub")
    by_variable = build(data, file=tmp_path / "stages.toml", label="", environ={"ENGINE_KEY": "deployment.key"})
    assert by_variable.engine.key == key
    private = build({"stage": data["stage"], "engine": {"key": "none.key"}}, file=tmp_path / "stages.toml", label="")
    assert keyring_of(private) is None  # nothing of it goes through a port


def test_a_changed_file_is_read_again_and_a_bad_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "k"
    make(str(path))
    ring = Keyring(str(path))
    (one,) = ring.secrets
    assert not ring.reread()
    two = Secret(b"2" * 32)
    with path.open("a") as file:
        file.write(two.line() + "\n")
    assert ring.reread()
    assert ring.secrets == (one, two)
    assert not ring.reread()
    path.write_text(path.read_text() + "# a comment\n")
    assert not ring.reread()  # the same keys
    with caplog.at_level(logging.WARNING):
        for change in (lambda: path.write_text("half"), lambda: path.chmod(0o644), path.unlink):
            change()
            assert not ring.reread()
            assert not ring.reread()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the key file has changed, and is not taken"
    ] * 3
    assert ring.secrets == (one, two)
    path.write_text(two.line())
    path.chmod(0o600)
    assert ring.reread()
    assert ring.secrets == (two,)


def test_no_key_is_needed_where_nobody_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stages.toml"
    file.write_text(STAGES)
    assert cli.run(["check", str(file)]) != ExitCode.OK  # there is no module m
    assert cli.run(["ports", str(file)]) == ExitCode.OK
    assert cli.run(["render", "systemd", str(file)]) == ExitCode.OK
    assert "no key file" not in capsys.readouterr().err
