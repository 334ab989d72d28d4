"""Logging of every process: one line per event on stderr, as JSON or, on a terminal, readable and in colour.

:func:`setup` is called once by each entry point and by nobody else; everything else only asks for a logger.
Fields go in ``extra=``: ``log.info("batch done", extra={"request_id": ...})``. Lines carry the process (and
stage and worker, where there is one), so that the interleaved output of a whole deployment can be taken
apart again.

User code has the same ``logging`` and the same stderr, and may configure, disable, replace or close both:
``logging.config.dictConfig`` disables every logger it does not name. What the project itself says does not depend on
it: its loggers are of a class of their own (:class:`_Ours`), and its lines go to a duplicate of descriptor 2. Handlers
of the user's get our records besides.

Nor does the service depend on whoever reads the lines. A full disk costs them, and so does a pipe that nobody empties
or a terminal that was stopped: after STUCK_S lines are dropped until there is room again, for a write that blocks would
stop a broker. What was lost is counted (:func:`lost_lines`).
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final, TextIO

from engine.errors import EngineTimeoutError
from engine.sink import Sink

# What logging itself puts into a record; every other attribute came in through ``extra``.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_LEVELS: Final = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}
# SGR parameters of ECMA-48.
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}

# On a terminal a client's text must not move the cursor, change the title, or begin a line that looks like one of ours:
# control characters and line breaks are shown. What has several lines by its nature, a traceback, is indented.
_VISIBLE: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\t"} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}

# A field that holds a traceback as text: of another process, or cut to what is the user's. Shown as an exception's is.
TRACEBACK: Final = "traceback"

OURS: Final = "stageline"
AUTO, TEXT, JSON = "auto", "text", "json"  # forms of lines
STUCK_S: Final = 0.1  # for whoever reads our lines to make room, once; a busy reader needs a few milliseconds

GUNICORN: Final = ("gunicorn", "gunicorn.error", "gunicorn.access")


def get_logger(name: str | None = None) -> logging.Logger:
    """The project's logger ``stageline``, or the one called ``name``. May be called before :func:`setup`."""
    name = name or OURS
    if name != OURS and not name.startswith(f"{OURS}."):
        return logging.getLogger(name)
    logger = logging.getLogger(name)
    if type(logger) is logging.Logger:
        logger.__class__ = _Ours
    return logger


def stream() -> TextIO | int:
    """Where our lines go, for ``faulthandler``: a descriptor that user code cannot close by accident, or stderr."""
    output = _output.output if _output is not None else None
    return output.fd if output is not None and output.is_own else sys.stderr


def lost_lines() -> int:
    """Lines of this process that could not be written."""
    return _output.all_lost if _output is not None else 0


def setup(
    process: str, *, level: str = "info", form: str = AUTO, stage: str | None = None, worker: int | None = None
) -> None:
    """Send all logging of this process to stderr; calling it again replaces the previous set-up.

    ``process`` names the kind of process (``supervisor``, ``broker``, ``frontend``, ``worker``), ``level``
    is the least severe one written: debug, info, warning or error (ValueError otherwise). ``form``: ``text``, ``json``,
    or ``auto``: JSON unless stderr is a terminal. In colour on a terminal, unless ``NO_COLOR`` is set to anything
    (https://no-color.org).
    """
    numbers = {name: number for number, name in _LEVELS.items()}
    if level not in numbers:
        raise ValueError(f"log level {level!r} is none of {', '.join(numbers)}")
    origin: dict[str, Any] = {"process": process}
    if stage is not None:
        origin["stage"] = stage
    if worker is not None:
        origin["worker"] = worker
    global _output
    handler = _Stderr()
    on_terminal = _is_terminal()
    if form == TEXT or (form == AUTO and on_terminal):
        handler.setFormatter(ReadableFormatter(origin, colour=on_terminal and not os.environ.get("NO_COLOR")))
    else:
        handler.setFormatter(JSONFormatter(origin))
    root = logging.getLogger()
    for old in [item for item in root.handlers if isinstance(item, _Stderr)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(numbers[level])
    get_logger().setLevel(numbers[level])
    former, _output = _output, handler
    if former is not None:
        handler.lost = former.all_lost
        former.let_go()
    logging.captureWarnings(True)
    adopt(*GUNICORN)


def adopt(*names: str) -> None:
    """Make these loggers write as ours do: drop their own handlers and let their records reach the root.

    gunicorn builds its handlers when its ``Logger`` class is made, which is after :func:`setup`: its
    application calls this once more then.
    """
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


class Output:
    """Writes lines to what a descriptor was when this was made. A closed or broken one costs lines, never the process,
    and so does one whose reader takes nothing.

    It is a duplicate of the descriptor: user code may close or replace ``sys.stderr`` and descriptor 2, and what it
    opens next gets the number 2.
    """

    def __init__(self, descriptor: int) -> None:
        """Raises OSError when it is closed."""
        self.lost = 0  # lines
        self._sink = Sink(descriptor)
        self.fd = self._sink.fd
        self._file = _identity(self.fd)  # what the duplicate refers to
        self._is_stuck = False  # it would have blocked the last time
        self._is_torn = False  # the last line was written in part

    @property
    def is_own(self) -> bool:
        """The duplicate is there and still what it was: code that closes descriptors by their numbers has missed it."""
        try:
            return self.fd >= 0 and _identity(self.fd) == self._file
        except OSError:
            return False

    def let_go(self) -> None:
        if self.is_own:
            os.close(self.fd)
        self.fd = -1

    def write(self, data: bytes, lines: int = 1) -> None:
        """Mostly one write: lines of several processes do not tear below PIPE_BUF. Raises OSError."""
        if self._is_torn:
            data = b"\n" + data
        while data:
            part = data[: select.PIPE_BUF] if self._sink.may_block else data
            taken = self._sink.write(part, 0.0 if self._is_stuck else STUCK_S)
            data = data[taken:]
            self._is_stuck = taken < len(part)
            self._is_torn = bool(data) and (taken > 0 or self._is_torn)
            if self._is_stuck:
                self.lost += lines
                return


class _Stderr(logging.Handler):
    """Writes to what stderr was when it was made: where that is the process's descriptor 2, by an :class:`Output`;
    where it is an object of somebody's (a test's, say), to whatever ``sys.stderr`` is at the time."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0  # lines that no output has counted
        self.output: Output | None = None
        try:
            if sys.stderr is not None and sys.stderr.fileno() == 2:
                self.output = Output(2)
        except (OSError, ValueError):  # closed, or no file
            pass

    @property
    def is_own(self) -> bool:
        return self.output is not None and self.output.is_own

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
        except EngineTimeoutError:  # the time limit of a `forward` that logs
            raise
        except BaseException as error:  # values of the user's
            line = f"{record.levelname} {record.name} {record.msg!s:.1000} (cannot be shown: {type(error).__name__})\n"
        try:
            if self.output is not None and self.output.is_own:
                self.output.write(line.encode("utf-8", "backslashreplace"))
            elif sys.stderr is not None:  # None: the process was started with descriptor 2 closed
                sys.stderr.write(line)
                sys.stderr.flush()
        except (OSError, ValueError):
            self.lost += 1  # its reader has gone, the disk is full, or it is closed: nowhere is left to complain to

    @property
    def all_lost(self) -> int:
        return self.lost + (self.output.lost if self.output is not None else 0)

    def let_go(self) -> None:
        """Close the duplicate. Not by ``close``, which configuring ``logging`` calls on every handler there is."""
        if self.output is not None:
            self.output.let_go()


def _identity(fd: int) -> tuple[int, int]:
    about = os.fstat(fd)
    return about.st_dev, about.st_ino


_output: _Stderr | None = None  # where our own loggers write, once it was set up


class _Ours(logging.Logger):
    """A logger of the project's. Nothing that user code does to ``logging`` as a whole silences it: it cannot be
    disabled, does not ask ``logging.disable``, and writes by itself before anybody else gets the record. Its level can
    be set by who names it.
    """

    @property  # an attribute of Logger's, which logging.config sets
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, _value: bool) -> None:
        return

    def isEnabledFor(self, level: int) -> bool:
        return level >= self.getEffectiveLevel()

    def callHandlers(self, record: logging.LogRecord) -> None:
        if _output is None:
            super().callHandlers(record)
            return
        _output.handle(record)
        logger: logging.Logger | None = self
        while logger is not None:
            for handler in logger.handlers:
                if record.levelno >= handler.level and not _repeats(handler):
                    try:
                        handler.handle(record)
                    except EngineTimeoutError:
                        raise
                    except BaseException:  # the user's; our threads must not end of it
                        continue
            logger = logger.parent if logger.propagate else None


def _repeats(handler: logging.Handler) -> bool:
    """Whether it would write to stderr once more what is there already."""
    if isinstance(handler, _Stderr):
        return True
    return type(handler) is logging.StreamHandler and handler.stream in (sys.stderr, sys.__stderr__)


class JSONFormatter(logging.Formatter):
    """One JSON object per line: time, level, process, stage, worker, pid, logger, message, fields, exception."""

    def __init__(self, origin: Mapping[str, Any]) -> None:
        super().__init__()
        self._origin = dict(origin)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": _level(record),
            **self._origin,
            "pid": record.process,
            "logger": record.name,
            "message": _message(record),
        }
        # A field may say more about stage or worker than the process does (the broker logs about all of
        # them), but it cannot take the place of what makes a line a log line.
        fixed = ("time", "level", "logger", "message", "exception", "stack")
        line.update((f"{name}_" if name in fixed else name, value) for name, value in _fields(record).items())
        if trace := _trace(self, record):
            line["exception"] = trace
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        try:
            return json.dumps(line, default=_text, allow_nan=False)
        except (TypeError, ValueError, RecursionError):  # keys that are no strings, NaN, a list that holds itself
            return json.dumps({name: _text(value) for name, value in line.items()})


class ReadableFormatter(logging.Formatter):
    """``time level process stage-worker message field=value``, with the traceback on the lines below."""

    def __init__(self, origin: Mapping[str, Any], *, colour: bool) -> None:
        super().__init__()
        self._colour = colour
        self._who = _who(origin)

    def format(self, record: logging.LogRecord) -> str:
        traces = (_trace(self, record), self.formatStack(record.stack_info) if record.stack_info else "")
        return _readable(
            (_time(record), _level(record), self._who, _message(record)), _fields(record), traces, colour=self._colour
        )


def _readable(
    head: tuple[str, str, str, str], fields: Mapping[str, Any], traces: Sequence[str], *, colour: bool
) -> str:
    """``head``: time, level, who, message."""

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour else text

    at, level, who, message = head
    parts = [
        paint(at, "2"),
        paint(f"{level:<7}", _COLOURS.get(level, "0")),
        paint(who, "36"),
        message.translate(_VISIBLE),
        *(paint(f"{name}={_text(value).translate(_VISIBLE)}", "2") for name, value in fields.items()),
    ]
    below = [f"\n  {line.translate(_VISIBLE)}" for text in traces for line in text.split("\n") if text]
    return " ".join(parts) + "".join(below)


def _who(origin: Mapping[str, Any]) -> str:
    who = str(origin["process"])
    if "stage" in origin:
        who += f" {origin['stage']}" + (f"-{origin['worker']}" if "worker" in origin else "")
    return who


class Line:
    """A line that :class:`JSONFormatter` made of a record, and that somebody has written to a file."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self.process = str(told["process"])
        self.stage = str(told.get("stage", ""))  # of the process, or whom it speaks of
        self.request_id = str(told.get("request_id", ""))
        self.is_ours = str(told["logger"]).partition(".")[0] == OURS
        self.level = {name: number for number, name in _LEVELS.items()}.get(str(told["level"]), logging.ERROR)

    @classmethod
    def of(cls, data: bytes) -> Line | None:
        """None: it is something else, user code's own perhaps."""
        if not data.startswith(b'{"time":'):
            return None
        try:
            return cls(json.loads(data))
        except (ValueError, KeyError, TypeError, RecursionError):  # the last: lists in lists without end
            return None

    def readable(self, *, colour: bool) -> str:
        """As :class:`ReadableFormatter` would have shown it."""
        left = dict(self._told)
        head = tuple(_text(left.pop(name, "")) for name in ("time", "level", "process", "message"))
        origin = {"process": head[2]}
        if self.process == "worker":  # of others these are fields: whom they speak of
            origin.update({name: left.pop(name) for name in ("stage", "worker") if name in left})
        traces = [_text(left.pop(name, "")) for name in ("exception", "stack")]
        del left["logger"]
        left.pop("pid", None)
        return _readable((head[0], head[1], _who(origin), head[3]), left, traces, colour=colour)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _level(record: logging.LogRecord) -> str:
    return _LEVELS.get(record.levelno, record.levelname.lower())


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except EngineTimeoutError:
        raise
    except BaseException as error:  # a user's format string and arguments that do not fit: show both, lose nothing
        return f"{_text(record.msg)} {_text(record.args)} (cannot be formatted: {_text(error)})"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    # What begins with "_" is no field: some library has records made by a function of its own.
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and name != TRACEBACK and not name.startswith("_")
    }


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_info:
        return formatter.formatException(record.exc_info)
    return _text(getattr(record, TRACEBACK, ""))


def visible(text: str) -> str:
    """On one line, with control characters shown: what a client says must not look like a line of ours."""
    return text.translate(_VISIBLE)


def _text(value: object) -> str:
    try:
        return str(value)
    except EngineTimeoutError:
        raise
    except BaseException as error:  # a user's __str__; the line is worth more than this field
        return f"<{type(value).__name__}: {type(error).__name__} in its __str__>"
