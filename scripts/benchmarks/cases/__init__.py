"""Every case, in the order of a whole run. A group is what a run may name to get several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.cases import (
    accelerator,
    branches,
    cores,
    echo,
    gap,
    gpu,
    growth,
    hosts,
    http,
    launch,
    memory,
    model,
    slo,
    tensors,
)
from benchmarks.result import Case

CASES: Final[tuple[Case, ...]] = (
    *echo.CASES,
    *http.CASES,
    *accelerator.CASES,
    model.CASE,
    tensors.CASE,
    gap.CASE,
    launch.CASE,
    *branches.CASES,
    gpu.CASE,
    cores.CASE,
    *growth.CASES,
    memory.CASE,
    *slo.CASES,
    *hosts.CASES,
)


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases that names, groups, or ``all`` stand for, each once, in order. Raises ValueError for another word."""
    known = {"all", *(case.name for case in CASES), *(case.group for case in CASES)}
    if strangers := [name for name in names if name not in known]:
        raise ValueError(f"{strangers[0]}: expected one of {', '.join(sorted(known))}")
    return [case for case in CASES if {"all", case.name, case.group} & set(names)]
