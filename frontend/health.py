"""Is it alive, is it ready? What is said is decided by pure functions; a page only asks the client.

``/`` and ``/healthz`` are about this process and its event loop, ``/readyz`` about the deployment behind it: ready
means that a request to any route would find a warmed-up worker at every stage, or one that is started for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import falcon.asgi
import msgspec

from engine.core.call import BrokerClient
from engine.core.link import View
from engine.core.routing import Topology
from frontend.answer import UNKNOWN_S, Reply, retry_after
from frontend.exchange import Exchange
from frontend.gate import Gate
from frontend.handlers import fill
from frontend.head import Head

_encode = msgspec.json.Encoder().encode


def liveness(draining: bool) -> tuple[int, dict[str, Any]]:
    """Status and document of ``GET /``."""
    return (503, {"status": "draining"}) if draining else (200, {"status": "ok"})


def readiness(view: View, stages: Sequence[str], draining: bool) -> tuple[int, dict[str, Any]]:
    """Status and document of ``GET /readyz``; ``stages`` are those that some route uses."""
    known = {stage.name: stage for stage in view.stages}
    # A stage that may be without workers takes requests all the same.
    served = all((stage := known.get(name)) is not None and (stage.ready or not stage.least) for name in stages)
    listed = [
        {
            "name": name,
            "ready": stage.ready if (stage := known.get(name)) else 0,
            "wanted": stage.wanted if stage else 0,
            "starting": stage.starting if stage else 0,
        }
        for name in stages
    ]
    draining = draining or view.draining
    # What was said before the connection was lost is shown, and believed no more.
    ready = view.connected and not draining and served
    status = "ready" if ready else "draining" if draining else "not ready"
    document = {"status": status, "connected": view.connected, "draining": draining, "stages": listed}
    return (200 if ready else 503), document


def pages(
    topology: Topology, client: BrokerClient, gate: Gate, *, speaks_oip: bool = False
) -> dict[str, Callable[[], Reply]]:
    """What these paths answer at the moment; with those of the Open Inference Protocol, where some route speaks it."""
    used = sorted({stage for route in topology.routes for stage in route.stages})
    stages = [topology.stages[stage] for stage in used]

    def root() -> Reply:
        view = client.view()
        return _reply(*liveness(gate.draining or (view.connected and view.draining)))

    def ready() -> Reply:
        status, document = readiness(client.view(), stages, gate.draining)
        if status == 200:
            return _reply(200, {"ready": True})
        return _reply(status, {"ready": False, "error": f"service unavailable: {document['status']}"})

    protocols = {"/v2/health/live": lambda: _reply(200, {"live": True}), "/v2/health/ready": ready}
    return {
        "/": root,  # 503 while draining, so that a balancer sends nothing more
        "/healthz": lambda: _reply(*liveness(False)),  # 200 as long as this process answers at all
        "/readyz": lambda: _reply(*readiness(client.view(), stages, gate.draining)),
        **(protocols if speaks_oip else {}),
    }


def _reply(status: int, document: dict[str, Any]) -> Reply:
    headers = [("cache-control", "no-store")]
    if status == 503:
        headers += retry_after(UNKNOWN_S)
    return Reply(status, "application/json", _encode(document), headers)


class Root:
    """``GET /``, which leads a browser to the page about the deployment, if it may see that; as others ask, it says
    whether this process lives. While that is draining everybody is told so."""

    def __init__(self, page: Callable[[], Reply], gate: Gate | None) -> None:
        """``gate``: None where there is no such page."""
        self._page = page
        self._gate = gate

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        reply, exchange, gate = self._page(), Exchange.of(req.scope), self._gate
        fill(resp, reply)
        if gate is None or (head := exchange.head) is None or not is_browser(head):
            return
        if reply.status == 200 and gate.shows(head, req.scope.get("client"), is_old=exchange.is_old):
            resp.status = "303"
            resp.set_header("location", "ui/")
            resp.set_header("vary", "accept")

    on_head = on_get


def is_browser(head: Head) -> bool:
    """Whether a request is a browser's, for a page."""
    return b"text/html" in head.accept.lower()


class Resource:
    """``GET`` and ``HEAD`` of such a page."""

    def __init__(self, page: Callable[[], Reply]) -> None:
        self._page = page

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        fill(resp, self._page())

    on_head = on_get
