"""The command line of ``engine bench``: its flags, what their values may be, and which go together. Light: imports
nothing that a command needs to run.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Final

from engine.config import FILE_NAME
from engine.planning.flags import add_arrivals, as_count, as_number, as_rate, as_share, as_time

SECONDS: Final = 10.0
ROUND_S: Final = 3.0
WARM_S: Final = 1.0
TARGET: Final = 0.99
ROUNDS: Final = 10
CONNECTIONS: Final = 1024
TIMEOUT_S: Final = 30.0

EXAMPLES: Final = """\
engine bench http://127.0.0.1:8000/inference --rate 200
engine bench stages.toml --rate 200 --slo 150ms --json > today.json
engine bench stages.toml --slo 150ms                              the highest rate within it
engine bench http://a:8000/embed http://b:8000/embed --rate 50    is one of them quicker?
engine bench old/stages.toml new/stages.toml --rate 50            likewise; both are started
engine bench URL --rate 100 --data requests.jsonl --arrivals trace.csv --picture latency.svg
"""


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    sub.add_argument(
        "services",
        metavar="URL|FILE",
        nargs="*",
        default=[FILE_NAME],
        help="what is measured: an address, or a stages.toml, whose deployment is started unless it runs; two are "
        "compared; default: the stages.toml here",
    )
    asked = sub.add_argument_group("what is asked")
    asked.add_argument("--rate", type=as_rate, metavar="R", help="requests per second; else the highest is looked for")
    asked.add_argument("--slo", type=as_time, metavar="T", help="within which time an answer is good: 200ms")
    asked.add_argument(
        "--target", type=as_share, default=TARGET, metavar="P", help="the share that has to be good (%(default)s)"
    )
    sent = sub.add_argument_group("what is sent (unless the service names an example)")
    sent.add_argument(
        "--data", type=Path, metavar="FILE", help="a body; of a .jsonl each line is one, of a folder each file"
    )
    sent.add_argument("--body", metavar="TEXT", help="the body")
    sent.add_argument(
        "--type", default="", metavar="MIME", help="its content-type; else by the name of the file, or JSON"
    )
    sent.add_argument("--path", metavar="/PATH", help="of which route; default: that of the address, or the first")
    sent.add_argument("--method", default="POST", help="(%(default)s)")
    sent.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="one more; may be repeated")
    sent.add_argument("--insecure", action="store_true", help="https: take any certificate")
    add_arrivals(sub)
    effort = sub.add_argument_group("effort")
    effort.add_argument(
        "--seconds", type=as_number, metavar="S", help=f"of a run ({SECONDS:g}; of a round or a step {ROUND_S:g})"
    )
    effort.add_argument("--warm-up", type=as_number, default=WARM_S, metavar="S", help="before it (%(default)g)")
    effort.add_argument("--rounds", type=as_count, default=ROUNDS, metavar="N", help="of a comparison (%(default)s)")
    effort.add_argument("--connections", type=as_count, default=CONNECTIONS, metavar="N", help="at most (%(default)s)")
    effort.add_argument(
        "--timeout", type=as_time, default=TIMEOUT_S, metavar="T", help=f"for an answer ({TIMEOUT_S:g}s)"
    )
    effort.add_argument("--seed", type=int, default=1, metavar="N", help="of the instants (%(default)s)")
    shown = sub.add_argument_group("what is shown")
    shown.add_argument("--json", action="store_true", help="print all figures as JSON")
    shown.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw them")


def see_to_words(options: argparse.Namespace) -> None:
    """What argparse cannot see by itself."""
    error = options.parser.error
    if len(options.services) > 2:
        error(f"one service, or two to be compared; got {len(options.services)}")
    if options.rate is None and options.arrivals is None and options.slo is None:
        error(
            "how many requests? --rate 200 (per second); or --slo 150ms, to be told how many can be answered within it"
        )
    if options.rate is None and options.arrivals is None and len(options.services) == 2:
        error("to compare two, say at which rate: --rate 200")
    if options.data is not None and options.body is not None:
        error("--data and --body both say what is sent: one of the two")
    if options.arrivals is not None and options.cv is not None:
        error("--arrivals says how requests come, and so does --cv: one of the two")
    if options.picture is not None and options.picture.suffix != ".svg":
        error(f"--picture: expected a name that ends in .svg, got {options.picture}")
    if options.path is not None and not re.fullmatch(r"/[!-~]*", options.path):
        error(f"--path: expected one that begins with /, in ASCII and without spaces (%20), got {options.path!r}")
    if not re.fullmatch(r"[A-Za-z]+", options.method):
        error(f"--method: expected one such as POST, got {options.method!r}")
    if len(options.services) == 2 and options.rounds < 3:
        error(f"--rounds: a comparison takes 3 or more, got {options.rounds}")
    for text in options.header:
        if not re.fullmatch(r"\s*[A-Za-z0-9_-]+\s*:[ -~]*", text):
            error(f"--header: expected NAME:VALUE, such as 'x-api-key: abc', got {text!r}")


def fields_of(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The headers that were given."""
    pairs = [text.partition(":") for text in options.header]
    return [(name.strip(), value.strip()) for name, _, value in pairs]
