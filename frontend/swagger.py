"""Swagger UI, from files of this package: ``/openapi/swagger/`` needs no network."""

from __future__ import annotations

from typing import Final

import falcon.asgi

from frontend.files import HTML, INDEX, SCRIPT, STYLE, TEXT, Folder

# Swagger UI sets styles on its elements and draws its icons from data: addresses.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FOLDER: Final = Folder(
    "swagger",
    {
        INDEX: HTML,
        "start.js": SCRIPT,
        "swagger-ui-bundle.js": SCRIPT,
        "swagger-ui.css": STYLE,
        "favicon-32x32.png": "image/png",
        "LICENSE": TEXT,
        "NOTICE": TEXT,
        "swagger-ui-bundle.js.LICENSE.txt": TEXT,
    },
    _POLICY,
    max_age_s=3600,
)


class SwaggerResource:
    """``GET /openapi/swagger/`` and the files beside it."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str = INDEX) -> None:
        _FOLDER.fill(req, resp, name)

    on_head = on_get
