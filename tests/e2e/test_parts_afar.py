"""Parts and caches where workers are on this host and on another one: what is large goes by shared memory here, by tcp
there, and whoever dies, every client gets an answer of all its own parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Running, free_ports, wait_for, write_service
from load import Turns
from test_key_by_hand import new_key

pytestmark = pytest.mark.unmeasured

# Processes of another host are known by another token, and share no memory with those of this one.
FAR = """
from engine import transport

transport.host_token = lambda: "another host"
"""
SERVICE = """
import os
import numpy
from engine import Worker

WHERE = "far" if os.environ.get("PYTHONPATH", "").endswith("far") else "here"

def tensors(page):
    n, size, kind = page["n"], page["size"], page["kind"]
    if kind == "rows":  # the list is an array
        return numpy.arange(n, dtype="int32")[:, None] + numpy.zeros(size, "int32")
    sizes = [(k % 3) * size if kind == "unlike" else size for k in range(n)]  # some have none at all
    return [numpy.full((count, 2), k, "int32") for k, count in enumerate(sizes)]

class Begin(Worker):
    example = [{"id": "0", "n": 2, "size": 3, "kind": "alike"}]
    def forward(self, pages):
        return [{**page, "crops": tensors(page)} if "n" in page else page for page in pages]

class One(Worker):
    def forward(self, crops):
        return [{"id": crop["id"], "by": WHERE} if isinstance(crop, dict) else crop * 2 for crop in crops]

class Look(Worker):
    example = [{"text": "example"}]
    def __init__(self, log):
        self.log = log
    def forward(self, values):
        with open(self.log, "a") as file:
            file.write("".join(value["text"] + "\\n" for value in values))
        return [value["text"].upper() + "." * value.get("long", 0) for value in values]

class End(Worker):
    def forward(self, values):
        return [self.one(value) for value in values]
    def one(self, value):
        if "crops" in value:
            crops = value["crops"]
            told = [[[*crop.shape], int(crop.sum())] for crop in crops]
            return {"id": value["id"], "crops": told}
        if "texts" in value:
            return {"texts": [[text.rstrip("."), len(text)] for text in value["texts"]]}
        return value
"""
LANES = 20
TOML = """
[engine]
name = "afar"
bind = "tcp://127.0.0.1:{bind}"
lanes = {lanes}
key = "deployment.key"
[frontend]
address = "127.0.0.1"
port = {port}
timeout = 20.0
[[stage]]
name = "begin"
worker = "paging:Begin"
num = 2
max_batch_size = 4
[[stage]]
name = "one"
worker = "paging:One"
num = 2
max_batch_size = 16
[[stage]]
name = "look"
worker = "paging:Look"
args = {{ log = "{log}" }}
num = 2
max_batch_size = 8
cache = {{ size = "1 MiB", ttl = "10 min", key = "text" }}
[[stage]]
name = "end"
worker = "paging:End"
num = 2
max_batch_size = 4
[[route]]
path = "/page"
stages = ["begin", {{ each = "crops", through = "one", most = 200 }}, "end"]
[[route]]
path = "/both"
stages = ["begin", {{ all = {{ one = "one", text = "look" }} }}, "end"]
[[route]]
path = "/texts"
stages = ["begin", {{ each = "texts", through = "look" }}, "end"]
[[route]]
path = "/look"
stages = ["look"]
"""
STAGES = ("begin", "one", "look", "end")


def crops(page: dict[str, Any]) -> list[Any]:
    n, size, kind = page["n"], page["size"], page["kind"]
    if kind == "rows":
        return [[[size], 2 * k * size] for k in range(n)]
    sizes = [(k % 3) * size if kind == "unlike" else size for k in range(n)]
    return [[[count, 2], 2 * 2 * k * count] for k, count in enumerate(sizes)]


@dataclass
class Fleet:
    here: Running
    there: Running
    url: str
    folder: Path

    def is_whole(self) -> bool:
        try:
            told = httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).json()
            return [stage["ready"] for stage in told["stages"]] == [2] * len(STAGES)
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    def post(self, path: str, **body: Any) -> Any:
        return httpx.post(f"{self.url}{path}", json=body, trust_env=False, timeout=60).json()


@pytest.fixture
def fleet(folder: Path) -> Iterator[Fleet]:
    first = free_ports(8 + 2 * len(STAGES) + LANES)
    file = write_service(folder, TOML.format(port=first, bind=first + 1, lanes=LANES, log=folder / "computed"))
    (folder / "paging.py").write_text(SERVICE)
    (folder / "far").mkdir()
    (folder / "far" / "sitecustomize.py").write_text(FAR)
    new_key(folder, "deployment.key")
    with ExitStack() as stack:

        def up(only: str, run: str, **env: str) -> Running:
            running = Running(["up", str(file), "--only", only, "--run-dir", str(folder / run)], folder=folder, env=env)
            stack.callback(running.kill)
            return running

        each = ",".join(f"{stage}=1" for stage in STAGES)
        here = up(f"broker,frontend,{each}", "here")
        there = up(each, "there", PYTHONPATH=str(folder / "far"))
        made = Fleet(here, there, f"http://127.0.0.1:{first}", folder)
        try:
            wait_for("all workers", made.is_whole, within_s=60)
            yield made
        except BaseException:
            print(here.tail(), there.tail())
            raise


class Pages(Turns):
    """Pages, values for two branches, and lists of texts of which most are known, in turns."""

    def turn(self, name: str, count: int) -> tuple[str, dict[str, Any], Callable[[Any], bool]]:
        path = ("/page", "/both", "/page", "/texts")[count % 4]
        if path == "/page":
            kind = ("alike", "unlike", "rows")[count % 3]
            body = {"id": name, "n": (0, 1, 7, 40)[count // 4 % 4], "size": (5, 20_000)[count // 2 % 2], "kind": kind}
            return path, body, lambda got: bool(got == {"id": name, "crops": crops(body)})
        if path == "/both":
            body = {"id": name, "text": f"text {count % 5}"}
            expected = {"one": name, "text": f"TEXT {count % 5}"}
            return path, body, lambda got: bool({**got, "one": got["one"]["id"]} == expected)
        body = {"texts": [{"text": f"text {(count + k) % 9}", "noise": name} for k in range(5)]}
        texts = [[f"TEXT {(count + k) % 9}", 6] for k in range(5)]
        return path, body, lambda got: bool(got == {"texts": texts})


@pytest.mark.timeout(180)
def test_parts_come_together_from_several_hosts(fleet: Fleet) -> None:
    log = fleet.folder / "computed"

    def page(**page: Any) -> None:
        assert fleet.post("/page", id="a", **page) == {"id": "a", "crops": crops(page)}, page

    for kind in ("alike", "unlike", "rows"):
        for n, size in ((1, 3), (200, 3), (7, 20_000), (12, 150_000)):  # (more than 64 KiB, and 1 MiB each)
            page(n=n, size=size, kind=kind)
    with ThreadPoolExecutor(4) as pool:
        wheres = {one["one"]["by"] for one in pool.map(lambda k: fleet.post("/both", id=f"{k}", text="t"), range(40))}
    assert wheres == {"here", "far"}
    for text in ("p", "q"):
        for _ in range(2):
            long = 200_000 if text == "q" else 0
            assert fleet.post("/texts", texts=[{"text": text, "long": long}] * 3) == {
                "texts": [[text.upper(), 1 + long]] * 3
            }
    assert Counter(log.read_text().split("\n"))["p"] == 1
    assert Counter(log.read_text().split("\n"))["q"] == 1

    with Pages(fleet.url, threads=3) as load:
        load.flow(30)
        for turn, stage in enumerate(("one", "end", "begin")):
            running = (fleet.there, fleet.here)[turn % 2]
            (victim,) = running.processes("worker", stage=stage)
            victim.kill()
            victim.wait(10)
            load.flow(20)
            wait_for("its replacement", fleet.is_whole, within_s=60)
        (broker,) = fleet.here.processes("broker")
        broker.kill()
        load.flow(40)
    assert load.wrong == []
    left = ("remaining_parts", "remaining_task", 'gathering_bytes{stage="end"}')

    def is_empty() -> bool:
        metrics = httpx.get(f"{fleet.url}/metrics", trust_env=False).text.splitlines()
        return all(f"engine_{name} 0" in metrics for name in left)

    wait_for("nothing to be left", is_empty)
    for running in (fleet.here, fleet.there):
        assert running.terminate() == 0, running.tail()
