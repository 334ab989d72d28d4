"""Runs deployments as a user does, through the command `engine`, and proves that they end without a trace.

A deployment gets its own short run directory and a free port, and its processes inherit a mark in their environment.
The mark finds them wherever they were reparented to: what carries it after the end has survived its supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from engine import addresses, admin
from engine.commands.command import STATUS_TIMEOUT_S
from engine.config import load

ENGINE = str(Path(sys.executable).parent / "engine")
SERVICES = Path(__file__).parent / "services"
EXAMPLES = Path(__file__).parents[2] / "examples"
MARK = "STAGELINE_TEST_MARK"
START_S = 60.0  # several processes importing on two busy cores
STOP_S = 25.0

T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], *, within_s: float = 20.0) -> T:
    """The first true value of ``condition``; an AssertionError that names what never came."""
    end = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {within_s:g} s (last: {value!r})")
        time.sleep(0.02)


def environment(mark: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tests' own environment without the settings of another deployment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENGINE_")}
    return {**kept, MARK: mark, **(extra or {})}


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that carry the mark, in no order. Zombies are dead: they wait for a parent, not for us."""
    found = []
    needle = f"{MARK}={mark}".encode()
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            if needle in Path(f"/proc/{number}/environ").read_bytes():
                process = psutil.Process(int(number))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        except (OSError, psutil.Error):
            continue  # gone since the listing, or another user's
    return found


def free_ports(count: int) -> int:
    """The first of ``count`` consecutive free ports of the loopback address."""
    return addresses.free_ports(count, "127.0.0.1")


class Running:
    """One command of `engine` in its own process, with all that it starts."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        env: Mapping[str, str] | None = None,
        mark: str | None = None,
        command: Sequence[str] = (ENGINE,),
    ) -> None:
        self.mark = mark or uuid.uuid4().hex
        self.folder = folder
        name = f"{Path(arguments[0]).stem}-{uuid.uuid4().hex[:6]}"
        self._stdout = folder / f"{name}.out"
        self._stderr = folder / f"{name}.err"
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment(self.mark, env),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def log(self) -> str:
        return self._stderr.read_text(errors="replace")

    def records(self) -> list[dict[str, Any]]:
        """The log's lines that are JSON."""
        found = []
        for line in self.log.splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    found.append(record)
        return found

    def exited(self, *, within_s: float = STOP_S) -> int:
        """The exit code, once it has ended by itself."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within_s:g} s\n{self.tail()}") from None

    def processes(self, kind: str = "", *, stage: str = "") -> list[psutil.Process]:
        """Its processes by sub-command ("broker", "frontend", "worker"), and workers by stage."""
        found = []
        for process in marked(self.mark):
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if (not kind or kind in line) and (not stage or stage in line):
                    found.append(process)
        return found

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def terminate(self, *, within_s: float = STOP_S) -> int:
        """SIGTERM, wait; the exit code."""
        self.signal(signal.SIGTERM)
        return self.exited(within_s=within_s)

    def gone(self, *, within_s: float = 10.0) -> None:
        """Nothing that carries its mark lives."""
        try:
            wait_for("the end of every process", lambda: not marked(self.mark), within_s=within_s)
        except AssertionError:
            survivors = [(process.pid, " ".join(process.cmdline())) for process in marked(self.mark)]
            raise AssertionError(f"survived: {survivors}\n{self.tail()}") from None

    def kill(self) -> None:
        """The last resort of a test that failed: everything that carries the mark."""
        for process in marked(self.mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.kill()  # gunicorn's master writes its title over its environment, and the mark in it
        self.process.wait(STOP_S)

    def tail(self, lines: int = 60) -> str:
        text = [*self.out.splitlines()[-10:], "--- log", *self.log.splitlines()[-lines:]]
        return "\n".join(text)


class Deployed(Running):
    """A running ``engine up``; ``url`` is known once it is ready."""

    url: str

    def wait_ready(self, *, within_s: float = START_S) -> None:
        def url() -> str:
            if self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode}\n{self.tail()}")
            found = re.search(r"is ready: (https?://\S+)", self.out)
            return found[1] if found else ""

        try:
            self.url = wait_for("readiness", url, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def client(self, **options: Any) -> httpx.Client:
        options.setdefault("verify", False)  # of https by those who say what to trust: reading that takes 40 ms
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)

    def status(self) -> dict[str, Any]:
        """What `engine status --json` says, asked from here: who waits for something asks often, and the start of a
        command is half a second of a core that what is waited for needs."""
        file = Path(str(self.process.args[2]))  # type: ignore[index]  # a list, as given above
        deployment = load(file, flags={"run_dir": str(self.folder / "run")}, environ={})
        answer: dict[str, Any] = json.loads(admin.ask(deployment, "status", STATUS_TIMEOUT_S))
        return answer

    def engine(self, command: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """Another command of `engine` on the same deployment."""
        file = str(self.process.args[2])  # type: ignore[index]  # a list, as given above
        run_dir = ["--run-dir", str(self.folder / "run")] if command != "check" else []
        return subprocess.run(
            [ENGINE, command, file, *run_dir, *flags],
            env=environment(uuid.uuid4().hex),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def metrics(self) -> dict[str, float]:
        """`/metrics` as sample (name and labels as printed) -> value."""
        with self.client() as client:
            text = client.get("/metrics").text
        samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder of its own with a short path, as ipc sockets need; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def up(
    file: Path,
    *flags: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
    wait: bool = True,
    script: Path | None = None,
) -> Deployed:
    """Start ``engine up FILE`` on a free port of the loopback address, with its run directory under ``folder``.
    ``script``: a program that takes the place of ``engine up``, with the same arguments."""
    words = [str(file), "--address", "127.0.0.1", "--port", "0", "--run-dir", str(folder / "run"), *flags]
    begin, command = ("up", (ENGINE,)) if script is None else (str(script), (sys.executable,))
    deployed = Deployed([begin, *words], folder=folder, env=env, command=command)
    if wait:
        try:
            deployed.wait_ready()
        except BaseException:
            deployed.kill()
            raise
    return deployed


@contextlib.contextmanager
def deployed(
    file: Path, *flags: str, env: Mapping[str, str] | None = None, script: Path | None = None
) -> Iterator[Deployed]:
    """A deployment that is ready; at the end it must stop on SIGTERM with exit code 0 and leave nothing.

    A test that ended it itself (killed, or waited for) is only held to the second half. ``script``: see :func:`up`.
    """
    with short_folder() as folder:
        running = up(file, *flags, folder=folder, env=env, script=script)
        try:
            yield running
            if running.process.poll() is None:
                code = running.terminate()
                assert code == 0, f"exit code {code}\n{running.tail()}"
            running.gone()
            left = sorted(path.name for path in (folder / "run").glob("*"))
            assert running.process.returncode < 0 or not left, f"left in the run directory: {left}"
        except BaseException:
            print(running.tail())  # shown with the failure
            raise
        finally:
            running.kill()


@contextlib.contextmanager
def altered(file: Path, **frontend: str) -> Iterator[Path]:
    """A copy of a deployment's folder in which keys of ``[frontend]`` have these values, written as TOML."""
    with short_folder() as folder:
        copy = shutil.copytree(file.parent, folder / "service") / file.name
        lines = [line for line in copy.read_text().splitlines() if line.partition(" =")[0] not in frontend]
        at = lines.index("[frontend]") + 1
        lines[at:at] = [f"{key} = {value}" for key, value in frontend.items()]
        copy.write_text("\n".join(lines) + "\n")
        yield copy


def write_service(folder: Path, toml: str, code: str = "") -> Path:
    """A deployment written by a test: its stages.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    if code:
        (folder / "service.py").write_text(code)
    file = folder / "stages.toml"
    file.write_text(toml)
    return file
