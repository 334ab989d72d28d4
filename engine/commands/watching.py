"""Looking at a running deployment again and again, each time where the last picture was: ``status --watch``, ``top``.

What is drawn is made elsewhere, of what the brokers say (:mod:`engine.status`, :mod:`engine.top`); here is the
terminal. On anything else - a pipe, a file, ``TERM=dumb`` - each look is printed below the last. No alternate screen
and no hidden cursor: but for the mode in which keys are read there is nothing to restore, whatever ends the process.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from engine.clock import now
from engine.errors import Unavailable
from engine.exitcodes import ExitCode

EVERY_S: Final = 2.0
LEAST_S: Final = 0.2  # a look costs the brokers some milliseconds

# ECMA-48: clear all; go to the top; clear to the end of the line, of all.
CLEAR, HOME, LINE_END, REST = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"

Ask = Callable[[], bytes]
Show = Callable[[bytes | None, str, int, int], str]  # an answer or None, what is wrong, columns, rows -> text


def is_terminal() -> bool:
    """Whether what is printed can be drawn over."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def watch(
    ask: Ask, show: Show, every_s: float, *, drawn: bool = True, pressed: Callable[[str], bool] | None = None
) -> int:
    """Look until Ctrl-C, or, where somebody sits before it, ``q``. Raises Unavailable when the first look finds nobody;
    later ones say so and go on. ``drawn``: over the last one, on a terminal. ``pressed`` is told of other keys, and
    says whether to draw again at once."""
    drawn = drawn and is_terminal()
    answer: bytes | None = ask()
    trouble = ""
    with _interruptible(), _keys(wanted=drawn and pressed is not None) as keys:
        try:
            if drawn:
                sys.stdout.write(CLEAR)
            while True:
                _put(answer, trouble, show, drawn=drawn)
                until = now() + every_s
                while (left := until - now()) > 0:
                    pressed_now = _read_keys(left) if keys else _pause(left)
                    if "q" in pressed_now:
                        raise KeyboardInterrupt
                    changes = [] if pressed is None else [pressed(key) for key in pressed_now]
                    if any(changes):
                        _put(answer, trouble, show, drawn=drawn)
                try:
                    answer, trouble = ask(), ""
                except Unavailable as error:
                    trouble = str(error)
        except KeyboardInterrupt:  # how it is meant to end
            return ExitCode.OK


def _put(answer: bytes | None, trouble: str, show: Show, *, drawn: bool) -> None:
    if not drawn:
        text = show(None if trouble else answer, trouble, 0, 0)
        print(text, end="\n\n" if "\n" in text else "\n", flush=True)
        return
    import shutil  # here, for every command imports this module

    columns, rows = shutil.get_terminal_size()
    rows -= 1  # the last line is for whatever comes after
    lines = show(answer, trouble, columns, rows).splitlines()[:rows]
    sys.stdout.write(HOME + "".join([f"{line}{LINE_END}\n" for line in lines]) + REST)
    sys.stdout.flush()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is an exception in here, whatever it was outside; so is SIGTERM, for the sake of the terminal."""
    former = [(one, signal.signal(one, signal.default_int_handler)) for one in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for one, handler in former:
            signal.signal(one, handler)


@contextmanager
def _keys(*, wanted: bool) -> Iterator[bool]:
    """Keys come one by one in here, and are not shown, if there are any. Gives whether there are."""
    if not wanted or not sys.stdin.isatty():
        yield False
        return
    import termios
    import tty

    modes = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, modes)


def _read_keys(within_s: float) -> list[str]:
    """What is pressed in that time, by names or as it is typed."""
    if not select.select([sys.stdin], [], [], within_s)[0]:
        return []
    data = os.read(sys.stdin.fileno(), 1024)
    if not data:  # the terminal has gone
        raise KeyboardInterrupt
    return [_NAMES.get(key, key.decode("latin-1")) for key in _KEY.findall(data)]


def _pause(within_s: float) -> list[str]:
    select.select([], [], [], within_s)
    return []


_KEY: Final = re.compile(rb"\x1b\[[0-9;]*[~A-Za-z]|.", re.DOTALL)  # what terminals send for one
_NAMES: Final = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[C": "right", b"\x1b[D": "left", b"\t": "right"}
