"""What a command of ``engine`` is, and what several of them share. Each command's module has a table of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine import log
from engine.config import FILE_NAME, add_flags, flags_of, load, run_dir
from engine.config.load import later
from engine.errors import Unavailable
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from engine.config import Deployment
    from engine.supervisor.parts import Parts

# Which keys a command has flags for: those it looks at.
EVERYWHERE: Final = ("log_level", "log_format")
HERE: Final = (*EVERYWHERE, "run_dir", "broker", "key")

STATUS_TIMEOUT_S: Final = 3.0

_FILE: Final = "a stages.toml, or the folder it is in; default: the stages.toml here"


def _none(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


@dataclass(frozen=True)
class Command:
    """One about a deployment: ``run`` gets the options and the file that was read, and gives the exit code.

    ``what`` stands in the list of commands, ``examples`` at the end of its help, a line each. ``keys``: of the
    configuration, those with a flag here; None: all. ``linked``: the key of a deployment is looked at first, so that
    what is wrong with it is said once, before processes are started. ``arguments`` adds what else it takes, and
    ``first`` what stands before FILE.
    """

    name: str
    what: str
    run: Callable[[argparse.Namespace, Deployment], int]
    examples: str
    keys: Collection[str] | None = HERE
    linked: bool = False
    arguments: Callable[[argparse.ArgumentParser], object] = _none
    first: Callable[[argparse.ArgumentParser], object] = _none

    def add(self, sub: argparse.ArgumentParser) -> None:
        self.first(sub)
        sub.add_argument("file", metavar="FILE", nargs="?", default=FILE_NAME, help=_FILE)
        add_flags(sub, self.keys)
        self.arguments(sub)


@dataclass(frozen=True)
class Plain:
    """One about no deployment: it reads no file and has no flags of one."""

    name: str
    what: str
    run: Callable[[argparse.Namespace], int]
    examples: str
    arguments: Callable[[argparse.ArgumentParser], object] = _none

    def add(self, sub: argparse.ArgumentParser) -> None:
        self.arguments(sub)


# --- arguments that several have -------------------------------------------------------------------------------------


def add_only(sub: argparse.ArgumentParser) -> None:
    what = "the parts that run here: broker, frontend, names of stages (NAME=N: so many workers); default: all"
    sub.add_argument("--only", metavar="PARTS", default="", help=what)


def add_on(sub: argparse.ArgumentParser) -> None:
    what = "the cluster that runs it: ray, the one of this machine, or ray=HOST:PORT; default: this machine"
    sub.add_argument("--on", metavar="CLUSTER", type=_cluster, help=what)


def count(text: str) -> int:
    """The type of an argument that is a number of things."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _cluster(text: str) -> str:
    """The address of a Ray cluster, "" for that of this machine."""
    kind, _, address = text.partition("=")
    if kind != "ray" or (not address and "=" in text):
        raise argparse.ArgumentTypeError(f"expected ray or ray=HOST:PORT, got {text}")
    return address


# --- what several do -------------------------------------------------------------------------------------------------


def set_up_log(process: str, deployment: Deployment, *, stage: str | None = None, worker: int | None = None) -> None:
    """As the deployment says."""
    engine = deployment.engine
    log.setup(process, level=engine.log_level, form=engine.log_format, stage=stage, worker=worker)


def parts_of(options: argparse.Namespace, deployment: Deployment) -> Parts:
    """Those of ``--only``."""
    from engine.supervisor import parts

    return parts.parse(options.only, deployment)


def refuse_only(options: argparse.Namespace) -> None:
    """A cluster has all parts, wherever it has room for them."""
    if options.only:
        options.parser.error(
            "--only is of this machine, and --on of a cluster, which runs all parts: expected one of them"
        )


def reread(options: argparse.Namespace) -> Callable[[], Deployment]:
    """Reads the file once more, with the flags and the environment of this process. Whoever was started with a version
    that was on trial reads what counts since."""
    return lambda: load(later(options.file), flags=flags_of(options))


def check_run_dir(deployment: Deployment) -> None:
    """Before somebody in there is asked: that it is this user's. Raises StartError."""
    from engine.supervisor.rundir import check

    if not deployment.engine.is_tcp:
        check(run_dir(deployment))


def unreachable(options: argparse.Namespace, deployment: Deployment, error: Unavailable) -> int:
    engine = deployment.engine
    where = ", ".join(engine.broker) or engine.bind or run_dir(deployment)
    print(
        f'engine: no running deployment "{engine.name}" answers at {where}: {error}; '
        f"start it with: engine up {options.file}",
        file=sys.stderr,
    )
    return ExitCode.UNREACHABLE
