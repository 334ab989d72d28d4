"""Swagger UI, from files of this package: ``/openapi/swagger/`` needs no network.

Only the files listed here exist, by name, so no path can lead out of their folder. The page may load nothing from
elsewhere and run no script but its own (Content-Security-Policy).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import falcon.asgi

from frontend import errors
from frontend.errors import Refusal

INDEX: Final = "index.html"
MAX_AGE_S: Final = 3600  # then a browser asks again, and is told 304 as long as nothing has changed

_TYPES: Final = {
    INDEX: "text/html; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
    "LICENSE": "text/plain; charset=utf-8",
    "NOTICE": "text/plain; charset=utf-8",
    "swagger-ui-bundle.js.LICENSE.txt": "text/plain; charset=utf-8",
}
# Swagger UI sets styles on its elements and draws its icons from data: addresses.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class _File:
    data: bytes
    tag: str


@cache
def _load(name: str) -> _File:
    """Read when it is first asked for: a service that nobody looks at keeps no two megabytes in each process."""
    data = files("frontend").joinpath("static", "swagger", name).read_bytes()
    return _File(data, f'"{hashlib.blake2s(data, digest_size=12).hexdigest()}"')


class SwaggerResource:
    """``GET /openapi/swagger/`` and the files beside it."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str = INDEX) -> None:
        mime = _TYPES.get(name)
        if mime is None:
            raise Refusal(errors.NOT_FOUND)
        file = _load(name)
        resp.set_header("cache-control", "no-cache" if name == INDEX else f"public, max-age={MAX_AGE_S}")
        resp.set_header("etag", file.tag)
        resp.set_header("content-security-policy", _POLICY)
        resp.set_header("x-content-type-options", "nosniff")
        if file.tag in (req.get_header("if-none-match") or ""):
            resp.status = "304"
            return
        resp.content_type = mime
        resp.data = file.data

    on_head = on_get


class SwaggerRedirect:
    """``GET /openapi/swagger``: the page's own links are relative to its folder."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.status = "308"
        resp.set_header("location", "swagger/")

    on_head = on_get
