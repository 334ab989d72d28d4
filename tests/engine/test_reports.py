"""Whoever looks at a broker finds it as it is, in whatever state its workers are, and never breaks it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from engine import admin, transport
from engine.broker import report
from engine.broker.retired import SAMPLES_MOST, Retired
from engine.config import Deployment, build
from engine.core import about as abouts
from engine.core import stage as stage_rules
from engine.core import wire
from engine.core.batching import Policy
from engine.core.introduction import FRONTEND, UNREADABLE, Stranger, introduce
from engine.core.messages import Ask, Bye, FrontendBeat, Leave, Ready, StreamEvents, Submit, WorkerBeat
from engine.core.stage import StageSpec
from engine.core.worker_states import WorkerState
from engine.errors import StartError, Unavailable
from engine.metrics import Family, Sample, counter, pack, unpack, unpack_sources
from engine.status import table
from tests.core.test_bounds import entries
from tests.core.twin import FakeWorker, Twin, topology
from tests.engine.test_broker import (
    CAP_S,
    Worker,
    ask,
    client,
    got,
    in_thread,
    ready,
    running,
    status_of,
    until,
    until_async,
    worker,
)

SPEC = StageSpec(
    "s0", 1, Policy(1), timeout_s=2.0, kill_after_s=5.0, max_queue_bytes=1 << 20, idempotent=False
)  # fmt: skip


LIVING = [state for state in WorkerState if state is not WorkerState.GONE]  # that a stage can know


def bring(twin: Twin, state: WorkerState) -> FakeWorker:
    """A worker in this state."""
    fake = twin.worker(ready=state is not WorkerState.STARTING)
    machine = twin.stages[0]
    if state in (WorkerState.OVERDUE, WorkerState.LEAVING, WorkerState.DYING):
        twin.submit(1)
    if state is WorkerState.OVERDUE:
        twin.pass_time(2.0)
    elif state is WorkerState.LEAVING:
        machine.leave(fake.key, twin.now)
    elif state is WorkerState.DYING:
        machine.exited(fake.key, twin.now)
    assert machine.workers[fake.key].state is state
    return fake


def told(twin: Twin, what: str) -> bytes:
    retired: list[Family] = []
    question = Ask(what, last=1000)
    parts = [report.stage_part(machine, question, retired, twin.now, "engine") for machine in twin.stages]
    deployed = report.Deployed("t", "engine", report.BrokerStatus(), (0, 0), retired)
    return report.answer(twin.front, question, parts, deployed, twin.now)


def numbers(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in unpack(unpack_sources(page).broker)
        for sample in family.samples
    }


def by_state(page: bytes) -> dict[str, float]:
    return {dict(labels)["state"]: value for (name, labels), value in numbers(page).items() if name == "engine_workers"}


@pytest.mark.parametrize("state", LIVING)
def test_every_state_of_a_worker_can_be_told(state: WorkerState) -> None:
    twin = Twin(topology(), [SPEC])
    fake = bring(twin, state)
    (stage,) = json.loads(told(twin, "status"))["stages"]
    assert [(one["pid"], one["state"]) for one in stage["workers"]] == [(fake.pid, state.value)]
    assert by_state(told(twin, "metrics")) == {"spare": 0.0} | {one.value: float(one is state) for one in LIVING}
    assert abouts.unpack_all(told(twin, "about")) == {}


def test_a_spare_worker_is_told_from_those_at_work() -> None:
    twin = Twin(topology(), [replace(SPEC, spare=1)])
    for slot in (1, 2):
        twin.worker(slot=slot)
    (stage,) = json.loads(told(twin, "status"))["stages"]
    assert [(one["slot"], one["state"]) for one in stage["workers"]] == [(1, "ready"), (2, "spare")]
    assert (stage["ready"], stage["wanted"]) == (1, 1)
    assert by_state(told(twin, "metrics")) | {"ready": 1.0, "spare": 1.0} == by_state(told(twin, "metrics"))
    assert "s0     1/1 +1" in table(told(twin, "status"))


# --- through the broker ----------------------------------------------------------------------------------------------


def once_only(deployment: Deployment, **stage: Any) -> Deployment:
    data = {
        "engine": {"name": "t", "run_dir": deployment.engine.run_dir, "threads": deployment.engine.threads},
        "stage": [{"name": "s0", "worker": "m:W", "idempotent": False, "kill_after": 60.0, **stage}],
    }
    return build(data, file=deployment.file, label="stages.toml")


def look(deployment: Deployment, state: WorkerState) -> None:
    """All three questions, to a broker whose worker is in this state."""

    def states() -> list[str]:
        return [one["state"] for one in status_of(deployment)["stages"][0]["workers"]]

    until(lambda: states() == [state.value], state.value)
    assert by_state(admin.ask(deployment, "metrics", CAP_S))[state.value] == 1
    assert abouts.unpack_all(admin.ask(deployment, "about", CAP_S)) == {}


def test_a_broker_is_looked_at_in_every_state_of_a_worker(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_rules, "SETTLE_S", CAP_S)  # dying takes as long as it takes to look
    deployment = once_only(deployment, timeout=0.2)
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)

    async def scenario(w: Worker) -> None:
        async with client(deployment) as c:
            await until_async(lambda: ready(c), "readiness")
            answer = ask(c)
            batch, payloads = await in_thread(w.batch)
            await in_thread(look, deployment, WorkerState.OVERDUE)
            assert (await got(answer)).status == 408
            w.answer(batch, payloads)
            await in_thread(look, deployment, WorkerState.READY)
            ask(c)
            await in_thread(w.batch)
            await in_thread(w.send, Leave(w.key))
            await in_thread(look, deployment, WorkerState.LEAVING)
            process.kill()
            process.wait()
            await in_thread(look, deployment, WorkerState.DYING)

    try:
        with running(deployment) as broker:
            w = Worker(deployment, pid=process.pid)
            try:
                w.send(w.who)
                w.receive()
                look(deployment, WorkerState.STARTING)
                w.join()  # once more: it replaces itself
                look(deployment, WorkerState.READY)
                asyncio.run(scenario(w))
            finally:
                w.close()
            assert not broker.failed.is_set()
    finally:
        process.kill()
        process.communicate()


def untold(deployment: Deployment) -> float:
    return numbers(admin.ask(deployment, "metrics", CAP_S))["engine_reports_untold_total", ()]


@pytest.mark.parametrize("broken", ["stage_status", "status"])
def test_a_report_that_cannot_be_made_costs_only_itself(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    def fail(*_: object) -> bytes:
        raise KeyError("a state that nobody thought of")

    with running(deployment) as broker, worker(deployment):
        monkeypatch.setattr(report, broken, fail)
        found = status_of(deployment)
        whole = found["stages"][0] if broken == "stage_status" else found
        assert whole["error"] == report.UNTOLD
        assert "nobody thought of" in caplog.text
        assert untold(deployment) == 1
        monkeypatch.undo()
        assert status_of(deployment)["stages"][0]["name"] == "s0"
        assert not broker.failed.is_set()


@pytest.mark.parametrize("what", report.QUESTIONS)
def test_what_cannot_be_told_can_be_read(what: str) -> None:
    read: dict[str, Callable[[bytes], object]] = {
        "status": json.loads,
        "metrics": lambda body: unpack(unpack_sources(body).broker),
        "about": abouts.unpack_all,
        "why": json.loads,
    }
    assert read[what](report.untold(what, "t")) is not None


# --- what peers say of themselves ------------------------------------------------------------------------------------


def test_unreadable_metrics_of_the_dead_end_nobody(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    families = pack([counter("seen", "d", [({}, 3)])])
    with running(deployment) as broker:
        for told in (b"\xc1 no families", families):
            with worker(deployment) as w:
                w.send(WorkerBeat(w.key, told))
                w.receive()
                w.send(Bye(w.key))
                until(lambda: not status_of(deployment)["stages"][0]["workers"], "the goodbye")
        sources = unpack_sources(admin.ask(deployment, "metrics", CAP_S))
        assert [sample.value for family in unpack(sources.retired) for sample in family.samples] == [3]
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        ctx = transport.context()
        front = transport.dealer(ctx, transport.reaching(deployment).front)
        try:
            who = introduce(
                FRONTEND,
                deployment.topology,
                deployment=deployment.engine.name,
                instance="i",
                host=transport.host_token(),
                pid=process.pid,
            )
            until(lambda: transport.send(front, wire.encode(who)), "a connection")
            transport.send(front, wire.encode(FrontendBeat(b"\xc1")))
            until(lambda: status_of(deployment)["frontends"], "the frontend")
            process.kill()
            until(lambda: not status_of(deployment)["frontends"], "its end")
        finally:
            process.kill()
            process.communicate()
            front.close()
            ctx.term()
        assert not broker.failed.is_set()
    assert caplog.text.count("metrics of a process that has gone are lost") == 2


def test_numbers_that_no_process_and_no_stage_has_end_nobody(deployment: Deployment) -> None:
    async def scenario() -> None:
        with running(deployment) as broker, worker(deployment) as w:
            async with client(deployment) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c, b"x")
                batch, payloads = await in_thread(w.batch)
                for stage in (99, 7):
                    w.push(StreamEvents(stage, w.key, batch.uids, batch=batch.batch), [b"event"])
                odd = Worker(deployment)
                front = transport.dealer(odd.ctx, transport.reaching(deployment).front)
                try:
                    who = msgspec.structs.replace(odd.who, pid=2**63, host=transport.host_token())
                    await in_thread(odd.send, who)
                    assert await in_thread(odd.receive) == UNREADABLE
                    who = msgspec.structs.replace(who, kind=FRONTEND, pid=2**31 - 1)
                    await until_async(lambda: transport.send(front, wire.encode(who)), "a connection")
                    # A deadline past what a batch can say.
                    submit = wire.encode(Submit([1], [0], [2**64 - 1], [b""]), [b"x"])
                    await until_async(lambda: transport.send(front, submit), "a connection")
                    w.answer(batch, payloads)
                    assert (await got(answer)).status == 200
                finally:
                    front.close()
                    odd.close()
            assert not broker.failed.is_set()

    asyncio.run(scenario())


def test_a_worker_for_whom_there_is_no_lane_is_refused(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> Any:
        raise StartError("cannot make a socket: too many open files")

    with running(deployment) as broker:
        with monkeypatch.context() as patch:
            patch.setattr(transport, "lane", none_left)
            unlucky = Worker(deployment, pid=os.getpid())
            try:
                unlucky.send(unlucky.who)
                assert unlucky.receive() == Stranger()  # not now
            finally:
                unlucky.close()
        assert not status_of(deployment)["stages"][0]["workers"]
        with worker(deployment):
            until(lambda: status_of(deployment)["stages"][0]["ready"] == 1, "another worker")
        assert not broker.failed.is_set()


def test_what_is_kept_of_the_dead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's metric with a label that is another in each process, and workers that die again and again."""
    assert SAMPLES_MOST >= 10_000
    monkeypatch.setattr("engine.broker.retired.SAMPLES_MOST", 100)
    retired = Retired()
    for process in range(50):
        samples = [Sample("seen_total", {"pid": str(process), "kind": str(kind)}, 1.0) for kind in range(10)]
        retired.add(pack([Family("seen", "counter", "d", samples)]), whose=f"s0-{process}")
    assert sum(len(family.samples) for family in retired.families) == 100


def test_what_came_and_went_leaves_nothing_in_the_parts(deployment: Deployment) -> None:
    with running(deployment) as broker:
        kept = []
        for turn in range(40):
            with worker(deployment, slot=1 + turn % 2) as w:
                w.send(WorkerBeat(w.key, pack([counter("seen", "d", [({}, 1)])])))
                w.receive()
                for what in report.QUESTIONS:
                    admin.ask(deployment, what, CAP_S)
                w.send(Bye(w.key))
                until(lambda: not broker.stages[0].machine.workers, "the goodbye")
            status_of(deployment)  # a pass later
            kept.append(entries([broker.front, *broker.stages]))
        # By the second turn both slots have been there. What is about to go may still be there at any one look.
        until(lambda: entries([broker.front, *broker.stages]) <= min(kept[1:]), "as little as ever")


def test_more_questions_than_anybody_asks_are_dropped(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(deployment):
        with monkeypatch.context() as patch:
            patch.setattr("engine.broker.front.QUESTIONS_MOST", 0)
            with pytest.raises(Unavailable):
                admin.ask(deployment, "status", 0.05)
        assert status_of(deployment)["name"] == "t"


def test_memory_of_gpus_is_shown_of_those_who_hold_some() -> None:
    twin = Twin(topology(), [SPEC])
    fake = bring(twin, WorkerState.READY)
    name = "engine_device_memory_bytes"
    assert not [key for key in numbers(told(twin, "metrics")) if key[0] == name]
    twin.stages[0].beat(WorkerBeat(fake.key, device_bytes=3 << 30), twin.now)
    found = {key: value for key, value in numbers(told(twin, "metrics")).items() if key[0] == name}
    assert list(found.values()) == [3 << 30]
    (stage,) = json.loads(told(twin, "status"))["stages"]
    assert [worker["device_bytes"] for worker in stage["workers"]] == [3 << 30]


def test_workers_are_counted_by_host() -> None:
    twin = Twin(topology(), [SPEC])
    for slot, node in enumerate(("a", "a", "b", ""), start=1):
        key = twin.worker(slot=slot, ready=False).key
        twin.stages[0].ready(Ready(key, "application/json", node=node), twin.now)
    families = {family.name: family for family in unpack(unpack_sources(told(twin, "metrics")).broker)}
    counts = {sample.labels["host"]: sample.value for sample in families["engine_host_workers"].samples}
    assert counts == {"a": 2, "b": 1, "unknown": 1}
    assert {sample.labels["host"] for sample in families["engine_host_busy_seconds"].samples} == {"a", "b", "unknown"}


@pytest.mark.parametrize(("number", "told"), [(0.0, 0.0), (2.12345, 2.12), (1.5e-06, 1.5e-06)])
def test_a_little_demand_is_not_told_as_none(number: float, told: float) -> None:
    assert report._figure(number) == told
