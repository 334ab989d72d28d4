"""Requests that go on in parts, in a deployment whose processes are killed: every client gets an answer that is made of
all its own parts, in their places; and who leaves takes them along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Deployed, deployed, wait_for, write_service
from load import Turns

SERVICE = """
import time
from engine import Done, Skip, ValidationError, Worker

class Begin(Worker):
    example = [{"id": "0", "n": 2}]
    def forward(self, pages):
        return [self.one(page) for page in pages]
    def one(self, page):
        if "n" not in page:
            return page
        if page["n"] < 0:
            return Skip({**page, "crops": ["none"]}, to="end")
        about = {"of": page["id"], "slow": page.get("slow")}
        crops = [{**about, "k": k, "bad": k in page.get("bad", ())} for k in range(page["n"])]
        if page.get("large"):
            import numpy  # large ones lie in shared memory
            for crop in crops:
                crop["pixels"] = numpy.full(page["large"], crop["k"])
        return {**page, "crops": crops}

class One(Worker):
    def forward(self, crops):
        return [self.one(crop) for crop in crops]
    def one(self, crop):
        if "of" not in crop:
            return "one of " + crop["id"]
        if crop["slow"]:
            with open(crop["slow"], "a") as file:
                file.write("x")
            time.sleep(0.02)
        if crop["bad"]:
            return ValidationError("a bad crop")
        if "pixels" in crop:
            return f"{crop['of']}/{crop['pixels'].sum()}"
        label = f"{crop['of']}/{crop['k']}"
        return Done("early " + label) if crop["k"] == 7 else label

class Other(Worker):
    def forward(self, value):
        if value.get("fails"):
            raise ValidationError("no text")
        return "other of " + value["id"]

class Spell(Worker):
    def forward(self, texts):
        return [text.upper() for text in texts]

class End(Worker):
    def forward(self, values):
        return values
"""
TOML = """
[engine]
name = "parts"
threads = "THREADS"
[frontend]
timeout = 20.0
[[stage]]
name = "begin"
worker = "paging:Begin"
num = 2
max_batch_size = 8
[[stage]]
name = "one"
worker = "paging:One"
num = 2
max_batch_size = 16
[[stage]]
name = "other"
worker = "paging:Other"
num = 2
[[stage]]
name = "spell"
worker = "paging:Spell"
num = 2
max_batch_size = 8
[[stage]]
name = "end"
worker = "paging:End"
num = 2
max_batch_size = 8
[[route]]
path = "/page"
stages = ["begin", { each = "crops", through = "one", most = 200 }, "end"]
[[route]]
path = "/holes"
stages = ["begin", { each = "crops", through = "one", failed = "hole", most = 200 }, "end"]
[[route]]
path = "/both"
stages = ["begin", { all = { one = "one", other = ["other", "spell"] } }, "end"]
"""
STAGES = ("one", "begin", "other", "end", "spell")


def labels(page: dict[str, Any]) -> list[str | None]:
    if page["n"] < 0:
        return ["none"]
    bad = page.get("bad", ())
    names = [f"early {page['id']}/7" if k == 7 else f"{page['id']}/{k}" for k in range(page["n"])]
    return [None if k in bad else name for k, name in enumerate(names)]


def both(value: dict[str, Any]) -> dict[str, str]:
    return {"one": f"one of {value['id']}", "other": f"other of {value['id']}".upper()}


class Pages(Turns):
    """Pages of few and of many crops, some of them bad, and values for two branches, in turns."""

    def turn(self, name: str, count: int) -> tuple[str, dict[str, Any], Callable[[Any], bool]]:
        page: dict[str, Any] = {"id": name}
        path = ("/page", "/both", "/holes", "/both")[count % 4]
        if path != "/both":
            page["n"] = (-1, 0, 1, 12, 40)[count % 5]
        if path == "/holes":
            page["bad"] = [0, 3]
        return path, page, lambda got: bool(got == both(page) if path == "/both" else got["crops"] == labels(page))


@pytest.fixture(params=["one", "stage"])
def service(request: pytest.FixtureRequest, folder: Path) -> Iterator[Deployed]:
    (folder / "paging.py").write_text(SERVICE)
    with deployed(write_service(folder, TOML.replace("THREADS", request.param))) as running:
        yield running


def is_empty(service: Deployed) -> bool:
    return all(stage["queued"] == stage["in_flight"] == 0 for stage in service.status()["stages"])


@pytest.mark.timeout(240)  # twenty-five workers that start on a busy machine
def test_parts_come_together_whatever_dies(service: Deployed, folder: Path) -> None:
    url = service.url
    with httpx.Client(timeout=60, trust_env=False) as client:

        def ask(path: str, **page: Any) -> httpx.Response:
            return client.post(f"{url}{path}", json=page)

        for n in (1, 2, 31, 200):
            assert ask("/page", id="a", n=n).json()["crops"] == labels({"id": "a", "n": n})
        large = ask("/page", id="b", n=12, large=20_000).json()
        assert large["crops"] == [f"b/{k * 20_000}" for k in range(12)]
        too_many = ask("/page", id="c", n=201)
        assert (too_many.status_code, '"crops" has 201 elements' in too_many.text) == (422, True)
        # One bad crop, as the route has it: the page, or a hole.
        bad = ask("/page", id="d", n=9, bad=[4])
        assert (bad.status_code, "a bad crop" in bad.text) == (422, True)
        assert ask("/holes", id="d", n=9, bad=[4]).json()["crops"] == labels({"id": "d", "n": 9, "bad": [4]})
        assert ask("/both", id="e").json() == both({"id": "e"})
        assert ask("/both", id="e", fails=True).status_code == 422
        timed = ask("/both", id="e").headers["server-timing"]
        assert all(f"{stage};dur=" in timed for stage in STAGES)

        # A client that leaves takes its crops along.
        marks = folder / "computed"
        marks.touch()
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{url}/page", json={"id": "f", "n": 200, "slow": str(marks)}, timeout=0.5)
        wait_for("its crops to be called off", lambda: is_empty(service))
        assert 0 < len(marks.read_text()) < 200
        assert service.status()["admitted"] == 0

    def has_two(stage: str) -> bool:
        (found,) = [one for one in service.status()["stages"] if one["name"] == stage]
        return bool(found["ready"] == 2)

    kills = 10 if service.status()["threads"] == "stage" else 3
    with Pages(url, threads=3) as load:
        load.flow(50)
        for turn in range(kills):
            stage = STAGES[turn % len(STAGES)]
            wait_for("a neighbour of who is killed", lambda stage=stage: has_two(stage))  # type: ignore[misc]
            victim = service.processes("worker", stage=stage)[turn % 2]
            victim.kill()
            victim.wait(10)
            load.flow(10)
        (broker,) = service.processes("broker")
        broker.kill()
        wait_for("another broker", lambda: service.processes("broker") not in ([], [broker]))
        load.flow(50)
    assert load.wrong == []
    wait_for("nothing to be left", lambda: is_empty(service))
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    for name in ("remaining_parts", 'gathering_bytes{stage="end"}', "remaining_task"):
        assert f"engine_{name} 0" in metrics
