"""A service to measure, as a value: which work in which stages, batched how, under which paths. Pure.

Each adapter reads the same value (JSON in ``BENCH_SERVICE``) and builds it with its own system's means.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVICE_VARIABLE = "BENCH_SERVICE"  # the service as JSON, for adapters that build it in Python


@dataclass(frozen=True)
class Stage:
    """``work`` names a class of :mod:`benchmarks.work` or :mod:`benchmarks.pages`. ``max_wait_ms`` 0 leaves the system
    its default. ``each``: it takes the elements of that field of what the stage before returns, one by one, and the
    stage behind gets them together again; Stageline's alone."""

    work: str
    num: int = 1
    max_batch_size: int = 1
    max_wait_ms: int = 0
    each: str = ""


@dataclass(frozen=True)
class Service:
    """A chain of stages under one or more paths: all paths go through the same workers."""

    stages: tuple[Stage, ...]
    paths: tuple[str, ...] = ("/inference",)
    capacity: int = 8192  # requests admitted at once; far above what a closed loop keeps open
    timeout_s: float = 30.0  # a slow answer is a result; a timeout would hide it
    broker_threads: str = "auto"  # Stageline's alone, and so are:
    cells: int = 0  # as by itself
    slos_ms: tuple[float, ...] = ()  # of each path; 0 or left out: none
    adapter: str = "stageline_service.py"
    slo_s: float = 0.0

    @property
    def workers(self) -> int:
        return sum(stage.num for stage in self.stages)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Service:
        """Inverse of :meth:`to_json`. Raises ValueError or TypeError for anything else."""
        told: dict[str, Any] = json.loads(text)
        stages = tuple(Stage(**stage) for stage in told.pop("stages"))
        return cls(stages=stages, paths=tuple(told.pop("paths")), slos_ms=tuple(told.pop("slos_ms")), **told)


def stages_toml(service: Service, adapter: Path) -> str:
    """The service as Stageline's own file. ``adapter`` is the script that holds the Worker classes."""
    lines = [
        "[engine]",
        'name = "bench"',
        "grace = 3.0",
        'log_level = "warning"',
        f'threads = "{service.broker_threads}"',
        *([f"cells = {service.cells}"] if service.cells else []),  # a former commit knows neither these nor goals
        "[frontend]",
        'address = "127.0.0.1"',
        f"timeout = {service.timeout_s}",
        f"capacity = {service.capacity}",
        *([f"slo = {service.slo_s}"] if service.slo_s else []),
    ]
    names = []
    for index, stage in enumerate(service.stages):
        names.append(f"s{index}-{stage.work.lower()}")
        lines += [
            "[[stage]]",
            f'name = "{names[-1]}"',
            f'worker = "{adapter}:{stage.work}"',
            f"num = {stage.num}",
            f"max_batch_size = {stage.max_batch_size}",
            'cpus = "all"',  # no system pins: the model's thread count is set in the worker code
        ]
        if stage.max_wait_ms:
            lines.append(f"max_wait_time = {stage.max_wait_ms}")
    way = ", ".join(
        f'{{ each = "{stage.each}", through = "{name}" }}' if stage.each else f'"{name}"'
        for stage, name in zip(service.stages, names, strict=True)
    )
    for index, path in enumerate(service.paths):
        lines += ["[[route]]", f'path = "{path}"', f"stages = [{way}]"]
        if any(service.slos_ms[index : index + 1]):
            lines.append(f"slo = {service.slos_ms[index] / 1000:g}")
    return "\n".join(lines) + "\n"
