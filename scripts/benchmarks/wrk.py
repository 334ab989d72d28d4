"""wrk, the closed-loop client: how it is called, and what its report says. Only :func:`run` touches the system."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TIMEOUT_S: Final = 30  # of one request; wrk's own default of 2 s would drop slow answers from the latencies

_UNITS_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
_PERCENTILE: Final = re.compile(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s|m|h)\s*$", re.MULTILINE)
_TOTAL: Final = re.compile(r"^\s*(\d+) requests in ([\d.]+)(us|ms|s|m|h),", re.MULTILINE)
_ERRORS: Final = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_NOT_2XX: Final = re.compile(r"Non-2xx or 3xx responses: (\d+)")


@dataclass(frozen=True)
class Report:
    """One run of wrk."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    not_2xx: int
    cpu_us: float = 0.0  # of wrk itself, for each request

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def client_threads(connections: int, cpus: int | None = None) -> int:
    """As many as the client needs not to be what is measured, and the machine can spare."""
    return max(1, min(4, connections, (cpus or os.cpu_count() or 1) // 4))


def parse(output: str) -> Report:
    """What ``wrk --latency`` printed. Raises ValueError when it is something else."""
    total = _TOTAL.search(output)
    percentiles = {int(q): float(value) * _UNITS_MS[unit] for q, value, unit in _PERCENTILE.findall(output)}
    if total is None or not {50, 99} <= percentiles.keys():
        raise ValueError(f"not a report of wrk --latency: {output!r}")
    errors = _ERRORS.search(output)
    not_2xx = _NOT_2XX.search(output)
    return Report(
        requests=int(total[1]),
        seconds=float(total[2]) * _UNITS_MS[total[3]] / 1000,
        p50_ms=percentiles[50],
        p99_ms=percentiles[99],
        errors=sum(map(int, errors.groups())) if errors else 0,
        not_2xx=int(not_2xx[1]) if not_2xx else 0,
    )


@dataclass(frozen=True)
class Head:
    """Fields of every request beside the usual ones.

    Each ``%012x`` in a value is a number: of the request where the head is ``changing``, else always the same one, made
    by the same work of wrk's.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    changing: bool = False

    @property
    def numbers(self) -> int:
        return sum(value.count(NUMBER) for value in self.fields.values())


NUMBER: Final = "%012x"
USUAL: Final = Head()


def script(body: str, head: Head = USUAL, bodies: Sequence[str] = ()) -> str:
    """wrk's Lua script for a POST of JSON. A JSON string is a Lua string, but for escapes that bodies here lack.
    ``bodies``: sent in turns, in the place of one; not beside a head with numbers.

    Raises ValueError for a body with ``%`` where numbers are put into the request.
    """
    fields = {"Content-Type": "application/json", **head.fields}
    lines = ['wrk.method = "POST"', f"wrk.body = {json.dumps(body)}"]
    lines += [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in fields.items()]
    if head.numbers:
        if "%" in body:
            raise ValueError("a body with % beside fields with numbers")
        numbers = ", ".join(["number"] * head.numbers)
        lines += [
            "local whole, number",
            "function init() whole, number = wrk.format(), 0 end",
            f"function request() number = number + {int(head.changing)} return string.format(whole, {numbers}) end",
        ]
    if bodies:
        lines += [
            f"local bodies, whole, turn = {{{', '.join(map(json.dumps, bodies))}}}, {{}}, 0",
            'function init() for at, body in ipairs(bodies) do whole[at] = wrk.format("POST", nil, nil, body) end end',
            "function request() turn = turn % #whole + 1 return whole[turn] end",
        ]
    return "\n".join(lines) + "\n"


def command(url: str, *, connections: int, seconds: float, script: Path) -> list[str]:
    """One thread: it makes more requests than any system here answers, and the systems need the other CPUs.

    wrk knows whole seconds only: ``seconds`` is rounded up.
    """
    return [
        "wrk", f"-t{client_threads(connections)}", f"-c{connections}", f"-d{math.ceil(seconds)}s", "--latency",
        "--timeout", f"{TIMEOUT_S}s", "-s", str(script), url,
    ]  # fmt: skip


def run(
    url: str,
    body: str,
    *,
    connections: int,
    seconds: float,
    folder: Path,
    head: Head = USUAL,
    bodies: Sequence[str] = (),
) -> Report:
    """Run wrk. Raises RuntimeError when it is missing, fails, or an answer was not 200: that is no measurement."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is missing; on Debian: apt-get install wrk")
    lua = folder / "post.lua"
    lua.write_text(script(body, head, bodies))
    before = _children_s()
    told = subprocess.run(
        command(url, connections=connections, seconds=seconds, script=lua),
        capture_output=True, text=True, check=False, timeout=seconds + TIMEOUT_S + 10,
    )  # fmt: skip
    if told.returncode != 0:
        raise RuntimeError(f"wrk failed: {told.stderr or told.stdout}")
    report = parse(told.stdout)
    if report.errors or report.not_2xx:
        raise RuntimeError(f"{url}: {report.not_2xx} answers were not 200, {report.errors} socket errors")
    return dataclasses.replace(report, cpu_us=(_children_s() - before) / max(report.requests, 1) * 1e6)


def _children_s() -> float:
    """CPU seconds of the children waited for so far: nobody else ends while wrk runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
