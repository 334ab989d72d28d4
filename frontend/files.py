"""Files of this package that are pages: each by its name, so that no path can lead out of the folder.

They may load nothing from elsewhere, and run no script but their own (Content-Security-Policy). A browser is told 304
as long as nothing has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import falcon.asgi

from frontend import errors
from frontend.errors import Refusal

INDEX: Final = "index.html"
HTML: Final = "text/html; charset=utf-8"
SCRIPT: Final = "text/javascript; charset=utf-8"
STYLE: Final = "text/css; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class _File:
    data: bytes
    tag: str


@cache
def _load(folder: str, name: str) -> _File:
    """Read when it is first asked for: a service that nobody looks at keeps no two megabytes in each process."""
    data = files("frontend").joinpath("static", folder, name).read_bytes()
    return _File(data, f'"{hashlib.blake2s(data, digest_size=12).hexdigest()}"')


@dataclass(frozen=True)
class Folder:
    """One below ``static``. ``types``: of each file there is; ``policy``: what the pages may do; ``max_age_s``: after
    so long a browser asks again whether one has changed, but for the index, which it always asks for."""

    name: str
    types: Mapping[str, str]
    policy: str
    max_age_s: int = 0

    def fill(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str) -> None:
        """Answer with a file. Raises Refusal (404)."""
        mime = self.types.get(name)
        if mime is None:
            raise Refusal(errors.NOT_FOUND)
        file = _load(self.name, name)
        is_asked = name == INDEX or not self.max_age_s
        resp.set_header("cache-control", "no-cache" if is_asked else f"public, max-age={self.max_age_s}")
        resp.set_header("etag", file.tag)
        resp.set_header("content-security-policy", self.policy)
        resp.set_header("x-content-type-options", "nosniff")
        if file.tag in (req.get_header("if-none-match") or ""):
            resp.status = "304"
            return
        resp.content_type = mime
        resp.data = file.data


class Redirect:
    """A folder without its slash: links of its pages are relative to it."""

    def __init__(self, folder: str) -> None:
        self._to = f"{folder}/"

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.status = "308"
        resp.set_header("location", self._to)

    on_head = on_get
