"""Jobs through real processes, each of which is killed in turn while they are computed."""

from __future__ import annotations

from pathlib import Path

import httpx
from harness import SERVICES, altered, deployed, up, wait_for, write_service

PREFER = {"prefer": "respond-async"}
JOBS = 48


def post(client: httpx.Client, number: int) -> str:
    """Where a job is that takes a moment. Asked for with a key until somebody says so, as clients would."""
    body = {"id": number, "acts": {"second": {"do": "sleep", "s": 0.1}}}

    def tried() -> str:
        try:
            answer = client.post("/both", json=body, headers={**PREFER, "idempotency-key": f"n{number}"})
        except httpx.TransportError:
            return ""
        return answer.headers.get("location", "") if answer.status_code == 202 else ""

    return wait_for(f"a place for job {number}", tried)


def test_no_job_is_lost_whoever_is_killed(folder: Path) -> None:
    with altered(SERVICES / "chain.toml", workers="2", jobs=f'"{folder / "jobs.db"}"') as file:
        running = up(file, folder=folder)
        try:
            with running.client() as client:
                places = [post(client, number) for number in range(JOBS // 2)]
                for kind, stage in (("worker", "second"), ("broker", ""), ("frontend", "")):
                    wait_for(
                        "work under way",
                        lambda: client.get(places[-1], headers={"prefer": "wait=0"}).status_code == 200,
                    )
                    for victim in running.processes(kind, stage=stage):
                        victim.kill()
                    wait_for("a service again", lambda: _answers(client))
                places += [post(client, number) for number in range(JOBS // 2, JOBS)]
        finally:
            running.kill()  # all of it, by kill -9
        running = up(file, folder=folder)  # of the same name, at another port
        try:
            with running.client() as client:
                for number, place in enumerate(places):
                    told = wait_for(f"job {number}", lambda place=place: _over(client, place), within_s=60)
                    assert told["status"] == "done", told
                    answer = client.get(told["result"])
                    assert (answer.status_code, answer.json()["id"]) == (200, number)
                assert len(set(places)) == JOBS
                assert [post(client, number) for number in range(JOBS)] == places  # as they were, for a while
            assert running.terminate() == 0
            running.gone()
        finally:
            running.kill()


SERVICE = """
import time
from engine import Done, Worker

class Begin(Worker):
    example = [{"n": 2}]
    def forward(self, values):
        return [Done("early") if value["n"] == 0 else {**value, "crops": list(range(value["n"]))} for value in values]

class One(Worker):
    def __init__(self, log):
        self.log = log
    def forward(self, crops):
        time.sleep(0.01 * len(crops))
        with open(self.log, "a") as file:
            file.write("x" * len(crops))
        return [crop * crop for crop in crops]

class Know(Worker):
    example = {"text": "a"}
    def __init__(self, log):
        self.log = log
    def forward(self, value):
        with open(self.log, "a") as file:
            file.write("x")
        return {"of": value["text"]}

class End(Worker):
    def forward(self, values):
        return [value["crops"] for value in values]
"""
TOML = """
[engine]
name = "jobs"
[frontend]
jobs = "JOBS"
[[stage]]
name = "begin"
worker = "service:Begin"
max_batch_size = 8
[[stage]]
name = "one"
worker = "service:One"
args = { log = "CROPS" }
max_batch_size = 4
num = 2
[[stage]]
name = "know"
worker = "service:Know"
args = { log = "KNOWN" }
cache = { key = "text" }
[[stage]]
name = "end"
worker = "service:End"
max_batch_size = 8
[[route]]
path = "/page"
stages = ["begin", { each = "crops", through = "one" }, "end"]
[[route]]
path = "/known"
stages = ["know"]
"""


def test_jobs_go_on_in_parts_end_early_and_are_answered_by_a_cache(folder: Path) -> None:
    crops, known = folder / "crops", folder / "known"
    crops.touch()
    text = TOML.replace("JOBS", str(folder / "jobs.db")).replace("CROPS", str(crops)).replace("KNOWN", str(known))
    with deployed(write_service(folder, text, SERVICE)) as service, service.client() as client:

        def job(path: str, body: dict[str, object]) -> str:
            answer = client.post(path, json=body, headers=PREFER)
            assert answer.status_code == 202, answer.text
            return str(answer.headers["location"])

        def result(place: str) -> object:
            told = wait_for("a job", lambda: _over(client, place), within_s=60)
            assert told["status"] == "done", client.get(told["result"]).text
            return client.get(told["result"]).json()

        before = len(known.read_text())  # of the warm-up
        assert client.post("/known", json={"text": "a", "noise": 1}).json() == {"of": "a"}
        assert result(job("/known", {"text": "a", "noise": 2})) == {"of": "a"}  # a request's result is a job's
        assert result(job("/known", {"text": "b"})) == {"of": "b"}
        assert client.post("/known", json={"text": "b", "noise": 3}).json() == {"of": "b"}  # and the other way round
        assert len(known.read_text()) == before + 2
        assert result(job("/page", {"n": 0})) == "early"
        # The broker dies while parts are out, and so does a worker that has some.
        before = len(crops.read_text())
        places = {n: job("/page", {"n": n}) for n in (1, 60, 100)}
        wait_for("some parts to be done", lambda: len(crops.read_text()) > before + 10)
        for victim in (*service.processes("broker"), service.processes("worker", stage="one")[0]):
            victim.kill()
        for n, place in places.items():
            assert result(place) == [k * k for k in range(n)]
        wait_for("nothing to be left", lambda: service.status()["admitted"] == 0)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _over(client: httpx.Client, place: str) -> dict[str, str]:
    told: dict[str, str] = client.get(place, headers={"prefer": "wait=5"}).json()
    return told if told["status"] in ("done", "failed", "cancelled") else {}
