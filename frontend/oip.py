"""The pages of the Open Inference Protocol: what there is of models, whether it is ready, how much it has done.

They are there where some route speaks it. What other servers of the protocol have beside (memory shared with clients,
loading and unloading, their traces and logs) is answered 501.

A model is a whole route, in one version. Its inputs are those of the route's first stage and its outputs those of the
last, as these stages say (:mod:`stages.oip`). The shapes in its configuration are whole ones, as clients send them:
``max_batch_size`` is 0, which says so; which requests are computed together is no affair of theirs. Everything but the
resources is pure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import falcon.asgi
import msgspec

from engine import __version__
from engine.config.schema import OIP, Deployment, RouteSection
from engine.core import about, oip
from engine.core.call import BrokerClient
from engine.core.link import View
from engine.core.oip import Tensor
from engine.errors import ProtocolError, Unavailable
from engine.metrics import Family, merge, unpack, unpack_sources
from frontend import errors, health
from frontend.errors import Problem, Refusal
from frontend.gate import Gate
from frontend.inference import outputs_of
from frontend.metrics import FrontendMetrics
from frontend.waiting import last_stages

log = logging.getLogger("stageline.frontend")

Json = dict[str, Any]  # Any: documents, whose shape the protocol says

PLATFORM: Final = "stageline"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
UNSUPPORTED: Final = Problem("unsupported", 501, "not implemented: this server has no such thing")
NO_VERSION: Final = Problem("version_not_found", 404, f"not found: models have the version {oip.VERSION} alone")
NOT_READY: Final = Problem("not_ready", 503, "service unavailable: the model is not ready", retry_after_s=1)

_STATES: Final = {True: "READY", False: "UNAVAILABLE"}
_ELSEWHERE: Final = (
    r"/v2/(?:systemsharedmemory|cudasharedmemory|trace|logging|repository/models|models/[^/]+/trace)(?:/|\Z)"
)

_encode = msgspec.json.Encoder().encode


# --- documents -------------------------------------------------------------------------------------------------------


def metadata(model: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Json:
    def told(tensors: Sequence[Tensor]) -> list[Json]:
        return [{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in tensors]

    return {
        "name": model,
        "versions": [oip.VERSION],
        "platform": PLATFORM,
        "inputs": told(inputs),
        "outputs": told(outputs),
    }


def configuration(model: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Json:
    def told(tensors: Sequence[Tensor], **more: Any) -> list[Json]:
        return [
            {"name": one.name, "data_type": _in_full(one.datatype), "dims": one.shape}
            | ({"optional": one.optional} if more else {})
            for one in tensors
        ]

    return {
        "name": model,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": 0,
        "input": told(inputs, optional=True),
        "output": told(outputs),
    }


def _in_full(datatype: str) -> str:
    """As Triton's configuration has it."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def statistics(model: str, path: str, stages: Sequence[str], families: Iterable[Family], namespace: str) -> Json:
    """What metrics say of one model, ``path`` and ``stages`` being its route's. Times in nanoseconds.

    Requests are the route's own, with how long they took; the parts of that time are its stages', which may serve other
    routes too.
    """
    values: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in families:
        for sample in family.samples:
            values.setdefault(sample.name.removeprefix(f"{namespace}_"), []).append((sample.labels, sample.value))

    def total(name: str, **labels: str) -> float:
        return sum(value for given, value in values.get(name, ()) if labels.items() <= given.items())

    def of_stages(name: str) -> float:
        return sum(total(name, stage=stage) for stage in stages)

    done = total("throughput_total", endpoint=path, code="200")
    answered = total("throughput_total", endpoint=path)
    seconds = total("request_duration_second_sum", endpoint=path)
    executions = total("batch_size_count", stage=stages[-1])
    batches = of_stages("batch_size_count")

    def part(count: float, seconds: float) -> Json:
        return {"count": int(count), "ns": int(seconds * 1e9)}

    nothing = part(0, 0.0)
    forward, busy = of_stages("worker_forward_seconds_total"), of_stages("worker_busy_seconds_total")
    return {
        "name": model,
        "version": oip.VERSION,
        "last_inference": 0,  # when that was is not kept
        "inference_count": int(done),
        "execution_count": int(executions),
        "inference_stats": {
            "success": part(done, seconds * done / answered if answered else 0.0),
            "fail": part(answered - done, seconds * (answered - done) / answered if answered else 0.0),
            "queue": part(batches, of_stages("batch_duration_second_sum")),
            "compute_input": nothing,
            "compute_infer": part(batches, forward),
            "compute_output": part(batches, max(busy - forward, 0.0)),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
    }


# --- resources -------------------------------------------------------------------------------------------------------


class Models:
    """The models of a deployment, and what is asked about them."""

    def __init__(
        self, deployment: Deployment, client: BrokerClient, metrics: FrontendMetrics, gate: Gate, *, name: str
    ) -> None:
        """``name``: this process's at the broker."""
        self.routes = {
            model: route
            for route in deployment.routes
            if route.protocol == OIP and (model := oip.model_of(route.path)) is not None
        }
        self._ends = {
            route.path: last_stages(deployment.topology, number) for number, route in enumerate(deployment.routes)
        }
        self.server = deployment.engine.name or PLATFORM
        self._namespace = deployment.engine.namespace
        self._client = client
        self._metrics = metrics
        self._gate = gate
        self._name = name

    def route(self, model: str, version: str = oip.VERSION) -> RouteSection:
        """Raises Refusal: 404."""
        if model not in self.routes:
            raise Refusal(errors.NO_MODEL)
        if version != oip.VERSION:
            raise Refusal(NO_VERSION)
        return self.routes[model]

    def is_ready(self, route: RouteSection) -> bool:
        view: View = self._client.view()
        return health.readiness(view, route.stages, self._gate.draining)[0] == 200

    async def tensors(self, route: RouteSection) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and outputs. Raises Refusal, 503, while its stages have not said them."""
        first, *ends = route.stages[0], *self._ends[route.path]
        try:
            said = about.unpack_all(await self._client.ask("about"))
            known = {stage: about.unpack(said[stage]) for stage in (first, *ends)}
        except Unavailable:
            raise Refusal(errors.UNREACHABLE) from None
        except KeyError:
            raise Refusal(NOT_READY) from None
        except ProtocolError as error:
            log.error("models: %s", error)
            raise Refusal(errors.UNREACHABLE) from None
        return known[first].request.tensors or [], outputs_of(known, ends) or []

    async def statistics(self, models: Iterable[str]) -> Json:
        """Of these models. Raises Refusal, 503."""
        try:
            sources = unpack_sources(await self._client.ask("metrics"))
            others = [data for name, data in sources.frontends if name != self._name]
            groups = [unpack(data) for data in (sources.broker, sources.retired, *others)]
        except Unavailable:
            raise Refusal(errors.UNREACHABLE) from None
        except ProtocolError as error:
            log.error("statistics of models: %s", error)
            raise Refusal(errors.UNREACHABLE) from None
        families = merge([self._metrics.families(), *groups])
        routes = [(model, self.routes[model]) for model in models]
        return {
            "model_stats": [
                statistics(model, route.path, route.stages, families, self._namespace) for model, route in routes
            ]
        }


class Server:
    """``GET /v2``: about the server."""

    def __init__(self, models: Models) -> None:
        self._document = _encode({"name": models.server, "version": __version__, "extensions": EXTENSIONS})

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.content_type, resp.data = "application/json", self._document

    on_head = on_get


class Model:
    """``GET /v2/models/NAME``, and below it, ``/ready``, ``/config`` and ``/stats``, with a version or without."""

    def __init__(self, models: Models, what: str) -> None:
        self._models = models
        self._what = what

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, model: str, version: str = oip.VERSION
    ) -> None:
        models, route = self._models, self._models.route(model, version)
        document: Json
        if self._what == "ready":
            if not models.is_ready(route):
                raise Refusal(NOT_READY)
            document = {"name": model, "ready": True}
        elif self._what == "stats":
            document = await models.statistics([model])
        elif self._what == "config":
            document = configuration(model, *await models.tensors(route))
        else:
            document = metadata(model, *await models.tensors(route))
        _show(resp, document)

    on_head = on_get


def _show(resp: falcon.asgi.Response, document: Json) -> None:
    resp.content_type, resp.data = "application/json", _encode(document)
    resp.set_header("cache-control", "no-cache")


class Statistics:
    """``GET /v2/models/stats``: of all models."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        document = await self._models.statistics(self._models.routes)
        _show(resp, document)

    on_head = on_get


class Index:
    """``POST /v2/repository/index``: all models, and whether they are ready."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.content_type = "application/json"
        resp.data = _encode(
            [
                {
                    "name": model,
                    "version": oip.VERSION,
                    "state": "READY" if self._models.is_ready(route) else "UNAVAILABLE",
                }
                for model, route in self._models.routes.items()
            ]
        )


class Unknown:
    """``POST`` of inferences to a model, or a version, that there is not."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def on_post(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, model: str, version: str = oip.VERSION
    ) -> None:
        self._models.route(model, version)
        raise Refusal(errors.NOT_FOUND)  # what there is has been led elsewhere


async def _unsupported(req: falcon.asgi.Request, resp: falcon.asgi.Response | None, **_: Any) -> None:
    raise Refusal(UNSUPPORTED)


def install(app: falcon.asgi.App[Any, Any], models: Models) -> None:
    """Add all of it to an application, if there are models."""
    if not models.routes:
        return
    app.add_route("/v2", Server(models))
    app.add_route("/v2/", Server(models))
    app.add_route("/v2/models/stats", Statistics(models))
    app.add_route("/v2/repository/index", Index(models))
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        app.add_route(base, Model(models, "metadata"))
        for what in ("ready", "config", "stats"):
            app.add_route(f"{base}/{what}", Model(models, what))
        app.add_route(f"{base}/infer", Unknown(models))
    app.add_sink(_unsupported, _ELSEWHERE)
