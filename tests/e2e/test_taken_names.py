"""A service among files that are called as packages of ours: every process of the deployment is ours all the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import Deployed, deployed, write_service

pytestmark = pytest.mark.unmeasured

CODE = """
from engine import Server, Worker


class Echo(Worker):
    example = 1

    def forward(self, data):
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo)
    server.run()
"""
TOML = '[[stage]]\nname = "echo"\nworker = "service:Echo"\n'
NOT_OURS = "raise RuntimeError('a file of the user was taken for a package of ours')\n"


def surround(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(NOT_OURS)


def test_a_folder_of_such_names_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_service(folder / "service", TOML, CODE)
    surround(folder / "service", "stages.py", "engine/__init__.py", "frontend/__init__.py")
    surround(folder / "lib", "stages/__init__.py", "frontend.py")
    monkeypatch.chdir(folder / "service")
    with deployed(file, env={"PYTHONPATH": str(folder / "lib")}) as running, running.client() as client:
        assert client.post("/inference", json=7).json() == 7


def test_a_script_among_such_names_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "app.py").write_text(CODE)
    surround(folder, "stages.py", "frontend.py")
    monkeypatch.chdir(folder)
    where = ["--address", "127.0.0.1", "--port", "0", "--path", str(folder / "run")]
    running = Deployed(
        ["app", *where], folder=folder, env={"PYTHONPATH": str(folder)}, command=(sys.executable, "-m")
    )  # fmt: skip
    try:
        running.wait_ready()
        with running.client() as client:
            assert client.post("/inference", json=7).json() == 7
        assert running.terminate() == 0, running.tail()
        running.gone(within_s=2)
    finally:
        running.kill()
