"""What people install: the wheel, in an environment that holds what it declares to need and nothing else.

No package index is asked. The wheel is built with the setuptools of the tests' environment, and the declared
requirements (and what those require in turn) are linked in from there. Whatever else a service turned out to need would
be missing.
"""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest
from harness import Deployed, environment, short_folder, write_service
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).parents[2]
SOURCE = ("engine", "frontend", "stages", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
SERVICE = """
from engine import Worker


class Echo(Worker):
    example = {"x": 1}

    def forward(self, data):
        return data
"""
TOML = '[[stage]]\nname = "echo"\nworker = "service:Echo"\n'


def execute(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment("", {"PYTHONPATH": ""}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    with short_folder() as made:
        yield made


@pytest.fixture(scope="module")
def wheel(work: Path) -> Path:
    """Built from what git knows of, in another place: a file that was never added is not in it."""
    tree = work / "tree"
    listed = execute("git", "ls-files", "--cached", "--", *SOURCE, cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).exists():  # else deleted and not yet committed
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work), str(tree), cwd=work)
    (made,) = work.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(work: Path, wheel: Path) -> Path:
    """The folder of the commands in an environment with the wheel."""
    place = work / "env"
    venv.create(place, with_pip=False, symlinks=True)
    packages = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        archive.extractall(work / "looked-at", [name for name in archive.namelist() if name.startswith(info)])
    link(needed(PathDistribution(work / "looked-at" / info)), packages)
    pip("--python", str(place / "bin" / "python"), "install", "--no-index", "--no-deps", str(wheel), cwd=work)
    return place / "bin"


def pip(*arguments: str, cwd: Path) -> None:
    execute(sys.executable, "-m", "pip", "--isolated", "--no-input", *arguments, cwd=cwd)


def needed(root: Distribution) -> dict[str, Distribution]:
    """What a distribution requires here, without its extras, and what that requires in turn."""
    found: dict[str, Distribution] = {}
    waiting: list[tuple[Distribution, Sequence[str]]] = [(root, ())]
    while waiting:
        owner, extras = waiting.pop()
        for requirement in map(Requirement, owner.requires or []):
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            name = canonicalize_name(requirement.name)
            if name not in found:
                found[name] = distribution(name)
                waiting.append((found[name], tuple(requirement.extras)))
    return found


def link(distributions: dict[str, Distribution], packages: Path) -> None:
    for one in distributions.values():
        for top in {file.parts[0] for file in one.files or []} - {"..", "__pycache__"}:
            (packages / top).symlink_to(str(one.locate_file(top)))


def test_the_wheel_holds_the_packages_and_their_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"engine", "frontend", "stages"}
    listed = execute("git", "ls-files", "--cached", "--", *tops, cwd=ROOT).splitlines()
    assert {name for name in listed if (ROOT / name).exists()} <= names  # py.typed and the pages' files among them


def test_what_is_installed_is_complete_and_says_its_version(installed: Path, wheel: Path, work: Path) -> None:
    version = wheel.name.split("-")[1]
    assert execute(installed / "engine", "--version", cwd=work) == f"engine {version}\n"
    where = execute(installed / "python", "-c", "import engine; print(engine.__file__)", cwd=work)
    assert Path(where.strip()).is_relative_to(installed.parent)
    pip("--python", str(installed / "python"), "check", cwd=work)


def test_it_has_what_a_service_starts_from(installed: Path, folder: Path) -> None:
    told = execute(installed / "engine", "init", "mine", cwd=folder)
    assert f"{installed / 'engine'} check" in told
    execute(installed / "engine", "check", "--strict", cwd=folder / "mine")
    code = "from engine import testing\nwith testing.running() as one: print(one.post({'text': 'free prize'}).text)"
    assert "spam" in execute(installed / "python", "-c", code, cwd=folder / "mine")


def test_it_serves(installed: Path, folder: Path) -> None:
    file = write_service(folder, TOML, SERVICE)
    where = ["--address", "127.0.0.1", "--port", "0", "--run-dir", str(folder / "run")]
    execute(installed / "engine", "check", file, cwd=folder)
    running = Deployed(
        ["up", str(file), *where], folder=folder, env={"PYTHONPATH": ""}, command=(str(installed / "engine"),)
    )
    try:
        running.wait_ready()
        with running.client() as client:
            assert client.post("/inference", json={"x": 2}).json() == {"x": 2}
            assert client.get("/readyz").status_code == 200
            assert client.get("/openapi/metadata.json").status_code == 200
            assert client.get("/openapi/swagger/").status_code == 200
            assert "engine_throughput_total" in client.get("/metrics").text
        told = execute(installed / "engine", "status", file, "--run-dir", str(folder / "run"), cwd=folder)
        assert "echo" in told
        assert running.terminate() == 0, running.tail()
        running.gone()
    finally:
        running.kill()
