"""The application, put together from its collaborators; nothing here reads the environment or starts anything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import falcon.asgi

from engine.config.schema import JOBS, PAGE, Deployment
from engine.core.call import BrokerClient
from frontend import asking, health, models, oip, ui
from frontend.answer import Answering
from frontend.cors import Cors
from frontend.endpoints import Endpoint, Handler, Places
from frontend.exchange import Application, Layer
from frontend.files import Redirect
from frontend.gate import Gate
from frontend.handlers import Handlers
from frontend.jobs.resources import JobResource, Jobs, ResultResource
from frontend.jobs.runner import Runner
from frontend.metrics import FrontendMetrics
from frontend.openapi import MetadataResource
from frontend.resources import Collaborators, MetricsResource, RouteResource
from frontend.swagger import SwaggerResource
from frontend.waiting import last_stages

if TYPE_CHECKING:
    from frontend.tracing import Traces


class _Lifespan:
    """Starts the client in the event loop that will use it, and closes it after the last answer; then the last spans
    are sent."""

    def __init__(self, client: BrokerClient, traces: Traces | None, runner: Runner | None, places: Places) -> None:
        self._places = places
        self._client = client
        self._traces = traces
        self._runner = runner

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await self._client.start()
        if self._runner is not None:
            await self._runner.start()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        if self._runner is not None:
            await self._runner.close()
        await self._client.close()
        self._places.close()
        if self._traces is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._traces.close)


def _runner(deployment: Deployment, client: BrokerClient, gate: Gate, answering: Answering) -> Runner:
    frontend, topology = deployment.frontend, deployment.topology
    once = {stage.name for stage in deployment.stages if not stage.idempotent}
    return Runner(
        frontend.jobs,
        client,
        gate,
        [route.path for route in topology.routes],
        answering.last_events,
        once={route.path for index, route in enumerate(topology.routes) if once & set(topology.stage_names(index))},
        kept_s=frontend.jobs_kept,
        most=frontend.max_response_size,
        tells=bool(frontend.webhooks),
    )


class Nothing:
    """A resource that has what endpoints add to it."""


def create(
    deployment: Deployment,
    client: BrokerClient,
    metrics: FrontendMetrics,
    gate: Gate,
    answering: Answering,
    *,
    name: str,
    handlers: Mapping[str, Handler] = MappingProxyType({}),
) -> Application:
    """The ASGI application of one frontend process.

    ``client`` is made and not started: the ASGI lifespan starts and closes it. ``gate`` is shared with whoever decides
    to drain; ``name`` is this process's name at the broker; ``handlers`` are the functions of endpoints, by path.
    """
    frontend = deployment.frontend
    topology = deployment.topology
    metrics.pending = lambda: gate.pending
    runner = _runner(deployment, client, gate, answering) if frontend.jobs else None
    metrics.jobs = runner
    jobs = Jobs(runner, frontend, topology) if runner is not None else None
    places = Places()
    app = falcon.asgi.App(middleware=[_Lifespan(client, metrics.traces, runner, places)])
    Handlers(answering).install(app)
    shared = Collaborators(client, gate, answering, frontend.body_timeout, frontend.compression, metrics.traces, jobs)
    resources: dict[str, object] = {}

    def draining() -> bool:
        view = client.view()
        return gate.draining or (view.connected and view.draining)

    served = asking.models(deployment.routes)
    for index, route in enumerate(topology.routes):
        model = served.get(route.path, "")
        resources[route.path] = RouteResource(index, last_stages(topology, index), shared, model)
    for own in deployment.endpoints:
        resource = resources.setdefault(own.path, Nothing())
        endpoint = Endpoint(handlers[own.path], gate, places, draining=draining, pause_s=frontend.body_timeout)
        endpoint.on(resource, own.methods)
    for path, resource in resources.items():
        app.add_route(path, resource)
    if jobs is not None:
        app.add_route(f"{JOBS}/{{id}}", JobResource(jobs))
        app.add_route(f"{JOBS}/{{id}}/result", ResultResource(jobs, answering))
    since = models.created(deployment)
    for path, names in models.lists(deployment).items():
        listed = models.ModelsResource(names, deployment.engine.name, since)
        app.add_route(path, listed)
        app.add_route(f"{path}/{{name:path}}", listed)  # a name may have slashes
    speaking = oip.Models(deployment, client, metrics, gate, name=name)
    oip.install(app, speaking)
    pages = health.pages(topology, client, gate, speaks_oip=bool(speaking.routes))
    app.add_route("/", health.Root(pages.pop("/"), gate if deployment.has_page else None))
    for path, page in pages.items():
        app.add_route(path, health.Resource(page))
    app.add_route("/metrics", MetricsResource(client, metrics, name=name, namespace=deployment.engine.namespace))
    app.add_route("/openapi/metadata.json", MetadataResource(client, deployment))
    app.add_route("/openapi/swagger", Redirect("swagger"))
    swagger = SwaggerResource()
    app.add_route("/openapi/swagger/", swagger)
    app.add_route("/openapi/swagger/{name}", swagger)
    if deployment.has_page:
        app.add_route(PAGE, ui.PageRedirect(gate))
        files = ui.PageResource(gate)
        app.add_route(f"{PAGE}/", files)
        app.add_route(f"{PAGE}/data", ui.DataResource(client, gate))
        app.add_route(f"{PAGE}/{{name}}", files)
    aliases = asking.aliases(deployment.routes)
    cors = Cors(frontend.cors) if frontend.cors else None
    return Layer(app, metrics, answering, gate, aliases, cors)  # type: ignore[arg-type]  # Falcon's narrower names for the same callables
