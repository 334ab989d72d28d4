"""Where in a ``stages.toml`` a problem is, and the usual reason for it. Pure: the text in, words out.

A file that is no TOML is shown as a compiler would: the line, a caret, and what is mostly meant. A file that is TOML
and wrong gets the number of the line its key stands on. What cannot be told for certain is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_AT: Final = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
_HEADER: Final = re.compile(r"\s*(?P<open>\[\[?)\s*(?P<name>[\w.-]+)\s*\]")
_KEY: Final = re.compile(r"\s*(?P<key>[\w-]+)\s*=")
# ``stage[1] "encode".num``, ``frontend.port``, ``stage``: how problems name a place.
_WHERE: Final = re.compile(r'(?P<section>\w+)(?:\[(?P<index>\d+)\])?(?: "(?:[^"\\]|\\.)*")?(?:\.(?P<key>[\w-]+))?: ')

_PYTHON: Final = re.compile(r"(?:from\s+[\w.]+\s+import\s|import\s+\w|class\s+\w+.*:|def\s+\w+\(|if\s+__name__)", re.M)
_YAML: Final = re.compile(r"[\w-]+:(?:\s|$)|---$", re.M)


def not_toml(path: Path, label: str, text: str, message: str) -> str:
    """The problem of a text that no TOML parser takes; ``message`` is the parser's."""
    if other := _other_language(path, label, text):
        return other
    found = _AT.search(message)
    lines = text.splitlines() or [""]
    what = message[: found.start()] if found else message
    number = int(found["line"]) if found and found["line"] else len(lines)
    line = lines[min(number, len(lines)) - 1]
    column = int(found["column"]) if found and found["column"] else len(line) + 1
    before = re.sub(r"[^\t]", " ", line[: column - 1])
    told = f"{label}: line {number}, column {column}: expected TOML: {what}\n    {line}\n    {before}^"
    hint = _hint(line, what)
    return f"{told}\n  {hint}" if hint else told


def is_python(path: Path, label: str) -> str | None:
    """What to say of a Python file, by its name alone."""
    return _python(label) if path.suffix in (".py", ".pyw") else None


def _python(label: str) -> str:
    return (
        f"{label}: this is Python: run it with python (python {label}) if it ends in Server().run(); "
        "else give the stages.toml that names its classes"
    )


def numbered(problems: Sequence[str], label: str, text: str) -> list[str]:
    """The problems that :mod:`engine.config.build` found in a file, each with the line its key or table stands on."""
    made = []
    for problem in problems:
        rest = problem.removeprefix(f"{label}: ")
        found = _WHERE.match(rest) if rest != problem else None
        number = found and line_of(text, found["section"], int(found["index"] or 0), found["key"])
        made.append(f"{label}:{number}: {rest}" if number else problem)
    return made


def line_of(text: str, section: str, index: int = 0, key: str | None = None) -> int | None:
    """The line (from 1) of a key in the ``index``-th table of a section; of the table, when it lacks the key.

    A sub-table, ``[stage.args]``, belongs to the table before it, as in TOML.
    """
    table: int | None = None
    inside, sub, count = False, "", -1
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            name, _, sub = header["name"].partition(".")
            if name != section:
                inside = False
            elif not sub:
                count += 1
                inside = count == index
                table = number if inside else table
            if inside and sub and sub.partition(".")[0] == key:
                return number
        elif inside and not sub and key is not None and (found := _KEY.match(line)) and found["key"] == key:
            return number
        elif table is None and count < 0 and (found := _KEY.match(line)) and found["key"] == section:
            table = number  # written as one value at the top
    return table


def _other_language(path: Path, label: str, text: str) -> str | None:
    start = text.lstrip()
    if told := is_python(path, label):
        return told
    if path.suffix != ".toml" and start.startswith("{"):
        return f"{label}: this is JSON; a deployment is written in TOML (docs/reference.md)"
    if path.suffix in (".yaml", ".yml"):
        return f"{label}: this is YAML; a deployment is written in TOML (docs/reference.md)"
    if _PYTHON.match(start):
        return _python(label)
    return None


def _hint(line: str, what: str) -> str | None:
    """The usual reason, with the line as it is probably meant."""
    if "Cannot overwrite" in what and (key := _KEY.match(line)):
        return f"{key['key']} is set more than once in this table"
    twice = re.search(r"\('(stage|route)',\) twice", what)
    if twice or ("mutable" in what and re.match(r"\s*\[\s*(stage|route)\s*\]", line)):
        name = twice[1] if twice else "stage"
        return f"each {name} is written with two brackets: [[{name}]]"
    if re.search("[\u201c\u201d\u2018\u2019]", line):
        return "curly quotes came from a word processor: TOML takes \" and '"
    if (pair := re.match(r"\s*([\w-]+)\s*=\s*(.*?)\s*(?:#.*)?$", line)) is not None:
        return _value_hint(pair[1], pair[2], what)
    if (pair := re.match(r"\s*([\w-]+)\s*:\s*(\S.*)$", line)) is not None:
        return f"a key is set with an equals sign: {pair[1]} = {pair[2]}"
    if _YAML.match(line.lstrip()) or re.match(r"\s*[\w-]+\s*$", line):
        return "a line is a [table], or a key = value"
    return None


def _value_hint(key: str, value: str, what: str) -> str | None:
    if not value:
        return f"{key} has no value"
    if value in ("True", "False"):
        return f"booleans are written small: {key} = {value.lower()}"
    if value in ("None", "null", "nil"):
        return f"TOML has no such value: leave {key} out"
    if "\\" in value and value.startswith('"'):
        return f"a backslash is itself in single quotes: {key} = '{value[1:].rstrip(chr(34))}'"
    if value[0] in "\"'":
        return "a closing quote is missing" if value.count(value[0]) % 2 else None
    if value[0] in "[{":
        bare = re.search(r"[\[,]\s*([A-Za-z_][^\s,\]]*)", value)
        if bare and bare[1] not in ("true", "false", "inf", "nan"):
            return f"text stands in quotes, also in a list: {json.dumps(bare[1], ensure_ascii=False)}"
        return f"a closing {']' if value[0] == '[' else '}'} is missing" if "nclosed" in what else None
    return f"text stands in quotes: {key} = {json.dumps(value, ensure_ascii=False)}"
