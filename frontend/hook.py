"""A form of errors of the service's own: ``[frontend] errors``, a function that writes their bodies.

    def body(status: int, problem: dict, route: str):
        return {"message": problem["detail"], "id": problem["request_id"]}, "application/json"

It is called in the event loop, for every error that does not bring a body of its own, and decides about words alone:
status and headers stay what they are. What it gives is looked at: when it fails, or gives no body, the client gets what
it would have got without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from frontend import media

BYTES_MOST: Final = 1 << 20  # as of an error class's own body
# Any: a JSON document in; what user code gives back, out.
Function: TypeAlias = Callable[[int, dict[str, Any], str], Any]

_encode = msgspec.json.Encoder().encode

log = logging.getLogger("stageline.frontend")


class Hook:
    """Such a function, guarded."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._told: set[str] = set()  # by the types of what it failed with, so that the log is not flooded

    def written(self, status: int, said: str, request_id: str, reason: str, route: str) -> tuple[str, bytes] | None:
        """Content type and body; None: as without it, which it may ask for by giving None. ``route``: its path, "" of
        what is none."""
        problem = media.problem(status, said, request_id) | {"reason": reason}
        try:
            given = self._function(status, problem, route)
            return None if given is None else _read(given)
        except Exception as error:  # user code
            self._tell(error)
        return None

    def _tell(self, error: Exception) -> None:
        kind = type(error).__name__
        if kind not in self._told and len(self._told) < 16:
            self._told.add(kind)
            log.error("the function of [frontend] errors failed, and is passed over", exc_info=error)


def _read(given: object) -> tuple[str, bytes]:
    """Raises TypeError or ValueError, in words for whoever wrote it."""
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], str):
        raise TypeError(f"expected (body, content type) or None, got {type(given).__name__}")
    body, mime = given
    data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else _encode(body)
    if media.content_type(mime) != mime:
        raise ValueError(f"{mime!r:.100} is no content type")
    if len(data) > BYTES_MOST:
        raise ValueError(f"a body of {len(data)} bytes, where {BYTES_MOST} are the most")
    return mime, data
