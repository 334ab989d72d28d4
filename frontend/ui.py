"""The live page of the deployment, ``/ui/``: files of this package, and what they show, from ``/ui/data``.

Who may see it is the gate's to say. Others find nothing here.
"""

from __future__ import annotations

from typing import Final

import falcon.asgi

from engine.core.call import BrokerClient
from engine.errors import Unavailable
from frontend import errors
from frontend.errors import Refusal
from frontend.exchange import Exchange
from frontend.files import HTML, INDEX, SCRIPT, STYLE, Folder
from frontend.gate import Gate
from frontend.onlookers import Looks

NO_ANSWER: Final = b'{"error":"the broker does not answer"}'

_FOLDER: Final = Folder(
    "ui",
    {
        INDEX: HTML,
        "page.css": STYLE,
        "page.js": SCRIPT,
        "picture.js": SCRIPT,
        "figures.js": SCRIPT,
        "icon.svg": "image/svg+xml",
    },
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
)


def check(gate: Gate, req: falcon.asgi.Request) -> None:
    """Raises Refusal where this client may not see the page."""
    if not sees(gate, req):
        raise Refusal(errors.NOT_FOUND)


def sees(gate: Gate, req: falcon.asgi.Request) -> bool:
    exchange = Exchange.of(req.scope)
    head = exchange.head
    return head is not None and gate.shows(head, req.scope.get("client"), is_old=exchange.is_old)


class PageResource:
    """``GET /ui/`` and the files beside it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str = INDEX) -> None:
        check(self._gate, req)
        _FOLDER.fill(req, resp, name)
        resp.set_header("referrer-policy", "no-referrer")

    on_head = on_get


class PageRedirect:
    """``GET /ui``: the page's own links are relative to its folder."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        check(self._gate, req)
        resp.status = "308"
        resp.set_header("location", "ui/")

    on_head = on_get


class DataResource:
    """``GET /ui/data``: how the deployment stands, as ``engine status --json`` tells it."""

    def __init__(self, client: BrokerClient, gate: Gate) -> None:
        self._gate = gate
        self._looks = Looks(lambda: client.ask("status"))

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        check(self._gate, req)
        try:
            resp.data = await self._looks.newest()
        except Unavailable:  # whose words name sockets; and it is no refusal of the service's, to be counted as one
            resp.status = "503"
            resp.data = NO_ANSWER
        resp.content_type = "application/json"
        resp.set_header("cache-control", "no-store")
        resp.set_header("x-content-type-options", "nosniff")
        resp.set_header("cross-origin-resource-policy", "same-origin")

    on_head = on_get
