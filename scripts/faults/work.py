"""The user code of the services: a chain of steps that proves of which request an answer is, and obeys what that says.

The same for every system; the adapters add a base class. A request is ``{"number": N, "acts": {STAGE: {"do": ...}}}``.
Each stage turns the proof so far into the next, which the client computes as well: an answer with the right proof has
passed every stage once, in order, and is of that number. The stage TAKES_APART makes parts, each with a proof of its
own, and PUTS_TOGETHER makes one of what came of them, in their order. Every batch that a stage begins is a line of a
journal in the folder of CHAOS_FOLDER - who computes what, beside what - and every process that has loaded is a file
there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "CHAOS_FOLDER"

TAKES_APART, PUTS_TOGETHER = "split", "join"
LOAD_TENTH = 10  # one in so many ordinary requests goes on in parts
PARTS_MOST = 4


def step(proof: int, stage: str) -> int:
    """What a stage makes of a proof."""
    return zlib.crc32(f"{stage}:{proof}".encode())


def parts(number: int, value: int) -> list[int]:
    """The proofs with which the parts of a request begin."""
    return [step(value, str(place)) for place in range(number // LOAD_TENTH % (PARTS_MOST + 1))]


def together(value: int, proofs: Iterable[int]) -> int:
    """One proof of those of the parts, and of that of what they are parts of."""
    for one in proofs:
        value = step(value, str(one))
    return value


def proof(number: int, stages: Iterable[str | tuple[str, ...]]) -> int:
    """The right answer to a request that passes these stages; those in parentheses, its parts do."""
    value = number
    for stage in stages:
        if isinstance(stage, str):
            value = step(value, stage)
        else:
            value = together(value, [_through(one, stage) for one in parts(number, value)])
    return value


def _through(value: int, stages: Iterable[str]) -> int:
    for stage in stages:
        value = step(value, stage)
    return value


class Step:
    """One stage: takes ``fixed_s`` per batch and ``item_s`` per item, and does what requests tell it to."""

    def __init__(self, stage_name: str = "", fixed_s: float = 0.0, item_s: float = 0.0) -> None:
        self._name = stage_name
        self._fixed_s, self._item_s = fixed_s, item_s
        self._folder = Path(os.environ[FOLDER])
        if (self._folder / f"broken-{stage_name}").exists():
            raise FileNotFoundError(f"the weights of {stage_name} are not there")
        self._journal = os.open(self._folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._kept: list[Any] = []
        (self._folder / f"made-{stage_name}-{os.getpid()}").touch()

    def forward(self, data: Any) -> Any:
        """A value or a list, as every system gives it."""
        batch = data if isinstance(data, list) else [data]
        self._note(batch)
        results = [self._one(item, batch) for item in batch]
        slowed = 10.0 if (self._folder / f"slow-{self._name}").exists() else 1.0
        time.sleep(slowed * (self._fixed_s + self._item_s * len(batch)))
        if any(self._act(item).get("do") == "short" for item in batch):
            results = results[:-1]
        return results if isinstance(data, list) else results[0]

    def _note(self, batch: Sequence[dict[str, Any]]) -> None:
        line = " ".join((self._name, str(os.getpid()), *(str(item["number"]) for item in batch)))
        try:
            os.write(self._journal, f"{line}\n".encode())  # one write: whole lines, also from several processes
        except OSError:
            pass  # the disk is full, on purpose

    def _act(self, item: dict[str, Any]) -> dict[str, Any]:
        act: dict[str, Any] = item.get("acts", {}).get(self._name, {})
        return act

    def _one(self, item: dict[str, Any], batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
        act = self._act(item)
        if act and self._is_due(item["number"], act):
            self._do(act, batch)
        number, value = item["number"], item.get("proof", item["number"])
        if self._name == PUTS_TOGETHER:
            value = together(value, [part["proof"] for part in item["parts"]])
        passed = {"number": number, "proof": step(value, self._name)}
        if "acts" in item:
            passed["acts"] = item["acts"]
        if self._name == TAKES_APART:
            passed["parts"] = [{**passed, "proof": one} for one in parts(number, passed["proof"])]
        if act.get("do") == "large":
            passed["pad"] = "x" * act["bytes"]
        return passed

    def _is_due(self, number: int, act: dict[str, Any]) -> bool:
        """An act with ``once`` is done by the first process that meets it and then never again."""
        if "once" not in act:
            return True
        try:
            os.close(os.open(self._folder / f"did-{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _do(self, act: dict[str, Any], batch: Sequence[dict[str, Any]]) -> None:
        do = act["do"]
        if do == "sleep":
            time.sleep(act["s"])
        elif do == "wait":
            while not (self._folder / "go").exists():
                time.sleep(0.002)
        elif do == "hold_gil":
            sum(range(10**13))  # one loop in C that looks at no signal
        elif do == "signal":
            os.kill(os.getpid(), act["number"])
            signal.pause()
        elif do == "leave":
            os._exit(act["code"])
        elif do == "pair" and sum(self._act(item).get("do") == "pair" for item in batch) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        elif do == "sys_exit":
            sys.exit(act["code"])
        elif do == "raise":
            raise _named(act["what"])
        elif do == "leak":
            self._leak(act["what"])
        elif do == "again":  # what is computed twice, for the test of that detector
            self._note(batch)

    def _leak(self, what: str) -> None:
        if what == "descriptor":
            self._kept.append(os.pipe())
        elif what == "thread":
            ended = threading.Event()
            threading.Thread(target=ended.wait, daemon=True).start()
            self._kept.append(ended)
        elif what == "memory":
            self._kept.append(os.urandom(4 << 20))
        elif what == "shared memory":
            descriptor = os.memfd_create("leak")
            os.write(descriptor, os.urandom(1 << 20))
            self._kept.append(descriptor)
        elif what == "file":
            (Path(os.environ["CHAOS_RUN"]) / f"left-{len(self._kept)}-{os.getpid()}").touch()
            self._kept.append(None)


def _named(what: str) -> BaseException:
    known: dict[str, BaseException] = {
        "MemoryError": MemoryError("a detail that no client may see"),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "GeneratorExit": GeneratorExit(),
        "CancelledError": asyncio.CancelledError(),
        "RuntimeError": RuntimeError("a detail that no client may see"),
    }
    return known[what]


@dataclass(frozen=True)
class Batch:
    """One computation, as the process that began it wrote it down."""

    stage: str
    pid: int
    numbers: tuple[int, ...]


def journal(folder: Path, start: int = 0) -> list[Batch]:
    """What was begun, in order, from byte ``start`` of the journal on."""
    path = folder / "journal"
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(start)
        lines = [line.split() for line in file.read().decode().splitlines()]
    return [Batch(stage, int(pid), tuple(map(int, numbers))) for stage, pid, *numbers in lines]


def services(folder: Path, given: str) -> None:
    """Write the service of a system into ``folder``: this module, and classes of it with the system's base class."""
    (folder / "work.py").write_text(Path(__file__).read_text())
    (folder / "service.py").write_text(given)


STAGELINE = '''\
import work
from engine import Worker


class Step(work.Step, Worker):
    """See work."""
'''

MOSEC = """\
import json
import os

import work
from mosec import Server, Worker


def made(settings):
    class Step(work.Step, Worker):
        def __init__(self):
            work.Step.__init__(self, settings["name"], settings["fixed_s"], settings["item_s"])

    Step.__name__ = Step.__qualname__ = "Step" + settings["name"].title()
    globals()[Step.__name__] = Step  # its processes import it by name
    return Step


STAGES = [(made(stage), stage) for stage in json.loads(os.environ["CHAOS_STAGES"])]

if __name__ == "__main__":
    server = Server()
    for step, stage in STAGES:
        server.append_worker(
            step,
            num=stage["num"],
            max_batch_size=stage["batch"],
            max_wait_time=10,
            timeout=int(stage["timeout_s"]),
            route="/work",
        )
    server.run()
"""
