"""Takes jobs that wait and has them computed, in the event loop of each process of the frontend.

The file is written and read by one thread, for a write to a disk takes its time. A job is computed like any request:
it may wait at the stages, be refused, be replayed; only who waits for its answer is this runner instead of a client.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec

from engine.clock import now
from engine.core import meta
from engine.core.call import Answer, BrokerClient, Call, StreamEvent
from engine.core.fairness import Priority
from engine.core.liveness import ANSWER_GRACE_S
from engine.core.messages import EVENT_COST, Flow, Qos, Speaker
from engine.errors import ProtocolError, Unavailable
from frontend.gate import Gate
from frontend.idempotency import beside
from frontend.jobs import described, hooks
from frontend.jobs.rules import LATE, RENEW_S, TOO_LARGE, asks_again
from frontend.jobs.store import Hook, Store, Taken
from frontend.streams import Stream

log = logging.getLogger("stageline.frontend")

T = TypeVar("T")

TELLING: Final = 4  # messages of a process at once
AT_ONCE: Final = 64  # jobs of a process that are computed together: enough for batches, and few to be asked again for
LOOK_S: Final = 0.5  # for jobs that another process was given, or had
SWEEP_S: Final = 10.0


class Running:
    """A job at the broker's: collects what comes of it."""

    def __init__(
        self,
        job: Taken,
        client: BrokerClient,
        error: Callable[[int, str], bytes],
        most: int,
        done: Callable[[Running, Answer | None], None],
    ) -> None:
        """``error``: how a stream of events ends that failed; ``most``: bytes of an answer."""
        self.job = job
        self.seq = 0
        self.limit: asyncio.TimerHandle | None = None  # when it is late
        self._client = client
        self._most = most
        self._done = done
        self._stream = Stream(error)
        self._parts: list[bytes] = []
        self._size = 0

    def event(self, event: StreamEvent) -> None:
        if self._size > self._most:
            return  # it is over, and this was on its way
        self._stream.event(event, Flow.UNKNOWN)
        self._client.consumed(self.seq, len(event.data) + EVENT_COST)
        self._take()
        if self._size > self._most:
            self._client.withdraw(self.seq)
            self._done(self, TOO_LARGE)

    def answered(self, answer: Answer | None) -> None:
        if answer is None or self._stream.flow is Flow.UNKNOWN:
            self._done(self, answer)
            return
        self._stream.answered(answer, Flow.UNKNOWN)
        self._take()
        if self._stream.is_cut:  # a body in pieces that is not whole is none
            self._done(self, answer)
        else:
            self._done(self, Answer(200, b"".join(self._parts), self._stream.mime, answer.trail, answer.headers))

    def _take(self) -> None:
        while (part := self._stream.take()[0]) != b"":
            self._parts.append(part)
            self._size += len(part)


class Runner:
    """One for each process; :meth:`start` and :meth:`close` in its event loop."""

    def __init__(
        self,
        path: str,
        client: BrokerClient,
        gate: Gate,
        routes: Sequence[str],
        errors: Sequence[Callable[[int, str], bytes]],
        *,
        once: Collection[str],
        kept_s: float,
        most: int,
        tells: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``routes``: their paths, by number, and ``errors`` how their streams end that fail; ``once``: those on which
        nothing may be computed twice; ``most``: bytes of an answer; ``tells``: there may be
        webhooks."""
        self.owner = secrets.token_hex(8)
        self.finished: dict[str, int] = {}  # by the word of their state
        self.hooks: dict[str, int] = {}  # by whether they were told
        self.clock = clock
        self._path = path
        self._client = client
        self._gate = gate
        self._errors = errors
        self._routes = {route: number for number, route in enumerate(routes)}
        self._once = frozenset(once)
        self._kept_s = kept_s
        self._most = most
        self._thread = ThreadPoolExecutor(1, "jobs")
        self._tellers = ThreadPoolExecutor(TELLING, "webhooks") if tells else None
        self._telling = 0
        self._secret = b""
        self._store: Store | None = None
        self._running: dict[str, Running] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[Any]] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    async def start(self) -> None:
        """Raises sqlite3.Error or OSError when the file cannot be used."""
        loop = asyncio.get_running_loop()
        self._store = await loop.run_in_executor(self._thread, lambda: Store(self._path, kept_s=self._kept_s))
        if self._tellers is not None:
            self._secret = await loop.run_in_executor(self._thread, hooks.secret_of, self._path)
        self._task = loop.create_task(self._run())

    async def close(self) -> None:
        """Give back what is not done: another process, or the next one, has it computed."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._ending, return_exceptions=True)
        left = list(self._running)
        for id in left:
            self.forget(id)
        if self._store is not None:
            try:
                if left:
                    await self.ask(lambda store: store.give_back(self.owner, left, 0.0))
                await self.ask(lambda store: store.close())
            except sqlite3.Error as error:
                log.error("the file of jobs: %s", error)
        self._thread.shutdown()
        if self._tellers is not None:
            self._tellers.shutdown(wait=False, cancel_futures=True)  # what is not told now another one tells

    async def ask(self, what: Callable[[Store], T]) -> T:
        """Something of the file, from its thread."""
        store = self._store
        assert store is not None, "start first"
        return await asyncio.get_running_loop().run_in_executor(self._thread, what, store)

    def forget(self, id: str) -> None:
        """Nobody wants this job any more; where another process has it, that hears of it by its lease."""
        if (running := self._pop(id)) is not None:
            self._client.withdraw(running.seq)

    def _pop(self, id: str) -> Running | None:
        """It is not computed here any more. Its time limit would hold on to its body."""
        running = self._running.pop(id, None)
        if running is not None and running.limit is not None:
            running.limit.cancel()
        return running

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    async def _run(self) -> None:
        renew_at = sweep_at = 0.0
        while not self._closing:
            self._wake.clear()  # before looking: what comes meanwhile is looked for at once
            try:
                instant = now()
                if instant >= renew_at:
                    renew_at = instant + RENEW_S
                    await self._renew()
                if instant >= sweep_at:
                    sweep_at = instant + SWEEP_S
                    await self.ask(lambda store: store.sweep(self.clock()))
                await self._tell()
                await self._take()
            except sqlite3.Error as error:
                log.error("the file of jobs: %s", error)
            try:
                await asyncio.wait_for(self._wake.wait(), LOOK_S)
            except asyncio.TimeoutError:
                continue

    async def _renew(self) -> None:
        own = list(self._running)
        if not own:
            return
        for id in await self.ask(lambda store: store.renew(self.owner, own, self.clock())):
            self.forget(id)  # or another process has it

    async def _take(self) -> None:
        """Have jobs computed, as many as there is room for."""
        room = AT_ONCE - len(self._running)
        if room <= 0 or not self._client.is_joined or self._closing or self._gate.draining:
            return
        for job in await self.ask(lambda store: store.take(self.owner, room, self.clock(), once=self._once)):
            self._submit(job, await self._memo(job))

    async def _memo(self, job: Taken) -> bytes:
        """By what the cache of its route's first stage knows it, of today: the file may be older than that."""
        memos, route = self._gate.memos, self._routes.get(job.route)
        if route is None or not memos.has(route):
            return b""
        try:
            asked = meta.head_of(job.meta)
        except ProtocolError:  # the stages will say so
            return b""
        return await beside(len(job.body), memos.of, route, asked.query, asked.headers, job.body)

    async def _tell(self) -> None:
        """Have those told who wait for a job that is over."""
        if self._tellers is None or self._telling >= TELLING or self._closing:
            return
        instant = self.clock()
        until = instant + 3 * hooks.LIMIT_S
        for hook in await self.ask(lambda store: store.hooks(TELLING - self._telling, instant, until)):
            self._telling += 1
            self._keep(self._told(hook))

    async def _told(self, hook: Hook) -> None:
        body = msgspec.json.encode(described.told(hook.job))
        headers = hooks.signed(self._secret, hook.job.id, int(self.clock()), body)
        loop = asyncio.get_running_loop()
        try:
            failed = await loop.run_in_executor(self._tellers, hooks.send, hook.url, body, headers)
        finally:
            self._telling -= 1
        again_s = hooks.again_s(hook.tries) if failed else None
        if failed:
            rest = "no more" if again_s is None else f"again in {again_s:g} s"
            log.warning(
                "a webhook was not taken: %s", failed, extra={"job": hook.job.id, "url": hook.url, "next": rest}
            )
        word = "" if again_s is not None else "not told" if failed else "told"
        if word:
            self.hooks[word] = self.hooks.get(word, 0) + 1
        due = None if again_s is None else self.clock() + again_s
        await self.ask(lambda store: store.told(hook.job.id, due))

    def _submit(self, job: Taken, memo: bytes) -> None:
        route = self._routes.get(job.route)
        if route is None:  # the deployment has changed
            self._end(job, Answer(404, b"there is no such route any more", speaker=int(Speaker.DOOR)))
            return
        left_s = job.expires - self.clock()
        running = Running(job, self._client, self._errors[route], self._most, self._done)
        instant, qos = now(), Qos(priority=int(Priority.LOW), client=job.whose)
        try:
            running.seq = self._client.call(
                Call(route, job.body, instant + left_s, job.meta, running, qos=qos, memo=memo), instant
            )
        except Unavailable as error:
            self._again(job, error.retry_after_s or 1.0)
            return
        self._running[job.id] = running
        running.limit = asyncio.get_running_loop().call_later(left_s + ANSWER_GRACE_S, self._overdue, running)

    def _overdue(self, running: Running) -> None:
        if self._running.get(running.job.id) is running:
            self._client.withdraw(running.seq)
            self._done(running, LATE)

    def _done(self, running: Running, answer: Answer | None) -> None:
        job = running.job
        if self._running.get(job.id) is not running:
            return
        if answer is None:  # the client is closed; what is not done is given back
            return
        self._pop(job.id)
        again_s = asks_again(answer, job.refused)
        if again_s is not None:
            self._again(job, again_s)
        else:
            self._end(job, answer)

    def _again(self, job: Taken, seconds: float) -> None:
        until = self.clock() + seconds
        self._keep(self.ask(lambda store: store.give_back(self.owner, [job.id], until, refused=True)))

    def _end(self, job: Taken, answer: Answer) -> None:
        async def end() -> None:
            if await self.ask(lambda store: store.end(self.owner, job.id, answer, self.clock())):
                word = "done" if answer.status == 200 else "failed"
                self.finished[word] = self.finished.get(word, 0) + 1

        self._keep(end())

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._kept)
        self._wake.set()

    def _kept(self, task: asyncio.Task[Any]) -> None:
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the file of jobs: %s", error)  # its lease ends, and it is taken again
