"""Types out of the annotations of ``forward``, and what a stage says about itself from them.

``list[T]`` stands for one ``T`` per request where the stage batches. No annotation, or ``Any``, is no type: nothing is
checked and nothing is promised to clients. Results that are exceptions fail one request each, so they are left out of
the type of an answer.
"""

from __future__ import annotations

import inspect
import logging
import re
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from msgspec.structs import replace

from engine.core import sse
from engine.core.about import About, Boundary, Component, Schema, pack, rewritten, with_refs
from engine.core.messages import Flow
from engine.log import get_logger
from stages import models
from stages.base import Worker, reads_itself
from stages.form import MULTIPART, File
from stages.stream import flow_of, whole_mime_of

ABOUT_MAX: Final = 1 << 20  # bytes; more is a generated monster that no page can show
EXAMPLE_MAX: Final = 64 << 10  # bytes; of a larger one nothing is learned by reading it

_BATCHES: Final = (list, Sequence, Collection, Iterable)  # what a parameter or result of a batch may be declared as
_BYTES: Final = (bytes, bytearray, memoryview)
_JSON: Final = re.compile(r"application/(?:[^;]*\+)?json\b")
_MSGPACK: Final = re.compile(r"application/(?:x-|vnd\.)?msgpack\b")


# --- types -----------------------------------------------------------------------------------------------------------


def request_type(worker: Worker) -> Any:
    """What ``forward`` takes of one request; Any without an annotation. Raises NameError for a name that is not
    there."""
    names = list(inspect.signature(worker.forward).parameters)
    return _one(_hint(worker, names[0]), worker) if names else Any


def response_type(worker: Worker) -> Any:
    """What ``forward`` gives for one request; Any without an annotation. Raises NameError likewise."""
    return _without_errors(_one(_hint(worker, "return"), worker))


def _hint(worker: Worker, name: str) -> Any:
    """One annotation, its strings resolved: a mistake in another one must not matter."""
    function = inspect.unwrap(getattr(worker.forward, "__func__", worker.forward))
    annotations = inspect.get_annotations(function)
    if name not in annotations:
        return Any
    alone = types.SimpleNamespace(__annotations__={name: annotations[name]})
    return get_type_hints(alone, getattr(function, "__globals__", {}), include_extras=True)[name]


def _one(kind: Any, worker: Worker) -> Any:
    """The part of a batch's type that concerns one request."""
    if worker.max_batch_size == 1 or get_origin(kind) not in _BATCHES:
        return Any if worker.max_batch_size > 1 and kind in _BATCHES else kind
    (inner,) = get_args(kind)
    return inner


def _without_errors(kind: Any) -> Any:
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    parts = [part for part in get_args(kind) if not (isinstance(part, type) and issubclass(part, BaseException))]
    return reduce(or_, parts) if parts else Any


# --- a stage's description -------------------------------------------------------------------------------------------


def describe(worker: Worker, *, first: bool, last: bool, example: bytes | None = None) -> bytes:
    """The stage's :class:`engine.core.about.About`, packed. ``first``, ``last``: it is that on some route. ``example``:
    a body that it takes.

    Never fails: what cannot be described is left out, with a warning where it would have been shown.
    """
    about = About(
        request=_tensors(_request(worker, example) if first else Boundary(""), worker, first=True),
        response=_tensors(_answer(worker) if last else Boundary(""), worker, first=False),
        doc=inspect.cleandoc(type(worker).__doc__ or ""),
    )
    try:
        packed = pack(about)
    except (TypeError, ValueError, RecursionError) as error:  # a default or example in a schema that JSON cannot say
        get_logger().warning("the schemas of %s are left out: %s", type(worker).__name__, error)
        return _bare(about)
    if len(packed) > ABOUT_MAX:
        get_logger().warning("the schemas of %s are left out: %d bytes", type(worker).__name__, len(packed))
        return _bare(about)
    return packed


def _bare(about: About) -> bytes:
    request, response = about.request, about.response
    return pack(
        About(
            Boundary(request.mime, tensors=request.tensors),
            Boundary(response.mime, stream=response.stream, tensors=response.tensors),
            about.doc[:10_000],
        )
    )


def _tensors(side: Boundary, worker: Worker, *, first: bool) -> Boundary:
    """With what it is to the Open Inference Protocol, where a route of the stage's speaks that."""
    known = worker._tensors
    if known is None:
        return side
    return replace(side, tensors=(known.inputs if first else known.outputs).described())


def _request(worker: Worker, example: bytes | None) -> Boundary:
    side = _boundary(worker, _request_mime(worker, example), request_type, "validation")
    return replace(side, example=example) if example and len(example) <= EXAMPLE_MAX else side


def _request_mime(worker: Worker, example: bytes | None) -> str:
    """JSON is what a class says that says nothing; of one whose own ``deserialize`` takes bodies as they are, such as
    pictures, it is not true."""
    if worker.req_mime_type != Worker.req_mime_type or not reads_itself(worker):
        return worker.req_mime_type
    try:
        is_raw = example is not None or request_type(worker) in _BYTES
    except (TypeError, NameError, AttributeError, SyntaxError, ValueError):  # said by _boundary
        is_raw = False
    return "application/octet-stream" if is_raw else worker.req_mime_type


def _answer(worker: Worker) -> Boundary:
    flow = flow_of(worker)
    if flow is Flow.WHOLE:
        return _boundary(worker, worker.resp_mime_type, response_type, "serialization")
    if flow is Flow.UNKNOWN:
        return replace(_boundary(worker, whole_mime_of(worker), response_type, "serialization"), stream=sse.MIME)
    # What forward returns or yields is not the body; that it is declared says that the class speaks of its types.
    mime = sse.MIME if flow is Flow.EVENTS else worker.resp_mime_type
    function = inspect.unwrap(getattr(worker.forward, "__func__", worker.forward))
    if "return" not in getattr(function, "__annotations__", {}):
        return Boundary(mime)
    return Boundary(mime, {"type": "string"} if mime.startswith("text/") else {"type": "string", "format": "binary"})


def _boundary(worker: Worker, mime: str, type_of: Any, mode: models.Mode) -> Boundary:
    try:
        kind = type_of(worker)
        if kind is Any or kind is inspect.Parameter.empty:
            return Boundary(mime)
        if not _JSON.match(mime) and not _MSGPACK.match(mime) and (raw := _raw(kind, mime)) is not None:
            return Boundary(mime, raw)
        schema, named = models.schemas(kind, mode)
    # Annotations are the user's: names that do not exist, types that no schema can say.
    except (TypeError, NameError, AttributeError, SyntaxError, ValueError, RecursionError) as error:
        side = "request" if mode == "validation" else "response"
        text = " ".join(str(error).split())
        # A type that JSON Schema cannot say, an array in a stage with its own `serialize`, is no mistake.
        level = logging.INFO if isinstance(error, TypeError) else logging.WARNING
        get_logger().log(level, "no schema of the %s of %s: %s", side, type(worker).__name__, text)
        return Boundary(mime)
    if mime == MULTIPART:
        schema, named = _with_files(schema, named)
    if _MSGPACK.match(mime):
        schema, named = _binary(schema), {name: _binary(one) for name, one in named.items()}
    return _named_by_module(mime, schema, named, kind)


def _raw(kind: Any, mime: str) -> Schema | None:
    """A body that is no value of JSON's: text, or bytes such as an image."""
    if kind is str or (mime.startswith("text/") and kind is bytes):
        return {"type": "string"}
    return {"type": "string", "format": "binary"} if kind in _BYTES else None


def _with_files(schema: Schema, named: Mapping[str, Schema]) -> tuple[Schema, dict[str, Schema]]:
    """A form, in which a file is its bytes."""
    (file,) = models.schemas(File, "validation")[1].values()
    files = {name for name, one in named.items() if one == file}

    def change(node: Schema) -> Schema:
        is_file = str(node.get("$ref", "")).rpartition("/")[2] in files
        return {"type": "string", "format": "binary"} if is_file else node

    return rewritten(schema, change), {name: rewritten(one, change) for name, one in named.items() if name not in files}


def _binary(schema: Schema) -> Schema:
    """MessagePack has bytes of its own: what JSON says in base64 it does not."""

    def change(node: Schema) -> Schema:
        if node.get("contentEncoding") == "base64":
            return {**{key: value for key, value in node.items() if key != "contentEncoding"}, "format": "binary"}
        return node

    changed: Schema = rewritten(schema, change)
    return changed


def _named_by_module(mime: str, schema: Schema, named: dict[str, Schema], kind: Any) -> Boundary:
    """Components keyed by module and name, as far as the class behind a name is found."""
    modules: dict[str, set[str]] = {}
    for cls in models.classes(kind):
        modules.setdefault(cls.__name__, set()).add(cls.__module__)
    ids: dict[str, str] = {}
    components: dict[str, Component] = {}
    for name, body in named.items():
        (module,) = modules[name] if len(modules.get(name, ())) == 1 else ("",)
        ids[name] = f"{module}.{name}" if module else name
        components[ids[name]] = Component(name, body, module)

    def change(node: Schema) -> Schema:
        return with_refs(node, ids)

    renamed = {key: Component(one.name, rewritten(one.schema, change), one.module) for key, one in components.items()}
    return Boundary(mime, rewritten(schema, change), renamed)
