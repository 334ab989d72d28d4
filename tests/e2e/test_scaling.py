"""A deployment whose workers follow its demand: down to none, back with the first request, and by hand in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SERVICES, Deployed, deployed, wait_for, write_service

FILE = """
[engine]
name = "scaled"
[frontend]
address = "127.0.0.1"
port = 0
timeout = 20.0
[[stage]]
name = "first"
worker = "actor:Actor"
args = { name = "first" }
num = 0
min = 0
max = 2
[[stage]]
name = "second"
worker = "actor:Actor"
args = { name = "second" }
min = 0
max = 2
"""


@pytest.fixture
def running(folder: Path) -> Iterator[Deployed]:
    file = write_service(folder, FILE)
    (folder / "actor.py").write_text((SERVICES / "actor.py").read_text())
    with deployed(file, script=SERVICES / "scaled.py") as running:
        yield running


def workers(running: Deployed) -> list[tuple[int, int]]:
    return [(stage["ready"], stage["wanted"]) for stage in running.status()["stages"]]


def test_none_while_nobody_asks_and_one_of_each_stage_for_who_does(running: Deployed) -> None:
    wait_for("an end of the one worker", lambda: workers(running) == [(0, 0), (0, 0)])
    wait_for("an end of its process", lambda: not running.processes("worker"))
    with running.client() as client:
        assert client.get("/readyz").status_code == 200
        answer = client.post("/inference", json={"id": 1})
    assert answer.status_code == 200, answer.text + running.tail()
    assert [name for name, _ in answer.json()["trace"]] == ["first", "second"]
    # A worker serves a moment before the supervisor has heard that it can.
    wait_for("the line", lambda: "worker first-1 ready" in running.log)
    log = running.log
    assert log.index("scaling first from 0 to 1") < log.index("worker first-1 ready")
    assert "scaling second from 0 to 1" in log.split("worker first-1 ready")[0], "both load at the same time"
    shown = running.engine("status").stdout
    assert "1/1 of 0-2" in shown
    done = running.engine("scale", "second=2")
    assert done.returncode == 0, done.stderr
    assert "worker second-2 ready" in running.log  # by now it may be one too many again
    refused = running.engine("scale", "second=3")
    assert refused.returncode == 4
    assert "from min = 0 to max = 2 workers, got 3" in refused.stderr
    wait_for("one worker the less", lambda: workers(running) == [(1, 1), (1, 1)])
    reloaded = running.engine("reload")
    assert reloaded.returncode == 0, reloaded.stderr + running.tail()
    assert workers(running) == [(1, 1), (1, 1)], "what follows the demand is not the file's to say"
