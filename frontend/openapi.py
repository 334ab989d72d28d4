"""The OpenAPI document of a deployment: its routes, from what the stages say about themselves.

A route's request is that of its first stage, its answer that of its last. What each stage said (engine.core.about) is
asked of the broker; a stage that has not started since the broker did is described without types until it has.
Everything but :class:`MetadataResource` is pure.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import falcon.asgi
import msgspec

from engine import __version__
from engine.config.schema import OIP, OPENAI, PLAIN, Deployment, RouteSection
from engine.core import about, sse
from engine.core.about import REF_PREFIX, About, Boundary
from engine.core.call import BrokerClient
from engine.errors import ProtocolError, Unavailable
from frontend import components, errors, inference, media, models
from frontend.errors import Refusal
from frontend.jobs import described
from frontend.protocols import JSON

log = logging.getLogger("stageline.frontend")

OPENAPI: Final = "3.1.0"
PROBLEM: Final = "Problem"  # the component of problem+json (RFC 9457)
OPENAI_ERROR: Final = "ErrorResponse"  # and of OpenAI's form, as its document calls it
MODEL: Final = "Model"
API_KEY: Final = "apiKey"
RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}},
    "retry-after-ms": {"description": "The same in milliseconds.", "schema": {"type": "integer", "minimum": 1}},
}

REPLAYED: Final = {
    "idempotent-replayed": {
        "description": "Whether this is the answer to an earlier request with the same `Idempotency-Key`.",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same for all tries of one request: while one is computed the others wait for its answer, and "
    "for two minutes afterwards they are given it.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}

_encode = msgspec.json.Encoder().encode

# Any, here and below: JSON documents, whose shape the OpenAPI specification says.
Json = dict[str, Any]

# Every status a route can answer beside 200; a class of the service's own may add to them.
_FAILURES: Final = {
    400: "The body cannot be decoded, or the service finds the request wrong.",
    408: "The deadline has passed, or the body came too slowly.",
    409: "A request with this `Idempotency-Key` is being answered, as a stream.",
    413: "The body is too large.",
    415: "The content-encoding of the body is not supported.",
    422: "The body can be decoded, and does not fit its type; or the `Idempotency-Key` has come with another request.",
    429: "Too many requests are under way.",
    500: "The service failed.",
    503: "A stage has no worker, or the service is shutting down.",
}
_PROBLEM_SCHEMA: Final[Json] = {
    "title": PROBLEM,
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail", "request_id"],
}


_OPENAI_SCHEMA: Final[Json] = {
    "title": OPENAI_ERROR,
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_MODEL_SCHEMA: Final[Json] = {
    "title": MODEL,
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["model"]},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
    "required": ["id", "object", "created", "owned_by"],
}
_KEYS: Final[Json] = {API_KEY: {"type": "http", "scheme": "bearer"}}
_REFUSED_KEY: Final[Json] = {
    "description": "There is no API key, or none that is known.",
    "headers": {"WWW-Authenticate": {"description": "How to send one.", "schema": {"type": "string"}}},
}
_BY_PROTOCOL: Final[dict[str, Json]] = {
    PLAIN: {
        "text/plain": {"schema": {"type": "string"}},
        media.PROBLEM: {"schema": {"$ref": REF_PREFIX + PROBLEM}},
    },
    OPENAI: {JSON: {"schema": {"$ref": REF_PREFIX + OPENAI_ERROR}}},
    OIP: inference.ERROR,
}


def document(deployment: Deployment, abouts: Mapping[str, About]) -> Json:
    """The document; ``abouts`` by the stages' names, as far as they are known."""
    sides: dict[tuple[str, str], Boundary] = {}
    topology = deployment.topology
    ends = [[topology.stages[end] for end in topology.ends(number)] for number in range(len(topology.routes))]
    for route, lasts in zip(deployment.routes, ends, strict=True):
        if route.protocol == OIP:  # which has types of its own
            continue
        if (said := abouts.get(route.stages[0])) is not None:
            sides[route.path, "Input"] = said.request
        for stage in lasts:
            if (said := abouts.get(stage)) is not None:
                sides[_end(route, stage), "Output"] = said.response
    lists = models.lists(deployment)
    ours: dict[str, Json] = {PROBLEM: _PROBLEM_SCHEMA}
    if any(route.protocol == OPENAI for route in deployment.routes):
        ours[OPENAI_ERROR] = _OPENAI_SCHEMA
    if deployment.frontend.jobs:
        ours[described.JOB] = described.SCHEMA
    if lists:
        ours[MODEL] = _MODEL_SCHEMA
    if any(route.protocol == OIP for route in deployment.routes):
        ours.update(inference.SCHEMAS)
    named, schemas = components.merge(sides, reserved=set(ours))
    identifiers = _operation_ids(route.path for route in deployment.routes)
    paths: dict[str, Json] = {}
    for number, (route, lasts) in enumerate(zip(deployment.routes, ends, strict=True)):
        way = topology.way(number) if topology.routes[number].after else ""
        if route.protocol == OIP:
            paths.update(_inference(deployment, route, way, abouts, identifiers[route.path], lasts))
            continue
        request = named.get((route.path, "Input"))
        responses = [named.get((_end(route, stage), "Output")) for stage in lasts]
        paths[route.path] = {
            "post": {
                "operationId": identifiers[route.path],
                "tags": ["routes"],
                **_words(route, way, abouts, request, responses),
                "parameters": [IDEMPOTENCY_KEY],
                **_request_body(request),
                "responses": {"200": _success(responses), **_failures(deployment, route.protocol)},
            }
        }
    if deployment.frontend.jobs:
        job = {JSON: {"schema": {"$ref": REF_PREFIX + described.JOB}}}
        for operations in list(paths.values()):
            if (post := operations.get("post")) is None:
                continue
            post["parameters"] = [*post.get("parameters", []), described.PREFER]
            post["responses"] = {**post["responses"], "202": described.accepted(job)}
        missing = {"description": "There is no such job, or not any more.", "content": _BY_PROTOCOL[PLAIN]}
        paths.update(described.paths(job, missing))
    for own in deployment.endpoints:
        for method in own.methods:
            paths.setdefault(own.path, {})[method.lower()] = {
                "operationId": f"{method.lower()}{identifier_of(own.path)}",
                "summary": own.handler.rpartition(":")[2].replace("_", " "),
                "tags": ["endpoints"],
                "responses": {
                    "200": {"description": "The result."},
                    "default": {"description": "It failed.", "content": _BY_PROTOCOL[PLAIN]},
                },
            }
    for path in lists:
        paths.update(_models(path))
    if any(route.protocol == OIP for route in deployment.routes):
        paths.update(inference.pages())
    paths.update((path, {"get": operation}) for path, operation in _service().items())
    if is_keyed := bool(deployment.frontend.api_keys):
        for operations in paths.values():
            for operation in operations.values():
                if not {"routes", "endpoints", inference.TAG}.isdisjoint(operation["tags"]):
                    operation["security"] = [{API_KEY: []}]
                    operation["responses"]["401"] = _REFUSED_KEY
    return {
        "openapi": OPENAPI,
        "info": {
            "title": deployment.frontend.title or deployment.engine.name or "service",
            "version": deployment.frontend.version or __version__,
        },
        "paths": paths,
        "components": {"schemas": {**schemas, **ours}, **({"securitySchemes": _KEYS} if is_keyed else {})},
    }


# --- an operation ----------------------------------------------------------------------------------------------------


def _words(
    route: RouteSection,
    way: str,
    abouts: Mapping[str, About],
    request: Boundary | None,
    responses: Sequence[Boundary | None],
) -> Json:
    """Summary and description: what the stages are, and what no schema says."""
    summary, parts = _about(route, way, abouts)
    for side, verb in ((request, "Takes"), *((response, "Answers") for response in _unlike(responses))):
        if side is None:
            parts.append(f"{verb} what is not known yet: its worker has not started.")
        elif side.schema is None:
            parts.append(f"{verb} `{side.mime}`; its worker declares no type.")
    return {"summary": summary, "description": "\n\n".join(parts)}


def _about(route: RouteSection, way: str, abouts: Mapping[str, About]) -> tuple[str, list[str]]:
    """The first stage's docstring, in one line and the rest, and what the stages are."""
    docs = {stage: _split(abouts[stage].doc) if stage in abouts else ("", "") for stage in route.stages}
    summary, rest = docs[route.stages[0]]
    parts = [rest] if rest else []
    if len(route.stages) > 1:
        steps = (f"{n}. `{stage}`" + (f": {docs[stage][0]}" if docs[stage][0] else "")
                 for n, stage in enumerate(route.stages, 1))  # fmt: skip
        parts.append("Stages:\n\n" + "\n".join(steps))
    if way:
        parts.append(f"Not every request passes all of them: {way}.")
    return summary or " -> ".join(route.stages), parts


def _inference(
    deployment: Deployment,
    route: RouteSection,
    way: str,
    abouts: Mapping[str, About],
    identifier: str,
    lasts: Sequence[str],
) -> dict[str, Json]:
    """A route that speaks the Open Inference Protocol: what tensors it has stands in words, and in its model's page."""
    first = abouts.get(route.stages[0])
    inputs = first.request.tensors if first is not None else None
    outputs = inference.outputs_of(abouts, lasts)
    summary, parts = _about(route, way, abouts)
    operation = {
        "operationId": identifier,
        "tags": ["routes"],
        "summary": summary,
        "description": "\n\n".join([*parts, inference.words(inputs, outputs)]),
        "parameters": [inference.LENGTH, IDEMPOTENCY_KEY],
        "requestBody": inference.request(inputs),
        "responses": {"200": inference.ANSWER, **_failures(deployment, OIP)},
    }
    return {
        route.path: {"post": operation},
        route.path.removesuffix("/infer"): inference.metadata(identifier),
    }


def _split(doc: str) -> tuple[str, str]:
    """A docstring's first paragraph on one line, and the rest."""
    first, _, rest = doc.strip().partition("\n\n")
    return " ".join(first.split()), rest.strip()


def _request_body(side: Boundary | None) -> Json:
    if side is None or (side.schema is None and not side.example):
        return {}
    content: Json = {} if side.schema is None else {"schema": side.schema}
    return {"requestBody": {"required": True, "content": {media.content_type(side.mime): content | _example(side)}}}


def _example(side: Boundary) -> Json:
    """A body to try. One that is no JSON and no text stands there as a ``data:`` URI."""
    if not side.example:
        return {}
    mime = media.content_type(side.mime)
    if media.is_json(mime):
        try:
            return {"example": msgspec.json.decode(side.example)}
        except msgspec.DecodeError:
            return {}
    if mime.startswith("text/"):
        return {"example": side.example.decode(errors="replace")}
    data = base64.b64encode(side.example).decode()
    return {"examples": {"body": {"externalValue": f"data:{mime};base64,{data}"}}}


def _end(route: RouteSection, stage: str) -> str:
    """A route by what one of its last stages answers."""
    return f"{route.path} {stage}"


def _unlike(sides: Sequence[Boundary | None]) -> list[Boundary | None]:
    """Each that is not the same as one before it."""
    return [side for place, side in enumerate(sides) if side not in sides[:place]]


def _success(sides: Sequence[Boundary | None]) -> Json:
    """``sides``: of all stages with which the route may end."""
    if all(side is not None and side.mime.startswith(sse.MIME) for side in sides):
        answer: Json = {"description": "A stream of server-sent events."}
    else:
        answer = {"description": "The result.", "headers": REPLAYED}
    schemas: dict[str, list[Any]] = {}
    for side in _unlike(sides):
        if side is not None and side.schema is not None:
            schemas.setdefault(media.content_type(side.mime), []).append(side.schema)
    if schemas:
        answer["content"] = {
            mime: {"schema": found[0] if len(found) == 1 else {"anyOf": found}} for mime, found in schemas.items()
        }
    for side in sides:
        if side is not None and side.stream:
            answer["description"] = "The result, or a stream of server-sent events: as the request asks for it."
            content = answer.setdefault("content", {media.content_type(side.mime): {}})
            content[side.stream] = {"schema": {"type": "string"}}
    return answer


def _failures(deployment: Deployment, protocol: str) -> dict[str, Json]:
    limit = deployment.frontend.max_request_size
    content = _BY_PROTOCOL[protocol]
    answers: dict[str, Json] = {}
    for status, text in _FAILURES.items():
        answer: Json = {"description": f"{text} At most {limit} bytes are taken." if status == 413 else text}
        if status in (429, 503):
            answer["headers"] = RETRY_AFTER
        answers[str(status)] = {**answer, "content": content}
    return answers


def identifier_of(path: str) -> str:
    return "_" + (re.sub(r"[^A-Za-z0-9]+", "_", path).strip("_") or "root")


def _models(path: str) -> dict[str, Json]:
    """The paths of a list of models."""
    model: Json = {"$ref": REF_PREFIX + MODEL}
    listed: Json = {
        "type": "object",
        "properties": {"object": {"type": "string", "enum": ["list"]}, "data": {"type": "array", "items": model}},
        "required": ["object", "data"],
    }
    name: Json = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    identifier = "get_" + re.sub(r"[^A-Za-z0-9]+", "_", path).strip("_")
    shared: Json = {"tags": ["routes"]}

    def answers(schema: Json) -> Json:
        return {"200": {"description": "What there is.", "content": {JSON: {"schema": schema}}}}

    missing: Json = {"404": {"description": "There is no such model.", "content": _BY_PROTOCOL[OPENAI]}}
    return {
        path: {"get": {"operationId": identifier, "summary": "The models", **shared, "responses": answers(listed)}},
        f"{path}/{{model}}": {
            "get": {
                "operationId": f"{identifier}_one",
                "summary": "One of them",
                **shared,
                "parameters": [name],
                "responses": {**answers(model), **missing},
            }
        },
    }


def _operation_ids(paths: Iterable[str]) -> dict[str, str]:
    """Names for generated clients: letters, digits and underscores, no two alike."""
    taken: dict[str, str] = {}
    for path in paths:
        plain = "post_" + (re.sub(r"[^A-Za-z0-9]+", "_", path).strip("_") or "root")
        name, number = plain, 1
        while name in taken.values():
            number += 1
            name = f"{plain}_{number}"
        taken[path] = name
    return taken


def _service() -> dict[str, Json]:
    """The pages about the service itself, by path."""
    status: Json = {"application/json": {"schema": {"type": "object"}}}
    not_now: Json = {"description": "Not now.", "headers": RETRY_AFTER, "content": status}
    checked: dict[str, Json] = {"200": {"description": "It does.", "content": status}, "503": not_now}
    samples: Json = {"description": "All samples.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    pages: dict[str, tuple[str, str, dict[str, Json]]] = {
        "/": ("live", "Does this frontend take requests?", checked),
        "/healthz": ("healthy", "Does this frontend live?", {"200": checked["200"]}),
        "/readyz": ("ready", "Does every stage have a worker that is warm?", checked),
        "/metrics": ("metrics", "Metrics of the whole deployment, for Prometheus", {"200": samples}),
    }
    return {
        path: {"operationId": f"get_{name}", "summary": summary, "tags": ["about the service"], "responses": responses}
        for path, (name, summary, responses) in pages.items()
    }


# --- the resource ----------------------------------------------------------------------------------------------------


class MetadataResource:
    """``GET /openapi/metadata.json``; 503 when the broker does not say what the stages are."""

    def __init__(self, client: BrokerClient, deployment: Deployment) -> None:
        self._client = client
        self._deployment = deployment
        self._said: bytes | None = None
        self._document = b""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        try:
            said = await self._client.ask("about")
            if said != self._said:  # workers seldom change their minds
                self._document = _encode(document(self._deployment, _known(about.unpack_all(said))))
                self._said = said
        except Unavailable:
            raise Refusal(errors.UNREACHABLE) from None
        except ProtocolError as error:
            log.error("openapi: %s", error)
            raise Refusal(errors.UNREACHABLE) from None
        resp.content_type = "application/json"
        resp.data = self._document
        resp.set_header("cache-control", "no-cache")

    on_head = on_get


def _known(said: Mapping[str, bytes]) -> dict[str, About]:
    """By stage, what can be read."""
    known: dict[str, About] = {}
    for stage, data in said.items():
        try:
            known[stage] = about.unpack(data)
        except ProtocolError as error:
            log.warning("openapi: %s", error, extra={"stage": stage})
    return known
