"""How the scripts choose a Python and where they put its environment. Nothing is installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


class Machine:
    """A machine with certain Pythons: each only says which version it is."""

    def __init__(self, root: Path) -> None:
        self.bin, self.pyenv = root / "bin", root / "pyenv"
        self.bin.mkdir()
        for tool in ("bash", "cut", "dirname", "env", "sed"):
            found = shutil.which(tool)
            assert found
            (self.bin / tool).symlink_to(found)

    def python(self, path: Path, version: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {version}\n" if version else "#!/bin/sh\nexit 127\n")
        path.chmod(0o755)
        return path

    def on_path(self, name: str, version: str) -> Path:
        return self.python(self.bin / name, version)

    def in_pyenv(self, version: str) -> Path:
        return self.python(self.pyenv / "versions" / version / "bin" / "python3", version)

    def run(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A script that sources the shared part and then does ``code``."""
        script = f"source {ROOT}/scripts/_env.sh; {code}"
        return subprocess.run(
            ["bash", "-c", script, "scripts/any", *arguments],
            env={"PATH": str(self.bin), "PYENV_ROOT": str(self.pyenv), "HOME": str(self.bin)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_version_the_arguments_are_the_scripts_own(machine: Machine) -> None:
    told = machine.run('echo "$VENV" "$@"', "-k", "echo").stdout.split()
    assert told == [str(ROOT / ".venv"), "-k", "echo"]


@pytest.mark.parametrize("words", [("--python", "3.13"), ("--python=3.13",)])
def test_a_version_has_an_environment_of_its_own(machine: Machine, words: tuple[str, ...]) -> None:
    told = machine.run('echo "$VENV" "$PYTHON" "$@"', *words, "-k", "echo").stdout.split()
    assert told == [str(ROOT / ".venv-3.13"), str(ROOT / ".venv-3.13" / "bin" / "python"), "-k", "echo"]


@pytest.mark.parametrize("words", [("--python",), ("--python", "three"), ("--python=",), ("--python", "2.7")])
def test_what_is_no_version_is_told(machine: Machine, words: tuple[str, ...]) -> None:
    done = machine.run("echo went on", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --python: expected a version such as 3.13, got")


def test_a_python_of_the_version_is_found_on_the_path(machine: Machine) -> None:
    machine.on_path("python3.12", "3.12.4")
    found = machine.on_path("python3.13", "3.13.1")
    machine.in_pyenv("3.13.0")
    assert machine.run("find_python", "--python", "3.13").stdout.strip() == str(found)


def test_or_kept_by_pyenv_whose_own_one_on_the_path_may_not_work(machine: Machine) -> None:
    machine.on_path("python3.13", "")
    machine.in_pyenv("3.12.1")
    found = machine.in_pyenv("3.13.0")
    assert machine.run("find_python", "--python", "3.13").stdout.strip() == str(found)


def test_an_exact_version_is_no_other(machine: Machine) -> None:
    machine.on_path("python3.13", "3.13.1")
    found = machine.in_pyenv("3.13.0")
    assert machine.run("find_python", "--python", "3.13.0").stdout.strip() == str(found)


def test_the_plain_one_will_do_where_it_is_of_the_version(machine: Machine) -> None:
    found = machine.on_path("python3", "3.11.2")
    assert machine.run("find_python", "--python", "3.11").stdout.strip() == str(found)


@pytest.mark.parametrize("have", ["3.1.4", "3.11.0"])
def test_a_version_that_is_not_there_is_told(machine: Machine, have: str) -> None:
    machine.on_path("python3", have)
    done = machine.run("find_python", "--python", "3.13")
    assert done.returncode == 1
    assert "there is no Python 3.13: neither on the PATH as python3.13" in done.stderr


def test_scripts_say_what_they_take() -> None:
    for name in ("test", "check", "up", "smoke", "chaos", "soak"):
        head = (ROOT / "scripts" / name).read_text().splitlines()[1:5]
        assert f"scripts/{name} [" in " ".join(head), name
        assert os.access(ROOT / "scripts" / name, os.X_OK), name
