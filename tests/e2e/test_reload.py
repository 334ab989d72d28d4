"""`engine up --reload`: what is edited is served, and nobody notices."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from harness import ENGINE, Deployed, environment, free_ports, up, wait_for, write_service

from engine.exitcodes import ExitCode

TOML = """
[engine]
name = "edited"
[[stage]]
name = "first"
worker = "first:First"
[[stage]]
name = "second"
worker = "second:Second"
"""
FIRST = """
from engine import Worker
import words

class First(Worker):
    example = {}

    def forward(self, data):
        return {**data, "first": words.WORD}
"""
SECOND = """
import time
from engine import Worker

class Second(Worker):
    def forward(self, data):
        time.sleep(data.get("takes", 0))
        return {**data, "second": 1}
"""


@pytest.fixture
def file(folder: Path) -> Path:
    (folder / "first.py").write_text(FIRST)
    (folder / "second.py").write_text(SECOND)
    (folder / "words.py").write_text("WORD = 'one'\n")
    return write_service(folder, TOML)


def said(running: Deployed, text: str, times: int = 1) -> bool:
    return sum(text in str(record["message"]) for record in running.records()) >= times


@contextmanager
def asked_all_the_time(running: Deployed) -> Iterator[list[object]]:
    """Statuses of requests, one after the other, and at the end of what went wrong with them."""
    statuses: list[object] = []
    done = threading.Event()

    def ask() -> None:
        with running.client() as client:
            while not done.is_set():
                try:
                    statuses.append(client.post("/inference", json={"takes": 0.05}).status_code)
                except httpx.HTTPError as error:
                    statuses.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield statuses
    finally:
        done.set()
        asker.join()


def test_what_is_edited_is_served_and_no_request_is_lost(file: Path, folder: Path) -> None:
    port = free_ports(1)
    running = up(file, "--port", str(port), "--reload", folder=folder)
    try:
        others = {process.pid for process in running.processes("worker", stage="second")}
        with running.client() as client, asked_all_the_time(running) as statuses:

            def word() -> str:
                return str(client.post("/inference", json={}).json()["first"])

            assert word() == "one"
            (folder / "test_it.py").write_text("concerns nobody\n")
            (folder / "words.py").write_text("WORD = 'two'\n")
            wait_for("the new word", lambda: word() == "two")
            wait_for("the line", lambda: said(running, "words.py changed: first replaced in"))
            assert {process.pid for process in running.processes("worker", stage="second")} == others

            (folder / "words.py").write_text("WORD = \n")
            wait_for("a refusal", lambda: said(running, "words.py changed, and is not served: worker first-1"))
            assert word() == "two"
            (folder / "first.py").write_text(FIRST.replace("import words", "import lines as words"))
            wait_for("a refusal", lambda: said(running, "first.py changed, and is not served: worker first-1"))
            (folder / "lines.py").write_text("WORD = 'three'\n")  # nobody has imported it yet
            wait_for("the new word", lambda: word() == "three")

            file.write_text(TOML.replace('"edited"', '"edited'))
            wait_for("a refusal", lambda: said(running, "stages.toml changed, and is not served"))
            file.write_text(TOML.replace('worker = "second:Second"', 'worker = "second:Second"\nnum = 2'))
            wait_for("another", lambda: len(running.processes("worker", stage="second")) == 2)
            assert others < {process.pid for process in running.processes("worker", stage="second")}
            wait_for("the line", lambda: said(running, "stages.toml changed: done in"))
        assert len(statuses) > 20
        assert set(statuses) == {200}

        file.write_text(TOML + '[[route]]\npath = "/other"\nstages = ["first", "second"]\n')
        wait_for("a restart", lambda: said(running, "its routes can only change with a new start"))
        wait_for("the second start", lambda: running.out.count("is ready") == 2)
        with running.client() as client:
            assert client.post("/other", json={}).json()["first"] == "three"
        assert running.terminate() == 0
        running.gone()
    finally:
        running.kill()


def test_a_start_that_failed_is_tried_again_when_something_has_changed(file: Path, folder: Path) -> None:
    (folder / "words.py").write_text("WORD = \n")
    running = up(file, "--reload", folder=folder, wait=False)
    try:
        wait_for("the failure", lambda: said(running, "waiting for a change"), within_s=40)
        assert said(running, "worker first-1 could not start: SyntaxError")
        file.write_text("[engine\n")
        wait_for("another", lambda: said(running, "waiting for a change", 2), within_s=40)
        file.write_text(TOML.replace("first:First", "first:Firsst"))
        wait_for("another", lambda: said(running, "waiting for a change", 3), within_s=40)
        file.write_text(TOML)
        (folder / "words.py").write_text("WORD = 'fine'\n")
        running.wait_ready()
        with running.client() as client:
            assert client.post("/inference", json={}).json()["first"] == "fine"
        assert running.terminate() == 0
        running.gone()
    finally:
        running.kill()


def test_who_waits_for_a_change_can_be_stopped(file: Path, folder: Path) -> None:
    (folder / "words.py").write_text("WORD = \n")
    running = up(file, "--reload", folder=folder, wait=False)
    try:
        wait_for("the failure", lambda: said(running, "waiting for a change"), within_s=40)
        assert running.terminate() == ExitCode.START
        running.gone()
    finally:
        running.kill()


@pytest.mark.parametrize("flag", ["--only=first", "--on=ray"])
def test_it_is_for_a_whole_deployment_on_this_machine(file: Path, flag: str) -> None:
    told = subprocess.run(
        [ENGINE, "up", str(file), "--reload", flag],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment("x"),
    )
    assert told.returncode == ExitCode.USAGE
    assert "--reload" in told.stderr
