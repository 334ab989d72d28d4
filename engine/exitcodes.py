"""The exit codes of every command, by name. Only ``engine.cli``, or the last line of a script, exits a
process.

2 is argparse's own code for bad flags, so the codes of this project start beside it and stay below 64, where
the conventions of sysexits and, from 126, those of shells begin.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code says; :attr:`meaning` is the line shown in help and reference."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    START = 4
    BUSY = 5
    UNREACHABLE = 6

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done; a deployment that was asked to stop has stopped in order",
    ExitCode.FAILED: "something failed while running; the log says what",
    ExitCode.USAGE: "the command line was not understood, or named no command",
    ExitCode.CONFIG: "the configuration has errors; every one was printed",
    ExitCode.START: "a process of the deployment could not start, or check found that a stage would not",
    ExitCode.BUSY: "a deployment of this name is already running, or its port is in use",
    ExitCode.UNREACHABLE: "no running deployment answered",
}
