"""``engine bench``: how fast a service is, seen from outside."""

from __future__ import annotations

import argparse
from typing import Final

from engine.bench import flags
from engine.commands.command import Plain


def bench(options: argparse.Namespace) -> int:
    from engine import log
    from engine.bench import command

    log.setup("bench", level="warning")
    return command.run(options)


BENCH: Final = Plain(
    "bench",
    "measure a service from outside: latency at a rate, the highest rate within a goal, or two against each other",
    bench,
    flags.EXAMPLES,
    arguments=flags.add_arguments,
)
