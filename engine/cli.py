"""The command ``engine``. The only module that ends a process; everything below returns exit codes.

At import time only the standard library, errors and exit codes are touched: ``engine --help`` is instant, and the
supervisor's process never loads what its children need. What a command does is in :mod:`engine.commands`, each of which
imports its part when it runs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

from engine.commands import COMMANDS, watching
from engine.commands.command import Command, Plain
from engine.commands.orders import SCALE
from engine.commands.version import installed
from engine.config import flags_of, in_file_only, load
from engine.errors import ConfigError, StartError
from engine.exitcodes import ExitCode

NAMES: Final = tuple(command.name for command in COMMANDS)

# What other programs call it.
_UP_ELSEWHERE: Final = ("run", "serve", "start")
_FLAGS_ELSEWHERE: Final = {
    "--concurrency": "--connections",
    "--duration": "--seconds",
    "--host": "--address",
    "--interval": "--every",
    "--qps": "--rate",
    "--rps": "--rate",
    "--time": "--seconds",
}

_EXIT_CODES: Final = "exit codes:\n" + "\n".join(f"  {code:d}  {code.name:<12} {code.meaning}" for code in ExitCode)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        code = run(arguments)
    except KeyboardInterrupt:  # in user code, where a command runs it
        code = ExitCode.FAILED
    except BrokenPipeError:  # the reader of our output has gone (``engine status F | head``)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the final flush complains
        code = ExitCode.OK
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. SystemExit only out of argparse (``--help``, bad flags)."""
    options = _parsed(sys.argv[1:] if arguments is None else list(arguments))
    if options is None:
        return ExitCode.USAGE
    command: Command | Plain = options.command
    try:
        if isinstance(command, Plain):
            return command.run(options)
        deployment = load(options.file, flags=flags_of(options))
        if deployment.engine.key and command.linked:
            from engine.keyfile import keyring_of

            keyring_of(deployment)
        return command.run(options, deployment)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return ExitCode.CONFIG
    except StartError as error:
        print(f"engine: {error}", file=sys.stderr)
        return ExitCode.START


def parser() -> argparse.ArgumentParser:
    """The command line, whole."""
    top = argparse.ArgumentParser(
        prog="engine",
        description="Serve machine-learning models as pipelines of batched stages.",
        epilog=f"example:\n  engine up examples/echo/stages.toml --port 9000\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"engine {installed() or '(not installed)'}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        examples = command.examples.rstrip().splitlines()
        sub = commands.add_parser(
            command.name,
            help=command.what,
            description=f"{command.what[0].upper()}{command.what[1:]}.",
            epilog="\n  ".join([f"example{'s' * (len(examples) > 1)}:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add(sub)
        sub.set_defaults(command=command, parser=sub)
    return top


def _parsed(arguments: list[str]) -> argparse.Namespace | None:
    """The command line as options; None when it asked for nothing and was told what there is."""
    top = parser()
    if not arguments:
        top.print_help()
        return None
    name = arguments[0]
    if not name.startswith("-") and name not in NAMES:
        deployment = name.endswith((".toml", os.sep)) or os.path.exists(name)
        top.error(f'unknown command "{name}"' + (f"; did you mean: engine up {name}" if deployment else _near(name)))
    for at, text in enumerate(arguments[:-1]):  # what follows is the file, not the time that may
        if text == "--watch" and not re.match(r"[-+.\d]", arguments[at + 1]):
            arguments = [*arguments[:at], f"--watch={watching.EVERY_S:g}", *arguments[at + 1 :]]
    options, unknown = top.parse_known_args(arguments)
    if options.command is SCALE:  # a flag between FILE and STAGE=N parts what argparse takes for one list
        options.nums += [text for text in unknown if not text.startswith("-")]
        unknown = [text for text in unknown if text.startswith("-")]
    if unknown:
        sub: argparse.ArgumentParser = options.parser
        sub.error(f"unrecognized arguments: {' '.join(unknown)}{_near_flag(unknown[0], name, sub)}")
    return options


def _near(name: str) -> str:
    found = ["up"] if name in _UP_ELSEWHERE else get_close_matches(name, NAMES, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; commands are {', '.join(NAMES)}"


def _near_flag(flag: str, name: str, sub: argparse.ArgumentParser) -> str:
    flag = flag.partition("=")[0]
    key = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    users = [one.name for one in COMMANDS if isinstance(one, Command) and one.keys is not None and key in one.keys]
    if users:
        return f"; {flag} is a flag of up, {', '.join(users)}: engine {name} does not look at it"
    if flag == "--once" and name in ("status", "top"):
        return "; engine status shows it once"
    flags, meant = re.findall(r"--[a-z-]+", sub.format_help()), _FLAGS_ELSEWHERE.get(flag)
    near = [meant] if meant in flags else get_close_matches(flag, flags, n=1, cutoff=0.7)
    return in_file_only(key) or (f"; did you mean {near[0]}?" if near else "")


if __name__ == "__main__":
    main()
