"""Jobs through real processes, each of which is killed in turn while they are computed."""

from __future__ import annotations

from pathlib import Path

import httpx
from harness import SERVICES, altered, up, wait_for

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


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _over(client: httpx.Client, place: str) -> dict[str, str]:
    told: dict[str, str] = client.get(place, headers={"prefer": "wait=5"}).json()
    return told if told["status"] in ("done", "failed", "cancelled") else {}
