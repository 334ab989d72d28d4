"""What a fault is given: the place, the client that goes on asking, chance, and waiting for conditions."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import harness
import psutil

from faults import work
from faults.client import Answer, Client
from faults.ledger import GOOD, Ask
from faults.place import Mosec, Place, Stageline

PASSING_S = 60.0  # the most that a condition is waited for: far more than it takes on any machine
EITHER = frozenset((200, 408))  # of requests that hold a worker until it is interrupted, or that have little time


@dataclass(frozen=True)
class Asked:
    """A request beside the load. ``said`` is the number in its body."""

    number: int
    said: int
    acts: Mapping[str, Mapping[str, Any]] | None
    future: Future[Answer]

    def answer(self) -> Answer:
        """Wait for it."""
        return self.future.result(PASSING_S)


class Scene:
    """One row on one place. ``injected`` counts what was done; ``problems`` are what requests cannot show."""

    def __init__(self, place: Place, client: Client, seed: int) -> None:
        self.place, self.client, self.rng = place, client, random.Random(seed)
        self.injected = 0
        self.problems: list[str] = []
        self._start = place.journal_size()

    @property
    def deployment(self) -> Stageline:
        """The place, where a fault is of things that only ours has."""
        assert isinstance(self.place, Stageline)
        return self.place

    @property
    def beside(self) -> bool:
        """Whether this is the other system, of which only requests can be asked."""
        return isinstance(self.place, Mosec)

    def problem(self, text: str) -> None:
        """Something is wrong that no request shows."""
        self.problems.append(text)

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """A connection to the door on which nothing is said by itself."""
        where = urlsplit(self.place.url)
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=30) as sock:
            yield sock

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, what: str, condition: Callable[[], Any], within_s: float = PASSING_S) -> Any:
        """Wait for a condition. Raises AssertionError, which fails the row, when it does not come."""
        return harness.wait_for(what, condition, within_s=within_s)

    def flow(self, count: int = 20) -> None:
        """Wait until so many further requests have ended, well or badly."""
        wanted = self.client.ended + count
        self.wait(f"{count} further answers", lambda: self.client.ended >= wanted)

    def good(self, count: int = 5) -> None:
        """Wait until so many further requests have been answered well."""
        wanted = self.client.good + count
        self.wait(f"{count} further good answers", lambda: self.client.good >= wanted)

    def whole(self) -> None:
        """Wait until everything that should be there is ready."""
        self.wait("everything to be ready", lambda: not self.place.alive() or self.place.whole())
        assert self.place.alive(), "it has ended"

    def rest(self) -> None:
        """Ask nothing, and wait until nothing is under way."""
        self.client.pause()
        self.wait("rest", lambda: self.place.quiet() == "")

    # --- asking ------------------------------------------------------------------------------------------------------

    def ask(
        self,
        acts: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        expects: frozenset[int] = GOOD,
        path: str = "/work",
        more: Mapping[str, Any] | None = None,
        same: int | None = None,
        **about: Any,
    ) -> Asked:
        """One request beside the load. ``more`` stands in its body as well; ``same`` is a number to ask in place of its
        own, as clients that try again send the same bytes; ``about`` is of an Ask."""
        number = next(self.client.numbers)
        said = number if same is None else same
        body = {"number": said, **({"acts": acts} if acts else {}), **(more or {})}
        proof = work.proof(said, self.place.service.through(path))
        ask = Ask(number, body, proof, path, expects, **about)
        return Asked(number, said, acts, self.client.ask(ask))

    def begun(self, asked: Asked, stage: str = "model") -> work.Batch:
        """Wait until a stage computes it, and tell who does, beside what."""
        return self.wait(f"{stage} to begin {asked.said}", lambda: self._batches(asked.said, stage))[-1]  # type: ignore[no-any-return]

    def times(self, asked: Asked, stage: str = "model") -> int:
        """How often a stage has begun to compute it."""
        return len(self._batches(asked.said, stage))

    def _batches(self, number: int, stage: str) -> list[work.Batch]:
        return [one for one in self.place.journal(self._start) if one.stage == stage and number in one.numbers]

    def together(
        self, acts: Sequence[Mapping[str, Any]], *, stage: str = "brief", expects: Sequence[frozenset[int]] = ()
    ) -> list[Asked]:
        """Requests for a stage with a route of its own, one for each act (``{}`` is none): the first meets one of
        the others at least in a batch.

        All its workers are held until these have queued; then they share them. If the first was alone all the same, it
        is done once more.
        """
        path, go = f"/{stage}", self.place.notes / "go"
        for _ in range(3):
            go.unlink(missing_ok=True)
            for _ in self.workers(stage):
                self.begun(self.ask({stage: {"do": "wait"}}, path=path, expects=EITHER), stage)
            wanted = [*expects, *[GOOD] * (len(acts) - len(expects))]
            asked = [
                self.ask({stage: act} if act else None, path=path, expects=may)
                for act, may in zip(acts, wanted, strict=True)
            ]
            self.wait("them to queue", lambda: self.deployment.queued(stage) >= len(acts))
            go.touch()
            self.begun(asked[0], stage)
            numbers = {one.said for one in asked}
            if any(len(numbers & set(batch.numbers)) > 1 for batch in self._batches(asked[0].said, stage)):
                return asked
            for one in asked:
                one.answer()
        raise AssertionError(f"requests did not meet in a batch of {stage}")

    # --- doing harm --------------------------------------------------------------------------------------------------

    def workers(self, stage: str = "model") -> list[psutil.Process]:
        """All workers of a stage, which has at least one."""
        return self.wait(f"workers of {stage}", lambda: self.place.workers(stage))  # type: ignore[no-any-return]

    def one(self, stage: str = "model") -> psutil.Process:
        """Any of them."""
        return self.rng.choice(self.workers(stage))

    def busy(
        self, stage: str = "model", path: str = "/work", s: float = 0.2, **about: Any
    ) -> tuple[Asked, psutil.Process]:
        """A request that takes its time, and the process that computes it now."""
        asked = self.ask({stage: {"do": "sleep", "s": s}}, path=path, **about)
        return asked, psutil.Process(self.begun(asked, stage).pid)

    def kill(self, *processes: psutil.Process) -> None:
        """SIGKILL, and see them gone."""
        for process in processes:
            process.kill()
        self.ends(*processes)
        self.injected += 1

    @contextmanager
    def stopped(self, *processes: psutil.Process) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end to those that still live."""
        for process in processes:
            process.suspend()
        self.injected += 1
        try:
            yield
        finally:
            for process in processes:
                try:
                    process.resume()
                except psutil.NoSuchProcess:
                    continue  # it was replaced, as it should be

    @contextmanager
    def nobody_dies(self) -> Iterator[None]:
        """The processes afterwards are those from before."""
        before = {process.pid for process in self.deployment.running.processes()}
        yield
        self.whole()
        gone = before - {process.pid for process in self.deployment.running.processes()}
        if gone:
            self.problem(f"died: {len(gone)} processes, of something that is no reason; {self.place.tail()[-400:]}")

    def ends(self, *processes: psutil.Process) -> None:
        """Wait until these have been ended by somebody."""
        self.wait("their end", lambda: not any(map(_lives, processes)), within_s=30.0)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # psutil raises where the pid is another process by now
    except psutil.NoSuchProcess:
        return False
