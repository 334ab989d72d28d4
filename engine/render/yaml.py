"""Values as YAML that is plain to read: of YAML the part that manifests need, so that no library is.

Maps, lists, text, integers and booleans. Text is quoted, as JSON quotes it, wherever a reader of YAML could take it for
something else; text of several lines stands as a block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

Value: TypeAlias = "Mapping[str, Value] | Sequence[Value] | str | int | bool"

KEY_MOST: Final = 1024  # characters of a key as it is written; a longer one is no key to YAML unless it is said to be

# What needs no quotes: begins with a letter or a slash, and has no mark of YAML's.
_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./+-]*(?: [A-Za-z0-9_./+=,-]+)*")
_WORDS: Final = frozenset(
    ("y", "n", "yes", "no", "true", "false", "on", "off", "null")
)  # YAML 1.1 means others by these
_FOREIGN: Final = re.compile("[^ -~]")
_BLOCK: Final = re.compile(r"[^\s][^\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\u2028\u2029]*\n")


def dump(*documents: Value) -> str:
    """The documents, one after the other."""
    return "---\n".join("\n".join(_lines(one)) + "\n" for one in documents)


def _lines(value: Value) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            head = _scalar(key)
            if len(head) <= KEY_MOST:
                yield from _entry(f"{head}:", one)
            else:
                yield f"? {head}"
                yield from _entry(":", one)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for one in value:
            first, *rest = _lines(one)
            yield f"- {first}"
            yield from (f"  {line}" if line else "" for line in rest)
    else:
        yield _scalar(value)


def _entry(key: str, value: Value) -> Iterator[str]:
    if isinstance(value, str) and value.count("\n") > 1 and _BLOCK.fullmatch(value) and "\t" not in value:
        yield f"{key} |{'+' if value.endswith(chr(10) * 2) else ''}"
        yield from (f"  {line}" if line else "" for line in value[:-1].split("\n"))
    elif isinstance(value, (Mapping, Sequence)) and not isinstance(value, str) and value:
        yield key
        yield from (f"  {line}" if line else "" for line in _lines(value))
    else:
        yield f"{key} {_scalar(value)}"


def _scalar(value: Value) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return _FOREIGN.sub(_escaped, json.dumps(value, ensure_ascii=False))


def _escaped(found: re.Match[str]) -> str:
    """YAML writes what lies beyond 16 bits as one number, where JSON writes two."""
    number = ord(found[0])
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"
