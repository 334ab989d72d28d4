"""What workers wrote about their batches (:class:`benchmarks.work.Recorded`), read and reduced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.work import BATCH


@dataclass(frozen=True)
class Batch:
    """One call of ``forward``: monotonic nanoseconds, and how many items it had."""

    begin_ns: int
    end_ns: int
    items: int


def parse(data: bytes) -> list[Batch]:
    """The batches of one worker in the order they ran. A record cut short by the worker's end is left out."""
    whole = len(data) - len(data) % BATCH.size
    return [Batch(*fields) for fields in BATCH.iter_unpack(data[:whole])]


def read(folder: Path) -> dict[str, list[Batch]]:
    """The batches of every worker that wrote into ``folder``."""
    return {path.name: parse(path.read_bytes()) for path in sorted(folder.glob("batches-*"))}


def within(batches: Iterable[Batch], begin_ns: int, end_ns: int) -> list[Batch]:
    """Those that began and ended in a window."""
    return [batch for batch in batches if begin_ns <= batch.begin_ns and batch.end_ns <= end_ns]


def gaps_us(batches: Sequence[Batch], full: int) -> list[float]:
    """Microseconds between one batch's end and the next one's begin, where the next one is full.

    A full batch is the proof that its items were waiting; before a smaller one the worker may have had nothing to do.
    """
    return [(after.begin_ns - before.end_ns) / 1000 for before, after in pairwise(batches) if after.items >= full]


def mean_items(batches: Sequence[Batch]) -> float | None:
    return sum(batch.items for batch in batches) / len(batches) if batches else None


def items_per_second(batches: Sequence[Batch]) -> float | None:
    """Of one worker, from the end of its first batch to the end of its last: no batch is cut by a window's edge."""
    if len(batches) < 2:
        return None
    return sum(batch.items for batch in batches[1:]) / (batches[-1].end_ns - batches[0].end_ns) * 1e9
