"""Runs the supervisor over scripted children (child.py). Arguments: folder, a JSON object with what to run."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from engine import log, supervisor
from engine.config import Deployment, build
from engine.core.backoff import Backoff
from engine.core.demand import Windows
from engine.core.processes import Child
from engine.supervisor.parts import parse

POLICY = Backoff(first_s=0.02, most_s=0.1, budget=3)


def commands(child: Child, status_fd: int) -> Sequence[str]:
    program = Path(__file__).with_name("child.py")
    name = child.name.replace(" ", "-")
    return [sys.executable, str(program), sys.argv[1], name, str(status_fd), str(os.getpid())]


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)


def made(data: dict[str, Any], folder: Path) -> Deployment:
    return build(data, file=folder / "stages.toml", label="stages.toml", flags={}, environ={})


def main() -> int:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    data = {
        "engine": {"name": "tried", "run_dir": str(folder / "run"), **options.get("engine", {})},
        "frontend": {"address": "127.0.0.1", "port": 0, **options.get("frontend", {})},
        "stage": options.get("stage", [{"name": "encode", "worker": "service:Encode", "num": 2}]),
    }
    deployment = made(data, folder)
    log.setup("supervisor")
    if options.get("resolver") == "hangs":

        def hang(*_: object, **__: object) -> NoReturn:
            (folder / "asked").touch()
            time.sleep(600)
            raise AssertionError("waited for")

        socket.getaddrinfo = hang
    if "workers" in options:
        file = folder / "stages.json"  # what it says when it is read once more
        return supervisor.run_workers(
            deployment,
            "encode",
            options["workers"],
            commands=commands,
            policy=POLICY,
            reread=lambda: made({**data, **json.loads(file.read_text())}, folder),
        )
    if "reload" in options:
        again = folder / "again.json"  # what its file says when it is read once more
        supervisor.run = functools.partial(supervisor.run, commands=commands, policy=POLICY)
        return supervisor.develop(deployment, lambda: made({**data, **json.loads(again.read_text())}, folder))
    daemons = {}
    if "popen" in options.get("daemons", ()):
        daemons["popen"] = sleeper()
    if "process" in options.get("daemons", ()):
        daemons["process"] = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    if "forked" in options.get("daemons", ()):
        daemons["forked"] = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    for name, daemon in daemons.items():
        if daemon.pid is not None:
            (folder / f"{name}.pid").write_text(str(daemon.pid))
    parts = parse(options.get("only", ""), deployment)
    windows = Windows(*options.get("windows", ()))
    return supervisor.run(deployment, daemons=daemons, commands=commands, policy=POLICY, parts=parts, windows=windows)


if __name__ == "__main__":
    sys.exit(main())
