"""A running deployment is changed: other code, other numbers, more workers; nobody who asks meanwhile notices.

STAGELINE_ROUNDS=20 changes it so many times in the tests under load, where a few must do otherwise.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from harness import Deployed, Running, deployed, wait_for, write_service
from load import Load

ROUNDS = int(os.environ.get("STAGELINE_ROUNDS", "0"))
MOST = 20_000 * max(1, ROUNDS)  # requests of one load

TOML = """
[engine]
name = "rolling"
grace = 10
[frontend]
timeout = 20
workers = 2
[[stage]]
name = "first"
worker = "service:First"
num = {num}
max_batch_size = {batch}
env = {{ COLOUR = "{colour}" }}
[[stage]]
name = "second"
worker = "service:Second"
"""

CODE = """
import os
from engine import Worker

VERSION = {version!r}

class First(Worker):
    def __init__(self):
        if {breaks!r}:
            raise OSError("no such model")
    def one(self, sent):
        return {{**sent, "trace": [["first", os.environ["COLOUR"]]], "version": VERSION}}
    def forward(self, data):
        return self.one(data) if self.max_batch_size == 1 else [self.one(sent) for sent in data]

class Second(Worker):
    def forward(self, data):
        return {{**data, "trace": data["trace"] + [["second", VERSION]]}}
"""


def write(
    folder: Path, *, num: int = 2, batch: int = 4, colour: str = "red", version: str = "1", breaks: bool = False
) -> Path:
    code = CODE.format(version=version, breaks=breaks)
    return write_service(folder, TOML.format(num=num, batch=batch, colour=colour), code)


@pytest.fixture
def running(folder: Path) -> Iterator[Deployed]:
    with deployed(write(folder)) as running:
        yield running


def served(running: Deployed) -> dict[str, Any]:
    """What an answer says of who served it."""
    with running.client() as client:
        answer = client.post("/inference", json={"id": 0}).json()
    return {"colour": answer["trace"][0][1], "first": answer["version"], "second": answer["trace"][1][1]}


def test_new_code_numbers_and_environment_take_effect_under_load(running: Deployed, folder: Path) -> None:
    with Load(f"{running.url}/inference", most=MOST) as load:
        load.flow(50)
        frontends = {process.pid for process in running.processes("frontend")}
        for version, num, batch in islice(cycle((("2", 3, 8), ("3", 1, 1))), ROUNDS or 2):
            write(folder, num=num, batch=batch, colour=f"blue{version}", version=version)
            done = running.engine("reload")
            assert done.returncode == 0, done.stderr + running.tail()
            assert "changed" in done.stdout
            assert served(running) == {"colour": f"blue{version}", "first": version, "second": version}
            stages = running.status()["stages"]
            assert [(stage["ready"], stage["wanted"]) for stage in stages] == [(num, num), (1, 1)]
            load.flow(50)
        wait_for(
            "new processes of the frontend",
            lambda: len({process.pid for process in running.processes("frontend")} & frontends) == 1,  # their master
        )
        load.flow(50)
    assert load.wrong == []


def test_a_version_that_does_not_start_leaves_the_old_one_serving_and_says_why(running: Deployed, folder: Path) -> None:
    with Load(f"{running.url}/inference") as load:
        before = {process.pid for process in running.processes("worker")}
        write(folder, version="2", breaks=True)
        done = running.engine("reload")
        assert done.returncode != 0
        assert "no such model" in done.stderr
        assert {process.pid for process in running.processes("worker")} == before
        write(folder, version="2").with_name("stages.toml").write_text("[[stage]\n")
        assert "line 1" in running.engine("reload").stderr + running.log
        load.flow(50)
        assert served(running)["first"] == "1"
        write(folder, version="3")
        assert running.engine("reload").returncode == 0
        assert served(running) == {"colour": "red", "first": "3", "second": "3"}
    assert load.wrong == []


def test_a_hang_up_reloads_where_there_is_no_terminal(running: Deployed, folder: Path) -> None:
    write(folder, version="2", colour="blue")
    running.signal(signal.SIGHUP)
    wait_for("the new version", lambda: served(running) == {"colour": "blue", "first": "2", "second": "2"})
    wait_for("the end of the change", lambda: '"changed"' in running.log)


def test_scaling_touches_nobody_who_stays(running: Deployed) -> None:
    with Load(f"{running.url}/inference", most=MOST) as load:
        before = {process.pid for process in running.processes("worker")}
        frontends = {process.pid for process in running.processes("frontend")}
        for num in islice(cycle((4, 1, 2)), ROUNDS or 3):
            done = running.engine("scale", f"first={num}")
            assert done.returncode == 0, done.stderr + running.tail()
            assert len(running.processes("worker", stage="first")) == num
            assert running.status()["stages"][0]["wanted"] == num
            load.flow(30)
        after = {process.pid for process in running.processes("worker")}
        assert len(before & after) == 2, "the first worker of each stage"
        assert {process.pid for process in running.processes("frontend")} == frontends
        for wrong, why in (("third=2", "no stage"), ("first=0", "at least"), ("first", "STAGE=N")):
            refused = running.engine("scale", wrong)
            assert refused.returncode != 0
            assert why in refused.stderr
    assert load.wrong == []


def test_workers_that_another_command_runs_are_named_and_replaced_on_a_signal(running: Deployed, folder: Path) -> None:
    flags = ["--run-dir", str(running.folder / "run"), "--stage", "first", "--num", "1"]
    group = Running(["worker", str(write(folder)), *flags], folder=folder)
    try:
        wait_for("three workers", lambda: running.status()["stages"][0]["ready"] == 3)
        with Load(f"{running.url}/inference", threads=2) as load:
            load.flow(20)
            write(folder, version="2")
            done = running.engine("reload")
            assert done.returncode == 0, done.stderr + running.tail()
            assert "not reached: 1 worker of first, which" in done.stdout
            group.signal(signal.SIGHUP)
            wait_for("its own change", lambda: '"changed"' in group.log)
            assert running.status()["stages"][0]["ready"] == 3
            assert {served(running)["first"] for _ in range(12)} == {"2"}
        assert load.wrong == []
        assert group.terminate() == 0
    finally:
        group.kill()


def test_what_cannot_change_is_refused_by_name(running: Deployed, folder: Path) -> None:
    file = write(folder)
    text = file.read_text()
    file.write_text(text.replace('name = "second"', 'name = "third"').replace("grace = 10", "grace = 11"))
    refused = running.engine("reload")
    assert refused.returncode != 0
    assert "engine.grace" in refused.stderr
    assert "its stages" in refused.stderr
    file.write_text(text)


def test_a_worker_that_has_served_long_enough_is_replaced(folder: Path) -> None:
    file = write(folder, num=1)
    file.write_text(file.read_text().replace("num = 1\n", 'num = 1\nrecycle_after = "5 batches"\n'))
    with deployed(file) as running, Load(f"{running.url}/inference") as load:
        (first,) = running.processes("worker", stage="first")
        load.flow(20)
        wait_for("a fresh worker", lambda: first.pid not in {p.pid for p in running.processes("worker", stage="first")})
        load.flow(20)
        assert "batches" in running.log
    assert load.wrong == []
