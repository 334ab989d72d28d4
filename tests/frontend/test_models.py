"""The list of models, as the official client of OpenAI's API reads it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fakes import Service, deployment
from openai.types import Model

from engine.config.schema import OPENAI, RouteSection
from frontend import models


def named(*routes: tuple[str, tuple[str, ...]], protocol: str = OPENAI) -> dict[str, tuple[str, ...]]:
    made = [RouteSection(path, ("first",), protocol=protocol, model=model) for path, model in routes]
    return models.lists(replace(deployment(), routes=tuple(made)))


@pytest.mark.parametrize(
    ("paths", "lists"),
    [
        (["/v1/embeddings"], ["/v1/models"]),
        (["/v1/chat/completions", "/v1/embeddings"], ["/v1/models"]),
        (["/openai/v1/embeddings", "/v2/rerank"], ["/openai/v1/models", "/v2/models"]),
        (["/openai/embeddings"], ["/openai/models"]),
        (["/inference"], ["/models"]),
        (["/v1/models"], []),  # it is a route of the service
        (["/v1"], ["/models"]),
    ],
)
def test_where_the_list_is(paths: list[str], lists: list[str]) -> None:
    assert list(named(*[(path, ()) for path in paths])) == lists


def test_a_list_has_what_all_its_routes_serve_once_and_else_the_deployments_name() -> None:
    assert named(("/v1/a", ("x", "y")), ("/v1/b", ("y", "z"))) == {"/v1/models": ("x", "y", "z")}
    assert named(("/v1/a", ())) == {"/v1/models": ("fake",)}
    assert named(("/v1/a", ("x",)), protocol="plain") == {}


def test_models_are_listed_and_found_by_their_names() -> None:
    one = Service(protocol=OPENAI, model=("mini", "org/large model"))
    answer = one.call("GET", "/models")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    found = json.loads(answer.body)
    assert found["object"] == "list"
    assert [Model.model_validate(model).id for model in found["data"]] == ["mini", "org/large model", "fake"]
    assert json.loads(one.call("GET", "/models/org/large model").body)["id"] == "org/large model"
    missing = one.call("GET", "/models/other")
    assert missing.status == 404
    assert json.loads(missing.body)["error"]["code"] == "model_not_found"
    assert one.call("POST", "/models").status == 405
    assert Service().call("GET", "/models").status == 404


def test_a_file_that_is_not_there_has_no_time() -> None:
    assert models.created(deployment()) == 0
