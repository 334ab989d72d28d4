"""A service made on the spot, and who is who in it: Stageline, or Mosec beside it, with the same user code.

Stageline is started by what the end-to-end tests start it with (`tests/e2e/harness.py`), Mosec out of `.venv-bench`.
Both are found out about from outside: workers by the files that user code leaves, the rest by their command lines.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import harness
import httpx
import psutil

from engine import admin, transport
from engine.errors import Unavailable
from faults import work

ROOT: Final = Path(__file__).parents[2]

PEER_PYTHON: Final = ROOT / ".venv-chaos" / "bin" / "python"

PAGES: Final = "/pages"  # whose requests go on in parts
Passed: TypeAlias = str | tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One stage of a service. ``more`` are further lines of its table in stages.toml."""

    name: str
    num: int = 1
    batch: int = 8
    fixed_s: float = 0.0
    item_s: float = 0.0
    timeout_s: float = 0.0  # of one forward; 0: the deadline
    more: str = ""


@dataclass(frozen=True)
class Service:
    """What is made: stages, and routes through them by path, where those in parentheses are passed by parts; ``more``
    are further lines of [frontend]."""

    name: str
    stages: tuple[Stage, ...]
    routes: tuple[tuple[str, tuple[Passed, ...]], ...]
    deadline_s: float = 15.0
    frontends: int = 1
    more: str = ""

    def through(self, path: str) -> tuple[Passed, ...]:
        """The stages of a route."""
        return dict(self.routes)[path]

    def has(self, path: str) -> bool:
        """Whether there is such a route."""
        return path in dict(self.routes)

    def toml(self) -> str:
        """The file that describes it to Stageline."""
        parts = [
            f'[engine]\nname = "{self.name}"\ngrace = 10.0\n',
            f"[frontend]\ntimeout = {self.deadline_s}\nworkers = {self.frontends}\n{self.more}",
        ]
        for stage in self.stages:
            parts.append(
                f'[[stage]]\nname = "{stage.name}"\nworker = "service:Step"\nnum = {stage.num}\n'
                f"max_batch_size = {stage.batch}\ntimeout = {stage.timeout_s}\n{stage.more}"
                f'args = {{ stage_name = "{stage.name}", fixed_s = {stage.fixed_s}, item_s = {stage.item_s} }}\n'
            )
        for path, names in self.routes:
            line = ", ".join(map(_passed, names))
            parts.append(f'[[route]]\npath = "{path}"\nstages = [{line}]\n')
        return "\n".join(parts)


def _passed(stage: Passed) -> str:
    """As the file says it."""
    return json.dumps(stage) if isinstance(stage, str) else f'{{ each = "parts", through = {json.dumps(stage)} }}'


class Place:
    """What both have in common."""

    system = ""
    url: str

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder = service, folder
        (folder / "service").mkdir()
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.numbers = itertools.count(1)  # of requests: no two to one place have the same

    def workers(self, stage: str) -> list[psutil.Process]:
        """Living processes of a stage, by pid."""
        found = []
        for made in self.notes.glob(f"made-{stage}-*"):
            try:
                process = psutil.Process(int(made.name.rpartition("-")[2]))
                if process.status() != psutil.STATUS_ZOMBIE and process.create_time() < made.stat().st_mtime + 1:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return sorted(found, key=lambda process: process.pid)

    def whole(self) -> bool:
        """Everything that should be there is, and is ready."""
        raise NotImplementedError

    def quiet(self) -> str:
        """What is still held for requests, in words; empty when nothing is."""
        raise NotImplementedError

    def journal(self, start: int = 0) -> list[work.Batch]:
        """What its stages have begun, from a byte of the journal on."""
        return work.journal(self.notes, start)

    def journal_size(self) -> int:
        """Bytes of its journal."""
        path = self.notes / "journal"
        return path.stat().st_size if path.exists() else 0

    def alive(self) -> bool:
        """It has not ended."""
        raise NotImplementedError

    def tail(self) -> str:
        """The end of what it logged."""
        raise NotImplementedError

    def _staffed(self) -> bool:
        return all(len(self.workers(stage.name)) == stage.num for stage in self.service.stages)


class Stageline(Place):
    """A deployment of ours, by ``engine up``."""

    system = "stageline"

    def __init__(self, service: Service, folder: Path) -> None:
        super().__init__(service, folder)
        work.services(folder / "service", work.STAGELINE)
        self.file = harness.write_service(folder / "service", service.toml())
        self.env = {work.FOLDER: str(self.notes), "CHAOS_RUN": str(folder / "run")}
        self.running = harness.up(self.file, folder=folder, env=self.env)
        self.url = self.running.url

    def start_again(self) -> None:
        """After its end: in the same place, on the same port."""
        self.running = harness.up(self.file, "--port", self.url.rpartition(":")[2], folder=self.folder, env=self.env)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def socket(self, name: str) -> str:
        """The endpoint of one of the broker's sockets, of either kind."""
        return f"{'unix' if name.endswith('-u') else 'ipc'}://{self.run}/{name}"

    def broker(self) -> psutil.Process:
        """The one broker; waits for it."""
        return harness.wait_for("a broker", lambda: self.running.processes("broker"))[0]

    def frontends(self) -> list[psutil.Process]:
        """The frontend's processes: the one that started the others first."""
        found = self.running.processes("frontend")
        pids = {process.pid for process in found}
        return sorted(found, key=lambda process: (_parent(process) in pids, process.pid))

    def told(self) -> dict[str, Any]:
        """What the broker says of itself; empty while none answers."""
        context = transport.context()
        try:
            told: dict[str, Any] = json.loads(admin.ask_at(context, self.socket("admin"), "status", 2.0))
        except Unavailable:
            return {}
        finally:
            context.term()
        return told

    def whole(self) -> bool:
        told = self.told()
        if not told or not all(one.get("ready", 0) >= one.get("wanted", 1) for one in told["stages"]):
            return False
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False, verify=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and len(self.frontends()) == 1 + self.service.frontends and self._staffed()

    def queued(self, stage: str) -> int:
        """How many items wait at a stage."""
        return sum(one["queued"] for one in self.told().get("stages", ()) if one["name"] == stage)

    def quiet(self) -> str:
        told = self.told()
        if not told:
            return "the broker does not answer"
        held = [f"admitted {told['admitted']}"] if told["admitted"] else []
        for stage in told["stages"]:
            held += [f"{stage['name']} {kind} {stage[kind]}" for kind in ("queued", "in_flight") if stage[kind]]
        return ", ".join(held)

    def alive(self) -> bool:
        return self.running.process.poll() is None

    def tail(self) -> str:
        return self.running.tail(30)

    def metrics(self) -> str:
        """/metrics as it is printed."""
        return httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False, verify=False).text

    def counted(self, what: str) -> float:
        """A counter of /metrics, summed over its labels."""
        samples = self.running.metrics().items()
        return sum(value for name, value in samples if name.partition("{")[0] == f"engine_{what}_total")

    def lanes(self) -> list[str]:
        """The open sockets of its workers, by their paths in the run directory. The files are gone."""
        paths = {line.rpartition(" ")[2] for line in Path("/proc/net/unix").read_text().splitlines()}
        return [path for path in paths if re.fullmatch(f"{re.escape(str(self.run))}/l[0-9a-f]+-[0-9a-f]+", path)]


class Mosec(Place):
    """The same service by Mosec, one route through all stages that lead to /work."""

    system = "mosec"

    def __init__(self, service: Service, folder: Path) -> None:
        chain = service.through("/work")
        stages = tuple(stage for stage in service.stages if stage.name in chain)
        super().__init__(Service(service.name, stages, (("/work", chain),), service.deadline_s), folder)
        work.services(folder / "service", work.MOSEC)
        told = [asdict(stage) | {"timeout_s": stage.timeout_s or service.deadline_s} for stage in stages]
        port = harness.free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._mark = f"mosec-{os.getpid()}-{time.monotonic_ns()}"
        words = ["--address", "127.0.0.1", "--port", str(port), "--path", str(folder / "run"), "--log-level", "warning"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(PEER_PYTHON), "service.py", *words, "--timeout", str(round(service.deadline_s * 1000))],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder / "service", start_new_session=True,
                env=harness.environment(self._mark, {work.FOLDER: str(self.notes), "CHAOS_STAGES": json.dumps(told)}),
            )  # fmt: skip
        harness.wait_for("Mosec", self.whole, within_s=harness.START_S)

    def whole(self) -> bool:
        if not self._staffed():
            return False
        try:
            return (
                httpx.post(
                    f"{self.url}/work", json={"number": -1}, timeout=5, trust_env=False, verify=False
                ).status_code
                == 200
            )
        except httpx.HTTPError:
            return False

    def quiet(self) -> str:
        return ""

    def alive(self) -> bool:
        return self._process.poll() is None

    def tail(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """SIGTERM, and then whatever is left of it."""
        if self.alive():
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(harness.STOP_S)
        except subprocess.TimeoutExpired:
            pass  # it is ended below with the rest
        for process in harness.marked(self._mark):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait(harness.STOP_S)


@contextmanager
def stageline(service: Service) -> Iterator[Stageline]:
    """A deployment that is ready; whatever happens, nothing of it is left afterwards."""
    with harness.short_folder() as folder:
        made = Stageline(service, folder)
        try:
            yield made
        finally:
            made.running.signal(signal.SIGTERM)
            try:
                made.running.exited()
            except AssertionError:
                pass  # it is killed now; whoever cares how it ends asks before
            made.running.kill()


@contextmanager
def mosec(service: Service) -> Iterator[Mosec]:
    """The same by Mosec. Raises AssertionError when it does not become ready."""
    with harness.short_folder() as folder:
        made = Mosec(service, folder)
        try:
            yield made
        finally:
            made.stop()


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0
