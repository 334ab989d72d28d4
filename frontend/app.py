"""The application, put together from its collaborators; nothing here reads the environment or starts anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import falcon.asgi

from engine.config.schema import Deployment
from frontend import errors, health
from frontend.broker import BrokerClient
from frontend.door import Door
from frontend.exchange import Application, Layer
from frontend.metrics import FrontendMetrics
from frontend.openapi import MetadataResource
from frontend.resources import Limits, MetricsResource, RouteResource
from frontend.swagger import SwaggerRedirect, SwaggerResource


class _Lifespan:
    """Starts the client in the event loop that will use it, and closes it after the last answer."""

    def __init__(self, client: BrokerClient) -> None:
        self._client = client

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await self._client.start()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await self._client.close()


def create(
    deployment: Deployment, client: BrokerClient, metrics: FrontendMetrics, door: Door, *, name: str
) -> Application:
    """The ASGI application of one frontend process.

    ``client`` is made and not started: the ASGI lifespan starts and closes it. ``door`` is shared with whoever decides
    to drain; ``name`` is this process's name at the broker.
    """
    frontend = deployment.frontend
    topology = deployment.topology
    metrics.pending = lambda: door.pending
    app = falcon.asgi.App(middleware=[_Lifespan(client)])
    errors.install(app)
    limits = Limits(
        timeout_s=frontend.timeout,
        max_request_size=frontend.max_request_size,
        body_timeout_s=frontend.body_timeout,
        compression=frontend.compression,
    )
    for index, route in enumerate(topology.routes):
        names, last = topology.stage_names(index), route.stages[-1]
        resource = RouteResource(index, names, last, client=client, door=door, limits=limits)
        app.add_route(route.path, resource)
    used = sorted({stage for route in topology.routes for stage in route.stages})
    app.add_route("/", health.Root(client, door))
    app.add_route("/healthz", health.Healthz())
    app.add_route("/readyz", health.Readyz(client, door, [topology.stages[stage] for stage in used]))
    app.add_route("/metrics", MetricsResource(client, metrics, name=name, namespace=deployment.engine.namespace))
    app.add_route("/openapi/metadata.json", MetadataResource(client, deployment))
    app.add_route("/openapi/swagger", SwaggerRedirect())
    swagger = SwaggerResource()
    app.add_route("/openapi/swagger/", swagger)
    app.add_route("/openapi/swagger/{name}", swagger)
    return Layer(app, metrics)  # type: ignore[arg-type]  # Falcon's narrower names for the same ASGI callables
