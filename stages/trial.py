"""A request to try: the first stage's ``example`` as a body, for the OpenAPI document, and in a ``curl`` for the last
line of a start.

Only where the body is certain: encoded by the inverse of the very ``deserialize`` that will read it, and read back
once; or an example of bytes, where a class's own ``deserialize`` leaves it as it is. A line for a shell shows a class
that reads bodies in its own way with the name of a file in the body's place.
"""

from __future__ import annotations

import base64
import shlex
from typing import Any, Final

from stages.base import Worker, is_ours, reads_itself
from stages.build import examples

BODY_MAX: Final = 1500  # bytes; a longer line is not one to copy

URL: Final = "{url}"  # stands for the address, once: who knows it puts it in
FILE: Final = f"curl {URL} --data-binary @FILE"


def trial(worker: Worker) -> str | None:
    """A command line for a shell; None where the class reads plain JSON and has no example that is one."""
    if reads_itself(worker):
        return f"{FILE}  # FILE: a body that {type(worker).__name__}.deserialize reads"
    body = example_body(worker)
    if body is None or len(body) > BODY_MAX:
        return None
    header = "" if worker.req_mime_type == Worker.req_mime_type else f" -H 'content-type: {worker.req_mime_type}'"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable() and not text.startswith("@"):  # which curl takes for the name of a file
        return f"curl {URL}{header} -d {shlex.quote(text)}"
    return f"echo {base64.b64encode(body).decode()} | base64 -d | curl {URL}{header} --data-binary @-"


def tensors_trial(worker: Worker) -> str | None:
    """The same for a route that speaks the Open Inference Protocol."""
    body = tensors_body(worker)
    return None if body is None or len(body) > BODY_MAX else f"curl {URL} -d {shlex.quote(body.decode())}"


def tensors_body(worker: Worker) -> bytes | None:
    """A request of that protocol like the stage's first example; None where that is not certain."""
    try:
        value = next(iter(_values(worker)))
    except BaseException:  # no example; what the user's class says of it
        return None
    return worker._tensors.example_body(value) if worker._tensors is not None else None


def example_body(worker: Worker) -> bytes | None:
    """A body that the stage reads as its first example; None where that is not certain."""
    try:
        value = next(iter(_values(worker)))
        if reads_itself(worker):  # the one inverse that is known is of what changes nothing: files
            is_as_sent = isinstance(value, bytes) and worker.deserialize(value) == value
            return value if is_as_sent and value else None
        body: bytes = _serialize(worker)(worker, value)
        if _has_nan(value):  # JSON has no word for it, and would say null
            return None
        worker.deserialize(body)
    except BaseException:  # no example; not of the format's types; or it means something only after `deserialize`
        return None
    return body or None


def _has_nan(value: Any) -> bool:  # Any: whatever an example may be
    if isinstance(value, float):
        return value != value
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_nan, value))


def _values(worker: Worker) -> Any:  # of whatever type the user's class takes
    found = examples(worker)
    return found if worker.max_batch_size == 1 else [value for example in found[:1] for value in example]


def _serialize(worker: Worker) -> Any:
    """The inverse of its ``deserialize``: what the class of ours that brings that one has beside it."""
    return next(
        vars(cls)["serialize"] for cls in type(worker).__mro__ if is_ours(cls.__module__) and "serialize" in vars(cls)
    )
