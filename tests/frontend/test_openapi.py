"""The document, from stages' words alone; the pages that show it; and components that must not be mixed up."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from openapi_spec_validator import validate

from engine.config.schema import OIP, OPENAI, FrontendSection, RouteSection
from engine.config.ways import read
from engine.core import about
from engine.core.about import About, Boundary, Component
from engine.core.oip import Tensor
from engine.errors import Unavailable
from frontend import components
from frontend.jobs import described
from frontend.openapi import document

from .fakes import FakeClient, Service, deployment

SERVICE = deployment()  # /inference through "first" and "second stage", /second through "second stage"


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def boundary(name: str, schema: dict[str, Any], *, module: str = "service", mime: str = "application/json") -> Boundary:
    return Boundary(mime, ref(f"{module}.{name}"), {f"{module}.{name}": Component(name, schema, module)})


TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}
NUMBER = {"type": "object", "properties": {"number": {"type": "number"}}}
NOTHING = Boundary("application/json")
FIRST = About(boundary("Question", TEXT), NOTHING, "Ask something.\n\nAnything at all.")
SECOND = About(NOTHING, boundary("Answer", NUMBER), "Find the answer.")


def made(**abouts: About) -> dict[str, Any]:
    """The document of SERVICE, which is valid; stages by their names with _ for a space."""
    found = document(SERVICE, {name.replace("_", " "): one for name, one in abouts.items()})
    validate(found)
    return found


def test_a_route_is_its_first_stages_request_and_its_last_stages_answer() -> None:
    found = made(first=FIRST, second_stage=SECOND)
    operation = found["paths"]["/inference"]["post"]
    assert found["openapi"].startswith("3.1.")
    assert found["info"]["title"] == "fake"
    assert operation["requestBody"] == {"required": True, "content": {"application/json": {"schema": ref("Question")}}}
    assert operation["responses"]["200"]["content"] == {"application/json": {"schema": ref("Answer")}}
    assert found["components"]["schemas"]["Question"] == TEXT
    assert found["components"]["schemas"]["Answer"] == NUMBER


def test_a_model_shows_its_tensors_and_the_pages_beside_it() -> None:
    takes = [Tensor("x", "FP32", [-1, 2]), Tensor("t", "BYTES", [1], optional=True)]
    first = About(Boundary("", tensors=takes), Boundary(""), "Look at it.")
    second = About(Boundary(""), Boundary("", tensors=[Tensor("y", "BOOL", [-1])]))
    found = document(deployment(protocol=OIP), {"first": first, "second stage": second})
    validate(found)
    operation = found["paths"]["/v2/models/inference/infer"]["post"]
    assert operation["summary"] == "Look at it."
    assert "Takes:\n\n- `x`: FP32 [-1, 2]\n- `t`: BYTES [1], or nothing" in operation["description"]
    assert "Gives:\n\n- `y`: BOOL [-1]" in operation["description"]
    body = operation["requestBody"]["content"]["application/json"]
    assert body["schema"] == ref("InferenceRequest")
    assert body["example"] == {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 1]}]}
    assert operation["responses"]["429"]["content"] == {"application/json": {"schema": ref("InferenceError")}}
    assert {"/v2", "/v2/health/ready", "/v2/models/inference", "/v2/models/stats"} <= found["paths"].keys()
    unknown = document(deployment(protocol=OIP), {})
    validate(unknown)
    assert (
        "example"
        not in unknown["paths"]["/v2/models/second/infer"]["post"]["requestBody"]["content"]["application/json"]
    )
    assert "/v2" not in made()["paths"]


def test_where_there_are_jobs_every_route_may_be_one_and_they_are_shown() -> None:
    for protocol in (OPENAI, OIP):
        whole = deployment(FrontendSection(address="127.0.0.1", port=0, jobs="jobs.db"), protocol=protocol)
        found = document(whole, {"first": FIRST, "second stage": SECOND})
        validate(found)
        posts = [operations["post"] for operations in found["paths"].values() if "post" in operations]
        kept = [post for post in posts if "202" in post["responses"]]
        assert len(kept) == 2
        assert all(described.PREFER in post["parameters"] for post in kept)
        assert {"/jobs/{id}", "/jobs/{id}/result"} <= set(found["paths"])
    assert not any(path.startswith("/jobs") for path in made(first=FIRST)["paths"])


def test_a_route_that_speaks_openais_api_shows_its_errors_and_its_models() -> None:
    found = document(deployment(protocol=OPENAI), {})
    validate(found)
    responses = found["paths"]["/inference"]["post"]["responses"]
    for status in ("400", "422", "429", "503"):
        assert responses[status]["content"] == {"application/json": {"schema": ref("ErrorResponse")}}
    assert found["paths"]["/models"]["get"]["operationId"] == "get_models"
    assert "get" in found["paths"]["/models/{model}"]
    assert "ErrorResponse" not in document(deployment(), {})["components"]["schemas"]


@pytest.mark.parametrize(
    ("side", "content"),
    [
        (Boundary("application/json", example=b'{"x":3}'), {"application/json": {"example": {"x": 3}}}),
        (
            Boundary("application/json", {"type": "object"}, example=b"{}"),
            {"application/json": {"schema": {"type": "object"}, "example": {}}},
        ),
        (Boundary("text/plain", example=b"hello"), {"text/plain": {"example": "hello"}}),
        (
            Boundary("application/msgpack", example=b"\x81\xa1x\x03"),
            {"application/msgpack": {
                "examples": {"body": {"externalValue": "data:application/msgpack;base64,gaF4Aw=="}}
            }},
        ),
        (Boundary("application/json", example=b"not JSON"), {"application/json": {}}),
    ],
)  # fmt: skip
def test_the_first_stages_example_is_the_requests(side: Boundary, content: dict[str, Any]) -> None:
    operation = made(first=About(side, NOTHING), second_stage=SECOND)["paths"]["/inference"]["post"]
    assert operation["requestBody"]["content"] == content


def test_the_service_may_be_called_otherwise_than_the_deployment() -> None:
    named = replace(SERVICE, frontend=replace(SERVICE.frontend, title="Question time", version="2026.11"))
    assert document(named, {})["info"] == {"title": "Question time", "version": "2026.11"}


def test_the_words_are_the_first_stages() -> None:
    paths = made(first=FIRST, second_stage=SECOND)["paths"]
    assert paths["/inference"]["post"]["summary"] == "Ask something."
    assert paths["/inference"]["post"]["description"].startswith("Anything at all.")
    assert "2. `second stage`: Find the answer." in paths["/inference"]["post"]["description"]
    assert paths["/second"]["post"]["summary"] == "Find the answer."


def test_every_status_that_can_occur_is_listed() -> None:
    responses = made(first=FIRST, second_stage=SECOND)["paths"]["/inference"]["post"]["responses"]
    assert list(responses) == ["200", "400", "408", "409", "413", "415", "422", "429", "500", "503"]
    assert all(response["description"] for response in responses.values())
    assert [status for status, response in responses.items() if "headers" in response] == ["200", "429", "503"]
    assert "Retry-After" in responses["429"]["headers"]
    for status in list(responses)[1:]:
        assert list(responses[status]["content"]) == ["text/plain", "application/problem+json"]


def test_an_untyped_stage_has_no_request_body_and_no_content_but_says_its_formats() -> None:
    packed = Boundary("application/msgpack")
    operation = made(first=About(packed, NOTHING), second_stage=About(packed, packed))["paths"]["/second"]["post"]
    assert "requestBody" not in operation
    assert "content" not in operation["responses"]["200"]
    assert "Takes `application/msgpack`" in operation["description"]
    assert "Answers `application/msgpack`" in operation["description"]
    assert operation["summary"] == "second stage"


def test_a_stage_that_has_not_started_is_listed_without_types() -> None:
    operation = made(first=FIRST)["paths"]["/inference"]["post"]
    assert operation["requestBody"]["content"]
    assert "content" not in operation["responses"]["200"]
    assert "not known yet" in operation["description"]


def test_a_stream_says_so() -> None:
    stream = Boundary("text/event-stream", {"type": "string"})
    success = made(second_stage=About(NOTHING, stream))["paths"]["/second"]["post"]["responses"]["200"]
    assert success["description"] == "A stream of server-sent events."
    assert success["content"] == {"text/event-stream": {"schema": {"type": "string"}}}


def test_a_mime_type_that_is_none_does_not_get_into_the_document() -> None:
    odd = Boundary("not a type\r\n", {"type": "string"})
    success = made(second_stage=About(NOTHING, odd))["paths"]["/second"]["post"]["responses"]["200"]
    assert list(success["content"]) == ["application/octet-stream"]


def test_operations_have_names_of_their_own() -> None:
    stages = ("first",)
    routes = tuple(RouteSection(path, stages) for path in ("/v1/a-b", "/v1/a_b", "/v1/a/b", "/-"))
    found = document(replace(SERVICE, routes=routes), {})
    validate(found)
    names = [operation["operationId"] for item in found["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)
    assert names[:4] == ["post_v1_a_b", "post_v1_a_b_2", "post_v1_a_b_3", "post_root"]


def test_the_pages_about_the_service_are_listed_last() -> None:
    assert list(made()["paths"]) == ["/inference", "/second", "/", "/healthz", "/readyz", "/metrics"]


def test_a_type_of_the_name_of_ours_keeps_apart() -> None:
    schemas = made(first=About(boundary("Problem", TEXT), NOTHING))["components"]["schemas"]
    assert schemas["service.Problem"] == TEXT
    assert "detail" in schemas["Problem"]["properties"]


# --- components ------------------------------------------------------------------------------------------------------


def merged(*sides: tuple[str, Boundary]) -> tuple[list[dict[str, Any] | None], dict[str, Any]]:
    named, schemas = components.merge({(str(n), side[0]): side[1] for n, side in enumerate(sides)})
    for schema in schemas.values():
        assert set(about.refs(schema)) <= set(schemas)
    return [one.schema for one in named.values()], schemas


def test_one_type_in_two_places_is_one_component() -> None:
    refs, schemas = merged(("Input", boundary("Item", TEXT)), ("Output", boundary("Item", TEXT)))
    assert refs == [ref("Item"), ref("Item")]
    assert schemas == {"Item": TEXT}


def test_clashing_names_of_different_modules_stay_apart() -> None:
    refs, schemas = merged(
        ("Input", boundary("Item", TEXT, module="one")), ("Input", boundary("Item", NUMBER, module="two.deep"))
    )
    assert refs == [ref("one.Item"), ref("two.deep.Item")]
    assert schemas == {"one.Item": TEXT, "two.deep.Item": NUMBER}


def test_even_where_their_schemas_are_the_same() -> None:
    refs, _ = merged(("Input", boundary("Item", TEXT, module="one")), ("Input", boundary("Item", TEXT, module="two")))
    assert refs == [ref("one.Item"), ref("two.Item")]


def test_a_type_that_is_sent_otherwise_than_answered_is_two() -> None:
    refs, schemas = merged(("Input", boundary("Item", TEXT)), ("Output", boundary("Item", NUMBER)))
    assert refs == [ref("Item-Input"), ref("Item-Output")]
    assert schemas == {"Item-Input": TEXT, "Item-Output": NUMBER}


def test_types_that_differ_only_in_what_they_refer_to_stay_apart() -> None:
    def nested(inner: dict[str, Any]) -> Boundary:
        outer = {"type": "array", "items": ref("m.Inner")}
        return Boundary(
            "", ref("m.Outer"), {"m.Outer": Component("Outer", outer, "m"), "m.Inner": Component("Inner", inner, "m")}
        )

    refs, schemas = merged(("Input", nested(TEXT)), ("Output", nested(NUMBER)))
    assert refs == [ref("Outer-Input"), ref("Outer-Output")]
    assert schemas["Outer-Output"] == {"type": "array", "items": ref("Inner-Output")}
    assert schemas["Inner-Output"] == NUMBER


def test_a_type_that_refers_to_itself_is_taken_as_it_is() -> None:
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": ref("m.Tree")}}}
    _, schemas = merged(("Input", boundary("Tree", tree, module="m")))
    assert schemas["Tree"]["properties"]["children"]["items"] == ref("Tree")


def test_odd_names_become_names_of_components() -> None:
    _, schemas = merged(
        ("Input", boundary("Box[int]", TEXT, module="")), ("Input", boundary("Box(int)", NUMBER, module=""))
    )
    assert len(schemas) == 2
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in schemas)


def test_many_of_one_name_are_numbered() -> None:
    sides = [("Input", boundary("Item", {"const": n}, module="m")) for n in range(3)]
    assert set(merged(*sides)[1]) == {"Item", "Item-2", "Item-3"}


# --- the resource ----------------------------------------------------------------------------------------------------


def test_the_document_is_what_the_broker_says() -> None:
    client = FakeClient(abouts=about.pack_all({"first": about.pack(FIRST), "second stage": b"{not json"}))
    service = Service(client)
    answer = service.call("GET", "/openapi/metadata.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-cache"
    assert '"Question"' in answer.text
    client.abouts = about.pack_all({"first": about.pack(SECOND)})
    assert '"Question"' not in service.call("GET", "/openapi/metadata.json").text, "a stage has changed"


@pytest.mark.parametrize("said", [b"\xff nonsense", Unavailable(503, "the broker at ipc:///secret did not answer")])
def test_without_the_brokers_word_it_is_503(said: bytes | Exception) -> None:
    answer = Service(FakeClient(abouts=said)).call("GET", "/openapi/metadata.json")
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert "secret" not in answer.text


# --- Swagger UI ------------------------------------------------------------------------------------------------------


def test_the_page_is_found_without_its_slash() -> None:
    answer = Service().call("GET", "/openapi/swagger")
    assert (answer.status, answer.headers["location"]) == (308, "swagger/")


@pytest.mark.parametrize(
    ("name", "mime"),
    [
        ("", "text/html; charset=utf-8"),
        ("index.html", "text/html; charset=utf-8"),
        ("start.js", "text/javascript; charset=utf-8"),
        ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("swagger-ui.css", "text/css; charset=utf-8"),
        ("favicon-32x32.png", "image/png"),
        ("LICENSE", "text/plain; charset=utf-8"),
    ],
)
def test_its_files_have_their_types_and_may_be_kept(name: str, mime: str) -> None:
    service = Service()
    answer = service.call("GET", f"/openapi/swagger/{name}")
    assert (answer.status, answer.headers["content-type"]) == (200, mime)
    assert answer.body
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == ("public, max-age=3600" if name not in ("", "index.html") else "no-cache")
    again = service.call("GET", f"/openapi/swagger/{name}", headers=[("If-None-Match", answer.headers["etag"])])
    assert (again.status, again.body) == (304, b"")


def test_all_that_the_page_names_is_there() -> None:
    page = Service().call("GET", "/openapi/swagger/").text
    names = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(names) == 5
    for name in names:
        path = "/openapi/metadata.json" if name == "../metadata.json" else f"/openapi/swagger/{name}"
        assert Service().call("GET", path).status == 200, name


@pytest.mark.parametrize(
    "path", ["nothing.js", "..", "../../app.py", "..%2f..%2fapp.py", "/etc/passwd", "swagger-ui.css/", "%00", ".hidden"]
)
def test_nothing_else_is_served(path: str) -> None:
    assert Service().call("GET", f"/openapi/swagger/{path}").status == 404


def test_looking_at_the_pages_is_not_counted_as_traffic() -> None:
    service = Service()
    service.call("GET", "/openapi/metadata.json")
    service.call("GET", "/openapi/swagger/")
    assert not [
        family for family in service.metrics.families() if family.name.endswith("_throughput") and family.samples
    ]


def test_a_route_with_several_ends_answers_what_any_of_them_does() -> None:
    branched = replace(
        SERVICE,
        routes=(
            RouteSection(
                "/branches", stages=read(["first", {"by": "kind", "of": {"a": "second stage"}, "default": []}])
            ),
        ),
    )
    found = document(branched, {"first": About(FIRST.request, boundary("Echo", TEXT)), "second stage": SECOND})
    validate(found)
    operation = found["paths"]["/branches"]["post"]
    assert operation["responses"]["200"]["content"] == {
        "application/json": {"schema": {"anyOf": [ref("Echo"), ref("Answer")]}}
    }
    assert "first -> kind? a second stage, else the answer; second stage -> the answer" in operation["description"]
