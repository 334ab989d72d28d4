"""The HTTP address as the supervisor sees it: can it be had, how is it shown to the user. It never listens there."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from engine.config import FILE_NAME, Deployment, default_run_dir
from engine.config.endpoints import bracket, is_wildcard, loopback_of
from engine.config.schema import PAGE
from engine.errors import StartError
from engine.supervisor.parts import Parts
from engine.supervisor.rundir import LOOK_S, Busy, Withdrawn, sleep

_HINTS: Final = {
    errno.EACCES: "; ports below 1024 need privileges: choose another with --port",
    errno.EADDRNOTAVAIL: "; this machine has no such address: set one of its own with --address, or 0.0.0.0 for all",
}


def check_port(host: str, port: int, pause: Callable[[float], bool] = sleep) -> None:
    """Raise Busy when somebody listens there, StartError when it cannot be listened on for another reason.

    Done before any process is started: a model that loads for minutes should not be the way to find out. The port may
    still be taken in between; then the frontend says so. Raises Withdrawn when ``pause``, which waits so many seconds,
    says that the address need not be found any more.
    """
    where = f"port {port} on {host}" if port else host
    try:
        found = _find(host, port, pause)
    except (OSError, UnicodeError) as error:  # a label of more than 63 letters is no name to the codec
        raise StartError(f'cannot find the address "{host}": {error}; set another with --address') from error
    problems = []
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do; closed ones linger
                sock.bind(address)
                sock.listen(1)
        except OSError as error:
            problems.append(error)
    if any(problem.errno == errno.EADDRINUSE for problem in problems):
        raise Busy(f"{where} is in use by another process; stop that one, or choose another with --port")
    if len(problems) == len(found):  # one that works is enough: "localhost" without IPv6
        raise StartError(f"cannot listen on {where}: {problems[0]}{_HINTS.get(problems[0].errno or 0, '')}")


def _find(host: str, port: int, pause: Callable[[float], bool]) -> list[tuple[Any, ...]]:
    """What ``getaddrinfo`` says, asked on a thread: a resolver that gives no answer, for half a minute perhaps, cannot
    be interrupted, and must not hold up a stop. A thread that is left in there ends with the process."""
    outcome: list[list[tuple[Any, ...]] | Exception] = []

    def ask() -> None:
        try:
            outcome.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))
        except Exception as error:  # raised where it is waited for
            outcome.append(error)

    resolver = Thread(target=ask, name="resolver", daemon=True)
    resolver.start()
    resolver.join(LOOK_S)  # nearly always it is there at once
    while resolver.is_alive():
        if not pause(LOOK_S):
            raise Withdrawn
    (found,) = outcome
    if isinstance(found, Exception):
        raise found
    return found


def shown(url: str) -> str:
    """The URL a user on this machine can open."""
    parts = urlsplit(url)
    if not is_wildcard(parts.hostname or ""):
        return url
    host = bracket(loopback_of(parts.hostname or ""))
    return urlunsplit(parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host))


def banner(deployment: Deployment, url: str, trial: str | None = None, on: str = "") -> str:
    """The last lines of a start: where it listens, a request to try, and how to look at it.

    ``trial`` is what the first stage proposes, a command line with ``{url}`` in it; ``on``, the frontend's word for
    where it listens besides what the URL says.
    """
    url = shown(url)
    where = f"{url} (listening on {on})" if on else url
    lines = [
        f"{deployment.engine.name} is ready: {where}  (stop with Ctrl-C)",
        f"try: {_example(deployment, url, trial)}",
    ]
    if deployment.has_page:
        lines.append(f"page: {url}{PAGE}/")
    if deployment.file.suffix != ".py":  # a script's deployment has no file that the command could read
        lines.append(f"look: {status_command(deployment)}")
    return "\n".join(lines)


def part_banner(deployment: Deployment, parts: Parts) -> str:
    """The same of a host that does not serve HTTP."""
    return f"{deployment.engine.name}: {parts} ready  (stop with Ctrl-C)\nlook: {status_command(deployment)}"


def command_here(*, absolute: bool = False) -> str:
    """The command of this very installation as this shell takes it: by name only where the one found there is it; else
    by its path, which is ``absolute`` for whoever goes to another folder first."""
    own = Path(sys.executable).parent / "engine"
    found = shutil.which("engine")
    if found is not None and Path(found).absolute() == own:
        return "engine"
    path = str if absolute else _from_here
    # Else it is run from its source, and installed nowhere.
    return path(own) if own.exists() else f"{path(Path(sys.executable))} -m engine"


def status_command(deployment: Deployment) -> str:
    """A command line that works in this shell."""
    file = deployment.file.parent if deployment.file.name == FILE_NAME else deployment.file
    words = [command_here(), "status"]
    if file != Path.cwd():
        words.append(shlex.quote(_from_here(file)))
    own_dir = deployment.engine.run_dir
    if not deployment.engine.bind and own_dir and own_dir != default_run_dir(deployment.engine.name, os.environ):
        words += ["--run-dir", shlex.quote(own_dir)]
    return " ".join(words)


def own_command() -> str:
    """The command of this very installation, by its whole path."""
    own = Path(sys.executable).parent / "engine"
    return str(own) if own.exists() else f"{sys.executable} -m engine"


def _from_here(path: Path) -> str:
    """Relative where it lies below the current folder, else whole."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _example(deployment: Deployment, url: str, trial: str | None) -> str:
    """The author's own example before what the stage proposes."""
    try:
        text = (Path(deployment.file).parent / "example.curl").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if text:
        return text.replace("{url}", url)
    return (trial or "curl {url} -d '{}'").replace("{url}", url + deployment.routes[0].path, 1)
