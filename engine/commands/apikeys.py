"""``engine api-keys``: who may ask over HTTP, in the file that ``[frontend] api_keys`` names."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Final

from engine.commands.command import Plain
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from engine.core.apikeys import Limits

FILE: Final = "api.keys"


def run(options: argparse.Namespace) -> int:
    from engine import apikeyfile

    if options.action != "list" and not options.name:
        options.parser.error(f"{options.action}: expected the NAME of a key")
    if options.action == "new":
        token = apikeyfile.add(options.path, options.name, _limits(options))
        print(token)  # alone on standard output, for scripts
        print(
            f"{options.path} knows {options.name} now, by a hash: this token is shown once. Who has it sends\n"
            f"    authorization: Bearer {token}\n"
            f'The file counts where it is named:  [frontend]  api_keys = "{options.path}"',
            file=sys.stderr,
        )
    elif options.action == "remove":
        apikeyfile.remove(options.path, options.name)
        print(f"{options.path} knows {options.name} no more; its token opens nothing within a second.")
    else:
        _list(options)
    return ExitCode.OK


def _limits(options: argparse.Namespace) -> Limits:
    from engine.core.apikeys import Limits

    try:
        return Limits(options.rate, options.burst, options.concurrent)
    except ValueError as error:
        message = str(error)
    options.parser.error(f"new: --{message}")
    raise AssertionError  # it does not come back


def _list(options: argparse.Namespace) -> None:
    from engine import apikeyfile

    keys = apikeyfile.read(options.path)
    if options.json:
        told = [
            {
                "name": key.name,
                "sha256": key.digest.hex(),
                "rate": key.limits.rate or None,
                "burst": key.limits.most_at_once if key.limits.rate else None,
                "concurrent": key.limits.concurrent or None,
            }
            for key in keys
        ]
        print(json.dumps(told))
        return
    width = max([len(key.name) for key in keys], default=0)
    for key in keys:
        print(f"{key.name:<{width}}  {key.limits.said() or 'without limits'}")


def _arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("action", choices=["new", "list", "remove"], help="new: make a key, and show its token once")
    sub.add_argument("name", metavar="NAME", nargs="?", default="", help="of the key: in metrics, and to remove it")
    sub.add_argument("--file", dest="path", metavar="FILE", default=FILE, help=f"where they are; default: {FILE}")
    sub.add_argument("--rate", type=float, default=0.0, metavar="R", help="new: requests a second, in the long run")
    sub.add_argument(
        "--burst", type=int, default=0, metavar="N", help="new: so many of them at once; default: a second's"
    )
    sub.add_argument("--concurrent", type=int, default=0, metavar="N", help="new: so many at a time")
    sub.add_argument("--json", action="store_true", help="list: as JSON")


API_KEYS: Final = Plain(
    "api-keys",
    "make, list and remove the keys with which clients ask over HTTP",
    run,
    "engine api-keys new alice --rate 10 --concurrent 4",
    arguments=_arguments,
)
