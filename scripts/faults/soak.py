"""The same load and the same mild faults, round after round, and what has grown meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from faults import drill, holdings
from faults.place import Stageline
from faults.rows import Row


@dataclass(frozen=True)
class Round:
    """What each row came to, and what was held when all was quiet again."""

    seen: list[drill.Seen]
    held: holdings.Counts


def rounds(place: Stageline, rows: Sequence[Row], *, seed: int, late_s: float) -> Iterator[Round]:
    """Round after round, for as long as they are taken."""
    while True:
        seen = []
        for row in rows:
            seen.append(drill.run(row, place, seed=seed, late_s=late_s))
            seed += 1
        yield Round(seen, holdings.counted(place.running.processes(), place.run, place.metrics()))


def run(
    place: Stageline,
    rows: Sequence[Row],
    *,
    seed: int,
    late_s: float,
    enough: Callable[[int], bool],
    tell: Callable[[Round], None] = lambda _: None,
) -> list[str]:
    """Rounds until there are enough of them, and at least six: the problems of the rows, and what has grown."""
    done: list[Round] = []
    for one in rounds(place, rows, seed=seed, late_s=late_s):
        done.append(one)
        tell(one)
        if len(done) >= holdings.LEAST and enough(len(done)):
            break
    problems = [f"{seen.row.id}: {problem}" for one in done for seen in one.seen for problem in seen.problems]
    return [*problems, *holdings.grown([one.held for one in done])]
