"""The command line of ``engine plan``: its flags, what their values may be, and which go together. Light: imports
nothing that a command needs to run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from engine.config.units import UnitError, parse_time

WATCH_S: Final = 10.0  # how long a running deployment is looked at
TARGET: Final = 0.99

EXAMPLES: Final = """\
engine plan stages.toml --rate 400 --slo 200ms
engine plan stages.toml --rate 400 --slo 200ms --arrivals trace.csv --picture plan.svg
engine plan stages.toml --rate 400 --slo 200ms --save-profile profile.json
engine plan stages.toml --slo 200ms --devices 4 --profile profile.json --keep tokenize=2
engine plan stages.toml --rate 400 --slo 200ms --running --json > plan.json
engine plan --check stages.toml --plan plan.json
"""


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    asked = sub.add_argument_group("what is asked")
    asked.add_argument("--rate", type=as_rate, metavar="R", help="requests per second")
    asked.add_argument(
        "--slo",
        type=as_time,
        metavar="T",
        help="within which time they are to be answered: 200ms; else as the file says",
    )
    asked.add_argument("--target", type=as_share, default=TARGET, metavar="P", help="the share of them (%(default)s)")
    asked.add_argument("--devices", type=as_count, metavar="N", help="the highest rate of so many workers, all stages'")
    asked.add_argument(
        "--keep", action="append", default=[], metavar="STAGE=N", help="a stage has N workers and keeps them"
    )
    how = add_arrivals(sub)
    how.add_argument(
        "--share", action="append", default=[], metavar="PATH=N", help="parts of the routes; else all alike"
    )
    how.add_argument(
        "--parts",
        action="append",
        default=[],
        metavar="[PATH=]N",
        help="elements of a list, where requests go on in parts; else those of the example",
    )
    times = sub.add_argument_group("how long batches take (measured on this machine, unless)")
    times.add_argument("--profile", type=Path, metavar="FILE", help="as saved by --save-profile, or written by hand")
    times.add_argument("--running", action="store_true", help="as the running deployment has learned")
    times.add_argument("--save-profile", type=Path, metavar="FILE", help="keep it")
    shown = sub.add_argument_group("what is shown")
    shown.add_argument("--json", action="store_true", help="print the plan, or the comparison, as JSON")
    shown.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw it")
    shown.add_argument("--check", action="store_true", help="compare a plan with the running deployment")
    shown.add_argument("--plan", type=Path, metavar="FILE", help="with --check: a plan that --json printed")
    shown.add_argument("--seconds", type=as_number, default=WATCH_S, metavar="S", help="with --check: how long to look")
    effort = sub.add_argument_group("effort")
    effort.add_argument("--requests", type=as_count, default=10_000, metavar="N", help="of each run (%(default)s)")
    effort.add_argument("--seeds", type=as_count, default=3, metavar="N", help="runs for each number (%(default)s)")
    sub.add_argument("--measure", help=argparse.SUPPRESS)  # in the process of a stage's own
    sub.add_argument("--result-fd", type=int, help=argparse.SUPPRESS)


def add_arrivals(sub: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The flags that say when requests come."""
    how = sub.add_argument_group("how requests come")
    how.add_argument(
        "--arrivals", type=Path, metavar="FILE", help="a CSV file with the time of each, or the gap before it"
    )
    how.add_argument("--column", default="", metavar="C", help="its column, by name or number; else it is found")
    how.add_argument(
        "--cv", type=as_number, metavar="C", help="irregular: standard deviation of gaps by mean (Poisson: 1)"
    )
    return how


def as_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"expected a number, 0 or more, got {text}")
    return value


def as_rate(text: str) -> float:
    value = as_number(text.removesuffix("/s"))
    if not value:
        raise argparse.ArgumentTypeError("expected more than 0 requests per second")
    return value


def as_count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


def as_time(text: str) -> float:
    try:
        value = parse_time(text, bare="")
    except UnitError:
        value = 0.0
    if value <= 0.0:
        raise argparse.ArgumentTypeError(f"expected a time with its unit, such as 200ms or 1.5s, got {text}")
    return value


def as_share(text: str) -> float:
    value = as_number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, such as 0.99 or 99%, got {text}")
    return value


def see_to_words(options: argparse.Namespace) -> None:
    """What argparse cannot see by itself."""
    error = options.parser.error
    if options.rate is None and options.devices is None and options.arrivals is None:
        error("how many requests? --rate 400 (per second), or --arrivals FILE; or --devices 4, to be told how many")
    if options.rate is not None and options.devices is not None:
        error("--rate asks for workers and --devices for a rate: one of the two")
    if options.arrivals is not None and options.cv is not None:
        error("--arrivals says how requests come, and so does --cv: one of the two")
    if options.profile is not None and options.running:
        error("--profile and --running both say how long batches take: one of the two")
    if options.picture is not None and options.picture.suffix != ".svg":
        error(f"--picture: expected a name that ends in .svg, got {options.picture}")
