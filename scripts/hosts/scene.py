"""A deployment over four hosts: a broker, a frontend, and two that compute, each with workers of both stages."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from hosts.lab import Lab

ENGINE: Final = str(Path(sys.executable).parent / "engine")
HERE: Final = Path(__file__).parent
HOSTS: Final = ("broker", "front", "w1", "w2")
PORT: Final = 7000
HTTP: Final = 8000
START_S: Final = 60.0
ALL: Final = [2, 4]  # ready workers of each stage

T = TypeVar("T")

TEXT: Final = """
[engine]
name = "hosts"
bind = "tcp://{broker}:{port}"
insecure = true

[frontend]
address = "0.0.0.0"
port = {http}
workers = 1
timeout = {timeout}

[[stage]]
name = "prep"
worker = "service:Step"
num = 1
max_batch_size = 8
timeout = {stage_timeout}
args = {{ name = "prep", ms = {ms} }}

[[stage]]
name = "encode"
worker = "service:Step"
num = 2
max_batch_size = 8
timeout = {stage_timeout}
args = {{ name = "encode", ms = {ms} }}

[[route]]
path = "/do"
stages = ["prep", "encode"]
"""


@dataclass
class Tally:
    """What became of all requests of a load. Seconds."""

    answers: list[tuple[float, int, float, bool]] = field(default_factory=list)  # begun after, status, took, right

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, status, _, _ in self.answers)

    @property
    def wrong(self) -> int:
        """Answers of 200 that are not to their request."""
        return sum(status == 200 and not right for _, status, _, right in self.answers)

    @property
    def lost(self) -> int:
        """Not answered 200, or not at all."""
        return sum(status != 200 for _, status, _, _ in self.answers)

    @property
    def worst_s(self) -> float:
        return max((took for _, _, took, _ in self.answers), default=0.0)

    @property
    def bad(self) -> tuple[float, float]:
        """When the first and the last request began that was not answered 200."""
        begun = [at for at, status, _, _ in self.answers if status != 200]
        return (min(begun), max(begun)) if begun else (0.0, 0.0)

    def percentile(self, share: float) -> float:
        took = sorted(took for _, _, took, _ in self.answers)
        return took[min(len(took) - 1, int(share * len(took)))] if took else 0.0


def wait_for(what: str, condition: Callable[[], T], *, within_s: float) -> T:
    end = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {within_s:g} s")
        time.sleep(0.02)
    return value


class Scene:
    """See :func:`scene`."""

    def __init__(self, lab: Lab, folder: Path, stack: ExitStack) -> None:
        self.lab = lab
        self.folder = folder
        self.file = folder / "stages.toml"
        self.journal = folder / "journal"
        self._stack = stack
        self._started: list[subprocess.Popen[Any]] = []
        self._seen: list[tuple[float, list[int]]] = []
        self._reader: list[threading.Thread] = []

    def start(self, host: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A command of ``engine`` there, with a run directory of that host."""
        log = self._stack.enter_context((self.folder / f"{host}.log").open("ab"))
        command, *flags = arguments
        where = ("--run-dir", str(self.folder / host))
        env = {"STAGELINE_JOURNAL": str(self.journal)}
        started = self.lab[host].start(ENGINE, command, str(self.file), *where, *flags, log=log, env=env)
        self._started.append(started)
        return started

    def reap(self) -> None:
        """Once their hosts have ended."""
        for started in self._started:
            started.wait()
        for reader in self._reader:
            reader.join()

    def log(self, host: str) -> str:
        return (self.folder / f"{host}.log").read_text(errors="replace")

    def watch(self) -> None:
        """From now on it is known when how many workers are ready."""
        line = (sys.executable, str(HERE / "watch.py"), str(self.file), str(self.folder / "broker"))
        log = self._stack.enter_context((self.folder / "watch.log").open("wb"))
        watching = subprocess.Popen(self.lab["broker"].command(*line), stdout=subprocess.PIPE, stderr=log, text=True)
        self._started.append(watching)

        def read() -> None:
            assert watching.stdout is not None
            with watching.stdout as lines:
                for line in lines:
                    at, ready = json.loads(line)
                    self._seen.append((at, ready))

        self._reader.append(threading.Thread(target=read, name="watch"))
        self._reader[0].start()

    @property
    def ready(self) -> list[int]:
        return self._seen[-1][1] if self._seen else []

    def changed_after(self, at: float) -> float:
        """How long after this instant (monotonic seconds) it was first known that somebody is not ready; inf: never."""
        return min((when - at for when, ready in self._seen if when >= at and ready != ALL), default=math.inf)

    def whole_after(self, at: float) -> float:
        """How long after this instant all were ready for good, so far; inf: they are not."""
        if self.ready != ALL:
            return math.inf
        return max(0.0, self._seen[-1][0] - at)

    def wait_ready(self, within_s: float = START_S) -> None:
        try:
            wait_for("readiness", lambda: self.ready == ALL and self.answers(), within_s=within_s)
        except AssertionError:
            print(*(f"--- {one}\n{self.log(one)[-3000:]}" for one in (*HOSTS, "watch")), sep="\n")
            raise

    def status(self) -> dict[str, Any]:
        """What the broker says of itself; empty while it says nothing."""
        where = ("--run-dir", str(self.folder / "broker"), "--json")
        asked = subprocess.run(
            self.lab["broker"].command(ENGINE, "status", str(self.file), *where), capture_output=True, check=False
        )
        told: dict[str, Any] = json.loads(asked.stdout) if asked.returncode == 0 else {}
        if not told:  # with whatever waits for it
            print("no status:", asked.returncode, asked.stderr.decode(errors="replace")[-2000:], file=sys.stderr)
        return told

    def deaths(self) -> int:
        return sum(stage["deaths"] for stage in wait_for("a status", self.status, within_s=20.0)["stages"])

    def answers(self) -> bool:
        return not self.load(10, 0.1).lost

    def begin(self, rate: float, seconds: float, **words: object) -> Callable[[], Tally]:
        """A load from the frontend's host; call the result to wait for its end."""
        url = f"http://127.0.0.1:{HTTP}/do"
        line = [sys.executable, str(HERE / "load.py"), url, str(rate), str(seconds), json.dumps(words)]
        asking = subprocess.Popen(self.lab["front"].command(*line), stdout=subprocess.PIPE)

        def end() -> Tally:
            out, _ = asking.communicate()
            assert asking.returncode == 0, "the load has failed"
            return Tally([(at, status, took, right) for at, status, took, right in json.loads(out)])

        return end

    def load(self, rate: float, seconds: float, **words: object) -> Tally:
        return self.begin(rate, seconds, **words)()

    def twice(self) -> int:
        """How many items a stage has begun more than once."""
        if not self.journal.exists():
            return 0
        return sum(count - 1 for count in Counter(self.journal.read_text().splitlines()).values())

    def forget(self) -> None:
        """The journal begins anew."""
        self.journal.unlink(missing_ok=True)

    def workers(self, host: str, stage: str) -> list[int]:
        return self.lab[host].pids("worker", stage)

    def start_workers(self, host: str) -> None:
        self.start(host, "worker", "--stage", "prep", "--num", "1")
        self.start(host, "worker", "--stage", "encode", "--num", "2")


@contextmanager
def scene(**about: float) -> Iterator[Scene]:
    """All of it, ready. ``about``: ``timeout`` of requests, ``stage_timeout`` of batches, both seconds, and how many
    ``ms`` one takes."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lab = Lab(HOSTS)
        values = {"timeout": 3.0, "stage_timeout": 60.0, "ms": 10.0, **about}
        made = Scene(lab, folder, stack)
        stack.callback(made.reap)
        stack.enter_context(lab)
        made.file.write_text(TEXT.format(broker=lab["broker"].address, port=PORT, http=HTTP, **values))
        shutil.copy(HERE / "service.py", folder)
        made.start("broker", "broker")
        for host in ("w1", "w2"):
            made.start_workers(host)
        made.start("front", "frontend")
        made.watch()
        made.wait_ready()
        made.forget()
        yield made
