"""Files that the command reads and writes, and where it says how far it is."""

from __future__ import annotations

import sys
from pathlib import Path

from engine.errors import ConfigError


def read(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError([f"{flag} {path}: cannot be read: {why}"]) from None


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be written: {error.strerror}"]) from None


def say(line: str) -> None:
    print(f"plan: {line}", file=sys.stderr, flush=True)
