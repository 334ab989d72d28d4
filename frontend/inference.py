"""The Open Inference Protocol in the OpenAPI document: its types, and what a model takes, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

from engine.core import oip
from engine.core.about import REF_PREFIX, About
from engine.core.oip import Tensor
from frontend.gate import OPEN

Json = dict[str, Any]  # Any: documents, whose shape the OpenAPI specification says

TAG: Final = "models"
SHOWN: Final = 64  # elements of an input in an example

_REQUEST, _RESPONSE, _ERROR = "InferenceRequest", "InferenceResponse", "InferenceError"
_TENSOR, _METADATA = "InferenceTensor", "ModelMetadata"
_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"


def _ref(name: str) -> Json:
    return {"$ref": REF_PREFIX + name}


def _object(title: str, required: Sequence[str], **properties: Json) -> Json:
    return {"title": title, "type": "object", "properties": properties, "required": [*required]}


_TEXT: Final[Json] = {"type": "string"}
_PARAMETERS: Final[Json] = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_SHAPE: Final[Json] = {"type": "array", "items": {"type": "integer"}}
_TENSORS: Final[Json] = {"type": "array", "items": _ref(_TENSOR)}
_KIND: Final[Json] = {
    "type": "object",
    "properties": {"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE},
    "required": ["name", "datatype", "shape"],
}

SCHEMAS: Final[dict[str, Json]] = {
    _TENSOR: _object(
        _TENSOR, ("name", "shape", "datatype"), name=_TEXT, shape=_SHAPE, datatype=_TEXT, parameters=_PARAMETERS,
        data={"type": "array", "description": "Flat, row by row, or as deep as the shape; none where bytes follow."},
    ),
    _REQUEST: _object(
        _REQUEST, ("inputs",), id=_TEXT, parameters=_PARAMETERS, inputs=_TENSORS,
        outputs={"type": "array", "items": _object("InferenceOutput", ("name",), name=_TEXT, parameters=_PARAMETERS)},
    ),
    _RESPONSE: _object(
        _RESPONSE, ("model_name", "outputs"), model_name=_TEXT, model_version=_TEXT, id=_TEXT, outputs=_TENSORS
    ),
    _METADATA: _object(
        _METADATA, ("name", "versions", "platform", "inputs", "outputs"), name=_TEXT,
        versions={"type": "array", "items": _TEXT}, platform=_TEXT,
        inputs={"type": "array", "items": _KIND}, outputs={"type": "array", "items": _KIND},
    ),
    _ERROR: _object(_ERROR, ("error",), error=_TEXT),
}  # fmt: skip

ERROR: Final[Json] = {_JSON: {"schema": _ref(_ERROR)}}

_BINARY: Final[Json] = {_BYTES: {"schema": {"type": "string", "format": "binary"}}}
LENGTH: Final[Json] = {
    "name": oip.LENGTH,
    "in": "header",
    "required": False,
    "description": "Bytes of the JSON at the begin of the body, where the bytes of tensors follow.",
    "schema": {"type": "integer", "minimum": 0},
}
ANSWER: Final[Json] = {
    "description": "The outputs; in JSON, or as bytes behind it where the request asks for that.",
    "headers": {oip.LENGTH: {"description": LENGTH["description"], "schema": LENGTH["schema"]}},
    "content": {_JSON: {"schema": _ref(_RESPONSE)}, **_BINARY},
}


def request(inputs: Sequence[Tensor] | None) -> Json:
    """The body of a request to a model with these inputs, if they are known."""
    content: Json = {"schema": _ref(_REQUEST)}
    needed = [one for one in inputs or () if not one.optional]
    if needed and all(_count(one) <= SHOWN for one in needed):
        content["example"] = {"inputs": [_least(one) for one in needed]}
    return {"required": True, "content": {_JSON: content, **_BINARY}}


def _count(tensor: Tensor) -> int:
    return prod(max(size, 1) for size in tensor.shape)


def _least(tensor: Tensor) -> Json:
    """The smallest tensor that it may be."""
    one: Any = {"BYTES": "text", "BOOL": True}.get(tensor.datatype, 1)
    shape = [max(size, 1) for size in tensor.shape]
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": [one] * _count(tensor)}


def outputs_of(abouts: Mapping[str, About], lasts: Sequence[str]) -> list[Tensor] | None:
    """What a model gives: what those of its stages say with which it may end. None: nothing is known of any."""
    said = [abouts[stage].response.tensors for stage in lasts if stage in abouts]
    known = [tensors for tensors in said if tensors is not None]
    return list({one.name: one for tensors in known for one in tensors}.values()) if known else None


def words(inputs: Sequence[Tensor] | None, outputs: Sequence[Tensor] | None) -> str:
    """What a model takes and gives."""
    lines = []
    for verb, tensors in (("Takes", inputs), ("Gives", outputs)):
        if tensors is not None:
            listed = [f"- `{one.name}`: {one.datatype} {one.shape}{', or nothing' * one.optional}" for one in tensors]
            lines.append("\n".join([f"{verb}:\n", *listed]))
        else:
            lines.append(f"{verb} what is not known: its worker has not started, or does not say.")
    return "\n\n".join(lines)


def metadata(identifier: str) -> Json:
    """The page of a model."""
    found: Json = {"description": "What it takes and gives.", "content": {_JSON: {"schema": _ref(_METADATA)}}}
    return {
        "get": {
            "operationId": f"{identifier}_metadata",
            "summary": "What the model takes and gives",
            "tags": [TAG],
            "responses": {"200": found, "503": {"description": "That is not known yet.", "content": ERROR}},
        }
    }


def pages() -> dict[str, Json]:
    """What there is beside the models."""
    listed: dict[str, tuple[str, str, str]] = {
        "/v2": ("get", "server", "What this server is"),
        "/v2/health/live": ("get", "live", "Does it live?"),
        "/v2/health/ready": ("get", "ready", "Is every model ready?"),
        "/v2/models/stats": ("get", "statistics", "How much the models have done"),
        "/v2/repository/index": ("post", "index", "The models, and whether they are ready"),
    }
    answered: Json = {"description": "It is, or does.", "content": {_JSON: {}}}
    refused: Json = {"description": "Not now.", "content": ERROR}
    return {
        path: {
            method: {
                "operationId": f"inference_{name}",
                "summary": summary,
                "tags": ["about the service" if path in OPEN else TAG],
                "responses": {"200": answered, "503": refused},
            }
        }
        for path, (method, name, summary) in listed.items()
    }
