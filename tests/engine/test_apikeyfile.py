"""The file of API keys, and the command that writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import apikeyfile
from engine.cli import run as run_command
from engine.core.apikeys import PREFIX, Limits, digest_of
from engine.errors import StartError
from engine.exitcodes import ExitCode


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "api.keys")


def test_a_key_is_made_and_its_token_is_not_kept(path: str) -> None:
    token = apikeyfile.add(path, "alice", Limits(rate=2.5, burst=5, concurrent=3))
    other = apikeyfile.add(path, "bob", Limits())
    assert token.startswith(PREFIX)
    assert len(token) == len(PREFIX) + 43
    assert token != other
    text = Path(path).read_text()
    assert token not in text
    assert "alice sha256:" in text
    assert "rate=2.5 burst=5 concurrent=3\n" in text
    assert os.stat(path).st_mode & 0o777 == 0o600
    alice, bob = apikeyfile.read(path)
    assert (alice.name, alice.digest, bob.digest) == ("alice", digest_of(token.encode()), digest_of(other.encode()))


def test_what_people_wrote_stays(path: str) -> None:
    Path(path).write_text("# of the team\n")
    os.chmod(path, 0o600)
    apikeyfile.add(path, "alice", Limits())
    apikeyfile.add(path, "bob", Limits())
    apikeyfile.remove(path, "alice")
    assert [line.split()[0] for line in Path(path).read_text().splitlines()] == ["#", "bob"]


def test_a_link_goes_on_being_one(path: str, tmp_path: Path) -> None:
    real = tmp_path / "real" / "keys"
    real.parent.mkdir()
    os.symlink(real, path)
    apikeyfile.add(path, "alice", Limits())
    assert os.path.islink(path)
    assert apikeyfile.read(str(real))[0].name == "alice"


def test_many_at_once_lose_nobodys_key(path: str) -> None:
    with ThreadPoolExecutor(4) as pool:  # each opens the folder for itself, so each has a lock of its own
        list(pool.map(lambda n: apikeyfile.add(path, f"k{n}", Limits()), range(20)))
    assert {key.name for key in apikeyfile.read(path)} == {f"k{n}" for n in range(20)}
    assert os.listdir(os.path.dirname(path)) == ["api.keys"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(path: str, mode: int) -> None:
    apikeyfile.add(path, "alice", Limits())
    os.chmod(path, mode)
    with pytest.raises(StartError, match=r"may be written by others .* chmod 600"):
        apikeyfile.read(path)
    os.chmod(path, 0o444)
    assert len(apikeyfile.read(path)) == 1


def test_what_cannot_be_done_is_said(path: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"there is no file of API keys .*; `engine api-keys new NAME` makes one"):
        apikeyfile.read(path)
    with pytest.raises(StartError, match="is not a file"):
        apikeyfile.read(str(tmp_path))
    with pytest.raises(StartError, match="cannot be a key's name"):
        apikeyfile.add(path, "two words", Limits())
    with pytest.raises(StartError, match="cannot be written"):
        apikeyfile.add(str(tmp_path / "nowhere" / "keys"), "alice", Limits())
    apikeyfile.add(path, "alice", Limits())
    with pytest.raises(StartError, match="has a key alice already"):
        apikeyfile.add(path, "alice", Limits())
    with pytest.raises(StartError, match="has no key bob"):
        apikeyfile.remove(path, "bob")
    Path(path).write_text("alice sl-token\n")
    with pytest.raises(StartError, match="makes no sense: line 1: expected sha256"):
        apikeyfile.read(path)


def run(*words: str) -> int:
    return run_command(["api-keys", *words])


def test_the_command(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("new", "alice", "--file", path, "--rate", "10", "--concurrent", "4") == ExitCode.OK
    told = capsys.readouterr()
    token = told.out.strip()
    assert token.startswith(PREFIX)
    assert "\n" not in token
    assert f"authorization: Bearer {token}" in told.err
    assert run("list", "--file", path) == ExitCode.OK
    assert capsys.readouterr().out == "alice  rate=10 concurrent=4\n"
    assert run("list", "--json", "--file", path) == ExitCode.OK
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["name"], one["rate"], one["burst"], one["concurrent"]) == ("alice", 10, 10, 4)
    assert one["sha256"] == digest_of(token.encode()).hex()
    assert run("remove", "alice", "--file", path) == ExitCode.OK
    assert apikeyfile.read(path) == ()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new"], "expected the NAME"),
        (["remove"], "expected the NAME"),
        (["new", "a", "--burst", "3"], "--burst: expected a rate beside it"),
        (["new", "a", "--rate", "-1"], "--rate: expected"),
        (["new", "a", "--rate", "nan"], "--rate: expected"),
    ],
)
def test_a_command_that_is_wrong_writes_nothing(
    path: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*words, "--file", path)
    assert caught.value.code == ExitCode.USAGE
    assert said in capsys.readouterr().err
    assert not os.path.exists(path)


def test_it_needs_little() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, engine.commands; print('engine.apikeyfile' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
