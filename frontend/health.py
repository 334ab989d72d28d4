"""Is it alive, is it ready? What is said is decided by pure functions; the resources only ask the client and write.

``/`` and ``/healthz`` are about this process and its event loop, ``/readyz`` about the deployment behind it: ready
means that a request to any route would find a warmed-up worker at every stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import falcon.asgi
import msgspec

from engine.core.call import BrokerClient
from engine.core.link import View
from frontend.answer import UNKNOWN_S, retry_after
from frontend.gate import Gate

_encode = msgspec.json.Encoder().encode


def liveness(draining: bool) -> tuple[int, dict[str, Any]]:
    """Status and document of ``GET /``."""
    return (503, {"status": "draining"}) if draining else (200, {"status": "ok"})


def readiness(view: View, stages: Sequence[str], draining: bool) -> tuple[int, dict[str, Any]]:
    """Status and document of ``GET /readyz``; ``stages`` are those that some route uses."""
    known = {stage.name: stage for stage in view.stages}
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
    ready = view.connected and not draining and all(entry["ready"] for entry in listed)
    status = "ready" if ready else "draining" if draining else "not ready"
    document = {"status": status, "connected": view.connected, "draining": draining, "stages": listed}
    return (200 if ready else 503), document


def _write(resp: falcon.asgi.Response, status: int, document: dict[str, Any]) -> None:
    resp.status = str(status)
    resp.content_type = "application/json"
    resp.data = _encode(document)
    resp.set_header("cache-control", "no-store")
    if status == 503:
        for name, value in retry_after(UNKNOWN_S):
            resp.set_header(name, value)


class Root:
    """``GET /``: 200, and 503 while draining, so that a balancer sends nothing more."""

    def __init__(self, client: BrokerClient, gate: Gate) -> None:
        self._client = client
        self._gate = gate

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        view = self._client.view()
        _write(resp, *liveness(self._gate.draining or (view.connected and view.draining)))

    on_head = on_get


class Healthz:
    """``GET /healthz``: 200 as long as this process answers at all."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        _write(resp, *liveness(False))

    on_head = on_get


class Readyz:
    """``GET /readyz``."""

    def __init__(self, client: BrokerClient, gate: Gate, stages: Sequence[str]) -> None:
        self._client = client
        self._gate = gate
        self._stages = stages

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        _write(resp, *readiness(self._client.view(), self._stages, self._gate.draining))

    on_head = on_get
