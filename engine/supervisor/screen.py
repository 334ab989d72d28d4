"""A deployment on a terminal: while it starts, a line for each part, which moves; from then on its log.

What its processes write, the supervisor's own log and the output of user code and libraries, goes to a file
(:mod:`engine.supervisor.logfile`): nothing else may move the cursor. Of that a start shows what went wrong, and whoever
serves shows all of it, as without a terminal.

No mode of the terminal is changed and nothing hidden, so there is nothing to put right whatever ends this process. Each
picture is one write that goes over the one before, line by line, and clears what is left of it. A terminal that takes
nothing (Ctrl-S) is not waited for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final

from engine import log
from engine.clock import now
from engine.config import Deployment
from engine.core import processes as life
from engine.core.processes import Child
from engine.core.starting import Start, table
from engine.proc import resident
from engine.process import DEVICE_VARIABLE
from engine.sink import Sink
from engine.supervisor.logfile import LogFile

LOOK_S: Final = 0.1  # between two pictures, and two looks at the log
AWAY_S: Final = 1.0  # between two pictures: this process was stopped, and others have written on the terminal
PENDING_MOST: Final = 256 << 10  # bytes that wait for the terminal; what comes while there are more is in the file only
LAST_S: Final = 0.5  # for the terminal to take the last of it
NO_SIZE: Final = os.terminal_size((80, 24))  # of a terminal that does not know its own
LEAST: Final = 20  # columns: in fewer nothing can be read


class Mode(Enum):
    STARTING = "starting"
    SERVING = "serving"
    ENDING = "ending"  # it stops, and has never served


def usable() -> bool:
    """Whether stderr is a terminal that can be drawn on, and ours: not that of a job in the background."""
    if os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:
        return sys.stderr is not None and sys.stderr.fileno() == 2 and os.isatty(2) and _is_foreground(2)
    except (OSError, ValueError):  # closed, or no file
        return False


def _is_foreground(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # not the terminal of this session: nobody else's jobs are on it
        return True


@contextlib.contextmanager
def opened(
    deployment: Deployment, folder: Path, environments: Mapping[Child, Mapping[str, str]], more: list[Child]
) -> Iterator[Screen | None]:
    """The screen of a deployment with its log in ``folder``; None where there is no terminal for it."""
    file = None
    if deployment.engine.log_format != log.JSON and usable():
        try:
            file = LogFile(folder)
        except OSError as error:  # without it the log goes to the terminal
            log.get_logger().warning("cannot write the log to %s: %s", folder, error)
    if file is None:
        yield None
        return
    try:
        with Screen(deployment, environments, more, file) as screen:
            yield screen
    finally:
        file.close()


class Screen:
    """While entered, descriptors 2 and, if it is a terminal, 1 lead to the file. The main thread only."""

    def __init__(
        self, deployment: Deployment, environments: Mapping[Child, Mapping[str, str]], more: list[Child], file: LogFile
    ) -> None:
        """``environments`` of those who start; ``more`` who start beside."""
        self._name = deployment.engine.name
        self._level = deployment.engine.log_level
        self._devices = {child: env.get(DEVICE_VARIABLE, "cpu") for child, env in environments.items()}
        self._start = Start([*environments, *more])
        self._mode = Mode.STARTING
        self._title = f"{self._name} is starting"
        self._colour = not os.environ.get("NO_COLOR")
        self._drawn: list[str] = []  # the picture that stands on the terminal now, just above the cursor
        self._drawn_at = now()
        self._pids: Mapping[Child, int] = {}
        self._looked = now()
        self._pending = b""
        self._asked = False  # to stop
        self._hushed = False
        self._log = file

    def __enter__(self) -> Screen:
        self._tty, self._stdout = os.dup(2), os.dup(1) if os.isatty(1) else -1
        self._sink = Sink(self._tty)
        self._lead(self._log.fd, self._log.fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._relay(self._log.last())
        self._flush(LAST_S)
        self._lead(self._tty, self._stdout)
        for fd in (self._tty, self._stdout, self._sink.fd):
            if fd >= 0:
                os.close(fd)

    def _lead(self, err: int, out: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os.dup2(err, 2)
        if self._stdout >= 0:
            os.dup2(out, 1)
        log.setup("supervisor", level=self._level)

    # --- what the loop tells

    @property
    def wake_at(self) -> float:
        return self._looked + LOOK_S

    def note(self, what: life.Event | life.Action) -> None:
        """Anything that happens, in its order."""
        if self._mode is not Mode.STARTING:
            return
        match what:
            case life.StopAsked():
                self._asked = True
            case life.Serving(took_s):
                self._title = f"{self._name} has started in {took_s:.1f} s"
            case life.Stopping():
                self._title = f"{self._name} {'was stopped while it started' if self._asked else 'did not start'}"
                self._end(Mode.ENDING)
            case _:
                self._start.note(what, now())

    def look(self, pids: Mapping[Child, int]) -> None:
        """About every LOOK_S: show what is new. ``pids``: who runs."""
        self._looked, self._pids = now(), pids
        self._flush()
        if self._pending:
            self._log.bound()  # it is written to all the same
        else:
            self._relay(self._log.lines())

    def hush(self, hushed: bool) -> None:
        """While workers are replaced because something was edited, how each of them comes along is in the file."""
        self._relay(self._log.lines())
        self._hushed = hushed

    def say(self, text: str) -> None:
        """The lines of a start that has succeeded."""
        self._end(Mode.SERVING)
        place = f"log:  {self._log.path}"
        if self._stdout >= 0:
            self._put(f"{text}\n{place}\n")
        else:  # where somebody reads them
            to_stdout(text)
            self._put(f"{place}\n")

    def say_place(self) -> None:
        """Where the rest is to be read, below the last word."""
        self._relay(self._log.last())
        self._put(f"log:  {self._log.path}\n")

    def _end(self, mode: Mode) -> None:
        """The picture stays as it is; what follows stands below, and so does what ended the start."""
        told = self._shown(self._log.lines())
        if mode is Mode.SERVING:
            self._draw(told)
        else:
            self._draw("")
            self._put(told)
        self._mode, self._drawn = mode, []

    # --- what is shown

    def _relay(self, lines: list[bytes]) -> None:
        """Show what has come, and below it, while it starts, the picture as it is now."""
        told = self._shown(lines)
        if self._mode is Mode.STARTING:
            self._draw(told)
        else:
            self._put(told)

    def _shown(self, lines: list[bytes]) -> str:
        return "".join(f"{text}\n" for line in lines if (text := self._text(line)) is not None)

    def _draw(self, above: str) -> None:
        """The picture over the one before, or below ``above``."""
        if not _is_foreground(self._tty):
            self._drawn = []
            self._put(above)
            return
        size = self._size()
        rows = self._start.rows(now(), self._memory, self._devices)
        # One column is left free: what a terminal does with a character in its last one differs.
        picture = table(
            self._title, rows, width=max(LEAST, size.columns - 1), height=size.lines - 1, colour=self._colour
        )
        if now() - self._drawn_at > AWAY_S:
            self._drawn = []
        self._drawn_at = now()
        if picture == self._drawn and not above:
            return
        back = f"\r\x1b[{len(self._drawn)}A" if self._drawn else "\r"
        lines = "".join(f"{line}\x1b[K\n" for line in picture)
        self._put(f"{back}\x1b[J{above}{lines}" if above else f"{back}{lines}\x1b[J")
        self._drawn = picture

    def _text(self, data: bytes) -> str | None:
        """A line of the log as it is shown now; None: it is not."""
        line = log.Line.of(data)
        if line is None:
            return data.decode(errors="backslashreplace") if self._mode is Mode.SERVING else None
        if self._mode is Mode.SERVING and self._hushed and line.is_ours and line.level < logging.WARNING:
            return None
        is_shown = self._mode is Mode.SERVING or (
            line.is_ours
            and (line.level >= logging.WARNING or (self._mode is Mode.ENDING and line.process == "supervisor"))
        )
        return line.readable(colour=self._colour) if is_shown else None

    def _memory(self, child: Child) -> int:
        return resident(self._pids[child]) if child in self._pids else 0

    def _size(self) -> os.terminal_size:
        try:
            found = os.get_terminal_size(self._tty)
        except OSError:
            return NO_SIZE
        return os.terminal_size((found.columns or NO_SIZE.columns, found.lines or NO_SIZE.lines))

    def _put(self, text: str) -> None:
        if len(self._pending) < PENDING_MOST:
            self._pending += text.encode("utf-8", "backslashreplace")
        self._flush()

    def _flush(self, within_s: float = 0.0) -> None:
        """Write what waits, as far as the terminal takes it at once, or ``within_s``."""
        if not self._pending:
            return
        try:
            self._pending = self._pending[self._sink.write(self._pending, within_s) :]
        except OSError:  # it was hung up
            self._pending = b""


def to_stdout(text: str) -> None:
    """Lines for whoever reads stdout; in the log, where nobody does. The deployment serves all the same."""
    try:
        if not _took(f"{text}\n"):
            log.get_logger().info("%s", text)
    except (OSError, ValueError):
        log.get_logger().info("%s", text)


def _took(text: str) -> bool:
    try:
        is_ours = sys.stdout.fileno() == 1
    except (OSError, ValueError, AttributeError):  # an object of somebody's
        is_ours = False
    if not is_ours:
        print(text, end="", flush=True)
        return True
    sys.stdout.flush()
    sink = Sink(1)
    try:
        data = text.encode("utf-8", "backslashreplace")
        return sink.write(data, LAST_S) == len(data)
    finally:
        os.close(sink.fd)
