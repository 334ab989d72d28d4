"""Keys that can be set from outside the file: a flag each, and an environment variable each. Derived from
the schema.

``frontend.max_request_size`` is ``--max-request-size`` and ``ENGINE_MAX_REQUEST_SIZE``. A flag wins over a
variable, and a variable over the file. Values stay text here; :mod:`engine.config.build` reads them, so
that what is wrong with them is reported along with everything else.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final

from engine.config.forms import nearest
from engine.config.schema import SECTIONS, Key, Unit, default, key_of, keys, types
from engine.config.units import format_size

PREFIX: Final = "ENGINE_"
# What processes of a deployment tell each other (engine.process), and what Kubernetes sets in each pod for a Service
# that is called "engine".
_OUR_OWN: Final = ("ENGINE_CPUS", "ENGINE_DESCRIPTORS", "ENGINE_DEVICE", "ENGINE_SOURCES", "ENGINE_TREE")
_KUBERNETES: Final = re.compile(r"ENGINE_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)")

_DEST: Final = "config_"  # keeps our attributes of the namespace apart from those of the command


@dataclass(frozen=True)
class Override:
    """A value from outside the file: ``source`` is the flag or variable to blame."""

    text: str
    source: str


@dataclass(frozen=True)
class Flag:
    """A key with a flag. ``kind`` is its Python type."""

    section: str
    name: str
    key: Key
    kind: Any  # a type or a union of types, as typing.get_type_hints gives it
    default: Any

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def flags() -> list[Flag]:
    """Every key that has a flag, in the order of the schema."""
    return [
        Flag(section, item.name, key_of(item), types(kind)[item.name], default(item))
        for section, kind in SECTIONS.items()
        for item in fields(kind)
        if key_of(item).flag
    ]


def add_flags(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Add a group with one flag per key to ``parser``, or for the keys ``only``; :func:`flags_of` reads them back.

    A boolean key gets ``--x`` and ``--no-x``. The parser should be made with ``allow_abbrev=False``.
    """
    group = parser.add_argument_group("configuration", "These override the environment, which overrides the file.")
    for flag in flags():
        if only is not None and flag.name not in only:
            continue
        if flag.kind is bool:
            group.add_argument(
                flag.option,
                dest=_DEST + flag.name,
                action=argparse.BooleanOptionalAction,
                default=None,
                help=_help(flag),
            )
        else:
            group.add_argument(flag.option, dest=_DEST + flag.name, metavar=_metavar(flag), help=_help(flag))


def choices() -> dict[str, tuple[str, ...]]:
    """The values of flags that have only some, by the name under which a parser keeps what is given."""
    return {_DEST + flag.name: tuple(flag.key.choices) for flag in flags() if flag.key.choices}


def flags_of(namespace: argparse.Namespace) -> dict[str, str]:
    """The flags that were given, as the ``flags`` argument of :func:`engine.config.load`: key name -> text."""
    given = {}
    for flag in flags():
        value = getattr(namespace, _DEST + flag.name, None)
        if value is not None:
            given[flag.name] = ("true" if value else "false") if isinstance(value, bool) else value
    return given


def overrides(
    given: Mapping[str, str], environ: Mapping[str, str]
) -> tuple[dict[tuple[str, str], Override], list[str]]:
    """What overrides which key, as (section, name) -> Override, and the problems found. Empty variables are unset."""
    known = flags()
    names = [flag.name for flag in known]
    problems = [
        f"--{name.replace('_', '-')}: no such flag{nearest(name, names)}" for name in given if name not in names
    ]
    found = {}
    for flag in known:
        if flag.name in given:
            found[flag.section, flag.name] = Override(given[flag.name], flag.option)
        elif text := environ.get(flag.variable):
            found[flag.section, flag.name] = Override(text, flag.variable)
    return found, problems


def strangers(environ: Mapping[str, str], *, also: Sequence[str] = ()) -> list[str]:
    """A line for each variable that begins with ``ENGINE_``, is set, and means nothing here (``also`` do mean
    something).

    For a warning and not an error: the prefix is no property of ours, and a variable of another program must not keep
    a deployment from starting; one that was misspelt must not be silent either.
    """
    known = [flag.variable for flag in flags()]
    told = []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or not environ[name] or name in known or name in also or name in _OUR_OWN:
            continue
        if _KUBERNETES.fullmatch(name):
            continue
        hint = in_file_only(name.removeprefix(PREFIX).lower()) or nearest(name, [*known, *also])
        told.append(f"{name} is set and not read{hint}")
    return told


def in_file_only(name: str) -> str:
    """Where a key stands that can be set in the file alone; "" when there is none of this name."""
    sections = [section for section, kind in SECTIONS.items() if name in keys(kind) and not keys(kind)[name].flag]
    return f"; {name} is set in the file, under {' or '.join(sections)}" if sections else ""


def _metavar(flag: Flag) -> str:
    if flag.key.choices:
        return "{" + ",".join(flag.key.choices) + "}"
    if flag.key.unit in (Unit.SECONDS, Unit.MILLISECONDS):
        return "TIME"
    if flag.key.unit is Unit.BYTES:
        return "SIZE"
    return "N" if flag.kind is int else "TEXT"


def _help(flag: Flag) -> str:
    about = []
    if flag.default is not MISSING and flag.default != "":
        if flag.kind is bool:
            text = "on" if flag.default else "off"
        elif flag.key.unit is Unit.BYTES:
            text = format_size(flag.default)
        else:
            text = f"{flag.default:g} s" if flag.key.unit is Unit.SECONDS else str(flag.default)
        about.append(f"default {text}")
    about.append(flag.variable)
    return f"{flag.key.doc} ({'; '.join(about)})".replace("%", "%%")
