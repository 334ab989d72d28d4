"""`engine init`: what it writes runs at once, as it says, and what is there already is left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from harness import ENGINE, environment, up

from engine.cli import main
from engine.commands.init import KINDS, files_of
from engine.exitcodes import ExitCode

pytestmark = pytest.mark.unmeasured


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment("init"), capture_output=True, text=True, timeout=100, check=False
    )


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_of_each_kind_passes_its_check_its_test_and_serves_its_client(kind: str, folder: Path) -> None:
    made = run(ENGINE, "init", "mine", "--kind", kind, cwd=folder)
    assert made.returncode == 0, made.stderr
    service = folder / "mine"
    assert "cd mine" in lines(made.stdout)
    assert f"{ENGINE} check --strict" in lines(made.stdout)
    asked = any("-m pip install" in line for line in lines(made.stdout))
    assert asked == (kind in ("image", "embedding")), "what needs nothing asks for nothing"

    checked = run(ENGINE, "check", "--strict", cwd=service)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", cwd=service)
    assert tested.returncode == 0, tested.stdout

    running = up(service, folder=folder)
    try:
        told = run(sys.executable, "client.py", running.url, cwd=service)
        assert told.returncode == 0, told.stderr
        assert len(told.stdout.split()) >= 8
        assert running.terminate() == 0
        running.gone()
    finally:
        running.kill()

    again = run(ENGINE, "init", "mine", "--kind", "text", cwd=folder)
    assert again.returncode == ExitCode.START
    assert "service.py" in again.stderr
    assert "nothing was written" in again.stderr


def test_who_has_no_pytest_is_told_to_install_it_in_the_terminal_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["init", str(tmp_path / "mine")])
    assert ended.value.code == ExitCode.OK
    first, _, second = (lines(part) for part in capsys.readouterr().out.partition("in another terminal:"))
    assert f"cd {tmp_path / 'mine'}" in first
    python = sys.executable
    assert second == [
        "",
        f"cd {tmp_path / 'mine'}",
        f"{python} client.py",
        f"{python} -m pip install pytest",
        f"{python} -m pytest",
    ]


def test_one_file_that_is_there_is_enough_to_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text("mine")
    told = run(ENGINE, "init", cwd=tmp_path)
    assert told.returncode == ExitCode.START
    assert "client.py" in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["client.py"]
    assert (tmp_path / "client.py").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = run(ENGINE, "init", "file/below", cwd=tmp_path)
    assert told.returncode == ExitCode.START
    assert "Traceback" not in told.stderr


def test_an_image_holds_no_key_and_the_file_it_serves(tmp_path: Path) -> None:
    assert run(ENGINE, "init", "--kind", "text", cwd=tmp_path).returncode == 0
    assert 'CMD ["up", "/app/stages.toml"]' in (tmp_path / "Dockerfile").read_text()
    assert "*.key" in (tmp_path / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_the_same_files(kind: str) -> None:
    expected = {"service.py", "stages.toml", "test_service.py", "client.py", "requirements.txt", "README.md"}
    assert expected <= set(files_of(kind)) <= {*expected, ".dockerignore", "example.curl"}
