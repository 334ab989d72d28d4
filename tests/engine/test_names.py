"""A user's files may be called as packages of ours are: they do no harm, and who wants one is told to rename it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import names
from engine.supervisor.family import BOOTSTRAP

ENGINE = str(Path(sys.executable).parent / "engine")
NOT_OURS = "raise RuntimeError('a file of the user was taken for a package of ours')\n"
SERVICE = """\
from engine import Worker


class Echo(Worker):
    example = 1

    def forward(self, data):
        return data
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def deployment(folder: Path, worker: str = "service:Echo", service: str = SERVICE) -> Path:
    write(folder, "service.py", service)
    return write(folder, "stages.toml", f'[[stage]]\nname = "echo"\nworker = "{worker}"\n')


def execute(*command: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENGINE_", "PYTHONPATH"))}
    return subprocess.run(
        command, cwd=folder, env={**kept, **env}, capture_output=True, text=True, timeout=60, check=False
    )


def check(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return execute(ENGINE, "check", "stages.toml", folder=folder, **env)


@pytest.mark.parametrize(
    "name",
    ["stages.py", "stages/__init__.py", "engine.py", "engine/__init__.py", "frontend.py", "frontend/__init__.py"],
)
def test_a_file_of_this_name_beside_a_service_does_no_harm(tmp_path: Path, name: str) -> None:
    deployment(tmp_path)
    write(tmp_path, name, NOT_OURS)
    done = check(tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["stages.py", "stages/__init__.py", "frontend.py"])
def test_nor_does_one_on_the_search_path(tmp_path: Path, name: str) -> None:
    deployment(tmp_path / "service")
    write(tmp_path / "lib", name, NOT_OURS)
    done = check(tmp_path / "service", PYTHONPATH=str(tmp_path / "lib"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["frontend.py", "frontend/__init__.py"])
def test_frontend_is_the_users_in_a_stage(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, SERVICE)
    deployment(tmp_path, "frontend:Echo")
    done = check(tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "worker", "service"),
    [
        ("stages.py", "stages:Echo", ""),
        ("stages/__init__.py", "stages:Echo", ""),
        ("stages/mine.py", "stages.mine:Echo", ""),
        ("engine.py", "engine:Echo", ""),
        ("stages.py", "service:Echo", "from stages import Echo\n"),
        ("stages.py", "service:Echo", "import stages\nEcho = stages.Echo\n"),
        ("stages/mine.py", "service:Echo", "from stages.mine import Echo\n"),
        ("engine/mine.py", "service:Echo", "import engine.mine\n"),
        ("engine.py", "service:Echo", "from engine import Echo\n"),
    ],
)
def test_who_wants_a_file_whose_name_is_taken_is_told_to_rename_it(
    tmp_path: Path, file: str, worker: str, service: str
) -> None:
    path = write(tmp_path, file, SERVICE)
    deployment(tmp_path, worker, service)
    done = check(tmp_path)
    assert done.returncode != 0
    place = path if path.parent == tmp_path else path.parent
    assert f"is the name of a package of Stageline; rename {place}" in done.stdout + done.stderr


def test_a_name_that_is_simply_wrong_is_told_as_ever(tmp_path: Path) -> None:
    deployment(tmp_path, service="from engine import Wroker\n")
    done = check(tmp_path)
    assert "cannot import name 'Wroker' from 'engine'" in done.stdout + done.stderr
    assert "rename" not in done.stdout + done.stderr


@pytest.mark.parametrize("start", [("script.py",), ("-m", "script")])
def test_a_script_is_told_as_well(tmp_path: Path, start: tuple[str, ...]) -> None:
    write(tmp_path, "stages.py", SERVICE)
    write(tmp_path, "script.py", "from engine import Server\nfrom stages import Echo\n")
    done = execute(sys.executable, *start, folder=tmp_path)
    assert f"rename {tmp_path / 'stages.py'}" in done.stderr


@pytest.mark.parametrize("name", ["engine.py", "engine/__init__.py", "argparse.py"])
def test_a_child_process_is_ours_in_any_folder(tmp_path: Path, name: str) -> None:
    """And so is one that was told to look for modules somewhere else."""
    write(tmp_path, name, NOT_OURS)
    paths = [str(tmp_path)] if name != "argparse.py" else []
    done = execute(sys.executable, BOOTSTRAP, "--help", folder=tmp_path, PYTHONPATH=os.pathsep.join(paths))
    assert done.returncode == 0, done.stderr
    assert "usage: engine" in done.stdout


def test_a_child_process_finds_none_of_our_modules_as_its_own(tmp_path: Path) -> None:
    """A service may have a module called ``log`` or ``client``; a script's folder comes first on its search path."""
    code = f"import runpy, sys; sys.argv[:] = [{BOOTSTRAP!r}, '--version']\n"
    code += f"try: runpy.run_path({BOOTSTRAP!r}, run_name='__main__')\nexcept SystemExit: pass\n"
    code += "import json; print(json.dumps(sys.path))"
    # run_path puts nothing before the path, so a first entry stands for what the interpreter puts there
    done = execute(sys.executable, "-c", f"import sys; sys.path.insert(0, 'first')\n{code}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout.splitlines()[-1])
    assert "first" not in places
    assert str(Path(BOOTSTRAP).parent) not in places


def test_a_process_that_user_code_starts_gets_the_same_packages(tmp_path: Path) -> None:
    """``multiprocessing`` runs the main file again, under another name, with the parent's search path."""
    write(tmp_path, "engine.py", NOT_OURS)
    code = f"import runpy, sys; sys.path.insert(0, '.'); runpy.run_path({BOOTSTRAP!r}, run_name='__mp_main__')\n"
    code += "import engine.errors, stages; print(engine.__file__)"
    done = execute(sys.executable, "-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == Path(BOOTSTRAP).parent


def test_what_is_taken_is_what_python_would_import(tmp_path: Path) -> None:
    assert names.held("stages")
    assert not names.held("frontend")
    write(tmp_path, "stages/data.json", "{}")
    assert names.taken("stages", [str(tmp_path)]) is None
    root = Path(BOOTSTRAP).parents[1]
    assert names.taken("stages", [str(root)]) is None
