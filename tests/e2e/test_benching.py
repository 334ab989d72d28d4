"""``engine bench`` of real deployments: one that is started for it, and two that are compared."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from harness import Running, wait_for, write_service

from engine.exitcodes import ExitCode

pytestmark = pytest.mark.unmeasured

FILE = """
[engine]
name = "{name}"
[frontend]
address = "127.0.0.1"
port = 0
[[stage]]
name = "wait"
worker = "service:Wait"
"""

SERVICE = """
import time
from engine import Worker

class Wait(Worker):
    example = {{"x": 3}}

    def forward(self, data):
        time.sleep({seconds})
        return data["x"]
"""


def service(folder: Path, name: str, seconds: float) -> str:
    file = write_service(folder / name, FILE.format(name=name))
    (folder / name / "service.py").write_text(SERVICE.format(seconds=seconds))
    return str(file)


def bench(folder: Path, *words: str) -> Running:
    return Running(["bench", *words], folder=folder)


def test_a_file_is_started_measured_with_its_example_and_ended(folder: Path) -> None:
    picture = folder / "it.svg"
    goal = ("--rate", "50", "--slo", "1s", "--seconds", "1", "--json", "--picture", str(picture))
    running = bench(folder, service(folder, "one", 0.001), *goal)
    try:
        assert running.exited(within_s=90) == ExitCode.OK, running.tail()
        told = json.loads(running.out)
        assert told["met"] is True
        assert told["services"][0]["sends"] == "the service's example"
        assert told["runs"][0]["statuses"].keys() == {"200"}
        assert picture.read_text().startswith("<svg")
        running.gone()
    finally:
        running.kill()


def test_of_two_files_the_slower_one_is_found(folder: Path) -> None:
    quick, slow = service(folder, "quick", 0.001), service(folder, "slow", 0.06)
    running = bench(folder, quick, slow, "--rate", "10", "--seconds", "1", "--rounds", "3", "--json")
    try:
        assert running.exited(within_s=120) == ExitCode.OK, running.tail()
        by_name = {one["name"]: one for one in json.loads(running.out)["verdicts"]}
        assert by_name["p50"]["second"] > 55  # milliseconds: what it waits
        assert by_name["p50"]["ratio"] > 1
        running.gone()
    finally:
        running.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_was_started_ends_with_it(folder: Path, number: signal.Signals) -> None:
    running = bench(folder, service(folder, "one", 0.001), "--rate", "1", "--seconds", "600")
    try:
        wait_for("its workers", lambda: running.processes("worker"), within_s=60)
        running.signal(number)
        assert running.exited() != ExitCode.OK
        running.gone(within_s=20)
    finally:
        running.kill()


def test_one_that_does_not_start_is_shown(folder: Path) -> None:
    file = service(folder, "broken", 0)
    (folder / "broken" / "service.py").write_text("raise RuntimeError('no model here')")
    running = bench(folder, file, "--rate", "1")
    try:
        assert running.exited(within_s=60) == ExitCode.START
        assert "no model here" in running.log
        running.gone()
    finally:
        running.kill()
