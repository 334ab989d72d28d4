"""The OpenAPI document of a running deployment: valid, and true of what the routes do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from harness import SERVICES, Deployed, deployed, up, wait_for, write_service
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from engine.exitcodes import ExitCode

ROUTES = ["/price", "/model", "/packed", "/untyped", "/count"]


@pytest.fixture(scope="module")
def orders() -> Iterator[Deployed]:
    with deployed(SERVICES / "typed.toml") as running:
        yield running


@pytest.fixture
def client(orders: Deployed) -> Iterator[httpx.Client]:
    with orders.client() as made:
        yield made


def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi/metadata.json").raise_for_status().json()
    return found


@pytest.fixture
def found(client: httpx.Client) -> dict[str, Any]:
    return document(client)


def fits(found: dict[str, Any], schema: dict[str, Any], value: Any) -> bool:
    """By the document alone: the schema with the document's components in reach."""
    whole = {**schema, "components": found["components"]}
    return Draft202012Validator(whole).is_valid(value)


def test_it_is_valid_and_names_every_route(found: dict[str, Any]) -> None:
    validate(found)
    assert found["openapi"].startswith("3.1")
    assert found["info"]["title"] == "orders"
    assert list(found["paths"])[: len(ROUTES)] == ROUTES


def test_types_are_components_by_their_names(found: dict[str, Any]) -> None:
    assert set(found["components"]["schemas"]) == {"Order", "Price", "Problem"}


@pytest.mark.parametrize(
    ("path", "request_mime", "response_mime"),
    [
        ("/price", "application/json", "application/json"),
        ("/model", "application/json", "application/json"),
        ("/packed", "application/msgpack", "application/msgpack"),
        ("/untyped", None, None),
        ("/count", "application/json", "text/event-stream"),
    ],
)
def test_formats_are_those_of_the_ends_of_the_route(
    found: dict[str, Any], path: str, request_mime: str | None, response_mime: str | None
) -> None:
    operation = found["paths"][path]["post"]
    assert list(operation.get("requestBody", {}).get("content", {})) == ([request_mime] if request_mime else [])
    assert list(operation["responses"]["200"].get("content", {})) == ([response_mime] if response_mime else [])
    assert set(operation["responses"]) == {"200", "400", "408", "409", "413", "415", "422", "429", "500", "503"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/price", {"name": "tea", "count": 4}),
        ("/price", {"name": "tea"}),
        ("/price", {"name": "tea", "count": 0}),
        ("/price", {"count": 1}),
        ("/price", []),
        ("/model", {"total": 1}),
        ("/model", {"total": -1}),
        ("/model", {"currency": "EUR"}),
    ],
)
def test_the_service_takes_what_the_schema_allows_and_nothing_else(
    client: httpx.Client, found: dict[str, Any], path: str, value: Any
) -> None:
    operation = found["paths"][path]["post"]
    answer = client.post(path, json=value)
    if fits(found, operation["requestBody"]["content"]["application/json"]["schema"], value):
        assert answer.status_code == 200
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert fits(found, schema, answer.json())
    else:
        assert answer.status_code == 422
        assert answer.text.startswith("request validation error: ")


def test_a_batched_msgpack_route_takes_one_request_of_the_list(client: httpx.Client, found: dict[str, Any]) -> None:
    schema = found["paths"]["/packed"]["post"]["requestBody"]["content"]["application/msgpack"]["schema"]
    assert schema == {"type": "array", "items": {"$ref": "#/components/schemas/Order"}}
    body = msgspec.msgpack.encode([{"name": "tea", "count": 4}, {"name": "milk"}])
    answer = client.post("/packed", content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/msgpack")
    assert msgspec.msgpack.decode(answer.content) == 5
    assert client.post("/packed", content=body[:-1]).status_code == 400
    refused = client.post("/packed", content=msgspec.msgpack.encode([{"name": 1}]))
    assert (refused.status_code, refused.text) == (
        422,
        "request validation error: Expected `str`, got `int` - at `$[0].name`",
    )


def test_a_failure_fits_the_problem_that_is_described(client: httpx.Client, found: dict[str, Any]) -> None:
    answer = client.post("/price", content=b"{", headers={"Accept": "application/problem+json"})
    content = found["paths"]["/price"]["post"]["responses"]["400"]["content"]
    assert answer.status_code == 400
    assert fits(found, content[answer.headers["content-type"]]["schema"], answer.json())


def test_the_words_come_from_the_classes(found: dict[str, Any]) -> None:
    operation = found["paths"]["/price"]["post"]
    assert operation["summary"] == "Price an order."
    assert operation["description"].startswith("Names are taken as they are")
    assert "Takes `application/x-anything`" in found["paths"]["/untyped"]["post"]["description"]


def test_it_outlives_the_worker_that_said_it_and_a_new_broker_learns_it_again() -> None:
    with deployed(SERVICES / "typed.toml") as orders, orders.client() as client:
        found = document(client)
        for worker in orders.processes("worker", stage="take"):
            worker.kill()
        assert document(client) == found
        (broker,) = orders.processes("broker")
        broker.kill()

        def learned() -> bool:
            answer = client.get("/openapi/metadata.json")
            return answer.status_code == 200 and json.loads(answer.content) == found

        wait_for("the same document from a new broker", learned, within_s=40)


UNCHECKABLE = """
from engine import Worker
from stages.mixin import TypedJSONMixin

class Only(TypedJSONMixin, Worker):
    def forward(self, data: "NotThere") -> int:
        return 1
"""


def test_a_typed_worker_whose_type_cannot_be_checked_does_not_start(folder: Path) -> None:
    file = write_service(folder, '[[stage]]\nname = "only"\nworker = "service:Only"\n', UNCHECKABLE)
    running = up(file, folder=folder, wait=False)
    try:
        assert running.exited(within_s=40) == ExitCode.START, running.tail()
        reason = "the annotation of Only.forward cannot be checked: name 'NotThere' is not defined"
        assert reason in running.log
        checked = running.engine("check")
        assert checked.returncode != 0
        assert reason in checked.stdout + checked.stderr
        running.gone(within_s=5)
    finally:
        running.kill()
