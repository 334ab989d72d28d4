"""``engine completion``: what a shell takes to complete commands, flags and files. Written by shtab, out of the parser.

An extra: it is asked for once on a machine where people type, and never where a service runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Final

from engine.commands.command import Plain
from engine.exitcodes import ExitCode

SHELLS: Final = ("bash", "zsh", "tcsh")
EXTRA: Final = "completion"

# Arguments that are files, and folders, by the name under which their value is kept.
FILES: Final = frozenset(("file", "config_certfile", "config_keyfile", "config_key", "arrivals", "data", "services"))
FOLDERS: Final = frozenset(("folder", "config_run_dir"))


def completion(options: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        print(f"engine: completion needs shtab: {sys.executable} -m pip install 'stageline[{EXTRA}]'", file=sys.stderr)
        return ExitCode.FAILED
    from engine.cli import parser
    from engine.config import choices

    top, values = parser(), choices()
    for action in _actions(top):
        if action.dest in values:  # argparse is not told: whatever is wrong with settings is said in one go, elsewhere
            action.choices = values[action.dest]
        elif action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
        elif action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(top, shell=options.shell))
    return ExitCode.OK


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments, those of commands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in dict.fromkeys(action.choices.values()):
                yield from _actions(sub)
        else:
            yield action


def _arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("shell", choices=SHELLS, help="the shell that reads it")


COMPLETION: Final = Plain(
    "completion",
    "write what a shell takes to complete commands, flags and files",
    completion,
    "engine completion bash > ~/.local/share/bash-completion/completions/engine\n"
    "engine completion zsh > ~/.zfunc/_engine   where fpath has ~/.zfunc",
    _arguments,
)
