"""A deployment whose broker is full: another one comes, with workers of its own, and nobody who asks notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SERVICES, Deployed, deployed, wait_for, write_service
from load import Load

FILE = """
[engine]
name = "growing"
[frontend]
address = "127.0.0.1"
port = 0
timeout = 20.0
capacity = 65
[[stage]]
name = "first"
worker = "actor:Actor"
args = { name = "first" }
max_batch_size = 4
num = 2
[[stage]]
name = "second"
worker = "actor:Actor"
args = { name = "second" }
num = 3
"""


@pytest.fixture
def running(folder: Path) -> Iterator[Deployed]:
    file = write_service(folder, FILE)
    (folder / "actor.py").write_text((SERVICES / "actor.py").read_text())
    with deployed(file, script=SERVICES / "growing.py") as running:
        yield running


def placed(running: Deployed) -> list[dict[int, int]]:
    """Of each stage the cell of each worker; of none while two have one slot."""
    found = []
    for stage in running.status()["stages"]:
        cells = [(worker["slot"], worker.get("cell", 1)) for worker in stage["workers"]]
        found.append(dict(cells) if len(dict(cells)) == len(cells) else {})
    return found


def test_a_full_broker_gets_another_beside_it_under_load(running: Deployed, folder: Path) -> None:
    with running.client() as client, Load(f"{running.url}/inference", threads=6) as load:
        keyed = {"json": {"id": "keyed"}, "headers": {"idempotency-key": "mine"}}
        assert client.post("/inference", **keyed).json()["id"] == "keyed"
        load.flow(50)
        (first,) = running.processes("broker")
        (folder / "full").touch()
        wait_for("another broker", lambda: len(running.processes("broker")) == 2)
        wait_for("workers of its own", lambda: placed(running) == [{1: 1, 2: 2}, {1: 1, 2: 2, 3: 1}])
        (folder / "full").unlink()
        load.flow(100)
        told = running.status()
        assert (told["cells"], told["cells_answering"], told["capacity"]) == (2, 2, 66)
        assert [(stage["wanted"], stage["ready"]) for stage in told["stages"]] == [(2, 2), (3, 3)]
        wait_for("both to serve", lambda: all(worker["items"] for worker in running.status()["stages"][1]["workers"]))
        # What the first broker knows of a key it is still asked.
        assert client.post("/inference", **keyed).headers["idempotent-replayed"] == "true"

        (second,) = [broker for broker in running.processes("broker") if broker.pid != first.pid]
        second.kill()
        wait_for("another", lambda: second not in (now := running.processes("broker")) and len(now) == 2)
        load.flow(50)
        done = running.engine("reload")
        assert done.returncode == 0, done.stdout + done.stderr
        load.flow(50)
        assert running.status()["cells"] == 2
        refused = running.engine("scale", "first=1")
        assert refused.returncode != 0
        assert "one for each cell" in refused.stdout + refused.stderr
    assert load.wrong == []
    assert set(load.answers) == {200}


def test_a_worker_that_cannot_start_there_leaves_all_as_it_was(running: Deployed, folder: Path) -> None:
    (folder / "actor.py").write_text("raise MemoryError('the device has no room for another')\n")
    with Load(f"{running.url}/inference", threads=4) as load:
        load.flow(20)
        (folder / "full").touch()
        wait_for("a try", lambda: "no room for another" in running.tail())
        wait_for("its end", lambda: len(running.processes("broker")) == 1)
        load.flow(50)
        told = running.status()
        assert "cells" not in told or told["cells"] == 1
        assert [(stage["wanted"], stage["ready"]) for stage in told["stages"]] == [(2, 2), (3, 3)]
    assert load.wrong == []
    assert set(load.answers) == {200}
