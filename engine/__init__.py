"""Stageline: machine-learning models served as pipelines of batched stages, without losing a request.

What a service imports stands here (``from engine import Server, Worker, ValidationError``) and is loaded on first use,
so that ``import engine`` costs nothing and the supervisor never sees zmq, Falcon or torch.

The code, from the bottom up; a module imports only what stands above it:

    names               which top-level names are ours, whatever lies in the user's folder
    errors              every error, split by who broke the rule; imports nothing
    exitcodes           what the exit codes of commands mean
    clock               monotonic time, and a deadline through several waits
    core/               the rules, pure: values and ``now`` in, decisions out
      arena               shared memory as values: blocks, references, who may use what when
      messages, wire      what crosses sockets, and its bytes
      routing             which stage comes next
      about               what a stage says of itself, for OpenAPI
      items, batching, stage, front, stats
                          queues, batches, credits, admission and replay: the broker's decisions
      backoff, lifecycle, placement
                          restarts, the order of starting and stopping, CPUs and GPUs: the supervisor's decisions
    config/             stages.toml: schema, loading, flags, the reference page
    sink                writes that wait for no reader
    loader, log         the user's class; one line per event
    metrics             metric families of all processes, merged
    metrictext          the page they become
    specs               what the machines of core need to know of a deployment, out of its file
    simulation/         those machines with workers that compute by a table, in time that is only counted
    ports               at which ports a deployment listens: `engine ports`
    graph               its stages and routes as a drawing: `engine graph`
    keyfile             the key file: read, watched, made
    apikeyfile          the file of API keys: read, and written by `engine api-keys`
    curve               sockets that let in who has the deployment's secret: ZeroMQ's encryption
    transport           endpoints and sockets: the only module that knows ZeroMQ's other options
    broker/             the broker process: threads around core
    memory              shared memory mapped: filled by who produces, viewed by who reads
    handles             how descriptors of a GPU's memory get from process to process
    cells               the brokers of several cells as one
    joined              what they answer to one question, as one answer
    addresses           by which address a broker is reached whose host has a name
    client, admin       the broker seen from a frontend, and from a command
    descriptors         how many files and sockets a process may have open
    cgroups, cpus, nearby, oom, proc, usage
                        what the system tells of its bounds and of processes
    titles              what processes are called where people look for them
    tracing             OpenTelemetry, where its variables ask for it
    process, signals, supervisor/
                        child processes: started, watched, restarted, stopped
    onray/              the parts of a deployment where a Ray cluster has room: `engine up F --on ray`
    planning/           how many workers a goal takes: `engine plan`
    doctor/             what is wrong here, and what to do about it: `engine doctor`
    bench/              how fast a service is, seen from outside: `engine bench`
    render/             how other systems run a deployment: `engine render`
    server              the Python API: the same deployment, described by calls
    mixin, runtime, worker
                        names of server and stages where a service written for Mosec looks for them
    __main__, cli, commands/, bootstrap
                        the ``engine`` command, each of what it can do, and how it and a child process begin
    testing             for tests of a service: a stage, all of them in a process, a deployment over HTTP
    templates/          what `engine init` writes: data, not modules of ours
    status, top, why, logs   what it shows of a running deployment

The HTTP side is the package ``frontend``; the worker process, and the ``Worker`` class that services subclass, is the
package ``stages``. docs/architecture.md tells the life of a request and which invariant is held where.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from engine.names import hold

if TYPE_CHECKING:
    from engine.errors import (
        ClientError,
        DecodingError,
        EncodingError,
        EngineError,
        EngineTimeoutError,
        ServerError,
        ValidationError,
        WorkerBroken,
    )
    from engine.log import get_logger
    from engine.server import Runtime, Server
    from stages.base import Worker
    from stages.stream import SSEWorker, StreamWorker
    from stages.tensors import Tensor
    from stages.ways import Done, Skip

    __version__: str

__all__ = [
    "ClientError",
    "DecodingError",
    "Done",
    "EncodingError",
    "EngineError",
    "EngineTimeoutError",
    "Runtime",
    "SSEWorker",
    "Server",
    "ServerError",
    "Skip",
    "StreamWorker",
    "Tensor",
    "ValidationError",
    "Worker",
    "WorkerBroken",
    "__version__",
    "get_logger",
]

_HOMES: Final = {
    "Server": "engine.server",
    "Runtime": "engine.server",
    "Worker": "stages.base",
    "SSEWorker": "stages.stream",
    "StreamWorker": "stages.stream",
    "Tensor": "stages.tensors",
    "Done": "stages.ways",
    "Skip": "stages.ways",
    "get_logger": "engine.log",
    "EngineError": "engine.errors",
    "ClientError": "engine.errors",
    "DecodingError": "engine.errors",
    "ValidationError": "engine.errors",
    "ServerError": "engine.errors",
    "EncodingError": "engine.errors",
    "EngineTimeoutError": "engine.errors",
    "WorkerBroken": "engine.errors",
}

hold("engine", "stages")  # before anything of a service is imported that may lie under one of these names


def __getattr__(name: str) -> Any:  # PEP 562; a public name can be of any type
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("stageline")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
