"""Starts a system with a service, waits until all of it is ready, and stops it. Ends only processes it has started."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import psutil

from benchmarks import plan, processes, work

SCRIPTS: Final = Path(__file__).parents[1]
ROOT: Final = SCRIPTS.parent
ADAPTERS: Final = Path(__file__).parent / "adapters"
PEERS: Final = ROOT / ".venv-bench"

START_S: Final = 120.0  # 64 workers or a model take their time, on a small machine
STOP_S: Final = 15.0
POLL_S: Final = 0.02

SYSTEMS: Final = ("stageline", "mosec", "litserve")
BASE: Final = "base"  # a former commit of Stageline
CALLS: Final = "calls"  # services that call each other


def former(commit: str, folder: Path) -> Path | None:
    """Another commit of this checkout, written into ``folder``; None where git does not have it."""
    folder.mkdir()
    git = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if git.returncode != 0:
        return None
    subprocess.run(["tar", "-x", "-C", str(folder)], input=git.stdout, check=True)
    return folder


@dataclass(frozen=True)
class Running:
    """A system that is ready. ``folder`` holds what it and its workers write."""

    system: str
    service: plan.Service
    pid: int
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.service.paths[0]}"

    @property
    def records(self) -> Path:
        return self.folder / "records"


@contextmanager
def started(
    system: str, service: plan.Service, folder: Path, *, body: str, threads: int, root: Path = ROOT
) -> Iterator[Running]:
    """The system, ready: every worker is made and each path has answered ``body`` with 200. Stopped at the end.

    ``folder`` is made; ``root`` is the checkout of Stageline. Raises RuntimeError, with the end of its log, when it
    does not become ready in time.
    """
    (folder / "records").mkdir(parents=True)
    port = free_port()
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(system, service, port, folder),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True,
            env={**os.environ, **environment(service, folder, threads, root)},
        )  # fmt: skip
    running = Running(system, service, process.pid, port, folder)
    try:
        try:
            _wait_ready(running, process, body)
        except TimeoutError as error:
            tail = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{system} did not become ready: {error}\n{tail}") from error
        yield running
    finally:
        stop(process)


def command(system: str, service: plan.Service, port: int, folder: Path) -> list[str]:
    """How a system is started. Writes the file it needs into ``folder``."""
    if system in ("stageline", BASE):
        file = folder / "stages.toml"
        file.write_text(plan.stages_toml(service, ADAPTERS / service.adapter))
        # Short: the path of a unix socket has at most 107 bytes.
        run_dir = str(folder / "run")
        return [sys.executable, "-m", "engine.cli", "up", str(file), "--port", str(port), "--run-dir", run_dir]
    python = peers_python()
    if system == "mosec":
        return [
            python, str(ADAPTERS / "mosec_service.py"),
            "--address", "127.0.0.1", "--port", str(port), "--path", str(folder / "run"), "--log-level", "warning",
            "--capacity", str(service.capacity), "--timeout", str(round(service.timeout_s * 1000)),
        ]  # fmt: skip
    if system in ("litserve", CALLS):
        return [python, str(ADAPTERS / f"{'litserve' if system == 'litserve' else 'calling'}_service.py"), str(port)]
    raise ValueError(f"system: expected one of {', '.join(SYSTEMS)}, got {system!r}")


def peers_python() -> str:
    """The Python of the systems beside ours: of the environment that scripts/bench makes for them, or where there is
    none (``python -m benchmarks`` on a machine that reaches no index) the one that runs, with what it finds."""
    own = PEERS / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def environment(service: plan.Service, folder: Path, threads: int, root: Path = ROOT) -> dict[str, str]:
    """Variables for the adapters and the work."""
    return {
        # This checkout, whichever one is installed; and where else packages are found.
        "PYTHONPATH": ":".join([str(SCRIPTS), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        plan.SERVICE_VARIABLE: service.to_json(),
        work.RECORD_VARIABLE: str(folder / "records"),
        work.SITE_VARIABLE: next(path for path in sys.path if path.endswith("site-packages")),
        work.THREADS_VARIABLE: str(threads),
    }


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_ready(running: Running, process: subprocess.Popen[bytes], body: str) -> None:
    until = time.monotonic() + START_S
    wanted = running.service.workers
    waiting = list(running.service.paths)
    while True:
        if process.poll() is not None:
            raise TimeoutError(f"it ended with exit code {process.returncode}")
        made = len(list(running.records.glob("made-*")))
        if made >= wanted:
            waiting = [path for path in waiting if post(running.port, path, body) != 200]
            if not waiting:
                return
        if time.monotonic() > until:
            raise TimeoutError(f"{made} of {wanted} workers are made, {len(waiting)} paths do not answer 200")
        time.sleep(POLL_S)


def post(port: int, path: str, body: str) -> int:
    """One request on a connection of its own; the status, 0 when there was no answer."""
    return ask(port, path, body)[0]


def ask(port: int, path: str, body: str) -> tuple[int, bytes]:
    """The same, and the answer's body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def metrics(port: int) -> str:
    """What ``/metrics`` says."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=START_S) as response:
        text: str = response.read().decode()
    return text


def suspend(running: Running) -> None:
    """Stop the clock of all its processes, until :func:`resume`."""
    for process in processes.family(running.pid):
        process.suspend()


def resume(running: Running) -> None:
    """Let its processes go on."""
    for process in processes.family(running.pid):
        process.resume()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, then end what is left of it: its descendants and its session's processes, and no others."""
    members = processes.family(process.pid)[1:] + _session(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for member in members:
        try:
            member.kill()  # psutil compares the start time: never another process of the same number
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(members, timeout=STOP_S)


def _session(pid: int) -> list[psutil.Process]:
    """Processes of the session that ``pid`` began: those too whose parent has died before them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != pid and os.getsid(process.pid) == pid:
                found.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def stop_child(process: subprocess.Popen[str]) -> None:
    """End a helper that leaves when its standard input ends."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
