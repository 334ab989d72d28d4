"""202 for who prefers that (``Prefer: respond-async``, RFC 7240), and the jobs that come of it, under /jobs.

    POST   a route, with that header    202, and where to ask
    GET    /jobs/ID                     how it stands; `Prefer: wait=SECONDS`: once it is over, or after so long
    GET    /jobs/ID/result              what the request would have been answered; 202 while that is not known
    DELETE /jobs/ID                     nobody wants it: it is not computed, or its answer is forgotten

Whoever knows the id may ask; where its client came with an ``authorization`` or an API key, it has to come with that
again. Others find nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import falcon.asgi
import msgspec
from msgspec.structs import replace

from engine.clock import Deadline
from engine.config.schema import JOBS
from engine.core.messages import KEY_SIZE
from engine.core.oip import Terms
from frontend import asking, deadline, errors, qos
from frontend.answer import Answering, retry_after
from frontend.errors import Refusal
from frontend.exchange import Exchange
from frontend.handlers import fill
from frontend.head import Head
from frontend.jobs import described, hooks
from frontend.jobs.rules import State
from frontend.jobs.runner import Runner
from frontend.jobs.store import Job, Store

if TYPE_CHECKING:
    from engine.config.schema import FrontendSection
    from engine.core.routing import Topology

log = logging.getLogger("stageline.frontend")

T = TypeVar("T")

NO_TERMS: Final = Terms()

WAIT_MOST_S: Final = 60.0
_LOOKS_S: Final = (0.05, 0.1, 0.2, 0.5)  # between two looks at a job that is waited for; the last one again and again
_WAIT: Final = re.compile(r"wait\s*=\s*([0-9]{1,6})\Z")


def preferences(head: Head) -> list[str]:
    """What a request says that it prefers, in small letters."""
    told = b",".join([value for name, value in head.fields if name == b"prefer"])
    return [one.strip().lower() for one in told.decode("latin-1").split(",") if one.strip()]


def wants_job(head: Head) -> bool:
    return "respond-async" in preferences(head)


def waits_s(head: Head) -> float:
    """How long it would wait for a job to be over."""
    found = [match for one in preferences(head) if (match := _WAIT.match(one))]
    return min(WAIT_MOST_S, float(found[0][1])) if found else 0.0


def whose(head: Head) -> bytes:
    return qos.client_of(head.token) if head.token else b""


class Jobs:
    """What a process needs to take jobs and to tell of them."""

    def __init__(self, runner: Runner, frontend: FrontendSection, topology: Topology) -> None:
        self.runner = runner
        self.routes = [route.path for route in topology.routes]
        self._timeout_s = frontend.jobs_timeout
        self._bytes = frontend.jobs_bytes
        self._webhooks = frontend.webhooks

    async def ask(self, what: Callable[[Store], T]) -> T:
        """Something of the file. Raises Refusal: 503."""
        try:
            return await self.runner.ask(what)
        except sqlite3.Error as error:
            log.error("the file of jobs: %s", error)
            raise Refusal(errors.NO_JOBS) from error

    async def take(
        self,
        head: Head,
        route: int,
        body: bytes,
        meta: bytes,
        key: bytes,
        resp: falcon.asgi.Response,
        wants: Terms = NO_TERMS,
    ) -> None:
        """A request as a job: on the disk before its client is told. ``wants``: what its body says of its time. Raises
        Refusal."""
        timeout_s = deadline.allowed(head.timeout, head.timeout_ms, self._timeout_s)
        if timeout_s is None:
            raise Refusal(errors.BAD_TIMEOUT)
        timeout_s = asking.within(wants, timeout_s)
        instant = self.runner.clock()
        whole, what = key[: KEY_SIZE // 2], key[KEY_SIZE // 2 :]
        job = Job(
            secrets.token_urlsafe(16),
            self.routes[route],
            whose(head),
            what,
            State.WAITING,
            instant,
            instant + timeout_s,
        )
        hook = next((value.decode("latin-1") for name, value in head.fields if name == b"x-webhook-url"), "")
        if hook and not hooks.is_allowed(hook, self._webhooks):
            raise Refusal(errors.BAD_WEBHOOK)
        if await self.ask(lambda store: store.used()) + len(body) > self._bytes:
            raise Refusal(errors.JOBS_FULL)
        found = await self.ask(lambda store: store.add(job, body, meta, key=whole or None, hook=hook))
        if found.what != job.what:
            raise Refusal(errors.KEY_REUSED)
        self.runner.wake()
        resp.status = "202"
        resp.set_header("preference-applied", "respond-async")
        resp.set_header("location", f"{JOBS}/{found.id}")
        _show_soon(found, resp)

    async def find(self, head: Head, id: str) -> Job:
        """Raises Refusal: 404."""
        job = await self.ask(lambda store: store.find(id))
        if job is None or (job.whose and job.whose != whose(head)):
            raise Refusal(errors.NO_JOB)
        return job

    async def wait(self, head: Head, id: str) -> Job:
        """The same once it is over, or when the client would not wait any longer."""
        job, until, looks = await self.find(head, id), Deadline(waits_s(head)), list(_LOOKS_S)
        while not job.state.is_over and not until.passed:
            await asyncio.sleep(min(looks[0], until.remaining()))
            looks = looks[1:] or looks
            job = await self.find(head, id)
        return job


def _show(job: Job, resp: falcon.asgi.Response) -> None:
    resp.content_type = "application/json"
    resp.data = msgspec.json.encode(described.told(job))
    resp.set_header("cache-control", "no-store")


def _show_soon(job: Job, resp: falcon.asgi.Response) -> None:
    """A job that is not over, and when to look again."""
    for name, value in retry_after(1.0):
        resp.set_header(name, value)
    _show(job, resp)


class JobResource:
    """``/jobs/ID``."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, id: str) -> None:
        head = Exchange.of(req.scope).head
        assert head is not None
        _show(await self._jobs.wait(head, id), resp)

    async def on_delete(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, id: str) -> None:
        head = Exchange.of(req.scope).head
        assert head is not None
        await self._jobs.find(head, id)
        runner = self._jobs.runner
        await self._jobs.ask(lambda store: store.cancel(id, runner.clock()))
        runner.forget(id)
        resp.status = "204"


class ResultResource:
    """``/jobs/ID/result``."""

    def __init__(self, jobs: Jobs, answering: Answering) -> None:
        self._jobs = jobs
        self._answering = answering
        self._routes = {path: number for number, path in enumerate(jobs.routes)}

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, id: str) -> None:
        exchange = Exchange.of(req.scope)
        head = exchange.head
        assert head is not None
        job = await self._jobs.wait(head, id)
        answer = await self._jobs.ask(lambda store: store.answer(id)) if job.state.is_over else None
        if answer is not None:
            took_s = (job.ended or job.created) - job.created
            asked = replace(head, path=job.route)  # errors have the form of what was asked
            fill(
                resp,
                self._answering.result(self._routes.get(job.route, -1), asked, answer, exchange.request_id, took_s),
            )
            resp.set_header("cache-control", "no-store")
        elif job.state.is_over:
            raise Refusal(errors.NO_RESULT)
        else:
            resp.status = "202"
            _show_soon(job, resp)
