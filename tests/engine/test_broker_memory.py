"""Shared memory at the broker: who is given references, who is given bytes, and what is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from engine import transport
from engine.broker import stage as broker_stage
from engine.client import Client
from engine.config import Deployment
from engine.core import wire, wording
from engine.core.arena import Ref, marks_end
from engine.core.messages import Place, Ready, Results, Welcome
from engine.errors import ProtocolError
from engine.memory import Store, Views
from stages.shm import Lease
from tests.engine.test_broker import (
    Worker,
    ask,
    client,
    deploy,
    got,
    in_thread,
    ready,
    running,
    until,
    until_async,
)

BODY = bytes(range(256)) * 1024


@pytest.fixture
def deployment(threads: str) -> Iterator[Deployment]:
    folder = tempfile.mkdtemp(prefix="sl-", dir="/tmp")
    yield deploy(folder, stages=2, threads=threads)
    shutil.rmtree(folder)


class Sharer(Worker):
    """A worker that says whether it can map, and keeps the arena it is given."""

    place: Place | None = None

    def meet(self, *, maps: bool) -> Sharer:
        self.send(self.who)
        welcome = self.receive()
        assert isinstance(welcome, Welcome)
        self.key, self.place = welcome.worker, welcome.memory
        self.lane = _lane(self, welcome)
        self.send(Ready(self.key, "text/plain", maps=maps))
        return self


def _lane(worker: Worker, welcome: Welcome) -> Any:
    return transport.lane_end(worker.ctx, welcome.lane)


async def shares(c: Client) -> None:
    await until_async(lambda: ready(c) and c._store is not None, "readiness and an arena")


async def batch_of(worker: Worker) -> tuple[Any, list[wire.Payload]]:
    return await in_thread(worker.batch)


@pytest.mark.parametrize(("here", "maps"), [(False, True), (True, False), (True, True)])
def test_references_are_for_watched_neighbours_that_can_map(deployment: Deployment, here: bool, maps: bool) -> None:
    pid = os.getpid() if here else None

    async def scenario() -> None:
        with running(deployment) as broker:
            first, second = Sharer(deployment, 0, pid=pid).meet(maps=maps), Sharer(deployment, 1).meet(maps=False)
            try:
                assert (first.place is not None) == (pid is not None)  # only those on this host
                async with client(deployment) as c:
                    await shares(c)
                    answer = ask(c, BODY)
                    batch, payloads = await batch_of(first)
                    assert broker.arenas.usage()[1] == len(BODY)
                    if pid and maps:
                        assert [type(one) for one in payloads] == [Ref]
                        views = Views()
                        arenas = views.open(payloads, batch.memory)
                        assert len(views) == 1
                        payloads = [Lease(arenas).view(one) for one in payloads]  # type: ignore[arg-type]
                    assert batch.refs == {} or (pid and maps)
                    assert bytes(payloads[0]) == BODY  # type: ignore[arg-type]
                    first.answer(batch, [b"small"])
                    batch, payloads = await batch_of(second)
                    await until_async(lambda: broker.arenas.usage()[1] == 0, "the body's release")
                    second.answer(batch, payloads)
                    assert (await got(answer)).body == b"small!!"
                    assert c._store is not None
                    assert c._store.used == 0
            finally:
                first.close()
                second.close()

    asyncio.run(scenario())


def test_results_by_reference_reach_a_worker_elsewhere_as_bytes(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment) as broker:
            first = Sharer(deployment, 0, pid=os.getpid()).meet(maps=True)
            second = Sharer(deployment, 1).meet(maps=True)
            assert first.place is not None
            store = Store(first.place)
            try:
                async with client(deployment) as c:
                    await shares(c)
                    answer = ask(c)
                    batch, _ = await batch_of(first)
                    ref = store.put(BODY)
                    assert ref is not None
                    first.push(results(first, batch), [(b"head", ref)], 1)  # type: ignore[list-item]
                    batch, (payload,) = await batch_of(second)
                    assert isinstance(payload, tuple)
                    assert [bytes(part) for part in payload] == [b"head", BODY]  # type: ignore[arg-type]
                    second.answer(batch, [b"done"])
                    assert (await got(answer)).body == b"done!"
                    until(lambda: store.used == 0, "the block to come back")
                    assert broker.arenas.usage()[1] == 0
            finally:
                store.close()
                first.close()
                second.close()

    asyncio.run(scenario())


def test_a_batch_in_more_pieces_than_a_worker_takes_is_answered(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        with running(deployment):
            first = Sharer(deployment, 0).meet(maps=False)
            second = Sharer(deployment, 1).meet(maps=False)
            try:
                async with client(deployment) as c:
                    await until_async(lambda: ready(c), "readiness")
                    answer = ask(c)
                    batch, _ = await batch_of(first)
                    first.push(results(first, batch), [(b"head", BODY, BODY)], 1)  # type: ignore[list-item]
                    batch, _ = await batch_of(second)
                    second.answer(batch, [b"done"])
                    assert (await got(answer)).body == b"done!"
                    answer = ask(c)
                    batch, _ = await batch_of(first)
                    frames = wire.encode(results(first, batch), [(b"head", BODY, BODY)])
                    monkeypatch.setattr(broker_stage, "encode", partial(with_limit, 3))
                    first.push_frames(frames, 1)
                    failed = await got(answer)
                    assert (failed.status, bytes(failed.body)) == (500, wording.TOO_MANY_PIECES.encode())
                    monkeypatch.undo()
                    answer = ask(c)
                    batch, _ = await batch_of(first)
                    first.push(results(first, batch), [b"x"], 1)
                    batch, _ = await batch_of(second)  # it has its credit again
                    second.answer(batch, [b"done"])
                    assert (await got(answer)).status == 200
            finally:
                first.close()
                second.close()

    asyncio.run(scenario())


def with_limit(most: int, message: Any, payloads: Any = ()) -> list[wire.Buffer]:
    frames = wire.encode(message, payloads)
    if len(frames) > most:
        raise ProtocolError("so many")
    return frames


def results(worker: Worker, batch: Any) -> Results:
    return Results(worker.stage, worker.key, batch.batch, batch.uids, [200] * len(batch.uids), batch.trails)


def test_references_that_cannot_be_are_refused_and_harm_nobody(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment) as broker:
            first = Sharer(deployment, 0, pid=os.getpid()).meet(maps=True)
            second = Sharer(deployment, 1, pid=os.getpid(), slot=2).meet(maps=True)
            place = first.place
            assert place is not None
            inside = marks_end(place.size)
            try:
                async with client(deployment) as c:
                    await shares(c)
                    answer = ask(c)
                    batch, payloads = await batch_of(first)
                    for ref in (
                        Ref(place.arena + 1, inside, 1),
                        Ref(place.arena, 0, 1),
                        Ref(place.arena, inside, place.size),
                        Ref(place.arena, inside + 1, 1),
                    ):
                        first.push(results(first, batch), [ref], 1)  # type: ignore[list-item]
                    first.push(results(first, batch), [Ref(place.arena, inside, 1)], -1)  # type: ignore[list-item]
                    first.answer(batch, payloads)  # the right one, after all that
                    batch, payloads = await batch_of(second)
                    assert payloads == [b"hi!"]
                    second.answer(batch, payloads)
                    assert (await got(answer)).body == b"hi!!"
                    assert broker.arenas.usage()[1] == 0
                    assert c._store is not None  # a frontend that refers to an arena that has ended
                    c._store._place = msgspec.structs.replace(c._store.place, arena=1)
                    lost = ask(c, BODY, timeout_s=30.0)
                    # It is told that they were not taken, and submits them again without references.
                    batch, payloads = await batch_of(first)
                    assert [bytes(one) for one in payloads] == [BODY]  # type: ignore[arg-type]
                    first.answer(batch, [b"a"])
                    second.answer((await batch_of(second))[0], [b"b"])
                    assert (await got(lost)).status == 200
            finally:
                first.close()
                second.close()

    asyncio.run(scenario())
