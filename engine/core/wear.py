"""When a worker has served long enough: models and libraries that leak are given a fresh process in good time. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Limits:
    """Past any of these a worker is replaced. ``nbytes``: resident memory of its process."""

    age_s: float = inf
    batches: float = inf
    nbytes: float = inf

    @property
    def are_none(self) -> bool:
        return self == Limits()


def worn(limits: Limits, *, age_s: float, batches: int, nbytes: int) -> str:
    """Why a worker that has served for ``age_s`` seconds should be replaced; "" while it need not be."""
    if age_s >= limits.age_s:
        return f"it has served for {age_s:.0f} s"
    if batches >= limits.batches:
        return f"it has computed {batches} batches"
    if nbytes >= limits.nbytes:
        return f"it holds {nbytes >> 20} MiB of memory"
    return ""
