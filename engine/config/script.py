"""The command line of a script that ends in ``Server().run()``: Mosec's flags and variables, and what they mean here.

Exactly Mosec's, so that a script's own flags stay its own: nothing is abbreviated, and what is not listed is left
alone. Every other key that has an ``ENGINE_`` variable can be set by that. One thing differs from ``engine up``: a bare
number given as ``timeout`` is milliseconds, because that is what the scripts and their manifests say. A unit makes it
plain in both ("5 s").
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from engine.config.flags import PREFIX
from engine.config.forms import BadValue, from_text
from engine.config.schema import EngineSection, FrontendSection, Key, StageSection, keys
from engine.config.units import format_size

_BARE: Final = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)\s*")
_FLAG_KEYS: Final = {"path": "run_dir"}  # where a flag's name is not its key's
_OWN: Final = ("wait", "debug", "dry_run")  # flags that are no key's


@dataclass(frozen=True)
class Settings:
    """What flags and environment say, in the terms of :func:`engine.config.build`."""

    flags: Mapping[str, str]
    environ: Mapping[str, str]
    wait_ms: float | None  # max_wait_time of the stages that set none
    dry_run: bool
    problems: tuple[str, ...]


def arguments() -> argparse.ArgumentParser:
    """The flags, for a script that shows them in its own ``--help``: ``ArgumentParser(parents=[arguments()])``.

    Nothing has a default, so a flag that is not given is None and leaves the key to the environment.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group(
        "server", "A variable ENGINE_PORT stands for --port, and so on; a flag overrides its variable."
    )
    engine, frontend = EngineSection(), FrontendSection()

    def add(option: str, metavar: str, about: str, default: object) -> None:
        group.add_argument(option, metavar=metavar, help=f"{about} (default {default})")

    add("--path", "FOLDER", "private folder for sockets and the pid file", "under $XDG_RUNTIME_DIR or /tmp")
    add("--capacity", "N", "requests admitted at once; past it 429", frontend.capacity)
    add("--timeout", "MS", "deadline of a request, in milliseconds", f"{frontend.timeout * 1000:g}")
    add("--wait", "MS", "max_wait_time of stages that set none, in milliseconds", f"{_default_wait():g}")
    add("--address", "ADDRESS", "address to listen on: a name, IPv4 or IPv6", frontend.address)
    add("--port", "N", "port to listen on", frontend.port)
    add("--namespace", "TEXT", "prefix of every metric's name", engine.namespace)
    group.add_argument("--debug", action="store_true", default=None, help="the same as --log-level debug")
    add("--log-level", "LEVEL", "debug, info, warning or error", engine.log_level)
    group.add_argument(
        "--dry-run", action="store_true", default=None, help="run the warm-up examples through every stage, and exit"
    )
    group.add_argument("--compression", action="store_true", default=None, help="accept and send gzip and zstd bodies")
    add("--max-request-size", "SIZE", "largest request body; past it 413", format_size(frontend.max_request_size))
    return parser


def parse(argv: Sequence[str]) -> dict[str, str]:
    """The flags in ``argv`` (a ``sys.argv``), name -> text; what is not ours is the script's.

    Prints the flags and raises SystemExit for ``--help``, which a script with a parser of its own has answered before;
    for ``-h`` only when it stands alone, since a script may mean something else by it.
    """
    parser = argparse.ArgumentParser(
        prog=os.path.basename(argv[0]) if argv else None,
        description="Serve the workers that this script registers.",
        add_help=False,
        allow_abbrev=False,
        parents=[arguments()],
    )
    parser.add_argument("--help", action="help", help="show this, and exit")
    given = ["--help"] if list(argv[1:]) == ["-h"] else argv[1:]
    namespace, _others = parser.parse_known_args(given)
    return {name: "true" if value is True else value for name, value in vars(namespace).items() if value is not None}


def misspelt(argv: Sequence[str]) -> dict[str, str]:
    """Flags in ``argv`` that are none of ours but nearly, with the one that may be meant. They may be the script's own:
    worth a word and no more."""
    known = [f"--{name.replace('_', '-')}" for name in (*vars(arguments().parse_args([])), "help")]
    before = itertools.takewhile(lambda text: text != "--", argv[1:])
    flags = {text.partition("=")[0] for text in before if text.startswith("--")} - {*known}
    found = {flag: get_close_matches(flag, known, n=1, cutoff=0.8) for flag in sorted(flags)}
    return {flag: near[0] for flag, near in found.items() if near}


def settings(given: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
    """What :func:`parse` found and the ``ENGINE_`` variables, together. Empty variables are unset."""
    problems: list[str] = []
    flags = {_FLAG_KEYS.get(name, name): text for name, text in given.items() if name not in _OWN}
    variables = dict(environ)
    if "path" not in given and environ.get("ENGINE_PATH"):
        variables["ENGINE_RUN_DIR"] = environ["ENGINE_PATH"]
    for held, name in ((flags, "timeout"), (variables, "ENGINE_TIMEOUT")):
        if _BARE.fullmatch(held.get(name, "")):
            held[name] = f"{held[name]} ms"

    def read(name: str, key: Key, kind: Any) -> Any:  # Any: a key's value
        variable = f"ENGINE_{name.upper()}"
        text = given.get(name) or environ.get(variable)
        if not text:
            return None
        source = f"--{name.replace('_', '-')}" if name in given else variable
        try:
            return from_text(key, kind, text)
        except BadValue as error:
            problems.append(f"{source}: {error}")
            return None

    wait = read("wait", keys(StageSection)["max_wait_time"], float)
    if read("debug", Key(""), bool) and ("debug" in given or "log_level" not in given):
        flags["log_level"] = "debug"
    dry_run = bool(read("dry_run", Key(""), bool))
    return Settings(flags, variables, wait, dry_run, tuple(problems))


def foreign(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of Mosec that are set and not read here, with the name that is."""
    known = {name.upper() for name in vars(arguments().parse_args([]))}
    return {
        name: name.replace("MOSEC_", "ENGINE_", 1)
        for name in environ
        if name.startswith("MOSEC_") and name.removeprefix("MOSEC_") in known
    }


def variables() -> list[str]:
    """The variables that a script reads beside those of the keys."""
    return [f"{PREFIX}{name.upper()}" for name in (*_OWN, *_FLAG_KEYS)]


def _default_wait() -> float:
    return float(StageSection(name="x", worker="x:X").max_wait_time)
