"""The service behind a file: where its deployment answers, which is started for the time of the measurement if it does
not run."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from engine import bootstrap
from engine.addresses import free_ports
from engine.bench.target import Target
from engine.config import SNAPSHOT, Deployment, load, run_dir
from engine.config.endpoints import is_wildcard, loopback_of
from engine.errors import ConfigError, StartError

READY_S: Final = 600.0  # models load
LOOK_S: Final = 0.1
ASK_S: Final = 2.0
SHOWN: Final = 3000  # characters of what a deployment said that did not start


@contextmanager
def served(file: str, say: Callable[[str], object]) -> Iterator[tuple[Target, Deployment]]:
    """Where it answers. Raises ConfigError for what is wrong with the file, StartError where it does not start."""
    deployment = load(file)
    target = _target(deployment, deployment.frontend.port)
    running = _running(deployment)
    if running is not None:
        say(f"{deployment.engine.name} runs: {running.base}")
        yield running, deployment
        return
    with tempfile.TemporaryDirectory(prefix="sl-bench-", dir="/tmp") as folder:  # short, for sockets lie in it
        say(f"{deployment.engine.name} does not run here: it is started for the time of this")
        host = target.host
        try:
            target = _target(deployment, free_ports(1, host))
        except RuntimeError as error:
            raise StartError(str(error)) from None
        log = Path(folder) / "log"
        line = [sys.executable, str(Path(bootstrap.__file__)), "up", str(deployment.file), "--port", str(target.port)]
        line += ["--address", host, "--run-dir", f"{folder}/run", "--parent", str(os.getpid())]
        with log.open("wb") as out:
            process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        try:
            _wait(process, target, log)
            yield target, deployment
        finally:
            _end(process)


def _target(deployment: Deployment, port: int) -> Target:
    frontend = deployment.frontend
    host = loopback_of(frontend.address) if is_wildcard(frontend.address) else frontend.address
    # Of its own certificate there is nothing to check: it is the one that the file names.
    return Target(host, port, bool(frontend.certfile), "", verify=False)


def _running(deployment: Deployment) -> Target | None:
    """Where the deployment of this very file answers, if a supervisor of this user runs it here. Whoever else listens
    at its port is not it."""
    from engine.supervisor import rundir

    folder = run_dir(deployment)
    if rundir.holder(folder) is None:
        return None
    try:
        found = load(folder / SNAPSHOT)
    except ConfigError:
        return None
    if found.file.resolve() != deployment.file.resolve() or not found.frontend.port:
        return None
    target = _target(found, found.frontend.port)
    return target if is_ready(target) else None


def is_ready(target: Target) -> bool:
    """Whether whoever answers there says that it is."""
    connection = target.connection(ASK_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _wait(process: subprocess.Popen[bytes], target: Target, log: Path) -> None:
    until = time.monotonic() + READY_S
    while not is_ready(target):
        if process.poll() is not None:
            text = log.read_text(errors="replace").strip()[-SHOWN:]
            raise StartError(f"the deployment has ended with exit code {process.returncode}:\n{text}")
        if time.monotonic() > until:
            raise StartError(
                f"the deployment is not ready after {READY_S:g} s:\n{log.read_text(errors='replace')[-SHOWN:]}"
            )
        time.sleep(LOOK_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait()
