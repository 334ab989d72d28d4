"""A child process as the supervisor tests need it: journals what happens to it and behaves as files in its folder say.

Arguments: folder, name, status descriptor, parent pid. In the folder, ``NAME.fails`` makes it fail to start,
``NAME.code`` with that exit code, ``NAME.hangs`` never get ready, ``NAME.stays`` ignore SIGTERM, ``NAME.lingers`` wait
after SIGTERM until the file is removed, ``NAME.waits`` before it can be told anything, ``NAME.worn`` say that it is,
once, ``NAME.breeds`` start two processes of its own: one in its group, one that has left it for a session of its own,
``NAME.dies`` end as soon as it is ready, ``NAME.eats`` take memory until it gets no more. ``NAME.url`` is told when
ready. ``NAME.needs`` is what a broker tells of workers that stages need, a JSON object, again and again; ``NAME.asked``
a stage at which requests wait.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from engine.process import Notifier, die_with_parent

folder, name, status_fd, parent = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
stopping = False


def told(what: str) -> bool:
    return (folder / f"{name}.{what}").exists()


def journal(line: str) -> None:
    fd = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{name} {line}\n".encode())
    os.close(fd)


def stop(number: int, frame: object) -> None:
    global stopping
    if not told("stays"):
        stopping = True


signal.signal(signal.SIGTERM, stop)
die_with_parent(parent)
notify = Notifier(status_fd)
journal(f"starts {os.getpid()} {os.environ.get('COLOUR', '-')}")
notify.send("loading")
if told("code"):
    sys.exit(int((folder / f"{name}.code").read_text()))
if told("fails"):
    notify.send("failed", reason="ValueError: no such model")
    sys.exit(4)
if told("breeds"):
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    journal(f"bred {subprocess.Popen(sleeper, **quiet).pid}")  # type: ignore[call-overload]
    journal(f"bred {subprocess.Popen(sleeper, start_new_session=True, **quiet).pid}")  # type: ignore[call-overload]
while told("waits") and not stopping:
    time.sleep(0.01)
signal.signal(signal.SIGHUP, lambda number, frame: journal("rereads"))  # as late as it can be
if not told("hangs"):
    notify.send("warming", done=1, of=1)
    fields = {key: (folder / f"{name}.{key}").read_text() for key in ("url", "on") if told(key)}
    journal("ready")
    notify.send("ready", **fields)
if told("dies"):
    sys.exit(9)
held = []
while not stopping:
    time.sleep(0.01)
    if told("needs"):
        notify.send("demand", workers=json.loads((folder / f"{name}.needs").read_text() or "{}"))
    if told("asked"):
        notify.send("waiting", left_s={(folder / f"{name}.asked").read_text(): 10.0})
    if told("worn"):
        notify.send("worn", reason="it is old")
        (folder / f"{name}.worn").unlink()
    if told("eats"):
        held.append(b"x" * (8 << 20))
journal("stops")
while told("lingers"):
    time.sleep(0.01)
journal("ends")
