"""Routes that branch, early answers and skipped stages in a deployment whose processes are killed: every client gets
the answer of the way that its own request takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Deployed, deployed, wait_for, write_service
from load import Load

pytestmark = pytest.mark.unmeasured

SERVICE = """
import os
from engine import Done, Skip, Worker

class Pre(Worker):
    example = [{"way": "en", "trace": []}]
    def forward(self, data):
        return [self.one({**value, "trace": ["pre"]}) for value in data]
    def one(self, value):
        match value["way"]:
            case "done":
                return Done(value)
            case "skip":
                return Skip(value, to="post")
            case "lost":
                return Skip(value, to="pots")
        return value

class Via(Worker):
    def forward(self, data):
        many = isinstance(data, list)
        values = [{**value, "trace": [*value["trace"], self.stage]} for value in (data if many else [data])]
        return values if many else values[0]
"""
TOML = """
[engine]
name = "branches"
threads = "THREADS"
[frontend]
timeout = 15.0
[[stage]]
name = "pre"
worker = "branching:Pre"
num = 2
max_batch_size = 8
[[stage]]
name = "english"
worker = "branching:Via"
num = 2
max_batch_size = 8
[[stage]]
name = "german"
worker = "branching:Via"
num = 2
[[stage]]
name = "post"
worker = "branching:Via"
num = 2
max_batch_size = 8
[[route]]
path = "/say"
stages = ["pre", { by = "way", of = { en = "english", de = "german" } }, "post"]
"""
WAYS = {
    "en": ["pre", "english", "post"],
    "de": ["pre", "german", "post"],
    "skip": ["pre", "post"],
    "done": ["pre"],
}
LOST = "internal error: the service sent this request where its route does not lead"


class Ways(Load):
    """Each request takes another way than the one before."""

    def _ask(self, number: int) -> None:
        count = number
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self._stop.is_set():
                count += 1
                way = [*WAYS, "lost"][count % 5]
                body: dict[str, Any] = {"id": f"{number}-{count}", "way": way}
                began = time.monotonic()
                try:
                    answer = client.post(self._url, json=body)
                    is_right = (
                        answer.status_code == 200 and answer.json() == {**body, "trace": WAYS[way]}
                        if way in WAYS
                        else (answer.status_code, answer.text) == (500, LOST)
                    )
                    problem = "" if is_right else f"{body}: {answer.status_code} {answer.text[:200]}"
                    self._note(answer.status_code, problem, time.monotonic() - began)
                except httpx.HTTPError as error:
                    self._note(0, f"{body}: {error!r}", time.monotonic() - began)


@pytest.fixture(params=["one", "stage"])
def service(request: pytest.FixtureRequest, folder: Path) -> Iterator[Deployed]:
    (folder / "branching.py").write_text(SERVICE)
    with deployed(write_service(folder, TOML.replace("THREADS", request.param))) as running:
        yield running


def test_no_death_costs_an_answer_or_sends_one_the_wrong_way(service: Deployed) -> None:
    def is_whole() -> bool:
        return all(stage["ready"] == stage["wanted"] for stage in service.status()["stages"])

    (route,) = service.status()["routes"]
    assert ["pre", "german", "way = de"] in route["edges"]
    with Ways(f"{service.url}/say", threads=16) as load:
        load.flow(100)
        for stage in ("pre", "english", "german", "post", "pre"):
            victim = service.processes("worker", stage=stage)[0]
            victim.kill()
            victim.wait(10)
            load.flow(60)
            wait_for("its replacement", is_whole)
        (broker,) = service.processes("broker")
        broker.kill()
        wait_for("another broker", lambda: service.processes("broker") not in ([], [broker]))
        wait_for("everybody to join it", is_whole)
        load.flow(100)
    assert load.wrong == []
    wait_for(
        "nothing to be left",
        lambda: all(stage["queued"] == stage["in_flight"] == 0 for stage in service.status()["stages"]),
    )
    lost = [record for record in service.records() if "Skip(to='pots')" in record["message"]]
    assert lost
    assert "did you mean post?" in lost[0]["message"]
