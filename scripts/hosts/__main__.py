"""The command line of ``scripts/network``: every row of the table, and what came of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from math import inf
from typing import Final

from hosts import lab
from hosts.rows import ROWS, Seen, run
from hosts.scene import Scene, scene

COLUMNS: Final = "{:8} {:>5} {:>4} {:>6} {:>5} {:>5} {:>5} {:>6} {:>7} {:>7} {:>7} {:>8} {:>6}"
HEAD: Final = ("row", "cut s", "seed", "asked", "lost", "wrong", "twice", "deaths", "p50 ms", "p99 ms", "worst s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code: 0 when all is as it should be, 1 when not, 2 when there can be no lab here."""
    top = argparse.ArgumentParser(
        prog="scripts/network", description="Break the network between four hosts on purpose."
    )
    top.add_argument("rows", nargs="*", metavar="ROW", help="only these; see --list")
    top.add_argument("--list", action="store_true", help="say which rows there are")
    top.add_argument("--rate", type=float, default=50.0, help="requests per second (%(default)g)")
    top.add_argument("--seconds", type=float, default=5.0, help="how long a fault lasts (%(default)g)")
    top.add_argument("--seeds", type=int, default=1, help="how often, each time otherwise (%(default)s)")
    top.add_argument("--timeout", type=float, default=3.0, help="of requests, in seconds (%(default)g)")
    top.add_argument("--ms", type=float, default=10.0, help="what a batch takes (%(default)g)")
    options = top.parse_args(arguments)
    if options.list:
        for row in ROWS:
            print(f"{row.id:8} {row.about}")
        return 0
    if why := lab.impossible():
        print(why, file=sys.stderr)
        return 2
    print(COLUMNS.format(*HEAD, "seen s", "back s"))
    failed = 0
    with ExitStack() as stack:
        made: Scene | None = None
        for row in ROWS:
            if options.rows and row.id not in options.rows:
                continue
            for seed in range(1, options.seeds + 1):
                if made is None:
                    made = stack.enter_context(scene(timeout=options.timeout, ms=options.ms))
                seen = run(row, made, rate=options.rate, seconds=options.seconds, seed=seed, timeout_s=options.timeout)
                show(row.id, options.seconds, seed, seen)
                failed += bool(seen.problems)
                if row.ends:
                    stack.close()
                    made = None
                else:
                    made.wait_ready()
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


def show(row: str, seconds: float, seed: int, seen: Seen) -> None:
    """One line of the table, and what is wrong below it."""
    tally = seen.tally
    print(
        COLUMNS.format(
            row,
            f"{seconds:g}",
            seed,
            len(tally.answers),
            tally.lost,
            tally.wrong,
            seen.twice,
            seen.deaths,
            f"{1000 * tally.percentile(0.5):.0f}",
            f"{1000 * tally.percentile(0.99):.0f}",
            f"{tally.worst_s:.2f}",
            "" if seen.noticed_s == inf else f"{seen.noticed_s:.2f}",
            "" if seen.back_s == inf else f"{seen.back_s:.2f}",
        ),
        flush=True,
    )
    for problem in seen.problems:
        print(f"         {problem}", flush=True)
    if tally.lost:
        print(f"         {dict(tally.statuses)} between {tally.bad}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
