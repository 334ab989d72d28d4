"""How far a measurement is: a bar on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

WIDTH: Final = 24


class Bar:
    """On standard error, so that what was found can go to a file."""

    def __init__(self) -> None:
        self._is_live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = False

    def say(self, line: str) -> None:
        """Something that stays."""
        self._clear()
        print(line, file=sys.stderr, flush=True)

    def show(self, share: float, words: str) -> None:
        """So much of it is done."""
        if not self._is_live:
            return
        full = round(min(max(share, 0.0), 1.0) * WIDTH)
        line = f"[{'#' * full}{'.' * (WIDTH - full)}] {words}"
        sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()
        self._shown = True

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            self._shown = False

    def close(self) -> None:
        self._clear()
        sys.stderr.flush()
