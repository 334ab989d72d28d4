"""What a request of the Open Inference Protocol asks for, read before it is submitted, for both ways in. Pure.

Of its body only the JSON is looked at, and of that not the inputs: what is a tensor, its stages decide. The time that
this takes grows with the JSON all the same, and whoever serves others meanwhile has long ones read in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from engine.config.schema import OIP, RouteSection
from engine.core import oip
from engine.core.messages import Qos
from engine.core.oip import Asked
from frontend.errors import Problem, Refusal
from frontend.head import Head

INLINE_MAX: Final = 64 * 1024  # bytes of JSON that others can wait for: about 0.1 ms
LENGTH: Final = oip.LENGTH.encode()

_LOWEST: Final = 2  # of the classes of service; 0 is the highest


def models(routes: Iterable[RouteSection]) -> dict[str, str]:
    """The models that are served, by the paths of their routes."""
    return {route.path: oip.model_of(route.path) or "" for route in routes if route.protocol == OIP}


def aliases(routes: Iterable[RouteSection]) -> dict[str, str]:
    """Other paths of these routes: those that name the version."""
    return {f"/v2/models/{model}/versions/{oip.VERSION}/infer": path for path, model in models(routes).items()}


def is_long(head: Head, size: int) -> bool:
    """Whether reading a body of ``size`` takes too long for others to wait. Of a length that is none: no."""
    try:
        return oip.json_length(_length(head), size) > INLINE_MAX
    except oip.Malformed:
        return False


def read(model: str, head: Head, body: bytes | memoryview) -> tuple[Asked, oip.Terms]:
    """What a request for this model asks for. Raises Refusal: 400."""
    try:
        return oip.read(model, body, _length(head))
    except oip.Malformed as error:
        raise Refusal(Problem("bad_inference", 400, f"bad request: {error}")) from None


def _length(head: Head) -> bytes | None:
    found = [value for name, value in head.fields if name == LENGTH]
    if len(found) > 1:
        raise oip.Malformed(f"{oip.LENGTH} stands there twice")
    return found[0] if found else None


def within(terms: oip.Terms, timeout_s: float) -> float:
    """The time of a request that has ``timeout_s`` by its head."""
    return min(terms.timeout_s, timeout_s) if terms.timeout_s else timeout_s


def standing(terms: oip.Terms, qos: Qos | None) -> Qos | None:
    """How it wants to be served, by its head and by itself: 1 is the highest class, 2 the usual one, others the lowest;
    like a header it asks for no more than its route has."""
    if terms.priority < 2:
        return qos
    priority = min(terms.priority - 1, _LOWEST)
    return Qos(priority=priority) if qos is None else Qos(qos.slo_us, max(qos.priority, priority), qos.client)
