"""What is sent: bodies out of files, a text, or the example that the service itself names in its OpenAPI document."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from engine.bench.target import Target
from engine.errors import ConfigError

DOCUMENT: Final = "/openapi/metadata.json"
DOCUMENT_MAX: Final = 16 << 20
ASK_S: Final = 5.0
JSON: Final = "application/json"
_TYPES: Final = {
    ".json": JSON, ".jsonl": JSON, ".ndjson": JSON, ".txt": "text/plain", ".msgpack": "application/msgpack",
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".wav": "audio/wav",
}  # fmt: skip


@dataclass(frozen=True)
class Payloads:
    """``bodies`` take turns. ``mime`` "": nothing is said of their type. ``words``: where they are from."""

    bodies: Sequence[bytes]
    mime: str
    words: str


def of_text(text: str, mime: str) -> Payloads:
    return Payloads([text.encode()], mime or JSON, "as given")


def of_file(path: Path, mime: str) -> Payloads:
    """Of a ``.jsonl`` each line, of a folder each file, else the file. Raises ConfigError."""
    try:
        if path.is_dir():
            files = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
            bodies = [one.read_bytes() for one in files]
        else:
            files = [path]
            data = path.read_bytes()
            lines = path.suffix in (".jsonl", ".ndjson")
            bodies = [line for line in data.splitlines() if line.strip()] if lines else [data]
    except OSError as error:
        raise ConfigError([f"--data {path}: cannot be read: {error.strerror}"]) from None
    if not bodies:
        raise ConfigError([f"--data {path}: there is nothing in it"])
    mime = mime or _TYPES.get(files[0].suffix, "")
    return Payloads(bodies, mime, f"{len(bodies)} of {path.name}" if len(bodies) > 1 else path.name)


def of_service(document: Mapping[str, Any], path: str) -> Payloads | None:
    """The example of a route; None where the document has none."""
    for mime, content in _inside(document, "paths", path, "post", "requestBody", "content").items():
        if not isinstance(content, dict):
            continue
        if "example" in content:
            example = content["example"]
            is_text = isinstance(example, str) and not mime.endswith("json")
            return Payloads(
                [example.encode() if is_text else json.dumps(example).encode()], mime, "the service's example"
            )
        for one in _inside(content, "examples").values():
            if not isinstance(one, dict):
                continue
            if "value" in one:
                return Payloads([json.dumps(one["value"]).encode()], mime, "the service's example")
            if (body := _data(str(one.get("externalValue", "")))) is not None:
                return Payloads([body], mime, "the service's example")
    return None


def _inside(document: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The object that these lead to; an empty one where there is none."""
    found: Any = document
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _data(uri: str) -> bytes | None:
    """Of a ``data:`` URI (RFC 2397)."""
    head, comma, text = uri.partition(",")
    if not head.startswith("data:") or not comma:
        return None
    data = unquote_to_bytes(text)
    try:
        return base64.b64decode(data, validate=True) if head.endswith(";base64") else data
    except binascii.Error:
        return None


def routes(document: Mapping[str, Any]) -> list[str]:
    """Those that are posted to."""
    paths = _inside(document, "paths")
    return [path for path, operations in paths.items() if isinstance(operations, dict) and "post" in operations]


def document_of(target: Target, fields: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the service says of itself; empty where it says nothing. Raises ConfigError for a certificate that is not to
    be trusted."""
    connection = target.connection(ASK_S)
    try:
        connection.request("GET", DOCUMENT, headers=dict(fields))
        answer = connection.getresponse()
        told = json.loads(answer.read(DOCUMENT_MAX)) if answer.status == 200 else {}
    except ssl.SSLError as error:
        raise ConfigError([f"{target.base}: {error.reason or error}; --insecure takes any certificate"]) from None
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return told if isinstance(told, dict) else {}
