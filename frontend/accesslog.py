"""The access log: a line for each request to a route and for whatever is refused, on standard output.

Probes of health and scrapes of metrics are not requests: they would be most of it. A query is not told, for there are
services whose clients put secrets there, and nothing that a client says can begin a line of its own.

Lines are written together at the end of the event loop's turn in which they were made, so a busy process makes few
writes. Who does not read them costs lines and not the service (:class:`engine.log.Output`).
"""

from __future__ import annotations

import asyncio
import json
import re
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final

from engine.clock import Deadline
from engine.log import JSON, STUCK_S, Output, visible

OFF: Final = "off"
BUFFER_MOST: Final = 256 << 10  # bytes that are held for one turn

# A metric of server-timing as frontend.timing writes it: its name, milliseconds, and perhaps a word.
_METRIC: Final = re.compile(r'([^;,\s]+)(?:;desc="([^"]*)")?(?:;dur=([0-9.]+))?(?:;desc="([^"]*)")?')


def peer(address: object) -> str:
    """Who is at the other end of a connection; "" for a socket without addresses. Behind a proxy that is the proxy."""
    return str(address[0]) if isinstance(address, tuple | list) and address else ""


def times_of(timing: str) -> tuple[dict[str, float], dict[str, str]]:
    """Milliseconds by name out of a server-timing header of ours, and the words beside some. Pure."""
    durations, words = {}, {}
    for name, before, duration, behind in _METRIC.findall(timing):
        if duration:
            durations[name] = float(duration)
        if word := before or behind:
            words[name] = word
    return durations, words


def line(
    form: str,
    at: float,
    *,
    client: str,
    method: str,
    path: str,
    status: int,
    came: int,
    sent: int,
    took_s: float,
    request_id: str,
    timing: str,
    reason: str,
    key: str = "",
) -> str:
    """One line, without its end. ``at``: seconds of the wall clock; ``key``: the name of the API key. Pure."""
    moment = datetime.fromtimestamp(at, tz=timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    durations, words = times_of(timing)
    total_ms = durations.pop("total", round(took_s * 1e3, 2))
    if form == JSON:
        told: dict[str, Any] = {
            "time": moment,
            "client": client,
            "method": method,
            "path": path,
            "status": status,
            "request_bytes": came,
            "response_bytes": sent,
            "ms": total_ms,
            "request_id": request_id,
        }
        if durations:
            told["stages_ms"] = durations
        if words:
            told["why"] = words
        if reason:
            told["reason"] = reason
        if key:
            told["key"] = key
        return json.dumps(told)
    fields: Mapping[str, object] = {
        **{name: f"{ms:g}" + (f"({words[name]})" if name in words else "") for name, ms in durations.items()},
        **({"reason": reason} if reason else {}),
        **({"key": key} if key else {}),
        "id": request_id,
    }
    rest = " ".join(f"{name}={value}" for name, value in fields.items())
    return visible(f"{moment} {client or '-'} {method} {path} {status} {came}B {sent}B {total_ms:g}ms {rest}")


def _pieces(lines: Sequence[str]) -> Iterator[tuple[bytes, int]]:
    """Whole lines, as many as a pipe takes at once, and how many they are."""
    piece, count = b"", 0
    for text in lines:
        data = text.encode("utf-8", "backslashreplace") + b"\n"
        if count and len(piece) + len(data) > select.PIPE_BUF:
            yield piece, count
            piece, count = b"", 0
        piece, count = piece + data, count + 1
    if count:
        yield piece, count


class AccessLog:
    """Used by the event loop of one frontend process."""

    def __init__(self, form: str, output: Output) -> None:
        """``form``: text or json."""
        self._form = form
        self._output = output
        self._lines: list[str] = []
        self._size = 0
        self.failed = 0  # lines that could not be written

    def note(self, **about: Any) -> None:  # Any: see line(), whose words these are
        """A request that is over."""
        text = line(self._form, time.time(), **about)
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        self._lines.append(text)
        self._size += len(text)
        if self._size > BUFFER_MOST:
            self.flush()

    def flush(self) -> None:
        """Write what waits, for STUCK_S at most. In pieces of whole lines, which do not tear on a pipe that several
        processes write to."""
        lines, self._lines, self._size = self._lines, [], 0
        patience, written = Deadline(STUCK_S), 0
        for piece, count in _pieces(lines):
            if written and patience.passed:
                break
            written += count
            try:
                self._output.write(piece, count)
            except OSError:  # its reader has gone, or the disk is full
                self.failed += count
        self.failed += len(lines) - written

    @property
    def lost(self) -> int:
        """Lines that nobody has."""
        return self.failed + self._output.lost
