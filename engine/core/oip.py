"""The Open Inference Protocol, version 2 over HTTP, as far as nobody has to look at a tensor. Pure.

A body is JSON, or JSON and behind it the bytes of tensors; then the header ``Inference-Header-Content-Length`` says how
long the JSON is (Triton's binary tensor extension; 0: no JSON, all of the body is the one input). Of that JSON a
frontend reads the :class:`Asked` and passes over the inputs: the deadline has to be known at the door, and what the
answer is to look like at the last stage of the route, which never sees the body. The inputs are the first stage's
(:mod:`stages.oip`).

The protocol: github.com/kserve/open-inference-protocol; its extensions: Triton's docs/protocol.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

import msgspec

LENGTH: Final = "inference-header-content-length"
VERSION: Final = "1"  # of every model: which one is served is the deployment's affair
ASKED_MAX: Final = 16 * 1024  # bytes of what a request asks for beside its inputs: every stage gets it
INDEX_MAX: Final = 1024  # outputs that a request may name

_PATH: Final = re.compile(r"/v2/models/([A-Za-z0-9._-]{1,128})/infer")
_ALL: Final = "stats"  # /v2/models/stats is those of all models

_OWN: Final = frozenset(
    {"cudasharedmemory", "health", "logging", "models", "repository", "systemsharedmemory", "trace"}
)

Parameter: TypeAlias = str | int | float | bool | None


class Malformed(ValueError):
    """A request is not what the protocol says; the message is for its client."""


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """What a request says beside its inputs. ``length``: bytes of the JSON at the begin of its body; 0: all of it is
    the one input. ``outputs``: those that are wanted, and whether as bytes; None: all, as ``binary`` says.
    ``parameters``: those that the protocol has no meaning for."""

    model: str
    length: int
    id: str = ""
    outputs: list[tuple[str, bool]] | None = None
    binary: bool = False
    parameters: dict[str, Parameter] = {}


class Terms(msgspec.Struct, frozen=True):
    """On which a request wants to be served. ``timeout_s`` 0, ``priority`` 0: it does not say. 1 is the highest."""

    timeout_s: float = 0.0
    priority: int = 0


class _Wanted(msgspec.Struct):
    name: str
    parameters: dict[str, Parameter] | None = None


class _Envelope(msgspec.Struct):
    id: str | None = None
    parameters: dict[str, Parameter] | None = None
    outputs: Annotated[list[_Wanted], msgspec.Meta(max_length=INDEX_MAX)] | None = None


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input or output of a model, as its metadata says it. ``shape``: -1 for what varies."""

    name: str
    datatype: str
    shape: list[int]
    optional: bool = False


class _Error(msgspec.Struct):
    error: str


_error_decoder = msgspec.json.Decoder(_Error)
_decoder = msgspec.json.Decoder(_Envelope)
_encode = msgspec.msgpack.Encoder().encode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_SEQUENCES: Final = frozenset({"sequence_id", "sequence_start", "sequence_end"})


def is_about(path: str) -> bool:
    """Whether a path is one of the protocol's own, known or not: about models, the server, or what other servers have.
    Others below /v2/ may be anybody's (Cohere's are)."""
    first, _, rest = path[1:].partition("/")
    return first == "v2" and (rest.partition("/")[0] in _OWN or not rest)


def model_of(path: str) -> str | None:
    """The model whose inferences are asked for at this path; None for a path that is none of that kind."""
    match = _PATH.fullmatch(path)
    return match[1] if match is not None and match[1] != _ALL else None


def json_length(header: bytes | None, size: int) -> int:
    """Bytes of the JSON in a body of ``size``; ``header`` as it came, None: there is none. Raises Malformed."""
    if header is None:
        return size
    if not header.isdigit() or len(header) > 18:
        raise Malformed(f"{LENGTH} takes a number of bytes")
    if (length := int(header)) > size:
        raise Malformed(f"{LENGTH} is {length}, and the body has {size} bytes")
    return length


def read(model: str, body: bytes | bytearray | memoryview, header: bytes | None) -> tuple[Asked, Terms]:
    """What a request asks for. ``header``: see :func:`json_length`. Raises Malformed."""
    length = json_length(header, len(body))
    if header is not None and not length:
        return Asked(model, 0, binary=True), Terms()
    try:
        envelope = _decoder.decode(body if length == len(body) else memoryview(body)[:length])
    except msgspec.ValidationError as error:
        raise Malformed(f"the request is not one of the protocol's: {error}") from None
    except _UNREADABLE as error:
        raise Malformed(f"the JSON of the request cannot be read: {error}") from None
    own = dict(envelope.parameters or {})
    if _SEQUENCES & own.keys() and own.get("sequence_id"):
        raise Malformed("sequences are not served: each request stands for itself")
    for name in _SEQUENCES:
        own.pop(name, None)
    terms = Terms(_natural(own, "timeout") / 1e6, _natural(own, "priority"))
    binary = _flag(own, "binary_data_output", default=False)
    outputs = None
    if envelope.outputs:  # none are all, as for Triton
        outputs = [(wanted.name, _wanted(wanted, binary)) for wanted in envelope.outputs]
        if len({name for name, _ in outputs}) < len(outputs):
            raise Malformed("an output is asked for twice")
    asked = Asked(model, length, envelope.id or "", outputs, binary, own)
    try:
        fits = len(_encode(asked)) <= ASKED_MAX
    except OverflowError:  # an integer that takes more than 64 bits
        raise Malformed("a parameter is too large a number") from None
    if not fits:
        raise Malformed(f"id, parameters and outputs may have {ASKED_MAX} bytes together")
    return asked, terms


def _wanted(wanted: _Wanted, binary: bool) -> bool:
    """Whether an output is wanted as bytes."""
    parameters = wanted.parameters or {}
    if any(name.startswith("shared_memory") for name in parameters):
        raise Malformed(f"output {wanted.name!r}: shared memory is not served")
    if parameters.get("classification"):
        raise Malformed(f"output {wanted.name!r}: classification is not served")
    return _flag(parameters, "binary_data", default=binary)


def _natural(parameters: dict[str, Parameter], name: str) -> int:
    """A parameter that counts, taken out of them; 0 where it is not among them."""
    value = parameters.pop(name, None)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise Malformed(f"parameter {name!r} takes an integer from 0 on")
    return value


def _flag(parameters: dict[str, Parameter], name: str, *, default: bool) -> bool:
    value = parameters.pop(name, None)
    if value is None:
        return default
    if type(value) is not bool:
        raise Malformed(f"parameter {name!r} takes true or false")
    return value


def is_error(body: bytes | memoryview) -> bool:
    """Whether clients can read this body of an error."""
    try:
        return bool(_error_decoder.decode(body).error)
    except _UNREADABLE:
        return False


def error(text: str) -> bytes:
    """The body of an error."""
    return _encode_json({"error": text})


_encode_json = msgspec.json.Encoder().encode
