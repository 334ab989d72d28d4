"""The command line of the benchmark; ``scripts/bench`` prepares the environments and comes here."""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import machine, report, systems, table
from benchmarks.bench import Bench
from benchmarks.cases import CASES, chosen
from benchmarks.result import Case, Row, Summary
from benchmarks.systems import ROOT

DOCS: Final = ROOT / "docs"
FORMER: Final = "32ad8c7"  # the last commit that knew nothing of how long batches take
WITH: Final = ("python", "mosec", "nginx", "wrk")  # told with each case: the page shows runs of several days
RESULTS: Final = DOCS / "benchmarks" / "results.json"

EXAMPLES: Final = """\
examples:
  scripts/bench all                        every case, about half an hour
  scripts/bench echo                       one group of cases
  scripts/bench gap --repeats 5 --seconds 10
  scripts/bench slo --quick                goals, shares and overload: a look, in under two minutes
  scripts/bench model --threads 1 --json /tmp/model.json
  scripts/bench report                     docs/benchmarks.md, and pictures, out of the last `all`
  scripts/bench --list
"""


def parser() -> argparse.ArgumentParser:
    """The command line, whole."""
    top = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure Stageline beside Mosec and LitServe: the same worker code, one machine, one run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("cases", nargs="*", metavar="CASE", help="a case, a group, `all`, or `report`; see --list")
    top.add_argument("--list", action="store_true", help="say which cases there are")
    top.add_argument(
        "--repeats", type=int, help="measurements of each system, in turns; default: three, in group slo two"
    )
    top.add_argument("--seconds", type=float, help="length of one measurement; default: each case's own")
    top.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's, in case model (%(default)s)")
    top.add_argument("--quick", action="store_true", help="measure once, and in group slo fewer points")
    top.add_argument("--base", default=FORMER, metavar="COMMIT", help="measured beside, in group slo (%(default)s)")
    top.add_argument("--json", type=Path, help=f"file of results; `all` writes {RESULTS.relative_to(ROOT)} without it")
    top.add_argument("--add", action="store_true", help="keep the other cases of the file of results, or of the page")
    top.add_argument("--docs", type=Path, default=DOCS, help="where `report` writes; default: the project's docs")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code: 0 when all was measured (met or missed) or skipped, 1 when something could not be, 2 for bad
    words."""
    top = parser()
    options = top.parse_args(arguments)
    if options.list:
        print(listing())
        return 0
    if options.cases == ["report"]:
        return write_report(options.json or RESULTS, options.docs, add=options.add)
    if options.quick:
        options.repeats = 1
    if (
        (options.repeats is not None and options.repeats < 1)
        or options.threads < 1
        or (options.seconds is not None and options.seconds <= 0)
    ):
        top.error("--repeats, --threads and --seconds: expected more than 0")
    try:
        cases = chosen(options.cases)
    except ValueError as error:
        top.error(str(error))
    if not cases:
        top.error("name a case, a group, `all` or `report`; --list shows them")
    target = options.json or (RESULTS if "all" in options.cases else None)
    raise_descriptor_limit()
    words = list(arguments) if arguments is not None else sys.argv[1:]
    try:
        results = begin(target if options.add else None)
    except ValueError as error:
        top.error(str(error))
    command = shlex.join(["scripts/bench", *measured_by(words)])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is stopped
    failed = False
    for case in cases:
        if reason := case.missing():
            say(f"{case.name}: skipped: {reason}")
            continue
        try:
            measure(case, options, results, command)
        except (RuntimeError, OSError) as error:
            failed = True
            say(f"{case.name}: {error}")
        if target is not None:  # after each case: an hour of measuring is not lost to the last one
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(results.to_json())
    if target is not None:
        say(f"results: {target}")
    return 1 if failed else 0


def begin(kept: Path | None) -> report.Results:
    """Results without rows, or with those of a file. Raises ValueError when that was measured on something else."""
    results = report.Results(machine.describe(), machine.versions())
    former = report.read(kept) if kept is not None else None
    if former is None:
        return results
    if (former.machine, former.versions) != (results.machine, results.versions):
        raise ValueError(f"--add: {kept} was measured on another machine, or with other versions")
    return former


def measured_by(words: Sequence[str]) -> list[str]:
    """The words of a command without those that say where its results go: a page is for others than who measured."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        name, _, value = word.partition("=")
        if name not in ("--json", "--docs"):
            found.append(word)
        elif not value:
            next(rest, "")
    return found


def measure(case: Case, options: argparse.Namespace, results: report.Results, command: str) -> None:
    """Run one case, print its table, and keep its rows."""
    began = time.monotonic()
    seconds = options.seconds or case.seconds
    repeats = options.repeats or case.repeats
    say(f"{case.name}: {repeats} x {seconds:g} s per point")
    # Not under TMPDIR, which may be long: the paths of unix sockets have at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="sl-bench-", dir="/tmp"))
    rows: list[Row] = []
    settings = machine.now()
    try:
        base = systems.former(options.base, folder / "base") if case.group == "slo" else None
        bench = Bench(
            repeats=repeats,
            seconds=seconds,
            folder=folder,
            threads=options.threads,
            say=say,
            quick=options.quick,
            base=base,
        )
        rows.extend(case.run(bench))
    finally:
        shutil.rmtree(folder)
    results.rows[case.name] = rows
    settings |= {
        "repeats": f"{repeats}",
        "seconds": f"{seconds:g}",
        "torch threads": f"{options.threads}",
        "command": f"`{command}`",
    }
    if base is not None:
        settings["base"] = options.base
    settings |= {name: results.versions[name] for name in WITH if name in results.versions}
    results.settings[case.name] = settings
    summary = Summary(rows)
    print(f"\n{case.title}\n{case.about}\n\n{table.text(table.cells(case, summary))}\n")
    if case.targets:
        print(f"{table.text(table.targets(case, summary))}\n")
    print(f"({case.name} took {time.monotonic() - began:.0f} s)\n", flush=True)


def write_report(source: Path, docs: Path, *, add: bool = False) -> int:
    """docs/benchmarks.md, and pictures in docs/benchmarks/ when there are results; else the page's own results stay.
    With ``add`` those of other cases do."""
    from benchmarks import picture

    results = report.read(source)
    if results is not None:
        for case in CASES:
            if results.rows.get(case.name):
                picture.draw(case, Summary(results.rows[case.name]), docs / "benchmarks")
    docs.mkdir(parents=True, exist_ok=True)
    page = docs / "benchmarks.md"
    page.write_text(report.page(results, page.read_text() if page.exists() else "", add=add))
    say(f"wrote {page}" + ("" if results else f"; there is no {source}, so the results it shows are the former ones"))
    return 0


def listing() -> str:
    """Each case with its group and title."""
    return table.text([["case", "group", "what"], *([case.name, case.group, case.title] for case in CASES)])


def raise_descriptor_limit() -> None:
    """4,000 connections need more descriptors than the usual 1,024; what is started here inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def say(text: str) -> None:
    print(f">> {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
