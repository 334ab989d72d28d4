"""The models that routes serve, as OpenAI's API lists them: ``GET /v1/models`` and ``/v1/models/NAME``.

They are listed where clients of that API look for them, beside the routes that speak it: below the same version (the
first segment of a path that is like ``v1``), else in the folder of the route.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import falcon.asgi
import msgspec

from engine.config.schema import OIP, OPENAI, Deployment
from engine.core import oip
from frontend import errors
from frontend.errors import Refusal

_VERSION: Final = re.compile(r"(?:/[^/]+)*?/v[0-9]+(?=/)")

_encode = msgspec.json.Encoder().encode


def lists(deployment: Deployment) -> dict[str, tuple[str, ...]]:
    """The names that each list has, in the order of the file, by its path."""
    found: dict[str, dict[str, None]] = {}
    for route in deployment.routes:
        if route.protocol == OPENAI:
            version = _VERSION.match(route.path)
            base = version[0] if version else route.path.rpartition("/")[0]
            names = route.model or (deployment.engine.name,)
            found.setdefault(f"{base}/models", {}).update(dict.fromkeys(names))
    taken = set(deployment.paths)
    speaks_oip = any(route.protocol == OIP for route in deployment.routes)  # whose models are at the same path
    free = [path for path in found if path not in taken and not (speaks_oip and oip.is_about(path))]
    return {path: tuple(found[path]) for path in free}


def created(deployment: Deployment) -> int:
    """Since when there are these models, in seconds since 1970: since the file was written that names them, which is
    the same for all processes and after each start. 0: nobody knows."""
    try:
        return int(deployment.file.stat().st_mtime)
    except OSError:
        return 0


class ModelsResource:
    """One such list, and each model of it."""

    def __init__(self, names: Sequence[str], owner: str, since: int) -> None:
        one: Mapping[str, Any] = {"object": "model", "created": since, "owned_by": owner}  # Any: a JSON document
        models = [{"id": name, **one} for name in names]
        self._all = _encode({"object": "list", "data": models})
        self._each = {model["id"]: _encode(model) for model in models}

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str | None = None) -> None:
        document = self._all if name is None else self._each.get(name)
        if document is None:
            raise Refusal(errors.NO_MODEL)
        resp.content_type, resp.data = "application/json", document

    on_head = on_get
