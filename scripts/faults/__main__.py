"""The command line: ``scripts/chaos`` and ``scripts/soak`` prepare the environments and come here."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from faults import drill, holdings, place, soak
from faults.rows import MAIN, ROWS, SOAKED, Row

LATE_S: Final = 1.0  # beyond a deadline: what the promise allows
COLUMNS: Final = "{:5} {:10} {:>8} {:>7} {:>8} {:>6} {:>5} {:>6} {:>5} {:>5} {:>9}  {}"
HEAD: Final = ("row", "system", "injected", "asked", "answered", "good", "lost", "double", "wrong", "late", "p99 + ms")


def parser() -> argparse.ArgumentParser:
    """The command line, whole."""
    top = argparse.ArgumentParser(prog="scripts/", description="Break deployments on purpose, and check every answer.")
    commands = top.add_subparsers(dest="command", required=True, metavar="chaos | soak")
    chaos = commands.add_parser("chaos", help="every row of the table, beside Mosec where that can be")
    chaos.add_argument("rows", nargs="*", metavar="ROW", help="only these; see --list")
    chaos.add_argument("--list", action="store_true", help="say which rows there are")
    chaos.add_argument("--times", type=int, default=5, help="as often as in a test, times this (%(default)s)")
    chaos.add_argument("--alone", action="store_true", help="without Mosec")
    long = commands.add_parser("soak", help="mild faults again and again: what grows?")
    long.add_argument("--minutes", type=float, default=60.0, help="how long, at least (%(default)g)")
    for command in (chaos, long):
        command.add_argument("--seed", type=int, default=1, help="what chance begins with (%(default)s)")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code: 0 when all is as it should be, 1 when not, 2 for bad words."""
    top = parser()
    options = top.parse_args(arguments)
    if options.command == "soak":
        return soaked(options.minutes, options.seed)
    if options.list:
        for row in ROWS:
            print(f"{row.id:5} {row.about}")
        return 0
    unknown = set(options.rows) - {row.id for row in ROWS}
    if unknown or options.times < 1:
        top.error(f"no such rows: {', '.join(sorted(unknown))}; --list shows them" if unknown else "--times: 1 or more")
    chosen = [row for row in ROWS if not options.rows or row.id in options.rows]
    print(COLUMNS.format(*HEAD, "fault"))
    failed = 0
    for seen in run(chosen, options.times, options.seed, beside=not options.alone):
        show(seen)
        failed += bool(seen.problems) and seen.system == place.Stageline.system
    print(f"{failed} rows failed" if failed else "every row passed")
    return 1 if failed else 0


def run(rows: Sequence[Row], times: int, seed: int, *, beside: bool) -> Iterator[drill.Seen]:
    """All rows on one deployment, which is made anew where a row leaves nothing to go on with."""
    with ExitStack() as stack:
        ours: place.Stageline | None = None
        for row in rows:
            if ours is None:
                ours = stack.enter_context(place.stageline(MAIN))
            often = 1 if row.ends else row.times * times
            seen = drill.run(row, ours, seed=seed, late_s=LATE_S, times=often)
            yield seen
            if row.ends or seen.is_broken:
                stack.close()
                ours = None
            if beside and row.beside:
                with place.mosec(MAIN) as theirs:
                    yield drill.run(row, theirs, seed=seed, late_s=LATE_S, times=often)


def show(seen: drill.Seen) -> None:
    """One line of the table, and what is wrong below it."""
    tally = seen.tally
    answered = sum(tally.statuses.values())
    counts = (tally.sent, answered, tally.right, tally.lost, len(tally.double), len(tally.wrong), len(tally.late))
    others = " ".join(f"{count} x {status}" for status, count in sorted(tally.statuses.items()) if status != 200)
    words = (seen.row.about, others, seen.row.allowed.cut)
    added = f"{seen.added_p99_ms:+.0f}"
    print(COLUMNS.format(seen.row.id, seen.system, seen.injected, *counts, added, "; ".join(filter(None, words))))
    for problem in dict.fromkeys(seen.problems):
        print(f"      {problem.splitlines()[0][:150]}")
    sys.stdout.flush()


def soaked(minutes: float, seed: int) -> int:
    """Rounds for so long, each told in a line."""
    end = time.monotonic() + 60 * minutes
    print("   min", *(f"{what:>16}" for what in holdings.ROOM), f"{'asked':>9}", sep="")
    asked = 0

    def tell(one: soak.Round) -> None:
        nonlocal asked
        asked += sum(seen.tally.sent for seen in one.seen)
        elapsed, held = minutes - (end - time.monotonic()) / 60, [one.held[what] for what in holdings.ROOM]
        print(f"{elapsed:6.1f}", *(f"{value:16.0f}" for value in held), f"{asked:9}", sep="", flush=True)

    with place.stageline(replace(MAIN, name="soak")) as ours:
        rows = [row for row in ROWS if row.id in SOAKED]
        problems = soak.run(ours, rows, seed=seed, late_s=LATE_S, enough=lambda _: time.monotonic() > end, tell=tell)
    print(*problems or ["nothing grew, and nothing was lost"], sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
