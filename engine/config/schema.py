"""Every key of ``stages.toml``, once: its type, default, unit, range and line of documentation.

The loader, the command-line flags, the environment variables and docs/reference.md are all derived from
these classes; nothing else in the project knows what keys exist. The values are frozen: a deployment is
read once and passed around.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final, get_type_hints

from engine.config.ways import after, splits
from engine.core.routing import Route, Topology


class Unit(Enum):
    """How a number is written in the file and what a bare one means."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    BYTES = "bytes"
    COUNT = "count"
    NONE = ""


class Form(Enum):
    """Which values a key takes where its Python type does not say it all; read in :mod:`engine.config.forms`."""

    PLAIN = "plain"
    DEPLOYMENT_NAME = "deployment name"
    STAGE_NAME = "stage name"
    CLASS = "module:Class"
    PATH = "HTTP path"
    STAGES = "stage names"
    ADDRESS = "listen address"
    BIND = "broker endpoint"
    BROKER = "brokers"
    FOLDER = "folder"
    FILE = "file"
    PREFIX = "metric prefix"
    DEVICE = "device"
    CPUS = "cpus"
    ENV = "environment"
    ARGS = "arguments"
    CACHE = "a table of size, ttl and key"
    WEAR = "time, batches or memory"
    SIZES = "batch sizes"
    WARM_UP = "warm-up"
    PROCESSES = "number of processes"
    CELLS = "number of brokers"
    DIGEST = "SHA-256 digest"
    MODELS = "names of models"
    ORIGINS = "origins"
    WEBHOOKS = "webhooks"
    FUNCTION = "module:function"
    METHODS = "HTTP methods"


ANY_ORIGIN: Final = "*"

# Who sees the page about the deployment.
LOCAL, EVERYBODY, NOBODY = "local", "all", "off"
JOBS: Final = "/jobs"  # where jobs are asked for, where there are any
PAGE: Final = "/ui"  # where that is, and everything below; not reserved, for services may have routes there

PRIORITIES: Final = ("high", "normal", "low")

# Whose API a route speaks.
PLAIN, OPENAI, OIP = "plain", "openai", "oip"
PROTOCOLS: Final = (PLAIN, OPENAI, OIP)

PATHS: Final = (Form.FOLDER, Form.FILE)  # a relative one is beside the file, or on the command line where one stands


@dataclass(frozen=True)
class Key:
    """What the loader and the reference need to know about one key, beyond its Python type."""

    doc: str
    unit: Unit = Unit.NONE
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    flag: bool = False  # also a command-line flag and an ENGINE_ variable of this name
    form: Form = Form.PLAIN


def setting(default: Any = MISSING, doc: str = "", **about: Any) -> Any:
    """A dataclass field with its Key; mutable defaults are given as a factory."""
    metadata = {"key": Key(doc, **about)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def key_of(item: Field[Any]) -> Key:
    about: Key = item.metadata["key"]
    return about


@dataclass(frozen=True)
class EngineSection:
    """``[engine]``: the deployment as a whole."""

    name: str = setting(
        "",
        "Name of the deployment; default: the folder of the file. One of a name runs at a time.",
        form=Form.DEPLOYMENT_NAME,
    )
    grace: float = setting(
        10.0,
        "Time to finish what is running when stopping.",
        unit=Unit.SECONDS,
        least=0,
        most=3600,
        flag=True,
    )
    bind: str = setting(
        "",
        "tcp://HOST:PORT the broker listens on, for processes on other hosts or started by hand; 0.0.0.0 and [::] are "
        "all addresses of its host. Empty: private ipc sockets in the run directory. `engine ports` says which ports "
        "from PORT upwards are used.",
        flag=True,
        form=Form.BIND,
    )
    broker: tuple[str, ...] = setting(
        (),
        "HOST:PORT by which all others reach the broker, or a list of several, a cell each; default: as `bind`, or "
        "this machine where `bind` is a wildcard. Names are looked up, and files read, with each new connection.",
        flag=True,
        form=Form.BROKER,
    )
    key: str = setting(
        "",
        "File with the secret by which what goes through the ports of `bind` is encrypted, and everybody else is kept "
        "out; `engine keys new` makes one, to be copied to every host.",
        flag=True,
        form=Form.FILE,
    )
    lanes: int = setting(
        256,
        "With `bind`: how many ports, behind those that have a fixed place, are for batches on their way to workers; "
        "each worker takes one.",
        unit=Unit.COUNT,
        least=1,
        most=16384,
    )
    insecure: bool = setting(
        False,
        "Without `key`: accepts that whoever reaches the ports of `bind`, at least every user of this machine, can "
        "read and answer requests, and stop the service. Values between stages are MessagePack and numpy arrays "
        "then, never pickle.",
    )
    run_dir: str = setting(
        "",
        "Private directory for sockets and the pid file; default: under $XDG_RUNTIME_DIR or /tmp.",
        flag=True,
        form=Form.FOLDER,
    )
    namespace: str = setting("engine", "Prefix of every metric's name.", flag=True, form=Form.PREFIX)
    log_level: str = setting(
        "info",
        "Least severe log level that is written.",
        choices=("debug", "info", "warning", "error"),
        flag=True,
    )
    log_format: str = setting(
        "auto",
        "Lines of the log as text or as JSON; auto: JSON where they do not go to a terminal.",
        choices=("auto", "text", "json"),
        flag=True,
    )
    threads: str = setting(
        "auto",
        "What carries the broker's parts: a thread per stage and one for the door, one for all, or auto: a thread per "
        "stage where `bind` admits other hosts and four CPUs or more may be used.",
        choices=("auto", "stage", "one"),
    )
    cells: int | str = setting(
        "auto",
        "Brokers, each with workers of every stage, between which the frontends choose: one carries some 100,000 small "
        "requests a second. Each has a queue of its own, so more of them than are needed cost batching; auto: one, and "
        "twice as many whenever they are full and the machine has workers and CPUs for more.",
        form=Form.CELLS,
    )
    shared_memory: int = setting(
        256 << 20,
        "Most memory, for each frontend and worker process, in which it hands large data "
        "(64 KiB and more) to the next stage, and as much of a GPU where tensors stay on it; 0 sends everything "
        "through sockets.",
        unit=Unit.BYTES,
        least=0,
        most=1 << 40,
    )
    max_attempts: int = setting(
        3, "How often an item is tried when workers die under it.", unit=Unit.COUNT, least=1, most=100
    )

    @property
    def is_open(self) -> bool:
        """Whoever reaches the broker's ports may speak there, so nothing may be unpickled that came through them."""
        return self.is_tcp and not self.key

    @property
    def is_tcp(self) -> bool:
        """The broker is reached by tcp, and may be on another host."""
        return bool(self.bind or self.broker)

    @property
    def first_cells(self) -> int:
        """How many a deployment begins with."""
        return self.cells if isinstance(self.cells, int) else 1

    @property
    def may_grow(self) -> bool:
        """There may be more brokers on this host while it runs than it began with."""
        return self.cells == "auto" and not self.is_tcp


@dataclass(frozen=True)
class FrontendSection:
    """``[frontend]``: the HTTP side."""

    address: str = setting(
        "0.0.0.0",
        "Host name, IPv4 or IPv6 address to listen on; 0.0.0.0: all IPv4 addresses of the machine, [::]: the IPv6 ones "
        "as well, 127.0.0.1: this machine alone.",
        flag=True,
        form=Form.ADDRESS,
    )
    port: int = setting(8000, "TCP port to listen on; 0 takes a free one.", least=0, most=65535, flag=True)
    workers: int | str = setting(
        "auto",
        "gunicorn worker processes; auto: as many as the CPUs carry beside the broker and the stages' workers, at most "
        "four for each cell, which is what one broker can keep up with.",
        form=Form.PROCESSES,
    )
    timeout: float = setting(
        3.0,
        "Default deadline of a request, and of one forward.",
        unit=Unit.SECONDS,
        least=0.001,
        most=86400,
        flag=True,
    )
    slo: float = setting(
        0.0,
        "Goal: within what time answers are worth having, of routes that set none. By it requests are ordered, and "
        "refused at once where they cannot be answered in it; one below what the model needs counts for nothing. "
        "0: the timeout.",
        unit=Unit.SECONDS,
        least=0,
        most=86400,
        flag=True,
    )
    capacity: int = setting(
        1024, "Requests admitted at once; past it 429.", unit=Unit.COUNT, least=1, most=10_000_000, flag=True
    )
    capacity_bytes: int = setting(
        1 << 30, "Bytes of request bodies held at once; past it 429.", unit=Unit.BYTES, least=1
    )
    idempotency_bytes: int = setting(
        64 << 20,
        "Bytes of answers kept for two minutes for requests that carry an Idempotency-Key; the oldest give way.",
        unit=Unit.BYTES,
        least=0,
    )
    max_request_size: int = setting(10 << 20, "Largest request body; past it 413.", unit=Unit.BYTES, least=1, flag=True)
    max_response_size: int = setting(
        64 << 20,
        "Largest answer that is given whole; a larger one is 500 and is for a stream.",
        unit=Unit.BYTES,
        least=1,
        flag=True,
    )
    max_header_size: int = setting(
        64 << 10, "Largest total of request headers; past it 431.", unit=Unit.BYTES, least=1024, most=1 << 20
    )
    header_timeout: float = setting(
        10.0, "Time for a client to send its request headers.", unit=Unit.SECONDS, least=0.1, most=3600
    )
    body_timeout: float = setting(
        30.0,
        "Longest pause while a client sends its body, and time that it may be behind 16 KiB/s.",
        unit=Unit.SECONDS,
        least=0.1,
        most=3600,
    )
    drain_delay: float = setting(
        0.0,
        "When stopping: how long the port stays open, with /readyz and new requests answered 503; "
        "behind a load balancer the seconds that it needs to look elsewhere.",
        unit=Unit.SECONDS,
        least=0,
        most=600,
        flag=True,
    )
    keepalive: float = setting(75.0, "How long an idle connection is kept open.", unit=Unit.SECONDS, least=0, most=3600)
    server: str = setting(
        "lean",
        "Who reads HTTP/1.1: lean answers plain requests in place and leaves the rest to gunicorn; asgi leaves it all.",
        choices=("lean", "asgi"),
    )
    access_log: str = setting(
        "off",
        "A line on standard output for each request to a route, and for whatever is refused, as text or as JSON.",
        choices=("off", "text", "json"),
        flag=True,
    )
    title: str = setting("", "What the OpenAPI document calls the service; default: the deployment's name.")
    version: str = setting("", "The version of the service that the OpenAPI document names; default: Stageline's.")
    compression: bool = setting(False, "Accept and send gzip and zstd bodies.", flag=True)
    ui: str = setting(
        LOCAL,
        "Who sees the live page of the deployment at /ui: local, clients on this machine that come through no proxy; "
        "all, whoever reaches the port; off, nobody. A file with a route there has no page.",
        choices=(LOCAL, EVERYBODY, NOBODY),
        flag=True,
    )
    errors: str = setting(
        "",
        "module:function that writes the bodies of errors, the module found beside the file or installed: "
        "(status, problem, route) -> (body, content type), or None for the usual one.",
        form=Form.FUNCTION,
    )
    api_keys: str = setting(
        "",
        "File of API keys, as `engine api-keys new` writes it: who asks without one of them is answered 401, but for "
        "/, /healthz and /readyz, and on this machine /metrics, /openapi and /ui. Empty: everybody may ask.",
        form=Form.FILE,
        flag=True,
    )
    cors: tuple[str, ...] = setting(
        (),
        'Whose pages may ask from a browser and read the answers: an origin or a list of them, or "*" for all. What '
        "tells about the service (/metrics, /openapi, /ui) stays closed to them.",
        form=Form.ORIGINS,
        flag=True,
    )
    jobs: str = setting(
        "",
        "File (SQLite) of jobs: requests that say `prefer: respond-async` are answered 202 at once, and their answers "
        "are fetched at /jobs. Empty: there are none.",
        form=Form.FILE,
        flag=True,
    )
    jobs_timeout: float = setting(
        3600.0, "Time for a job from its request to its answer.", unit=Unit.SECONDS, least=1, most=30 * 86400
    )
    jobs_kept: float = setting(
        3600.0, "How long the answer of a job is kept.", unit=Unit.SECONDS, least=1, most=30 * 86400
    )
    jobs_bytes: int = setting(
        1 << 30, "Most that the file of jobs holds; past it they are refused with 429.", unit=Unit.BYTES, least=1 << 20
    )
    webhooks: tuple[str, ...] = setting(
        (),
        "Where the client of a job may have it told, by `x-webhook-url`, that it is over: these URLs and what is below "
        "them. Empty: nowhere.",
        form=Form.WEBHOOKS,
    )
    certfile: str = setting(
        "",
        "PEM file with the certificate chain, to serve HTTPS; relative to the folder of stages.toml.",
        form=Form.FILE,
        flag=True,
    )
    keyfile: str = setting("", "PEM file with the private key; default: in certfile.", form=Form.FILE, flag=True)

    @property
    def processes(self) -> int:
        """How many serve. Where it is for the machine to say and nobody has asked it (engine.process), one."""
        return self.workers if isinstance(self.workers, int) else 1


@dataclass(frozen=True)
class StageSection:
    """``[[stage]]``: one Worker class and how it runs."""

    name: str = setting(doc="Name of the stage, unique in the file.", form=Form.STAGE_NAME)
    worker: str = setting(
        doc="module:Class, the module found beside the file or installed; or script.py:Class.", form=Form.CLASS
    )
    num: int = setting(
        1,
        "Worker processes; where the stage is scaled by its demand, with so many it begins, and with min = 0 it may "
        "begin with 0.",
        unit=Unit.COUNT,
        least=0,
        most=4096,
    )
    spare: int = setting(
        0,
        "Workers beyond num that are loaded, warm and given nothing, until one of num is missing: for models that load "
        "long.",
        unit=Unit.COUNT,
        least=0,
        most=4096,
    )
    min: int = setting(
        1,
        "Fewest workers where the stage is scaled by its demand. With 0 there may be none while nobody asks, and "
        "requests wait for one, as long as they can, instead of being answered 503.",
        unit=Unit.COUNT,
        least=0,
        most=4096,
    )
    max: int = setting(
        0,
        "Most workers: between min and max the stage is scaled by its demand. 0: it keeps to num (or, with min = 0, to "
        "num or none).",
        unit=Unit.COUNT,
        least=0,
        most=4096,
    )
    max_batch_size: int = setting(
        1, "Most items of one batch; 1 passes single values to forward.", unit=Unit.COUNT, least=1, most=65536
    )
    batch_sizes: tuple[int, ...] = setting(
        (),
        "The only sizes of lists that forward is given, for models compiled for these: a batch between two of them is "
        "padded. The largest is max_batch_size, which need not be written then. Empty: any size.",
        form=Form.SIZES,
    )
    max_batch_bytes: int = setting(
        64 << 20, "Most payload bytes of one batch; 1 GiB at the most.", unit=Unit.BYTES, least=1
    )
    max_batch_cost: int = setting(
        0,
        "Most that a batch costs where items cost unlike much: its costliest times their number, as models pad, in "
        "what the class's cost(value) counts (tokens, say), or in payload bytes where it has none. What costs more "
        "goes alone; who shares a batch costs nearly the same. 0: all items count alike.",
        unit=Unit.COUNT,
        least=0,
        most=10**15,
    )
    max_wait_time: float = setting(
        10.0,
        "Longest wait of the oldest item for its batch to fill, while a worker could take it; 0: who finds one idle "
        "does not wait.",
        unit=Unit.MILLISECONDS,
        least=0,
        most=600_000,
    )
    eager: bool = setting(
        True,
        "An idle worker gets what there is at once; where batches take long, several share it and begin evenly spaced, "
        "as far as that answers sooner. false waits for a full batch or max_wait_time.",
    )
    max_queue_bytes: int = setting(
        1 << 30,
        "Payload bytes waiting at this stage; past it 429. A value of more for it is 500.",
        unit=Unit.BYTES,
        least=1,
    )
    timeout: float = setting(
        0.0,
        "Time for one forward; the item that takes longer gets 408, those beside it another try; "
        "0: the frontend's timeout.",
        unit=Unit.SECONDS,
        least=0,
        most=86400,
    )
    kill_after: float = setting(
        0.0,
        "Further time before a worker stuck in forward is killed; 0: the timeout again.",
        unit=Unit.SECONDS,
        least=0,
        most=86400,
    )
    start_timeout: float = setting(
        600.0, "Time for a worker to load and warm up.", unit=Unit.SECONDS, least=1, most=86400
    )
    warm_up: str = setting(
        "auto",
        "What forward computes before the worker is ready, made of the class's example: batches of the sizes that may "
        "come, with auto for as long as loading took at most (2 to 10 s), or for the time given; or the examples "
        "alone. With either of the first two all batch_sizes, whatever that takes.",
        form=Form.WARM_UP,
    )
    recycle_after: str = setting(
        "",
        'Replace a worker by a fresh one after a time ("12 h"), a number of batches ("100000 batches") or at a size of '
        'memory ("8 GiB"), or at the first of several ("12 h, 8 GiB"): for models that leak.',
        form=Form.WEAR,
    )
    idempotent: bool = setting(True, "Items may be computed again after a worker died; false answers them 500 instead.")
    isolate: bool | None = setting(
        None, "Narrow an exception of a whole batch down by halving it; default: as idempotent."
    )
    device: str | Sequence[str] = setting(
        "auto",
        'What the workers compute on: "auto" takes the GPUs there are, else the CPU; a list is dealt out.',
        form=Form.DEVICE,
    )
    cpus: str | Sequence[int] | Sequence[Sequence[int]] = setting(
        "auto",
        '"auto" shares the machine\'s CPUs out, of many less some for the broker and the frontend; "all" pins nothing, '
        "a list pins; thread counts follow.",
        form=Form.CPUS,
    )
    env: Mapping[str, str] | Sequence[Mapping[str, str]] = setting(
        dict,
        "Environment variables of the workers: a table, or a list with one table per worker.",
        form=Form.ENV,
    )
    # Any: whatever JSON can say; the user's class gives it its types.
    args: Mapping[str, Any] = setting(dict, "Keyword arguments of the class's __init__.", form=Form.ARGS)
    cache: Mapping[str, Any] = setting(
        dict,
        "Results that are kept and given to whoever asks the same: a table of `size` (bytes, 64 MiB), `ttl` (1 h) and "
        "`key` (the field, or a list of fields, by which values are the same; left out: all of a value). Requests that "
        "ask the same at the same time are computed once.",
        form=Form.CACHE,
    )

    @property
    def is_scaled(self) -> bool:
        """Whether its number of workers is to follow its demand, from ``min`` to ``most``."""
        return bool(self.max) or not self.min

    @property
    def most(self) -> int:
        return self.max or self.num


@dataclass(frozen=True)
class RouteSection:
    """``[[route]]``: an HTTP path and the stages that serve it, in order."""

    path: str = setting(doc="HTTP path, beginning with a slash.", form=Form.PATH)
    stages: tuple[str, ...] = setting(
        doc="The stages, in order; a stage may serve several routes. A table among them says where a route branches: "
        "`{ by = FIELD, of = { TEXT = STAGES }, default = STAGES }`, one of several, by a field of the result before; "
        "`{ each = FIELD, through = STAGES, most = N }`, stages that each element of the list in a field passes by "
        "itself, before the stage behind the table gets all of them together; `{ all = { NAME = STAGES } }`, several "
        'branches side by side, likewise. With `failed = "hole"` an element or branch that fails is None there; '
        '`"request"`, the default: its request fails.',
        form=Form.STAGES,
    )
    slo: float = setting(
        0.0, "Goal of this route's requests; 0: the frontend's.", unit=Unit.SECONDS, least=0, most=86400
    )
    priority: str = setting(
        "normal",
        "Class of this route's requests: while not everybody can be served, lower ones leave room for higher ones.",
        choices=PRIORITIES,
    )
    protocol: str = setting(
        PLAIN,
        "Whose API the route speaks, where it is a known one: openai, OpenAI's, has its form of errors and its list of "
        "models beside it; oip, the Open Inference Protocol (KServe's and Triton's), has models by name, tensors, and "
        "pages about them; plain, none: errors are text or problem details.",
        choices=PROTOCOLS,
    )
    model: tuple[str, ...] = setting(
        (),
        "What the list of models of its API calls what this route serves, one name or a list; default: the "
        "deployment's name.",
        form=Form.MODELS,
    )


@dataclass(frozen=True)
class ClientSection:
    """``[[client]]``: one who asks, with another than an equal share. Needed for nothing else: whoever sends a token is
    told apart from others without it."""

    name: str = setting(doc="Name of the client, unique in the file.", form=Form.STAGE_NAME)
    token_sha256: str = setting(
        doc="SHA-256, in hexadecimal, of the token that it sends: `authorization: Bearer TOKEN` or `x-api-key: TOKEN`.",
        form=Form.DIGEST,
    )
    weight: int = setting(
        1, "Its share of what can be served, beside those of the others who ask; theirs is 1.", least=1, most=1000
    )
    priority: str = setting("", "Class of its requests; default: the route's.", choices=("", *PRIORITIES))


@dataclass(frozen=True)
class EndpointSection:
    """``[[endpoint]]``: a path that a function of the service's own answers, beside its stages."""

    path: str = setting(doc="HTTP path, beginning with a slash.", form=Form.PATH)
    handler: str = setting(
        doc="module:function, the module found beside the file or installed: it gets the request and gives the answer. "
        "It runs in the frontend, in a thread or, an `async def`, in the event loop.",
        form=Form.FUNCTION,
    )
    methods: tuple[str, ...] = setting(
        ("GET",),
        "HTTP methods that it answers; a route may have the same path, and POST.",
        form=Form.METHODS,
    )


CELLS_MOST: Final = 16
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")

DEFAULT_ROUTE: Final = "/inference"
RESERVED_PATHS: Final = ("/", "/healthz", "/readyz", "/metrics", "/openapi")  # and everything below /openapi


@dataclass(frozen=True)
class Deployment:
    """A whole, valid ``stages.toml``: defaults filled in, times in seconds, sizes in bytes."""

    file: Path  # absolute; the folder is where worker modules are looked for
    engine: EngineSection
    frontend: FrontendSection
    stages: tuple[StageSection, ...]
    routes: tuple[RouteSection, ...]
    clients: tuple[ClientSection, ...] = ()
    endpoints: tuple[EndpointSection, ...] = ()
    # Of the script that describes it, if one does: its modules may look at both when a worker imports them.
    argv: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    # How many cells there are now, where that is not the file's to say; 0: as many as it begins with.
    grown: int = 0

    @property
    def cells(self) -> int:
        """Brokers on this host, each with workers of every stage."""
        return self.grown or self.engine.first_cells

    @property
    def brokers(self) -> int:
        """The same, on this host or on others."""
        return max(self.cells, len(self.engine.broker))

    @property
    def keyed(self) -> int:
        """Those of them, the first ones, to which requests with an Idempotency-Key go: who has met a key before is
        still to be asked when there are more than there were then."""
        return max(self.engine.first_cells, len(self.engine.broker))

    @property
    def topology(self) -> Topology:
        index = {stage.name: position for position, stage in enumerate(self.stages)}
        routes = tuple(
            Route(
                route.path,
                tuple(index[name] for name in route.stages),
                after(route.stages, index),
                splits(route.stages, index),
            )
            for route in self.routes
        )
        cached = {index[stage.name]: tuple(stage.cache["key"]) for stage in self.stages if stage.cache}
        return Topology(tuple(index), routes, cached)

    @property
    def paths(self) -> tuple[str, ...]:
        """Those of the service's own: of routes and endpoints, each once."""
        return tuple(dict.fromkeys([*(route.path for route in self.routes), *(own.path for own in self.endpoints)]))

    @property
    def has_page(self) -> bool:
        """Somebody may see the live page: it is not turned off, and no route of the service is where it would be."""
        taken = any(f"{path}/".startswith(f"{PAGE}/") for path in self.paths)
        return self.frontend.ui != NOBODY and not taken

    def stage(self, name: str) -> StageSection:
        return next(stage for stage in self.stages if stage.name == name)


SECTIONS: Final = {
    "engine": EngineSection,
    "frontend": FrontendSection,
    "stage": StageSection,
    "route": RouteSection,
    "client": ClientSection,
    "endpoint": EndpointSection,
}


def keys(section: type) -> dict[str, Key]:
    return {item.name: key_of(item) for item in fields(section)}


def types(section: type) -> dict[str, Any]:
    """The Python type of each key, as :func:`typing.get_type_hints` gives it (hence the ``Any``)."""
    return get_type_hints(section)


def default(item: Field[Any]) -> Any:
    """The default of a key's field; MISSING for one that must be given."""
    return item.default if item.default_factory is MISSING else item.default_factory()
