"""server-timing: where a request's time went and why, by stage, for the client's own eyes (W3C Server Timing). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from engine.core.messages import Refused
from engine.core.reasons import NAMES, codes_of
from engine.core.wire import unpack_trail

HEADER: Final = "server-timing"

# What stands behind a queue's time, by the code of why the batch left it.
REASONS: Final = tuple(f';desc="{name}"' if name else "" for name in NAMES)

_NOT_TOKEN: Final = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")


def labels(stages: Sequence[str]) -> tuple[str, ...]:
    """Stage names as server-timing tokens; done once per route."""
    return tuple(_NOT_TOKEN.sub("-", name) for name in stages)


def header(trail: bytes, stages: Sequence[str], total_s: float) -> str:
    """The header's value, in milliseconds: for each hop the time in the queue and why it ended, from leaving it until
    ``forward`` began, and in ``forward``; then the whole. A trail that stops early (a failed stage) gives what there
    is, and a stage that a request did not pass has nothing in it."""
    parts = [
        f"{name}-queue;dur={queue / 1000:.2f}{REASONS[code]}, "
        f"{name}-batch;dur={batch / 1000:.2f}, {name};dur={compute / 1000:.2f}"
        for name, (queue, batch, compute), code in zip(stages, unpack_trail(trail), codes_of(trail), strict=False)
        if queue or batch or compute or code
    ]
    parts.append(f"total;dur={total_s * 1000:.2f}")
    return ", ".join(parts)


def refused(why: Refused) -> str:
    """The header's value for a refusal, or the beginning of it. Where a request would have been late: in how long it
    was expected to be done, and how long it had."""
    said = f'refused;desc="{_NOT_TOKEN.sub("-", why.reason)}"'
    return f"{said};dur={why.needs_ms}, allowed;dur={why.had_ms}" if why.needs_ms else said
