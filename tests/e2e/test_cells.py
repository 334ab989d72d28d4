"""Several brokers of one deployment: what is true of one is true of all of them, and of the death of any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import SERVICES, Deployed, deployed, wait_for, write_service
from load import Load, Turns

FILE = """
[engine]
name = "cells"
cells = 2
[frontend]
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
def cells(folder: Path) -> Iterator[Deployed]:
    (folder / "actor.py").write_text((SERVICES / "actor.py").read_text())
    with deployed(write_service(folder, FILE)) as running:
        yield running


def admitted(running: Deployed) -> float:
    return sum(value for name, value in running.metrics().items() if name.startswith("engine_admitted_total"))


def items(running: Deployed, stage: int) -> dict[int, int]:
    """By slot."""
    return {worker["slot"]: worker["items"] for worker in running.status()["stages"][stage]["workers"]}


def test_one_deployment_of_two_brokers(cells: Deployed) -> None:
    assert len(cells.processes("broker")) == 2
    told = cells.status()
    assert (told["cells"], told["cells_answering"], told["capacity"]) == (2, 2, 66)
    assert [(stage["wanted"], stage["ready"]) for stage in told["stages"]] == [(2, 2), (3, 3)]
    with Load(f"{cells.url}/inference", threads=6) as load:
        load.flow(300)
    assert load.wrong == []
    first = items(cells, 0)
    assert min(first.values()) > 0, "both cells served"
    assert sum(first.values()) == load.answered
    # What a frontend counts is counted once, whoever it beats to.
    assert admitted(cells) == load.answered
    page = cells.metrics()
    assert sum(value for name, value in page.items() if "engine_throughput_total" in name) == load.answered
    with cells.client() as client:
        ready = client.get("/readyz").json()
        assert {stage["name"]: stage["ready"] for stage in ready["stages"]} == {"first": 2, "second": 3}
        assert client.get("/openapi/metadata.json").status_code == 200


def test_nothing_is_lost_when_a_broker_dies_or_hangs(cells: Deployed) -> None:
    with Load(f"{cells.url}/inference", threads=6) as load:
        load.flow(50)
        killed = cells.processes("broker")
        for broker in killed:
            broker.kill()
            wait_for(
                "another", lambda broker=broker: broker not in (now := cells.processes("broker")) and len(now) == 2
            )
            load.flow(50)
        (hung, other) = cells.processes("broker")
        hung.suspend()
        load.flow(100)
        wait_for("its end", lambda: not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE)
        wait_for("another", lambda: other in (now := cells.processes("broker")) and len(now) == 2)
        load.flow(50)
    assert load.wrong == []
    assert set(load.answers) == {200}


def test_it_is_scaled_like_any_other(cells: Deployed) -> None:
    with Load(f"{cells.url}/inference", threads=2) as load:
        load.flow(20)
        done = cells.engine("scale", "first=4", "second=2")
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for("them", lambda: [stage["ready"] for stage in cells.status()["stages"]] == [4, 2])
        load.flow(200)
        assert min(items(cells, 0).values()) > 0
        refused = cells.engine("scale", "second=1")
        assert refused.returncode != 0
        assert "2 workers at least, one for each cell" in refused.stdout + refused.stderr
    assert load.wrong == []


SERVICE = """
from engine import Worker

class Begin(Worker):
    example = [{"n": 2}]
    def forward(self, pages):
        return [{**page, "crops": [{"k": k, "of": page["n"]} for k in range(page["n"])]} for page in pages]

class One(Worker):
    def forward(self, crops):
        return [crop["k"] ** 2 for crop in crops]

class End(Worker):
    def forward(self, pages):
        return [{"id": page["id"], "crops": page["crops"]} if "id" in page else page for page in pages]
"""
PARTS = """
[engine]
name = "cells"
cells = 2
[[stage]]
name = "begin"
worker = "service:Begin"
num = 2
max_batch_size = 4
[[stage]]
name = "one"
worker = "service:One"
num = 2
max_batch_size = 8
cache = { key = "k" }
[[stage]]
name = "end"
worker = "service:End"
num = 2
max_batch_size = 4
[[route]]
path = "/page"
stages = ["begin", { each = "crops", through = "one" }, "end"]
"""


class Pages(Turns):
    def turn(self, name: str, count: int) -> tuple[str, dict[str, Any], Callable[[Any], bool]]:
        crops = [k * k for k in range(count % 40)]
        return "", {"id": name, "n": count % 40}, lambda got: bool(got == {"id": name, "crops": crops})


def test_a_request_in_parts_and_a_cache_are_one_cells_and_outlive_it(folder: Path) -> None:
    with deployed(write_service(folder, PARTS, SERVICE)) as running:
        with Pages(f"{running.url}/page", threads=6) as load:
            load.flow(100)
            for broker in running.processes("broker"):
                broker.kill()
                wait_for(
                    "another",
                    lambda broker=broker: broker not in (now := running.processes("broker")) and len(now) == 2,
                )
                load.flow(50)
        assert load.wrong == []
        assert set(load.answers) == {200}
        page = running.metrics()
        found = {name: value for name, value in page.items() if name.startswith("engine_cache_hits_total")}
        assert len(found) == 2  # of each cell
        assert sum(found.values()) > 0
        left = {name: value for name, value in page.items() if name.startswith("engine_remaining_")}
        assert set(left.values()) == {0}
