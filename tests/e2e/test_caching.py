"""The cache of a stage in a deployment whose processes are killed and replaced: everybody gets what belongs to what was
asked, equal requests are computed once, and a new edition's answers are its own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Deployed, deployed, wait_for, write_service
from load import Turns

pytestmark = pytest.mark.unmeasured

SERVICE = """
import time
from engine import ValidationError, Worker

EDITION = "first"

class Embed(Worker):
    example = [{"text": "example"}]
    def __init__(self, log):
        self.log = log
    def forward(self, values):
        with open(self.log, "a") as file:
            file.write("".join(value["text"] + "\\n" for value in values))
        time.sleep(values[0].get("takes", 0.0))
        return [self.one(value["text"]) for value in values]
    def one(self, text):
        return ValidationError("no such text") if text == "bad" else {"of": text, "by": EDITION}

class Split(Worker):
    def forward(self, value):
        return value

class End(Worker):
    def forward(self, values):
        return [{"end": value} for value in values]
"""
TOML = """
[engine]
name = "caching"
threads = "THREADS"
[frontend]
timeout = 20.0
[[stage]]
name = "embed"
worker = "keeping:Embed"
num = 2
max_batch_size = 8
args = { log = "LOG" }
cache = { size = "1 MiB", ttl = "10 min", key = "text" }
[[stage]]
name = "split"
worker = "keeping:Split"
[[stage]]
name = "end"
worker = "keeping:End"
num = 2
max_batch_size = 8
cache = { size = "1 MiB" }
[[route]]
path = "/one"
stages = ["embed"]
[[route]]
path = "/two"
stages = ["embed", "end"]
[[route]]
path = "/each"
stages = ["split", { each = "texts", through = "embed" }, "end"]
"""


def right(path: str, text: str, edition: str = "first") -> dict[str, Any]:
    one = {"of": text, "by": edition}
    if path == "/one":
        return one
    return {"end": one} if path == "/two" else {"end": {"texts": [one, {"of": "common", "by": edition}]}}


class Asking(Turns):
    """A few texts, asked again and again on all routes."""

    def turn(self, name: str, count: int) -> tuple[str, dict[str, Any], Callable[[Any], bool]]:
        path, text = ("/one", "/two", "/each")[count % 3], f"text {count % 7}"
        body: dict[str, Any] = {"text": text, "noise": count}
        if path == "/each":
            body = {"texts": [{"text": text, "noise": count}, {"text": "common"}]}
        return path, body, lambda got: bool(got == right(path, text))


@pytest.fixture(params=["one", "stage"])
def service(request: pytest.FixtureRequest, folder: Path) -> Iterator[Deployed]:
    (folder / "keeping.py").write_text(SERVICE)
    text = TOML.replace("THREADS", request.param).replace("LOG", str(folder / "computed"))
    with deployed(write_service(folder, text)) as running:
        yield running


def test_equal_requests_are_computed_once_and_nobody_gets_anothers(service: Deployed, folder: Path) -> None:
    url = service.url
    log = folder / "computed"

    def computed() -> Counter[str]:
        return Counter(log.read_text().split("\n")[:-1])

    with httpx.Client(timeout=60, trust_env=False) as client, ThreadPoolExecutor(16) as pool:

        def ask(path: str, **body: Any) -> httpx.Response:
            return client.post(f"{url}{path}", json=body)

        for _ in range(3):
            assert ask("/one", text="again", noise=time.time()).json() == right("/one", "again")
        assert computed()["again"] == 1
        # At the same instant, over several batches: one is computed, the others wait for it.
        before = service.metrics()
        answers = pool.map(lambda noise: ask("/two", text="same", takes=0.5, noise=noise), range(16))
        assert [answer.json() for answer in answers] == [right("/two", "same")] * 16
        misses = 'engine_cache_misses_total{stage="embed"}'
        assert service.metrics()[misses] == before[misses] + 1  # (which may be tried twice, if it seems to hang)
        # Each part of a request by itself.
        for _ in range(2):
            assert ask("/each", texts=[{"text": "p"}, {"text": "q"}, {"text": "p"}]).json() == {
                "end": {"texts": [{"of": text, "by": "first"} for text in "pqp"]}
            }
        assert (computed()["p"], computed()["q"]) == (1, 1)
        # What fails is not kept; what is no object with such a field is computed.
        assert [ask("/one", text="bad").status_code for _ in range(2)] == [422, 422]
        assert computed()["bad"] == 2
        assert client.post(f"{url}/one?now", json={"text": "again"}).json() == right("/one", "again")
        assert computed()["again"] == 2  # it asks otherwise
        assert client.post(f"{url}/one", content=b"[1]").status_code == 500

    with Asking(url, threads=3) as load:
        load.flow(50)
        for turn in range(4):
            stage = ("embed", "end")[turn % 2]
            victim = service.processes("worker", stage=stage)[turn // 2]
            victim.kill()
            victim.wait(10)
            load.flow(20)
            wait_for(
                "its replacement", lambda: all(one["ready"] == one["wanted"] for one in service.status()["stages"])
            )
        (broker,) = service.processes("broker")
        broker.kill()
        wait_for("another broker", lambda: service.processes("broker") not in ([], [broker]))
        load.flow(50)
    assert load.wrong == []
    # The next edition: whatever was known is not its own.
    (folder / "keeping.py").write_text(SERVICE.replace('"first"', '"second"'))
    service.engine("reload")
    for path in ("/one", "/two"):
        answer = httpx.post(f"{url}{path}", json={"text": "text 1"}, timeout=60, trust_env=False)
        assert answer.json() == right(path, "text 1", "second")
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'engine_cache_hits_total{stage="embed"}' in metrics
    assert "engine_remaining_task 0" in metrics
