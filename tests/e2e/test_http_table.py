"""Every row of the table of HTTP answers, through real processes, and what every answer carries."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from harness import SERVICES, Deployed, altered, deployed


@pytest.fixture(scope="module", params=["lean", "asgi"])
def table(request: pytest.FixtureRequest) -> Iterator[Deployed]:
    with altered(SERVICES / "table.toml", server=f'"{request.param}"') as file, deployed(file) as running:
        yield running


@pytest.fixture
def client(table: Deployed) -> Iterator[httpx.Client]:
    with table.client() as made:
        yield made


def act(stage: str, do: str, **more: Any) -> dict[str, Any]:
    return {"id": "x", "acts": {stage: {"do": do, **more}}}


def test_a_request_passes_every_stage_of_its_route(client: httpx.Client) -> None:
    answer = client.post("/both", json={"id": 7})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()["id"] == 7
    assert [stage for stage, _ in answer.json()["trace"]] == ["first", "second"]


def test_routes_share_a_stage(client: httpx.Client) -> None:
    both = client.post("/both", json={"id": 1}).json()["trace"]
    second = client.post("/second", json={"id": 1}).json()["trace"]
    assert second == both[1:]


@pytest.mark.parametrize("stage", ["first", "second"])
@pytest.mark.parametrize("how", ["raise", "return"])
@pytest.mark.parametrize(
    ("do", "status", "prefix"),
    [
        ("client_error", 400, "bad request"),
        ("decoding_error", 400, "decoding error"),
        ("validation_error", 422, "request validation error"),
        ("server_error", 500, "internal error"),
        ("encoding_error", 500, "encoding error"),
    ],
)
def test_an_error_of_the_service_has_its_status_and_its_words(
    client: httpx.Client, stage: str, how: str, do: str, status: int, prefix: str
) -> None:
    answer = client.post("/both", json=act(stage, do, text="the\nreason", how=how))
    assert (answer.status_code, answer.text) == (status, f"{prefix}: the - reason")


@pytest.mark.parametrize("stage", ["first", "second"])
def test_an_unexpected_exception_tells_the_client_nothing(client: httpx.Client, table: Deployed, stage: str) -> None:
    answer = client.post("/both", json=act(stage, "exception"))
    assert (answer.status_code, answer.text) == (500, "inference internal error")
    assert "a detail that no client may see" in table.log


@pytest.mark.parametrize("body", [b"{not json", b"", b"\xff\xfe"])
def test_a_body_that_is_no_json_is_400(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/both", content=body)
    assert answer.status_code == 400
    assert answer.text.startswith("decoding error")


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_result_that_cannot_be_encoded_is_500(client: httpx.Client, stage: str) -> None:
    answer = client.post("/both", json=act(stage, "unserializable"))
    assert answer.status_code == 500
    assert answer.text.startswith("encoding error")


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_forward_that_takes_too_long_is_408(client: httpx.Client, stage: str) -> None:
    answer = client.post("/both", json=act(stage, "sleep", s=60))
    assert (answer.status_code, answer.text) == (408, "inference timeout")
    assert answer.elapsed.total_seconds() < 20
    assert client.post("/both", json={"id": 1}).status_code == 200  # the worker is there again


def test_a_deadline_of_the_client_that_passes_is_408(client: httpx.Client) -> None:
    answer = client.post("/both", json=act("first", "sleep", s=0.8), headers={"x-request-timeout-ms": "200"})
    assert (answer.status_code, answer.text) == (408, "inference timeout")
    assert answer.elapsed.total_seconds() < 0.75


def test_a_problem_is_json_for_those_who_ask_for_it(client: httpx.Client) -> None:
    answer = client.post(
        "/both", json=act("first", "validation_error", text="why"), headers={"accept": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    assert problem["status"] == 422
    assert problem["detail"] == "request validation error: why"


def test_a_large_body_is_refused_before_it_is_read(table: Deployed) -> None:
    where = urlsplit(table.url)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=10) as sock:
        sock.sendall(b"POST /both HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n")  # and no body
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_refused_once_it_is_too_large(client: httpx.Client) -> None:
    answer = client.post("/both", content=(b"x" * 1024 for _ in range(100)))
    assert answer.status_code == 413


def test_an_encoding_nobody_understands_is_415(client: httpx.Client) -> None:
    answer = client.post("/both", content=b"{}", headers={"content-encoding": "snappy"})
    assert answer.status_code == 415


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert client.get("/nowhere").status_code == 404
    assert client.post("/nowhere", json={}).status_code == 404
    answer = client.get("/both")
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]


def test_health_tells_how_things_stand(client: httpx.Client) -> None:
    assert client.get("/").status_code == 200
    assert client.get("/healthz").status_code == 200
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert "first" in ready.text
    assert "second" in ready.text


def test_every_answer_carries_a_request_id(client: httpx.Client) -> None:
    own = client.post("/both", json={"id": 1}, headers={"x-request-id": "abc-1"})
    assert own.headers["x-request-id"] == "abc-1"
    made = [client.post("/both", json={"id": 1}).headers["x-request-id"] for _ in range(2)]
    assert all(made)
    assert made[0] != made[1]
    assert client.get("/nowhere").headers["x-request-id"]
    assert client.post("/both", content=b"{").headers["x-request-id"]
    unfit = client.post("/both", json={"id": 1}, headers={"x-request-id": "a b<c>"})
    assert unfit.headers["x-request-id"] != "a b<c>"


def test_an_answer_tells_where_its_time_went(client: httpx.Client) -> None:
    timing = client.post("/both", json=act("second", "sleep", s=0.1)).headers["server-timing"]
    spent = {}
    for entry in timing.split(","):
        name, duration, *why = entry.strip().split(";")
        spent[name] = float(duration.removeprefix("dur="))
        assert len(why) == name.endswith("-queue")  # and why its batch left
    assert {"first", "second", "first-queue", "second-queue"} <= set(spent)
    assert 99 <= spent["second"] < 1000  # milliseconds
    assert spent["first"] < 90


def test_metrics_cover_the_deployment_and_the_users_own(client: httpx.Client, table: Deployed) -> None:
    before = table.metrics()
    for _ in range(5):
        client.post("/both", json={"id": 1})

    def grown(name: str, *labels: str) -> float:
        def total(samples: dict[str, float]) -> float:
            return sum(
                value
                for key, value in samples.items()
                if key.partition("{")[0] == name and all(label in key for label in labels)
            )

        return total(after) - total(before)

    from harness import wait_for

    def seen() -> bool:
        nonlocal after
        after = table.metrics()
        return grown("actor_acts_total", 'stage="second"') >= 5 and grown("engine_batch_size_sum") >= 10

    after = before
    wait_for("the metrics of five requests", seen)
    assert grown("engine_throughput_total", 'code="200"', 'endpoint="/both"') == 5
    assert grown("engine_batch_size_count", 'stage="first"') >= 1


def test_the_log_is_json_with_its_process(table: Deployed) -> None:
    assert table.records()
    lines = [line for line in table.log.splitlines() if line]
    assert len(table.records()) == len(lines), "every line of a log that is no terminal is JSON"


def test_status_shows_the_deployment(table: Deployed) -> None:
    status = table.status()
    assert [stage["name"] for stage in status["stages"]] == ["first", "second"]
    assert [stage["ready"] for stage in status["stages"]] == [2, 1]
    text = table.engine("status")
    assert text.returncode == 0
    assert "first" in text.stdout
    assert json.dumps(status)
