"""server-timing: where a request's time went, by stage, for the client's own eyes (W3C Server Timing). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from engine.core.wire import unpack_trail

HEADER: Final = "server-timing"

_NOT_TOKEN: Final = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")


def labels(stages: Sequence[str]) -> tuple[str, ...]:
    """Stage names as server-timing tokens; done once per route."""
    return tuple(_NOT_TOKEN.sub("-", name) for name in stages)


def header(trail: bytes, stages: Sequence[str], total_s: float) -> str:
    """The header's value, in milliseconds: for each hop the time in the queue, from leaving it until ``forward`` began,
    and in ``forward``; then the whole. A trail that stops early (a failed stage) gives what there is."""
    parts = [
        f"{name}-queue;dur={queue / 1000:.2f}, {name}-batch;dur={batch / 1000:.2f}, {name};dur={compute / 1000:.2f}"
        for name, (queue, batch, compute) in zip(stages, unpack_trail(trail), strict=False)
    ]
    parts.append(f"total;dur={total_s * 1000:.2f}")
    return ", ".join(parts)
